#!/usr/bin/env python
"""Score detections in COCO JSON: box, mask and boundary AP.

    python tools/eval_ap.py RESULTS.json ANNOTATIONS.json --type bbox segm boundary --classwise

RESULTS is one file, or mmdetection's outfile_prefix: then PREFIX.bbox.json and PREFIX.segm.json are
read. Numbers are 0..1, '-' if there is no object. docs/evaluation.md says more. Exit code: 0, or 2
with one message for bad input.
"""
from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import _checkout  # noqa: F401  (first)

from visattn_dense.atomic import write_text_whole
from visattn_dense.command import add_debug, run
from visattn_dense.errors import UserError
from visattn_dense.evaluation.coco import (
    BACKENDS,
    MAX_DETS,
    TYPES,
    CocoScores,
    crowded_images,
    default_backend,
    evaluate_coco,
    metric_names,
)
from visattn_dense.evaluation.coco_files import (
    FIELD,
    read_annotations,
    read_results,
    result_files,
)
from visattn_dense.evaluation.report import (
    as_csv,
    as_json,
    as_table,
    check_outputs,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Score detections in COCO JSON.')
    parser.add_argument('results', help='JSON of detections, or the prefix of mmdetection\'s files')
    parser.add_argument('annotations', help='COCO annotation file')
    parser.add_argument('--type', nargs='+', choices=TYPES, metavar='TYPE', dest='types',
                        help=f'{", ".join(TYPES)}; default: bbox and segm, if the results '
                             'hold them')
    parser.add_argument('--classwise', action='store_true', help='also print every category')
    parser.add_argument('--backend', choices=BACKENDS,
                        help='default: faster-coco-eval if it is installed')
    parser.add_argument('--max-dets', type=int, default=MAX_DETS, metavar='N',
                        help='the N best detections of an image and category count '
                             "(%(default)s, as at COCO); for images with more objects")
    parser.add_argument('--json', metavar='FILE', help='write everything, categories too')
    parser.add_argument('--csv', metavar='FILE', help='write a row for each type and category')
    parser.add_argument('--pr-csv', metavar='FILE', help='write the points of the precision-recall '
                        'curves: a row for each type, category, IoU threshold and recall')
    add_debug(parser)
    return parser.parse_args()


def backend_to_use(wanted: str | None) -> str:
    """The evaluator. A note on stderr says if the faster evaluator is not installed.

    Raises:
        UserError: faster-coco-eval is wanted and not installed.
    """
    present = default_backend()
    if wanted == BACKENDS[0] != present:
        raise UserError('faster-coco-eval is not installed; pip install faster-coco-eval, or '
                        'leave --backend out')
    if wanted is None and present != BACKENDS[0]:
        print('note: counting with pycocotools; faster-coco-eval (pip install faster-coco-eval) '
              'gives the same numbers sooner', file=sys.stderr)
    return wanted or present


def read_by_type(args: argparse.Namespace, truth: dict[str, Any]) -> dict[str, list[dict]]:
    """Detections for each type of AP, each file read once."""
    files = result_files(args.results)
    content = {path: read_results(path, truth) for path in dict.fromkeys(files.values())}
    types = args.types
    if not types:
        held = {field for field, path in files.items()
                if all(field in result for result in content[path])}
        types = [kind for kind in ('bbox', 'segm') if FIELD[kind] in held]
        # Without detections, take boxes, which need no masks in the annotations.
        if not any(content.values()):
            types = ['bbox']
        if not types:
            raise UserError(f'{args.results}: some detections have no box and some no mask; choose '
                            'with --type')
    absent = [kind for kind in types if FIELD[kind] not in files]
    if absent:
        raise UserError(f'there are no results for {" and ".join(absent)}: '
                        f'{args.results}.{"bbox" if absent == ["bbox"] else "segm"}.json is not '
                        'there')
    return {kind: content[files[FIELD[kind]]] for kind in dict.fromkeys(types)}


def say_what_is_cut(truth: dict[str, Any], by_type: dict[str, list[dict]], max_dets: int) -> None:
    """Notes on stderr about images with more objects or detections than the evaluation counts."""
    sides = {'objects': truth['annotations'], **{
        f'{kind} detections': results for kind, results in by_type.items()}}
    for what, items in sides.items():
        images, most = crowded_images(items, max_dets)
        if images:
            lost = ('all of them can never be found' if what == 'objects' else
                    'the others are left out')
            print(f'note: {images} image{"s"[:images > 1]} with more than {max_dets} {what} of one '
                  f'category (at most {most}). Only the {max_dets} best detections of an image and '
                  f'category count, so {lost}; --max-dets {most} counts them all', file=sys.stderr)


def rows_of(kind: str, scores: CocoScores) -> list[list[Any]]:
    """type, category, objects and the twelve numbers: all categories first, then each."""
    total = sum(count for _, _, count in scores.categories)
    rows = [[kind, 'all', total, *scores.metrics().values()]]
    for at, (_, name, count) in enumerate(scores.categories):
        rows.append([kind, name, count, *scores.metrics(at).values()])
    return rows


def curve_rows(kind: str, scores: CocoScores) -> list[list[Any]]:
    """type, category, IoU threshold, recall, precision: the mean of all categories, then each.

    At 10 thresholds and 101 recalls, for objects of all sizes; categories without objects are left
    out.
    """
    # (10, 101, K): all sizes, the largest number of detections.
    precision = scores.precision[..., 0, -1]
    known = [at for at in range(precision.shape[2]) if (precision[..., at] > -1).all()]
    curves = [('all', precision[..., known].mean(axis=2)),
              *((scores.categories[at][1], precision[..., at]) for at in known)]
    return [[kind, name, round(0.5 + 0.05 * level, 2), recall / 100, float(value)]
            for name, curve in curves for level, row in enumerate(curve)
            for recall, value in enumerate(row)]


def report_of(scores: CocoScores) -> dict[str, Any]:
    """The scores of one type for JSON."""
    return {**scores.metrics(), 'categories': [
        {'id': i, 'name': name, 'objects': count, **scores.metrics(at)}
        for at, (i, name, count) in enumerate(scores.categories)]}


def evaluate(args: argparse.Namespace) -> None:
    outputs = [args.json, args.csv, args.pr_csv]
    inputs = [args.annotations, args.results,
              *(f'{args.results}.{kind}.json' for kind in ('bbox', 'segm'))]
    check_outputs(outputs, inputs)
    backend = backend_to_use(args.backend)
    truth = read_annotations(args.annotations)
    by_type = read_by_type(args, truth)
    seen = {result['image_id'] for results in by_type.values() for result in results}
    print(f'{len(truth["images"])} images, {len(seen)} of them with detections')
    if not seen:
        print(f'warning: {args.results} holds no detection, so every AP is 0', file=sys.stderr)

    say_what_is_cut(truth, by_type, args.max_dets)
    columns = ['type', 'category', 'objects', *metric_names(args.max_dets)]
    header, rows, report = columns, [], {}
    points: list[list[Any]] = []
    for kind, results in by_type.items():
        start = time.perf_counter()
        scores = evaluate_coco(truth, results, kind, backend=backend, max_dets=args.max_dets)
        print(f'{kind}: {len(results)} detections, {backend}, '
              f'{time.perf_counter() - start:.1f} s')
        rows += rows_of(kind, scores)
        report[kind] = report_of(scores)
        if args.pr_csv:
            points += curve_rows(kind, scores)
    shown = [row for row in rows if args.classwise or row[1] == 'all']
    if not args.classwise:
        header, shown = [header[0], *header[2:]], [[row[0], *row[2:]] for row in shown]
    print('\n' + as_table(header, shown, digits=3))
    if args.csv:
        write_text_whole(args.csv, as_csv(columns, rows))
    if args.pr_csv:
        write_text_whole(args.pr_csv, as_csv(
            ['type', 'category', 'iou', 'recall', 'precision'], points))
    if args.json:
        write_text_whole(args.json, as_json({
            'metrics': report, 'images': len(truth['images']), 'backend': backend,
            'max_dets': args.max_dets}))


if __name__ == '__main__':
    sys.exit(run(evaluate, parse_args()))
