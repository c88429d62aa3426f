"""What the labels of a data set hold: how often each class, how large the objects, and where."""
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .colour import Palette
from .figure import FAINT, figure_of, plain, save
from .text import font_for, legible

_MOST_CLASSES = 60
_GRID = 48
# COCO's limits of small and medium objects, in pixels of area.
_SMALL, _MEDIUM = 32**2, 96**2


class PixelLabels(NamedTuple):
    """Labels of pixels. pixels, images: (C,) pixels of each class, and images that show it.

    seen, total: images looked at, of how many. ignored: pixels without a class.
    """

    pixels: np.ndarray
    images: np.ndarray
    ignored: int
    seen: int
    total: int


class ObjectLabels(NamedTuple):
    """Labels of objects. classes: (N,) class indices. boxes: (N, 4) x1, y1, x2, y2 in pixels.

    sizes: (N, 2) width and height of each object's image. seen, total: as in `PixelLabels`.
    """

    classes: np.ndarray
    boxes: np.ndarray
    sizes: np.ndarray
    seen: int
    total: int


def draw_pixel_labels(path: str | os.PathLike, labels: PixelLabels, names: Sequence[str],
                      palette: Palette, *, title: str = '') -> None:
    """Draw the share of each class in the pixels, and in how many images the class is.

    Args:
        path: the picture to write, a PNG.
        labels: what was counted.
        names, palette: name and RGB triple of every class.
        title: above the picture.
    """
    shares = 100 * labels.pixels / max(1, labels.pixels.sum())
    order, left_out = _order(shares)
    without = labels.ignored / max(1, labels.ignored + labels.pixels.sum())
    figure, height = _page(len(order), 11., title, f'{_looked_at(labels)}; pixels without a class: '
                           f'{100 * without:.1f} %{left_out}')
    grid = figure.add_gridspec(1, 2, left=0.19, right=0.96, wspace=0.16, top=1 - 1.05 / height,
                               bottom=0.4 / height)
    left, right = (figure.add_subplot(cell) for cell in grid)
    _bars(left, shares, order, names, palette, '{:.3g} %')
    left.set_title('share of the labelled pixels', loc='left', size=10)
    _bars(right, 100 * labels.images / max(1, labels.seen), order, [''] * len(names), palette,
          '{:.3g} %')
    right.set_title('images that show the class', loc='left', size=10)
    save(figure, path)


def draw_object_labels(path: str | os.PathLike, labels: ObjectLabels, names: Sequence[str],
                       palette: Palette, *, title: str = '') -> None:
    """Draw how many objects each class has, how large the objects are, and where they lie.

    Args:
        path: the picture to write, a PNG.
        labels: what was collected.
        names, palette: name and RGB triple of every class.
        title: above the picture.
    """
    counts = np.bincount(labels.classes, minlength=len(names))
    order, left_out = _order(counts)
    rows = max(14, len(order))
    figure, height = _page(rows, 14., title,
                           f'{_looked_at(labels)}, {len(labels.classes):,} objects{left_out}')
    top = 1 - 1.05 / height
    bars = figure.add_axes((0.12, 0.4 / height, 0.22, top - 0.4 / height))
    _bars(bars, counts, order, names, palette, '{:,.0f}', rows)
    bars.set_title('objects', loc='left', size=10)
    # The charts keep their shape where there are many classes.
    side = 3.3 / height
    low = top - side
    sizes = figure.add_axes((0.43, low, 3.3 / 14, side))
    places = figure.add_axes((0.73, low, 3.3 / 14, side))
    width, tall = (labels.boxes[:, 2:] - labels.boxes[:, :2]).T
    if len(width):
        # A cloud of many thousand dots takes seconds to draw and shows no more.
        few = slice(None, None, -(-len(width) // 4000))
        colours = np.array(palette, float)[labels.classes[few]] / 255
        sizes.scatter(np.maximum(width[few], 1), np.maximum(tall[few], 1), s=9, c=colours,
                      alpha=0.6, linewidths=0)
        sizes.set_xscale('log', base=2)
        sizes.set_yscale('log', base=2)
        for axis in (sizes.xaxis, sizes.yaxis):
            axis.set_major_formatter(lambda value, _: f'{value:g}')
        areas = width * tall
        kinds = (areas < _SMALL, (areas >= _SMALL) & (areas < _MEDIUM), areas >= _MEDIUM)
        sizes.set_title('size: ' + ', '.join(
            f'{100 * kind.mean():.0f} % {name}' for name, kind in
            zip(('small', 'medium', 'large'), kinds, strict=True)), loc='left', size=10)
    sizes.set_xlabel('width in pixels')
    sizes.set_ylabel('height in pixels', labelpad=0)
    sizes.grid(alpha=0.25)
    places.imshow(_coverage(labels), cmap='viridis', extent=(0, 1, 1, 0), interpolation='nearest')
    places.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), xlabel='bright: many objects cover it')
    places.set_title('place in the image', loc='left', size=10)
    save(figure, path)


