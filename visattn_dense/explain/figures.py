"""Figures of what a model looks at, drawn by matplotlib without a display.

Images are (H, W, 3) uint8 RGB here, maps (h, w) floats of any size, laid over the whole image.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from visattn_dense.visualization.figure import figure_of, plain

from .looks import Look, half_area, percent
from .rows import Routing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The longer side of a picture in a figure, in pixels, and the width of its panel, in inches.
_LONGEST, _PANEL = 640, 2.3
# The height of a panel, in widths. Beyond it, a picture stands in the middle of its panel.
_FLATTEST, _TALLEST = .1, 2.5
_HIT, _EDGE = '#21e6ff', '#ffd23f'


def draw_looks(picture: np.ndarray, point: tuple[float, float], looks: Sequence[Look]) -> Figure:
    """A row for each look: the query's token; the mean over the heads, and over each group of
    heads; the head that looks at the fewest positions, and the one that looks at the most.

    Each panel says on how much of the map half of its weight lies. The panel of the mean also says
    what weight is not on the map.

    Args:
        picture: the image.
        point: (x, y) in pixels of the picture.
        looks: from `explain` or `rollout`.
    """
    rows = [_columns(look) for look in looks]
    figure, grid = _panels(picture, len(rows), 1 + max(map(len, rows)), head=.42)
    shown, ratio = _small(picture)
    for look, columns, axes in zip(looks, rows, grid, strict=True):
        stage = '' if look.stage is None else (
            'stem, ' if look.stage == 'stem' else f'stage {look.stage}, ')
        height, width = look.mean.shape
        _panel(axes[0], shown, f'{stage}map {height}×{width}\n{look.kind}')
        left, top, right, bottom = (ratio * edge for edge in look.token)
        _box(axes[0], left, top, right - left, bottom - top, _HIT)
        for axis, (title, weights) in zip(axes[1:], columns, strict=False):
            beside = [f'{what}: {percent(part)}' for what, part in look.elsewhere.items()
                      if part >= .005 and weights is columns[0][1]]
            _panel(axis, lay_over(shown, weights),
                   f'{title}\n{"; ".join([_spread(weights), *beside])}')
            _mark(axis, point, ratio)
        _mark(axes[0], point, ratio)
    return figure


def draw_heads(picture: np.ndarray, point: tuple[float, float], look: Look) -> Figure:
    """Every head of one attention, laid over the picture."""
    columns = min(len(look.heads), 6)
    figure, grid = _panels(picture, -(-len(look.heads) // columns), columns, head=.42)
    shown, ratio = _small(picture)
    for number, (axis, weights) in enumerate(zip(grid.flat, look.heads, strict=False)):
        group = look.rows.groups[number]
        _panel(axis, lay_over(shown, weights), f'head {number}{group and f", {group}"}\n'
               f'{_spread(weights)}')
        _mark(axis, point, ratio)
    return figure


def draw_routing(picture: np.ndarray, point: tuple[float, float], look: Look) -> Figure:
    """The routing of a bi-level routing attention, as a graph over the picture.

    Left: the regions that the point's region looks at, with their routing weights. Right: from each
    region an arrow to the other region that it weighs most; the brighter a region, the more regions
    look at it.

    Raises:
        ValueError: the look is of another attention.
    """
    routing = look.rows.routing
    if routing is None:
        raise ValueError(f'{look.kind} has no routing')
    figure, ((one, all_),) = _panels(picture, 1, 2, head=.26, panel=4.6)
    shown, ratio = _small(picture)
    n, home = routing.n_win, _region_of(look, routing)
    # Pixels of the shown picture for each position of the map.
    step = shown.shape[1] / look.mean.shape[1], shown.shape[0] / look.mean.shape[0]
    width, height = routing.region[1] * step[0], routing.region[0] * step[1]

    def centre(region: int) -> tuple[float, float]:
        return (region % n + .5) * width, (region // n + .5) * height

    index, weight = routing.index.tolist(), routing.weight.tolist()
    _panel(one, _dimmed(shown), f'the point\'s region looks at {len(index[home])} of {n * n} '
           'regions')
    for chosen, share in zip(index[home], weight[home], strict=True):
        x, y = centre(chosen)
        _box(one, x - width / 2, y - height / 2, width, height, _EDGE, fill=.15 + .5 * share)
        if chosen != home:
            _arrow(one, centre(home), (x, y), 1 + 4 * share)
        one.text(x, y, percent(share), color='white', ha='center', va='center', fontsize=8,
                 weight='bold', bbox=dict(boxstyle='round,pad=.15', fc='#000000a0', ec='none'),
                 zorder=4)
    x, y = centre(home)
    _box(one, x - width / 2, y - height / 2, width, height, _HIT)
    _mark(one, point, ratio)

    looked_at = np.bincount(np.ravel(index), minlength=n * n).reshape(n, n)
    _panel(all_, _dimmed(shown), f'how many regions look at each region (at most '
           f'{looked_at.max()})')
    for region, (chosen, shares) in enumerate(zip(index, weight, strict=True)):
        x, y = centre(region)
        _box(all_, x - width / 2, y - height / 2, width, height, '#ffffff60',
             fill=.75 * looked_at.flat[region] / looked_at.max())
        all_.text(x - width / 2 + 3, y - height / 2 + 3, str(looked_at.flat[region]),
                  color='white', va='top', fontsize=7, zorder=4)
        others = [(share, other) for share, other in zip(shares, chosen, strict=True)
                  if other != region]
        if others:
            share, other = max(others)
            _arrow(all_, (x, y), centre(other), .8 + 2 * share)
    for axis in (one, all_):
        # The regions may reach into the padding below and to the right of the picture.
        axis.set(xlim=(-.5, max(shown.shape[1], n * width) + 1),
                 ylim=(max(shown.shape[0], n * height) + 1, -.5))
    return figure


def draw_maps(picture: np.ndarray, point: tuple[float, float] | None,
              maps: Mapping[str, Tensor | np.ndarray]) -> Figure:
    """Maps beside the picture, in one row.

    Args:
        picture: the image.
        point: (x, y) in pixels of the picture, marked on every panel; None for no mark.
        maps: title -> (h, w) weights, laid over the picture; or (h, w, 3) uint8 colours, shown as
            they are.
    """
    lines = 1 + max(title.count('\n') for title in maps) if maps else 1
    figure, grid = _panels(picture, 1, 1 + len(maps), head=.08 + .14 * lines)
    shown, ratio = _small(picture)
    panels = [('image', shown), *((title, lay_over(shown, values) if values.ndim == 2 else
                                   np.asarray(Image.fromarray(np.asarray(values)).resize(
                                       shown.shape[1::-1], Image.Resampling.NEAREST)))
                                  for title, values in maps.items())]
    for axis, (title, panel) in zip(grid[0], panels, strict=True):
        _panel(axis, panel, title)
        if point is not None:
            _mark(axis, point, ratio)
    return figure


def draw_fields(picture: np.ndarray, point: tuple[float, float],
                fields: Mapping[int, Tensor]) -> Figure:
    """The effective receptive fields of a model's stages, laid over the picture.

    A field is drawn in squares, about 64 along the longer side: single pixels of it only show the
    steps of the convolutions.

    Args:
        picture: the image.
        point: (x, y) in pixels of the picture.
        fields: from `receptive_fields`.
    """
    side = max(1, round(max(picture.shape[:2]) / 64))
    squares = {}
    for stage, field in fields.items():
        square = F.avg_pool2d(field[None].square(), side, ceil_mode=True)[0].sqrt()
        squares[f'stage {stage}\nhalf of it on {percent(half_area(field.square()))} of the pixels'
                ] = square
    return draw_maps(picture, point, squares)


def draw_changes(depths: Sequence[str], parts: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Bars: how far the weights of each depth of a model differ between two checkpoints.

    Args:
        depths: the name of each depth.
        parts: part of the model -> the relative difference at each depth, NaN where it has no such
            part.
        title: above the bars.
    """
    figure = figure_of(max(5., 1.6 + .34 * len(depths) * max(1, len(parts) / 2)), 3.6,
                       layout='constrained')
    axes = figure.add_subplot()
    wide = .84 / max(1, len(parts))
    colours = ('#2563b0', '#d9730d', '#4d9a55', '#8a5bb0')
    for number, (part, values) in enumerate(parts.items()):
        at = np.arange(len(depths)) + (number - (len(parts) - 1) / 2) * wide
        axes.bar(at, np.nan_to_num(values), wide, label=part, color=colours[number % 4])
    axes.set_xticks(range(len(depths)), depths, rotation=60, ha='right', fontsize=8)
    axes.set_ylabel('‖difference‖ / ‖weights‖')
    axes.grid(axis='y', alpha=.25)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(plain(title), loc='left', weight='bold', fontsize=10)
    return figure


