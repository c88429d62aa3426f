"""A picture of a segmentation: IoU of every class beside the confusion matrix."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from visattn_dense.atomic import written_whole
from visattn_dense.errors import UserError
from visattn_dense.evaluation.segmentation import Scores, ratio
from visattn_dense.visualization.figure import figure_of, plain

PLOT_SUFFIXES = ('.png', '.pdf', '.svg')
# With more classes than this, numbers do not fit into the cells.
_WRITTEN_CELLS = 25
_BAR, _BOUNDARY = '#33658a', '#f6ae2d'


def check_plot_path(path: str | os.PathLike | None) -> None:
    """Refuse a file name with an unknown ending, before any work is done.

    Raises:
        UserError: the ending is not one of PLOT_SUFFIXES.
    """
    if path is not None and Path(path).suffix.lower() not in PLOT_SUFFIXES:
        raise UserError(f'the plot {path} has to end in one of {", ".join(PLOT_SUFFIXES)}')


def plot_segmentation(scores: Scores, classes: Sequence[str], path: str | os.PathLike) -> None:
    """Write the picture.

    The left side has the IoU (and boundary IoU) of every class, best first, and the mean as a line.
    Classes without pixels are left out. The right side has the confusion matrix in the order of the
    classes. Each row adds up to 100 % of the pixels with the label of its class.
    """
    n, classes = len(classes), list(map(plain, classes))
    # Inches: 0.16 for a line of text, and room for the titles.
    side = min(30., max(4.5, 0.16 * n + 1.5))
    figure = figure_of(6.5 + side + 1.5, side + 1, layout='constrained')
    bars, matrix = figure.subplots(1, 2, width_ratios=[5, side])
    _draw_bars(bars, scores, classes)
    _draw_matrix(figure, matrix, scores, classes)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.removeprefix('.') or 'png')


def _draw_bars(axes, scores: Scores, classes: Sequence[str]) -> None:
    seen = np.flatnonzero(~np.isnan(scores.iou))
    order = seen[np.argsort(-scores.iou[seen], kind='stable')]
    at = np.arange(len(order))
    double = scores.boundary_iou is not None
    height = 0.4 if double else 0.75
    axes.barh(at - (height / 2 if double else 0), scores.iou[order], height, color=_BAR,
              label='IoU')
    axes.axvline(scores.miou, color=_BAR, linewidth=1, linestyle='--',
                 label=f'mIoU {scores.miou:.2f}')
    if double:
        axes.barh(at + height / 2, np.nan_to_num(scores.boundary_iou[order]), height,
                  color=_BOUNDARY, label='boundary IoU')
        axes.axvline(scores.boundary_miou, color=_BOUNDARY, linewidth=1, linestyle='--',
                     label=f'mean boundary IoU {scores.boundary_miou:.2f}')
    axes.set_yticks(at, [classes[i] for i in order], fontsize=_font(len(order)))
    axes.set(xlim=(0, 100), xlabel='per cent', title='IoU of each class')
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.grid(axis='x', linewidth=0.4)
    axes.set_axisbelow(True)
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.6 / axes.figure.get_figheight()),
                ncols=2, fontsize=8, frameon=False)


def _draw_matrix(figure: Figure, axes, scores: Scores, classes: Sequence[str]) -> None:
    confusion = scores.counts.confusion
    # The column "no class" is shown only if it holds pixels.
    columns = list(classes) + (['(none)'] if confusion[:, -1].any() else [])
    total = confusion.sum(axis=1, keepdims=True)
    share = ratio(100 * confusion[:, :len(columns)], total)
    # The square root keeps confusions of a few per cent visible beside the diagonal.
    image = axes.imshow(share, cmap='Blues', norm=PowerNorm(0.5, 0, 100), aspect='auto',
                        interpolation='nearest')
    image.cmap.set_bad('#e4e4e4')
    size = _font(len(classes))
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    axes.set(xlabel='predicted', ylabel='labelled',
             title='Confusion matrix, % of the labelled pixels of a class (grey: none)')
    if len(classes) <= _WRITTEN_CELLS:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                axes.text(column, row, f'{value:.0f}', ha='center', va='center',
                          fontsize=max(5, size - 1), color='white' if value > 35 else 'black')
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, aspect=40)


def _font(lines: int) -> float:
    """Points: 9 for a few lines, 6.5 for a hundred and fifty."""
    return 9 if lines <= 30 else 6.5
