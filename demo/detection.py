"""The detection demo: CSWin + Mask R-CNN, COCO's AP of boxes and masks."""
from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from demo.runner import CONFIGS, Demo
from visattn_dense.visualization.instances import InstanceRow, Instances, draw_instance_sheet

_SHOWN = 0.5  # score from which a prediction is drawn


@dataclass(frozen=True)
class Scores:
    """COCO's metrics, and the truth and what was found in each validation scene."""

    metrics: dict[str, Any]
    rows: Sequence[InstanceRow]
    names: Sequence[str]
    palette: Sequence[Sequence[int]]

    def table(self) -> str:
        """AP in percent: of boxes and masks, and of the masks of each class."""
        metrics, names = self.metrics, self.names
        counts = np.bincount(
            np.concatenate([row.truth.labels[~row.truth.crowd] for row in self.rows]),
            minlength=len(names))
        lines = [f'  {"":<15}{"objects":>9}{"AP":>8}{"AP50":>8}{"AP75":>8}']
        for kind, name in (('bbox', 'boxes'), ('segm', 'masks')):
            values = (100 * metrics[f'coco/{kind}_{key}'] for key in ('mAP', 'mAP_50', 'mAP_75'))
            lines.append(f'  {name:<15}{counts.sum():>9}' + ''.join(f'{v:>8.1f}' for v in values))
        for number in np.argsort(-counts, kind='stable'):
            value = metrics.get(f'coco/{names[number]}_precision', float('nan'))
            if counts[number]:
                lines.append(f'    {names[number]:<13}{counts[number]:>9}{100 * value:>8.1f}')
        return '\n'.join(lines) + '\n  (each class: its mask AP)'

    def record(self) -> dict[str, Any]:
        return {key.removeprefix('coco/'): value for key, value in self.metrics.items()}

    def draw(self, work_dir: Path, run: Path, training: str) -> list[tuple[Path, str]]:
        """A sheet of the scenes with the most classes, then objects."""
        box, mask = (100 * self.metrics[f'coco/{kind}_mAP'] for kind in ('bbox', 'segm'))
        sheet = work_dir / 'sheet.png'
        examples = sorted(self.rows, key=_richness, reverse=True)[:6]
        draw_instance_sheet(
            examples, self.names, self.palette,
            title='CSWin + Mask R-CNN on rendered street scenes',
            subtitle=f'{training}: box AP {box:.1f}, mask AP {mask:.1f}; shown from a score of '
            f'{100 * _SHOWN:.0f} %').save(sheet)
        return [(sheet, 'truth | prediction')]


def _richness(row: InstanceRow) -> tuple[int, int]:
    """Classes and objects of the truth; the predictions have no part in the choice."""
    return len(set(row.truth.labels.tolist())), len(row.truth.labels)


def evaluate(cfg: Config, checkpoint: Path) -> Scores:
    """Metrics of COCO over the validation scenes of a config."""
    import mmcv
    import torch
    from mmdet.registry import DATASETS, METRICS, MODELS
    from mmdet.utils import register_all_modules
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DefaultScope
    from mmengine.runner import load_checkpoint
    register_all_modules(init_default_scope=False)
    rows = []
    with DefaultScope.overwrite_default_scope('mmdet'), _quiet():
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        metric = METRICS.build(dict(cfg.test_evaluator, classwise=True))
        metric.dataset_meta = dataset.metainfo
        model = MODELS.build(cfg.model).eval()
        load_checkpoint(model, str(checkpoint), map_location='cpu')
        with torch.inference_mode():
            for sample in dataset:
                (found,) = model.test_step(pseudo_collate([sample]))
                metric.process({}, [found.to_dict()])
                image = mmcv.imread(found.img_path, channel_order='rgb')
                rows.append(InstanceRow(image, _truth(sample), _prediction(found)))
        metrics = metric.evaluate(len(dataset))
    return Scores(metrics, rows, list(dataset.metainfo['classes']), dataset.metainfo['palette'])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what pycocotools prints and mmdet logs, tables among it; ours is shorter."""
    with contextlib.redirect_stdout(io.StringIO()):
        logging.disable(logging.INFO)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _truth(sample: dict) -> Instances:
    """Objects and crowd regions of a sample whose image was not resized."""
    parts = [sample['data_samples'].gt_instances, sample['data_samples'].ignored_instances]
    height, width = sample['data_samples'].ori_shape
    masks = [part.masks.masks.reshape(-1, height, width).astype(bool) for part in parts]
    return Instances(
        np.concatenate(masks),
        np.concatenate([part.bboxes.tensor.numpy().reshape(-1, 4) for part in parts]),
        np.concatenate([part.labels.numpy() for part in parts]),
        crowd=np.repeat([False, True], [len(part) for part in masks]))


def _prediction(found: Any) -> Instances:
    kept = found.pred_instances[found.pred_instances.scores >= _SHOWN]
    return Instances(kept.masks.numpy().astype(bool), kept.bboxes.numpy(), kept.labels.numpy(),
                     kept.scores.numpy())


DEMO = Demo(
    description='Render street scenes, train a small Mask R-CNN with CSWin on them, evaluate it '
    'and draw what it finds.',
    work_dir='work_dirs/demo_detection', iters=2000, train_scenes=480,
    config=CONFIGS / 'demo_mask_rcnn_cswin_scenes.py', layout='coco',
    options=lambda iters: {'default_hooks.checkpoint.interval': iters}, evaluate=evaluate,
    next_step='Evaluate it again with:\n'
    '  SCENES_ROOT={data} python tools/test.py {config} {checkpoint}',
    train_arguments=('--no-validate',))
