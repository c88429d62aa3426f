"""Loss and mIoU over the iterations, from the scalars that mmengine's LoggerHook writes."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from visattn_dense.errors import UserError


def read_scalars(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of mmengine's `vis_data/scalars.json`, one JSON object per line.

    A run in progress may have written half of its last line: that one is left out.

    Raises:
        UserError: no such file, or a line other than the last is no JSON.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f'no training record {file}; mmengine writes it to '
                        'WORK_DIR/TIMESTAMP/vis_data/scalars.json')
    lines = file.read_text().splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(f'{file}, line {number}, is no JSON: {error.msg}') from error
    return [entry for entry in entries if isinstance(entry, dict)]


def newest_scalars(work_dir: str | os.PathLike) -> Path | None:
    """The record of the latest run in a work directory, or None before there is one."""
    records = list(Path(work_dir).glob('*/vis_data/scalars.json'))
    return max(records, key=lambda path: path.parent.parent.name, default=None)


def draw_curve(path: str | os.PathLike, entries: list[dict[str, Any]], *, title: str = '',
               baseline: float | None = None) -> None:
    """Draw the training loss and, where it was validated, the mIoU; a PNG, or what `path` ends in.

    Args:
        path: the picture to write.
        entries: from `read_scalars`. Training entries hold `loss` and `iter`; validation entries
            `mIoU` in percent and `step`.
        title: above the picture.
        baseline: the mIoU of the best constant predictor in percent, drawn as a dashed line.

    Raises:
        UserError: no training loss among the entries.
    """
    train = [(entry.get('iter', entry.get('step')), entry['loss']) for entry in entries
             if 'loss' in entry]
    val = [(entry['step'], entry['mIoU']) for entry in entries if 'mIoU' in entry]
    if not train:
        raise UserError('the training record holds no loss: nothing to draw')
    # Figure and canvas by hand: pyplot would choose a display, and keep the figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 4.8), dpi=130, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = zip(*train, strict=True)
    blue, orange = '#2563b0', '#d9730d'
    axes.plot(steps, losses, color=blue, alpha=0.28, linewidth=1)
    axes.plot(steps, _smoothed(losses), color=blue, linewidth=2, label='training loss')
    axes.set(xlabel='iteration', ylim=(0, None), xlim=(0, None))
    axes.set_ylabel('training loss', color=blue)
    axes.grid(alpha=0.25)
    axes.spines['top'].set_visible(False)
    handles = axes.get_lines()[1:]
    if val:
        right = axes.twinx()
        right.plot(*zip(*val, strict=True), color=orange, marker='o', linewidth=2,
                   label='validation mIoU')
        if baseline is not None:
            right.axhline(baseline, color=orange, linestyle='--', linewidth=1.2,
                          label='best constant predictor')
        right.set_ylabel('validation mIoU (%)', color=orange)
        right.set_ylim(0, max(10., 1.15 * max(value for _, value in val)))
        right.spines['top'].set_visible(False)
        for step, value in val[-1:]:
            right.annotate(f'{value:.1f}', (step, value), xytext=(0, 8), ha='center',
                           textcoords='offset points', color=orange, weight='bold')
        handles = [*handles, *right.get_lines()]
    axes.legend(handles=handles, loc='center right', frameon=False)
    if title:
        axes.set_title(title, loc='left', weight='bold')
    figure.savefig(path)


def _smoothed(values: tuple[float, ...], weight: float = 0.85) -> list[float]:
    """Exponential moving average, corrected for its start as Adam's is."""
    out, mean = [], 0.
    for number, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        out.append(mean / (1 - weight**number))
    return out
