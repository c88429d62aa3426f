"""The segmentation demo: CSWin + UPerNet, IoU of each class beside the best constant predictor."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from demo.runner import CONFIGS, Demo


@dataclass(frozen=True)
class Scores:
    """What the trained model does on the validation scenes, beside a constant predictor.

    Attributes:
        iou: (C,) percent; NaN for a class that is neither in the truth nor in the prediction.
        share: (C,) percent of the labelled pixels.
        constant: the most frequent class.
        accuracy: percent of the labelled pixels.
        names: of the classes.
    """

    iou: np.ndarray
    share: np.ndarray
    constant: int
    accuracy: float
    names: Sequence[str] = ()

    @property
    def miou(self) -> float:
        return float(np.nanmean(self.iou))

    @property
    def constant_miou(self) -> float:
        """Of predicting the most frequent class everywhere: its share over the classes there."""
        return float(self.share[self.constant] / (self.share > 0).sum())

    def table(self) -> str:
        """IoU per class, most frequent first, beside that of the best constant predictor."""
        names, best = self.names, self.share[self.constant]
        constant = f"all '{names[self.constant]}'"
        lines = [f'  {"class":<15}{"of pixels":>11}{"IoU":>9}{constant:>16}']
        for i in np.argsort(-self.share, kind='stable'):
            if self.share[i] == 0:
                continue
            always = self.share[i] if i == self.constant else 0.
            lines.append(f'  {names[i]:<15}{self.share[i]:>9.1f} %{self.iou[i]:>9.1f}'
                         f'{always:>16.1f}')
        lines.append(f'  {"mIoU":<15}{"":>11}{self.miou:>9.1f}{self.constant_miou:>16.1f}')
        lines.append(f'  {"pixel accuracy":<15}{"":>11}{self.accuracy:>9.1f}{best:>16.1f}')
        return '\n'.join(lines)

    def record(self) -> dict[str, Any]:
        return dict(
            miou=self.miou, constant_miou=self.constant_miou, accuracy=self.accuracy,
            iou={name: None if np.isnan(iou) else float(iou)
                 for name, iou in zip(self.names, self.iou, strict=True)})


def evaluate(cfg: Config, checkpoint: Path) -> Scores:
    """IoU over the validation scenes of a config."""
    import torch
    from mmengine.registry import DefaultScope
    from mmseg.evaluation import IoUMetric
    from mmseg.registry import DATASETS

    from visattn_dense.inference import open_segmentor
    segmentor = open_segmentor(cfg, checkpoint)
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    areas = []
    for number in range(len(dataset)):
        path = dataset.get_data_info(number)['img_path']
        truth = dataset[number]['data_samples'].gt_sem_seg.data[0]
        areas.append(IoUMetric.intersect_and_union(
            torch.from_numpy(segmentor.label(path).astype(np.int64)), truth.long(),
            len(segmentor.classes), 255))
    both, union, _, labelled = (sum(parts).numpy() for parts in zip(*areas, strict=True))
    with np.errstate(invalid='ignore'):
        iou = 100 * both / union
    share = 100 * labelled / labelled.sum()
    return Scores(iou, share, int(share.argmax()), float(100 * both.sum() / labelled.sum()),
                  list(segmentor.classes))


DEMO = Demo(
    description='Render street scenes, train a small CSWin + UPerNet on them, evaluate it and '
    'draw what it predicts.',
    work_dir='work_dirs/demo', iters=800, train_scenes=320,
    config=CONFIGS / 'demo_upernet_cswin_scenes.py', layout='ade', evaluate=evaluate,
    next_step='Segment pictures with it:\n'
    '  python tools/infer.py {config} {checkpoint} {data}/images/validation')
