"""Scores as printed tables, CSV and JSON.

A class without pixels, or an area range without objects, has no value: the cell of the CSV file is
empty, and JSON has null.
"""
from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from visattn_dense.errors import UserError
from visattn_dense.evaluation.segmentation import Scores, Settings

Row = Sequence[str | float | int | None]


def check_outputs(outputs: Iterable[str | os.PathLike | None],
                  inputs: Iterable[str | os.PathLike] = ()) -> None:
    """Create the folders of the output files, before any other work is done.

    Args:
        outputs: files to write; None is skipped.
        inputs: files and folders that must not change: no output may be one of these, or lie inside
            one.

    Raises:
        UserError: a file cannot be written there, or two outputs are one file.
    """
    guarded, taken = [Path(path).resolve() for path in inputs], set()
    for output in filter(None, outputs):
        path = Path(output).resolve()
        if path in taken:
            raise UserError(f'two results would be written to {output}: give each a name of its '
                            'own')
        taken.add(path)
        if path.is_dir():
            raise UserError(f'{output} is a folder; give the file to write')
        for folder in guarded:
            if path == folder or folder in path.parents:
                raise UserError(f'{output} would be written over or among what is read; '
                                'give a place outside')
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'{output} cannot be written: {error}') from error
        if not os.access(path.parent, os.W_OK):
            raise UserError(f'{output} cannot be written: no permission in {path.parent}')


def as_table(header: Sequence[str], rows: Iterable[Row], digits: int = 2) -> str:
    """A table for the screen: text to the left, numbers to the right; '-' for no value."""
    lines = [list(header), *([_shown(cell, digits) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join('  '.join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(line, widths, strict=True)))
                     for line in lines)


def as_csv(header: Sequence[str], rows: Iterable[Row]) -> str:
    """The table as comma-separated values, at full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(header)
    writer.writerows([_known(cell) for cell in row] for row in rows)
    return text.getvalue()


def as_json(report: dict[str, Any]) -> str:
    """Strict JSON: NaN is null."""
    return json.dumps(_plain(report), indent=1, allow_nan=False) + '\n'


def segmentation_rows(scores: Scores, classes: Sequence[str]) -> tuple[list[str], list[Row]]:
    """Header and one row for each class: IoU, accuracy (recall), precision, Dice (F-score),
    boundary IoU if counted, pixels."""
    header = ['class', 'IoU', 'Acc', 'Precision', 'Dice']
    columns = [scores.iou, scores.acc, scores.precision, scores.dice]
    if scores.boundary_iou is not None:
        header.append('BoundaryIoU')
        columns.append(scores.boundary_iou)
    confusion = scores.counts.confusion
    counts = [confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)]
    rows = [[name, *(float(column[i]) for column in columns), *(int(c[i]) for c in counts)]
            for i, name in enumerate(classes)]
    return [*header, 'label_pixels', 'pred_pixels'], rows


def segmentation_summary(scores: Scores) -> dict[str, float]:
    """The scores over all classes, in per cent, with mmsegmentation's names."""
    summary = {'aAcc': scores.aacc, 'mIoU': scores.miou, 'mAcc': scores.macc}
    if scores.boundary_miou is not None:
        summary['mBoundaryIoU'] = scores.boundary_miou
    return summary


def segmentation_report(scores: Scores, classes: Sequence[str],
                        settings: Settings) -> dict[str, Any]:
    """Everything as one dict for JSON."""
    header, rows = segmentation_rows(scores, classes)
    return {
        'metrics': segmentation_summary(scores),
        'images': scores.counts.images,
        'classes': [dict(zip(header, row, strict=True)) for row in rows],
        'confusion_matrix': {
            'rows': 'label', 'columns': 'prediction, the last one: no class',
            'pixels': scores.counts.confusion.tolist(),
        },
        'settings': asdict(settings),
    }


def _shown(cell: str | float | int | None, digits: int) -> str:
    cell = _known(cell)
    if cell is None:
        return '-'
    return f'{cell:.{digits}f}' if isinstance(cell, float) else str(cell)


def _known(cell: Any) -> Any:
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _known(value)
