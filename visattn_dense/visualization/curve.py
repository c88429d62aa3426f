"""Losses, scores and learning rate over the iterations, as mmengine's LoggerHook writes them."""
from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from visattn_dense.errors import UserError

from .figure import COLOURS, FAINT, figure_of, plain, save

_MOST_LINES = 6
# The scores that say most, where a validation has them.
_SCORES = ('mIoU', 'coco/bbox_mAP', 'coco/segm_mAP', 'mAcc', 'aAcc', 'coco/bbox_mAP_50',
           'coco/segm_mAP_50')
_NO_SCORES = ('step', 'iter', 'epoch', 'time', 'data_time', 'memory')


def read_scalars(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of mmengine's `vis_data/scalars.json`, one JSON object per line.

    A run in progress may have written half of its last line: that one is left out. `step` of an
    evaluation is its iteration here: mmengine writes the epoch, unless told otherwise.

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
    entries = [entry for entry in entries if isinstance(entry, dict)]
    iteration = 0
    for entry in entries:
        if 'loss' in entry:
            iteration = entry.get('iter', iteration)
        elif 'step' in entry:
            entry['step'] = max(entry['step'], iteration)
    return entries


def newest_scalars(work_dir: str | os.PathLike) -> Path | None:
    """The record of the latest run in a work directory, or None before there is one."""
    records = list(Path(work_dir).glob('*/vis_data/scalars.json'))
    return max(records, key=lambda path: path.parent.parent.name, default=None)


def draw_curve(path: str | os.PathLike, entries: list[dict[str, Any]], *, title: str = '') -> None:
    """Draw losses, validation scores and the learning rate, one above the other.

    Args:
        path: the picture to write, a PNG.
        entries: from `read_scalars`. Entries of the training hold `loss` and `iter` (or `step`),
            perhaps parts of the loss (`decode.loss_ce`, ...), `lr` and `base_lr`; entries of a
            validation hold `step` and scores.
        title: above the picture.

    Raises:
        UserError: no training loss among the entries.
    """
    train = [entry for entry in entries if 'loss' in entry]
    if not train:
        raise UserError('the training record holds no loss: nothing to draw')
    parts = sorted({key for entry in train for key in entry if 'loss' in key and key != 'loss'})
    # A single part is the loss itself.
    losses = _lines(train, ['loss', *(parts if len(parts) > 1 else ())])
    scores = _lines([entry for entry in entries if 'loss' not in entry], _scores(entries))
    rates = _lines(train, ['base_lr', 'lr'])
    if len(rates) == 2 and list(rates['base_lr']) == list(rates['lr']):
        del rates['base_lr']
    panels = [(losses, 3.), *([(scores, 3.)] if scores else []), *([(rates, 1.4)] if rates else [])]
    figure = figure_of(9.6, 1.1 + sum(1.1 * height for _, height in panels))
    grid = figure.add_gridspec(
        len(panels), 1, height_ratios=[height for _, height in panels], hspace=0.12, left=0.085,
        right=0.76, top=1 - 0.45 / figure.get_figheight(), bottom=0.5 / figure.get_figheight())
    last = max(step for lines in (losses, scores, rates) for line in lines.values()
               for step, _ in line)
    axes = None
    for number, (lines, _) in enumerate(panels):
        axes = figure.add_subplot(grid[number], sharex=axes)
        if lines is losses:
            _draw_losses(axes, losses)
        elif lines is scores:
            _draw_scores(axes, scores)
        else:
            _draw_rates(axes, rates)
        axes.set_xlim(0, 1.01 * last)
        axes.grid(alpha=0.25)
        axes.spines[['top', 'right']].set_visible(False)
        axes.tick_params(labelbottom=number == len(panels) - 1)
        axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9,
                    borderaxespad=0.)
    axes.set_xlabel('iteration')
    if title:
        figure.text(0.085, 1 - 0.28 / figure.get_figheight(), plain(title), weight='bold', size=12)
    save(figure, path)


def _scores(entries: list[dict[str, Any]]) -> list[str]:
    """Names of the scores to draw: those that say most, or the first few numbers there are."""
    found = {key: None for entry in entries if 'loss' not in entry for key, value in entry.items()
             if isinstance(value, (int, float)) and key not in _NO_SCORES}
    return [key for key in _SCORES if key in found] or [
        key for key in found if not key.endswith('_precision')]


def _lines(entries: list[dict[str, Any]], names: Iterable[str]
           ) -> dict[str, list[tuple[float, float]]]:
    """For each name that occurs, its (iteration, value), at most `_MOST_LINES` names."""
    lines = {name: [(entry.get('iter', entry.get('step')), entry[name]) for entry in entries
                    if isinstance(entry.get(name), (int, float))] for name in names}
    return dict([item for item in lines.items() if item[1]][:_MOST_LINES])


def _draw_losses(axes: Any, lines: dict[str, list[tuple[float, float]]]) -> None:
    """The loss and its parts, smoothed; the loss itself faint behind."""
    for (name, line), colour in zip(lines.items(), COLOURS, strict=False):
        steps, values = zip(*line, strict=True)
        whole = name == 'loss'
        if whole:
            axes.plot(steps, values, color=colour, alpha=0.28, linewidth=1)
        axes.plot(steps, _smoothed(values), color=colour, linewidth=2 if whole else 1.2,
                  marker='o' if len(steps) == 1 else None, label=plain(_shortened(name)))
    # One very high loss at the start must not press the rest to the ground.
    ordered = sorted(value for _, value in lines['loss'])
    top = 1.1 * ordered[int(0.98 * (len(ordered) - 1))]
    axes.set(ylabel='training loss', ylim=(min(0., 1.1 * ordered[0]), top if top > 0 else None))


def _draw_scores(axes: Any, lines: dict[str, list[tuple[float, float]]]) -> None:
    ends = []
    for number, ((name, line), colour) in enumerate(zip(lines.items(), COLOURS[1:] + COLOURS[:1],
                                                        strict=False)):
        axes.plot(*zip(*line, strict=True), color=colour, marker='o', markersize=4,
                  linewidth=1.2 if number else 2,
                  label=plain(f'{_shortened(name)}: {line[-1][1]:.3g}'))
        ends.append(max(value for _, value in line))
    # The best validation is the one whose checkpoint is worth keeping.
    first = next(iter(lines.values()))
    step, best = max(first, key=lambda point: point[1])
    axes.annotate(f'best {best:.3g}', (step, best), xytext=(0, 7), ha='right', size=9,
                  textcoords='offset points', color=COLOURS[1], weight='bold')
    axes.set(ylabel='validation', ylim=(0, 1.15 * max(ends) if max(ends) > 0 else None))


def _draw_rates(axes: Any, lines: dict[str, list[tuple[float, float]]]) -> None:
    names = {'base_lr': 'of the heads', 'lr': 'of the lowest layers'} if len(lines) > 1 else {}
    for (name, line), colour in zip(lines.items(), (COLOURS[0], FAINT), strict=False):
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.5,
                  label=names.get(name, 'learning rate'))
    axes.set_ylabel('learning rate')
    axes.set_ylim(0, None)
    axes.ticklabel_format(axis='y', scilimits=(-2, 3))


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else f'{name[:23]}…'


def _smoothed(values: tuple[float, ...], weight: float = 0.85) -> list[float]:
    """Exponential moving average, corrected for its start as Adam's is."""
    out, mean = [], 0.
    for number, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        out.append(mean / (1 - weight**number))
    return out
