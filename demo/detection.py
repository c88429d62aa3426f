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


@dataclass(frozen=True)
class Scores:
    """COCO's metrics, the number of true objects of each class, and the names of the classes."""

    metrics: dict[str, Any]
    counts: np.ndarray
    names: Sequence[str]

    def table(self) -> str:
        """AP in percent: of boxes and masks, and of the masks of each class."""
        metrics, counts, names = self.metrics, self.counts, self.names
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


def evaluate(cfg: Config, checkpoint: Path) -> Scores:
    """Metrics of COCO over the validation scenes of a config."""
    import torch
    from mmdet.registry import DATASETS, METRICS, MODELS
    from mmdet.utils import register_all_modules
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DefaultScope
    from mmengine.runner import load_checkpoint
    register_all_modules(init_default_scope=False)
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
        metrics = metric.evaluate(len(dataset))
    names = list(dataset.metainfo['classes'])
    labels = [each['bbox_label'] for index in range(len(dataset))
              for each in dataset.get_data_info(index)['instances'] if not each['ignore_flag']]
    return Scores(metrics, np.bincount(labels, minlength=len(names)), names)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what pycocotools prints and mmdet logs, tables among it; ours is shorter."""
    with contextlib.redirect_stdout(io.StringIO()):
        logging.disable(logging.INFO)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


DEMO = Demo(
    description='Render street scenes, train a small Mask R-CNN with CSWin on them, evaluate it '
    'and draw what it finds.',
    work_dir='work_dirs/demo_detection', iters=2000, train_scenes=480,
    config=CONFIGS / 'demo_mask_rcnn_cswin_scenes.py', layout='coco',
    evaluate=evaluate,
    next_step='Evaluate it again with:\n'
    '  SCENES_ROOT={data} python tools/test.py {config} {checkpoint}')
