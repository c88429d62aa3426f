#!/usr/bin/env python
"""Score any segmentation predictions that lie in a folder as label PNGs.

    python tools/eval_miou.py PRED_DIR LABEL_DIR --dataset ade20k --boundary --plot iou.png

Prints IoU and accuracy of every class, mIoU, aAcc and mAcc in per cent. docs/evaluation.md
describes the files. Exit code: 0, or 2 with one message for bad input.
"""
from __future__ import annotations

import argparse
import sys

import _checkout  # noqa: F401  (first)

from visattn_dense.atomic import write_text_whole
from visattn_dense.command import add_debug, run
from visattn_dense.evaluation.boundary import DEFAULT_RATIO
from visattn_dense.evaluation.dataset_files import DATASETS, DatasetFiles, read_classes
from visattn_dense.evaluation.pairs import match_files
from visattn_dense.evaluation.report import (
    as_csv,
    as_json,
    as_table,
    check_outputs,
    segmentation_report,
    segmentation_rows,
    segmentation_summary,
)
from visattn_dense.evaluation.segmentation import Scores, Settings, count_pairs


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Score segmentation predictions (label PNGs).')
    parser.add_argument('pred_dir', help='folder of predictions, PNGs of class indices')
    parser.add_argument('label_dir', help='folder of labels, PNGs of the same names and sizes')
    classes = parser.add_mutually_exclusive_group(required=True)
    classes.add_argument('--num-classes', type=int, metavar='N')
    classes.add_argument('--dataset', choices=DATASETS,
                         help='class names and file conventions of this dataset')
    classes.add_argument('--classes', metavar='FILE', help='class names, one on each line')
    parser.add_argument('--reduce-zero-label', action=argparse.BooleanOptionalAction, default=None,
                        help='the files hold 0 for "other" and 1..N for the classes; on for ade20k')
    parser.add_argument('--pred-zero-based', action='store_true',
                        help='with --reduce-zero-label: predictions nevertheless hold 0..N-1')
    parser.add_argument('--ignore-index', type=int, default=255, metavar='VALUE',
                        help='label value that is not judged (%(default)s)')
    parser.add_argument('--boundary', type=float, nargs='?', const=DEFAULT_RATIO, metavar='WIDTH',
                        help='also boundary IoU; the width is a share of the image diagonal '
                             f'({DEFAULT_RATIO})')
    parser.add_argument('--pred-suffix', help='ending of the prediction files (.png)')
    parser.add_argument('--label-suffix', help='ending of the label files (.png)')
    parser.add_argument('--csv', metavar='FILE', help='write a row for each class')
    parser.add_argument('--json', metavar='FILE', help='write everything, confusion matrix too')
    parser.add_argument('--plot', metavar='FILE', help='draw IoU and confusion matrix (.png, ...)')
    parser.add_argument('--workers', type=int, default=2, help='processes (%(default)s)')
    add_debug(parser)
    return parser.parse_args()


def class_names(args: argparse.Namespace) -> tuple[str, ...]:
    if args.dataset:
        from visattn_dense.openmmlab.datasets.class_names import dataset_classes
        return dataset_classes(args.dataset)
    if args.classes:
        return read_classes(args.classes)
    return tuple(str(i) for i in range(args.num_classes))


def evaluate(args: argparse.Namespace) -> None:
    files = DATASETS[args.dataset] if args.dataset else DatasetFiles('')
    reduce = files.reduce_zero_label if args.reduce_zero_label is None else args.reduce_zero_label
    check_outputs([args.csv, args.json, args.plot], inputs=[args.pred_dir, args.label_dir])
    if args.plot:
        # matplotlib takes a second to load, so only a plot loads it.
        from visattn_dense.evaluation.plots import check_plot_path, plot_segmentation
        check_plot_path(args.plot)
    classes = class_names(args)
    settings = Settings(len(classes), args.ignore_index, reduce, args.pred_zero_based,
                        args.boundary)
    pairs = match_files(args.pred_dir, args.label_dir, workers=args.workers,
                        pred_suffix=args.pred_suffix or files.pred_suffix,
                        label_suffix=args.label_suffix or files.label_suffix)
    scores = Scores(count_pairs(pairs, settings, workers=args.workers, progress=True))

    header, rows = segmentation_rows(scores, classes)
    print(as_table(header, rows))
    summary = segmentation_summary(scores)
    print(f'\n{len(pairs)} images: '
          + '  '.join(f'{name} {value:.2f}' for name, value in summary.items()))
    if reduce and not args.pred_zero_based and scores.counts.pred_zeros:
        print(f'note: {scores.counts.pred_zeros} predicted pixels hold 0, which stands for no '
              'class where labels count from 1; if the predictions count from 0, give '
              '--pred-zero-based', file=sys.stderr)
    if args.csv:
        write_text_whole(args.csv, as_csv(header, rows))
    if args.json:
        write_text_whole(args.json, as_json(segmentation_report(scores, classes, settings)))
    if args.plot:
        plot_segmentation(scores, classes, args.plot)


if __name__ == '__main__':
    sys.exit(run(evaluate, parse_args()))
