#!/usr/bin/env python
"""The whole way in a few minutes: render scenes, train, evaluate, draw; see docs/demo.md.

    python tools/demo.py [--iters N] [--work-dir DIR] [--seed N]

Needs no download and no GPU. Exit codes: 0 done; 2 bad input; else that of the training.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

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
from visattn_dense.visualization.progress import minutes  # noqa: E402

CONFIG = ROOT / 'configs/demo_upernet_cswin_scenes.py'


class Evaluation(NamedTuple):
    """IoU of each class in percent (NaN: neither in truth nor prediction), beside a constant's."""

    iou: np.ndarray
    share: np.ndarray
    constant: int
    accuracy: float

    @property
    def miou(self) -> float:
        return float(np.nanmean(self.iou))

    @property
    def constant_miou(self) -> float:
        """Of predicting the most frequent class everywhere: its share over the classes there."""
        return float(self.share[self.constant] / (self.share > 0).sum())


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    return demo_parser(
        'demo.py', 'Render street scenes, train a small CSWin + UPerNet on them, evaluate it and '
        'draw what it predicts.', work_dir='work_dirs/demo', iters=800, train_scenes=320,
    ).parse_args(arguments)


def evaluate(run: Path, iters: int) -> tuple[Evaluation, list, object]:
    """IoU over the validation scenes, and (image, truth, prediction) of each of them."""
    import mmcv
    import torch
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmseg.evaluation import IoUMetric
    from mmseg.registry import DATASETS

    from visattn_dense.inference import open_segmentor
    from visattn_dense.visualization import Row
    cfg = Config.fromfile(run / CONFIG.name)
    segmentor = open_segmentor(cfg, run / f'iter_{iters}.pth')
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    areas, rows = [], []
    for number in range(len(dataset)):
        path = dataset.get_data_info(number)['img_path']
        truth = dataset[number]['data_samples'].gt_sem_seg.data[0]
        rows.append(Row(mmcv.imread(path, channel_order='rgb'), truth.numpy(),
                        segmentor.label(path)))
        areas.append(IoUMetric.intersect_and_union(
            torch.from_numpy(rows[-1].prediction.astype(np.int64)), truth.long(),
            len(segmentor.classes), 255))
    both, union, _, labelled = (sum(parts).numpy() for parts in zip(*areas, strict=True))
    with np.errstate(invalid='ignore'):
        iou = 100 * both / union
    share = 100 * labelled / labelled.sum()
    return (Evaluation(iou, share, int(share.argmax()), float(100 * both.sum() / labelled.sum())),
            rows, segmentor)


def best_examples(rows: list, count: int = 6) -> list:
    """The scenes whose truth shows the most classes: chosen without a look at the predictions."""
    def variety(row) -> int:
        return int((np.bincount(row.truth[row.truth != 255]) > 40).sum())
    return sorted(rows, key=variety, reverse=True)[:count]


def table(result: Evaluation, names: list[str]) -> str:
    """IoU per class, most frequent first, beside that of the best constant predictor."""
    constant = f"all '{names[result.constant]}'"
    lines = [f'  {"class":<15}{"of pixels":>11}{"IoU":>9}{constant:>16}']
    for i in np.argsort(-result.share, kind='stable'):
        if result.share[i] == 0:
            continue
        always = result.share[i] if i == result.constant else 0.
        lines.append(f'  {names[i]:<15}{result.share[i]:>9.1f} %{result.iou[i]:>9.1f}'
                     f'{always:>16.1f}')
    lines.append(f'  {"mIoU":<15}{"":>11}{result.miou:>9.1f}{result.constant_miou:>16.1f}')
    lines.append(f'  {"pixel accuracy":<15}{"":>11}{result.accuracy:>9.1f}'
                 f'{result.share[result.constant]:>16.1f}')
    return '\n'.join(lines)


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
    train(CONFIG, run, data / 'ade', args.iters, arguments=['--seed', str(args.seed)], options={
        **schedule_options(args.iters), 'train_cfg.val_interval': max(1, args.iters // 4),
        'default_hooks.checkpoint.interval': max(1, args.iters // 4)})
    print('3/4  evaluation')
    result, rows, segmentor = evaluate(run, args.iters)
    names = list(segmentor.classes)
    print(table(result, names))
    print('4/4  pictures')
    from visattn_dense.visualization import draw_curve, draw_sheet, read_scalars
    from visattn_dense.visualization.curve import newest_scalars
    scores = (f'mIoU {result.miou:.1f}, pixel accuracy {result.accuracy:.1f} % '
              f'(best constant predictor: {result.constant_miou:.1f} and '
              f'{result.share[result.constant]:.1f} %)')
    sheet, curve = args.work_dir / 'sheet.png', args.work_dir / 'curve.png'
    draw_sheet(best_examples(rows), names, segmentor.palette,
               title='CSWin + UPerNet on rendered street scenes',
               subtitle=f'{args.iters} iterations from random weights: {scores}').save(sheet)
    draw_curve(curve, read_scalars(newest_scalars(run)), title='CSWin + UPerNet on street scenes',
               baseline=result.constant_miou)
    took = time.monotonic() - begun
    (run / MARK).write_text(json.dumps(dict(
        iters=args.iters, seed=args.seed, seconds=round(took), miou=result.miou,
        constant_miou=result.constant_miou, accuracy=result.accuracy,
        iou={name: None if np.isnan(iou) else float(iou)
             for name, iou in zip(names, result.iou, strict=True)}), indent=1) + '\n')
    print(f'  {sheet}  image | truth | prediction\n  {curve}  loss and mIoU\n'
          f'Done in {minutes(took)}. Segment pictures with it:\n'
          f'  python tools/infer.py {os.path.relpath(CONFIG)} {run / f"iter_{args.iters}.pth"} '
          f'{data}/ade/images/validation')


def main(arguments: list[str] | None = None) -> int:
    return run_tool(run_demo, parse_args(arguments))


if __name__ == '__main__':
    sys.exit(main())