def lay_over(picture: np.ndarray, weights: Tensor | np.ndarray) -> np.ndarray:
    """A map of weights laid over a dimmed, grey picture; each position of the map is a rectangle.

    The colour is the square root of the weight over the largest weight, so weak weights are seen
    too. Where the weight is exactly zero the picture stays dark: there the attention cannot look.

    Args:
        picture: (H, W, 3) uint8 RGB.
        weights: (h, w), not negative.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    from matplotlib import colormaps
    height, width = picture.shape[:2]
    values = torch.as_tensor(weights, dtype=torch.float32)
    if values.shape[0] > height or values.shape[1] > width:
        # Smaller than a pixel: the largest weight counts, so no position is lost.
        values = F.adaptive_max_pool2d(values[None], (min(height, values.shape[0]),
                                                      min(width, values.shape[1])))[0]
    rows, columns = (((torch.arange(n) + .5) * cells / n).long()
                     for n, cells in ((height, values.shape[0]), (width, values.shape[1])))
    values = values[rows][:, columns].numpy()
    strength = np.sqrt(values / values.max()) if values.max() > 0 else np.zeros_like(values)
    heat = 255 * colormaps['inferno'](.12 + .88 * strength)[..., :3]
    opacity = np.where(values > 0, .25 + .6 * strength, 0)[..., None]
    base = np.where(values > 0, 1., .45)[..., None] * _dimmed(picture)
    return ((1 - opacity) * base + opacity * heat).round().astype(np.uint8)


def _columns(look: Look) -> list[tuple[str, Tensor]]:
    """Title and weights of the panels of a look."""
    heads = len(look.heads)
    columns = [(f'mean of {heads} heads' if heads > 1 else
                look.name if look.kind == 'rollout' else 'one head', look.mean)]
    for group, mean in look.group_means().items():
        columns.append((f'{group}: {look.rows.groups.count(group)} of {heads} heads', mean))
    # Where each group is one head, its panel is there already.
    if heads > max(1, len(columns) - 1):
        areas = [half_area(weights) for weights in look.heads]
        alive = [number for number in range(heads) if areas[number] == areas[number]]
        if alive:
            least, most = min(alive, key=areas.__getitem__), max(alive, key=areas.__getitem__)
            columns += [(f'the narrowest, head {least}', look.heads[least]),
                        (f'the widest, head {most}', look.heads[most])]
    return columns


def _region_of(look: Look, routing: Routing) -> int:
    row, column = look.position
    return row // routing.region[0] * routing.n_win + column // routing.region[1]


def _panels(picture: np.ndarray, rows: int, columns: int, *, head: float,
            panel: float = _PANEL) -> tuple[Figure, np.ndarray]:
    """A figure and (rows, columns) empty axes; `head` is the room above a panel, in inches."""
    height, gap = panel * float(np.clip(picture.shape[0] / picture.shape[1], _FLATTEST,
                                        _TALLEST)), .06
    width, total = columns * (panel + gap) + gap, rows * (height + head) + gap
    figure = figure_of(width, total)
    # By hand: matplotlib's own layout draws everything once more.
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=dict(
        left=gap / width, right=1 - gap / width, top=1 - head / total, bottom=gap / total,
        wspace=gap / panel, hspace=head / height))
    for axis in grid.flat:
        axis.axis('off')
    return figure, grid


def _small(picture: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture at most `_LONGEST` long, and the ratio of its size to that of the picture."""
    ratio = min(1., _LONGEST / max(picture.shape[:2]))
    size = tuple(max(1, round(side * ratio)) for side in picture.shape[1::-1])
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)), ratio


