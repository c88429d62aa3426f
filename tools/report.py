#!/usr/bin/env python
"""Write what a model can do, and where it fails, into one HTML file that opens anywhere.

    python tools/report.py work_dirs/RUN
    python tools/report.py --predictions PRED_DIR --truth LABEL_DIR --dataset camvid --images IMAGES
    python tools/report.py --predictions RESULTS.json --truth ANNOTATIONS.json --images IMAGES

RUN is the folder of a training: its best checkpoint predicts first. --compare sets a second run, or
second predictions, beside the first. docs/report.md says what the page holds. Exit code: 0, or 2
with one message where something does not fit.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _checkout  # noqa: F401  (first)

from visattn_dense.atomic import write_text_whole
from visattn_dense.command import add_debug, run
from visattn_dense.errors import UserError
from visattn_dense.evaluation.boundary import DEFAULT_RATIO
from visattn_dense.evaluation.dataset_files import DATASETS, DatasetFiles, read_classes
from visattn_dense.evaluation.pairs import match_files
from visattn_dense.evaluation.report import check_outputs
from visattn_dense.evaluation.segmentation import Settings
from visattn_dense.report import build
from visattn_dense.report.pictures import images_by_stem
from visattn_dense.report.segmentation import Task
from visattn_dense.visualization.colour import distinct_palette


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Write the report of a model as one HTML file.')
    parser.add_argument('run', nargs='?', metavar='RUN', help='folder of a training')
    parser.add_argument('--checkpoint', metavar='FILE',
                        help='of RUN; by default the best one, or else the newest')
    parser.add_argument('--predictions', metavar='DIR|JSON',
                        help='instead of RUN: folder of label PNGs, or COCO results')
    parser.add_argument('--truth', metavar='DIR|JSON', help='folder of label PNGs, or annotations')
    parser.add_argument('--images', metavar='DIR', help='the photographs, shown in the examples')
    parser.add_argument('--compare', metavar='RUN_B|DIR|JSON',
                        help='a second RUN, or second predictions for the same truth')
    parser.add_argument('--out', metavar='FILE',
                        help='the page (report.html; inside RUN where RUN is given)')
    parser.add_argument('--name', help='title of the page')
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument('--dataset', choices=DATASETS, help='classes and files of this dataset')
    classes.add_argument('--classes', metavar='FILE', help='class names, one on each line')
    classes.add_argument('--num-classes', type=int, metavar='N')
    parser.add_argument('--reduce-zero-label', action=argparse.BooleanOptionalAction, default=None,
                        help='labels hold 0 for "other" and 1..N for the classes; on for ade20k')
    parser.add_argument('--pred-zero-based', action='store_true',
                        help='with --reduce-zero-label: predictions hold 0..N-1 all the same')
    parser.add_argument('--ignore-index', type=int, default=255, metavar='VALUE')
    parser.add_argument('--pred-suffix', help='ending of the prediction files (.png)')
    parser.add_argument('--label-suffix', help='ending of the label files (.png)')
    parser.add_argument('--no-boundary', action='store_true',
                        help='leave boundary IoU out: the counting takes half the time')
    parser.add_argument('--type', choices=('bbox', 'segm'),
                        help='of detections; by default boxes, or masks where there are no boxes')
    parser.add_argument('--pictures', type=int, default=240, metavar='N',
                        help='at most so many pictures in the page (%(default)s)')
    parser.add_argument('--picture-bytes', type=int, default=12_000_000, metavar='N',
                        help='at most so many bytes of pictures (%(default)s)')
    parser.add_argument('--workers', type=int, default=2, help='processes (%(default)s)')
    add_debug(parser)
    return parser.parse_args()


def from_files(args: argparse.Namespace) -> build.Work:
    """What the command line names with --predictions and --truth.

    Raises:
        UserError: files are missing or do not fit together.
    """
    if not (args.predictions and args.truth):
        raise UserError('give RUN, or both --predictions and --truth')
    title = args.name or Path(args.predictions).stem
    if Path(args.truth).is_file():
        if args.images:
            build.check_photos(args.truth, args.images)
        return build.Detections(
            title=title, results=args.predictions, annotations=args.truth, kind=args.type,
            images=args.images, other=args.compare)
    files = DATASETS[args.dataset] if args.dataset else DatasetFiles('')
    classes = class_names(args)
    reduce = files.reduce_zero_label if args.reduce_zero_label is None else args.reduce_zero_label
    settings = Settings(len(classes), args.ignore_index, reduce, args.pred_zero_based,
                        None if args.no_boundary else DEFAULT_RATIO)
    pred_suffix = args.pred_suffix or files.pred_suffix
    sides = [match_files(folder, args.truth, workers=args.workers, pred_suffix=pred_suffix,
                         label_suffix=args.label_suffix or files.label_suffix)
             for folder in (args.predictions, args.compare) if folder]
    images = images_of(args.images, pred_suffix, [pair.name for pair in sides[0]])
    return build.Labels(
        title=title, task=Task(classes, distinct_palette(len(classes)), settings, images),
        pairs=sides[0], other=sides[1] if args.compare else None)


def class_names(args: argparse.Namespace) -> tuple[str, ...]:
    if args.dataset:
        from visattn_dense.openmmlab.datasets.class_names import dataset_classes
        return dataset_classes(args.dataset)
    if args.classes:
        return read_classes(args.classes)
    if args.num_classes:
        return tuple(str(i) for i in range(args.num_classes))
    raise UserError('say what the classes are: --classes FILE, --dataset or --num-classes')


def images_of(folder: str | None, pred_suffix: str, names: list[str]) -> dict[str, Path]:
    """The photograph of each pair, by its name.

    Raises:
        UserError: the folder is missing, no photograph in it fits, or two have one name.
    """
    if folder is None:
        return {}
    if not Path(folder).is_dir():
        raise UserError(f'there is no folder of images {folder}')
    # Predictions have the names of the images: what ends a prediction ends an image too.
    ending = Path(pred_suffix).stem if Path(pred_suffix).suffix else ''
    by_stem = images_by_stem(folder, [name + ending for name in names])
    found = {name: by_stem[name + ending] for name in names if name + ending in by_stem}
    if not found:
        raise UserError(f'no image in {folder} has the name of a prediction, like '
                        f'{names[0] + ending}')
    return found


def write(args: argparse.Namespace) -> None:
    given = [args.predictions, args.truth, args.images]
    if args.run and any(given):
        raise UserError('give RUN, or --predictions and --truth, but not both')
    if args.run and not Path(args.run).is_dir():
        raise UserError(f'there is no folder {args.run}; give the work_dir of a training')
    out = args.out or (Path(args.run, 'report.html') if args.run else 'report.html')
    check_outputs([out], inputs=[path for path in (*given, args.compare) if path])
    if args.run:
        # torch and OpenMMLab load only for a run.
        from visattn_dense.openmmlab.engine.finished import work_of_run
        work = work_of_run(args.run, args.checkpoint, args.compare, title=args.name,
                           kind=args.type, boundary=not args.no_boundary)
    else:
        work = from_files(args)
    page = work.report(workers=args.workers, pictures=args.pictures,
                       picture_bytes=args.picture_bytes)
    write_text_whole(out, page.html())
    for label, value, below in page.cards:
        print(f'{label}: {value}' + (f'  ({below})' if below else ''))
    print(f'{out}: {Path(out).stat().st_size / 1e6:.1f} MB; open it in a browser')


if __name__ == '__main__':
    sys.exit(run(write, parse_args()))
