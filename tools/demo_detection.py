#!/usr/bin/env python
"""Detection, the whole way in minutes: render scenes, train, evaluate, draw; docs/detection.md.

    python tools/demo_detection.py [--iters N] [--work-dir DIR] [--seed N]

Needs no download and no GPU. Exit codes: 0 done; 2 bad input; else that of the training.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

import visattn_dense  # noqa: E402, F401  (mends and registers)
from visattn_dense.datasets.scenes import write_dataset  # noqa: E402
from visattn_dense.demo import (  # noqa: E402
    MARK,
    demo_parser,
    prepare,
    run_tool,
    schedule_options,
    train,
)
from visattn_dense.errors import UserError  # noqa: E402
from visattn_dense.visualization.instances import (  # noqa: E402
    InstanceRow,
    Instances,
    draw_instance_sheet,
)
from visattn_dense.visualization.progress import minutes  # noqa: E402

CONFIG = ROOT / 'configs/demo_mask_rcnn_cswin_scenes.py'
_SHOWN = 0.5  # score from which a prediction is drawn


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    return demo_parser(
        'demo_detection.py', 'Render street scenes, train a small Mask R-CNN with CSWin on them, '
        'evaluate it and draw what it finds.', work_dir='work_dirs/demo_detection', iters=2000,
        train_scenes=480).parse_args(arguments)


def evaluate(run: Path, iters: int) -> tuple[dict[str, Any], list[InstanceRow], dict[str, Any]]:
    """Metrics of COCO over the validation scenes, what was found in each, names and colours."""
    import mmcv
    import torch
    from mmdet.registry import DATASETS, METRICS, MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DefaultScope
    from mmengine.runner import load_checkpoint
    register_all_modules(init_default_scope=False)
    cfg = Config.fromfile(run / CONFIG.name)
    rows = []
    with DefaultScope.overwrite_default_scope('mmdet'), _quiet():
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        metric = METRICS.build(dict(cfg.test_evaluator, classwise=True))
        metric.dataset_meta = dataset.metainfo
        model = MODELS.build(cfg.model).eval()
        load_checkpoint(model, str(run / f'iter_{iters}.pth'), map_location='cpu')
        with torch.inference_mode():
            for sample in dataset:
                (found,) = model.test_step(pseudo_collate([sample]))
                metric.process({}, [found.to_dict()])
                image = mmcv.imread(found.img_path, channel_order='rgb')
                rows.append(InstanceRow(image, _truth(sample), _prediction(found)))
        metrics = metric.evaluate(len(dataset))
    return metrics, rows, dict(dataset.metainfo)


@contextlib.contextmanager
def _quiet():
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


def _prediction(found) -> Instances:
    kept = found.pred_instances[found.pred_instances.scores >= _SHOWN]
    return Instances(kept.masks.numpy().astype(bool), kept.bboxes.numpy(), kept.labels.numpy(),
                     kept.scores.numpy())


def best_examples(rows: list[InstanceRow], count: int = 6) -> list[InstanceRow]:
    """The scenes with the most classes, then objects: chosen without a look at predictions."""
    def richness(row: InstanceRow) -> tuple[int, int]:
        return len(set(row.truth.labels.tolist())), len(row.truth.labels)
    return sorted(rows, key=richness, reverse=True)[:count]


def table(metrics: dict[str, Any], names: list[str], rows: list[InstanceRow]) -> str:
    """AP in percent: of boxes and masks, and of the masks of each class."""
    counts = np.bincount(np.concatenate([row.truth.labels[~row.truth.crowd] for row in rows]),
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


def run_demo(args: argparse.Namespace) -> None:
    """Render, train, evaluate, draw; each step says what it does and where it puts it."""
    if args.iters < 4:
        raise UserError(f'--iters is at least 4, got {args.iters}')
    begun = time.monotonic()
    data, run = args.work_dir / 'data', prepare(args.work_dir)
    print(f'1/4  scenes: {args.train_scenes} to train on, {args.val_scenes} to evaluate on')
    rendered = write_dataset(data, args.train_scenes, args.val_scenes, seed=args.seed,
                             progress=sys.stderr.isatty())
    print(f'  {"rendered" if rendered else "there already"}: {data}')
    print(f'2/4  training, {args.iters} iterations; its output is in {run / "train.log"}')
    train(CONFIG, run, data / 'coco', args.iters,
          arguments=['--seed', str(args.seed), '--no-validate'],
          options={**schedule_options(args.iters),
                   'default_hooks.checkpoint.interval': args.iters})
    print('3/4  evaluation')
    metrics, rows, meta = evaluate(run, args.iters)
    names = list(meta['classes'])
    print(table(metrics, names, rows))
    print('4/4  pictures')
    box, mask = 100 * metrics['coco/bbox_mAP'], 100 * metrics['coco/segm_mAP']
    sheet = args.work_dir / 'sheet.png'
    draw_instance_sheet(
        best_examples(rows), names, meta['palette'],
        title='CSWin + Mask R-CNN on rendered street scenes',
        subtitle=f'{args.iters} iterations from random weights: box AP {box:.1f}, mask AP '
                 f'{mask:.1f}; shown from a score of {100 * _SHOWN:.0f} %').save(sheet)
    took = time.monotonic() - begun
    (run / MARK).write_text(json.dumps(dict(
        iters=args.iters, seed=args.seed, seconds=round(took),
        **{key.removeprefix('coco/'): value for key, value in metrics.items()}), indent=1) + '\n')
    print(f'  {sheet}  truth | prediction\nDone in {minutes(took)}. Evaluate it again with:\n'
          f'  SCENES_ROOT={data}/coco python tools/test.py {os.path.relpath(CONFIG)} '
          f'{run / f"iter_{args.iters}.pth"}')


def main(arguments: list[str] | None = None) -> int:
    return run_tool(run_demo, parse_args(arguments))


if __name__ == '__main__':
    sys.exit(main())