def _dimmed(picture: np.ndarray) -> np.ndarray:
    """The picture, grey and darker."""
    grey = picture.astype(np.float32) @ np.array([.3, .59, .11], np.float32)
    return np.repeat((20 + .6 * grey)[..., None], 3, -1).astype(np.uint8)


def _panel(axis: Axes, image: np.ndarray, title: str) -> None:
    axis.imshow(image, interpolation='nearest' if image.shape[1] < 300 else 'antialiased')
    axis.set_title(title, fontsize=7.5, pad=3, linespacing=1.15)


def _mark(axis: Axes, point: tuple[float, float], ratio: float) -> None:
    x, y = ((value + .5) * ratio - .5 for value in point)
    for colour, width in (('black', 3.), (_HIT, 1.4)):
        axis.plot(x, y, '+', color=colour, markersize=9 + width, markeredgewidth=width)


def _box(axis: Axes, left: float, top: float, width: float, height: float, colour: str,
         fill: float = 0.) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle
    axis.add_patch(Rectangle((left - .5, top - .5), width, height, ec=colour, lw=1.3,
                             fc=to_rgba(_EDGE, fill)))


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], width: float) -> None:
    from matplotlib.patches import FancyArrowPatch
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=6 + 3 * width,
                                   lw=width, color='#ff7847', alpha=.85, zorder=3,
                                   connectionstyle='arc3,rad=.15'))


def _spread(weights: Tensor) -> str:
    area = half_area(weights)
    return 'no weight on the map' if area != area else f'half of it on {percent(area)}'