def _coverage(labels: ObjectLabels) -> np.ndarray:
    """(G, G): how many boxes cover each part of the image, all images brought to one square."""
    grid = np.zeros((_GRID + 1, _GRID + 1))
    if len(labels.boxes):
        scaled = labels.boxes / np.tile(labels.sizes, 2) * _GRID
        x1, y1 = np.floor(scaled[:, :2]).clip(0, _GRID - 1).astype(int).T
        x2, y2 = np.ceil(scaled[:, 2:]).clip(1, _GRID).astype(int).T
        for rows, columns, sign in ((y1, x1, 1), (y1, x2, -1), (y2, x1, -1), (y2, x2, 1)):
            np.add.at(grid, (rows, columns), sign)
    return grid.cumsum(0).cumsum(1)[:_GRID, :_GRID]


def _looked_at(labels: PixelLabels | ObjectLabels) -> str:
    if labels.seen == labels.total:
        return f'all {labels.total:,} images'
    return f'{labels.seen:,} of {labels.total:,} images, spread evenly'


def _order(values: np.ndarray) -> tuple[np.ndarray, str]:
    """The classes to show, most frequent first, and words on those left out."""
    order = np.argsort(-values, kind='stable')
    if len(order) <= _MOST_CLASSES:
        return order, ''
    half = _MOST_CLASSES // 2
    return (np.concatenate([order[:half], order[-half:]]),
            f'; the {half} most frequent and the {half} rarest of {len(order)} classes')


def _page(rows: int, width: float, title: str, subtitle: str) -> tuple[Any, float]:
    """A figure with room for `rows` bars below its title; and its height in inches."""
    height = 1.45 + 0.24 * max(rows, 3)
    figure = figure_of(width, height)
    figure.text(0.02, 1 - 0.32 / height, plain(title), weight='bold', size=12)
    figure.text(0.02, 1 - 0.58 / height, subtitle, color=FAINT, size=9.5)
    return figure, height


def _bars(axes: Any, values: np.ndarray, order: np.ndarray, names: Sequence[str],
          palette: Palette, form: str, rows: int = 0) -> None:
    """Bars in the colours of the classes, each with its number, in room for at least `rows`."""
    places = np.arange(len(order))
    axes.barh(places, values[order], color=np.array(palette, float)[order] / 255, height=0.72,
              edgecolor=FAINT, linewidth=0.5)
    top = max(values.max(initial=0), 1e-9)
    for place, i in zip(places, order, strict=True):
        axes.text(values[i] + 0.015 * top, place, form.format(values[i]) if values[i] else 'none',
                  va='center', size=8.5, color='black' if values[i] else '#c0392b')
    axes.set(xlim=(0, 1.2 * top), ylim=(max(rows, len(order)) - 0.4, -0.6), xticks=[])
    axes.set_yticks(places, [plain(name) for name in np.array(legible(names), object)[order]],
                    size=9)
    for label, i in zip(axes.get_yticklabels(), order, strict=True):
        _with_font(label, names[i])
    axes.tick_params(axis='y', length=0)
    axes.spines[:].set_visible(False)


def _with_font(label: Any, text: str) -> None:
    """Let matplotlib write a name in a script that its own font lacks."""
    letters = font_for(text, 20) if not text.isascii() else None
    if letters is not None:
        from matplotlib.font_manager import FontProperties
        label.set_fontproperties(FontProperties(fname=letters.path, size=9))
