"""Charts as SVG. Colours are names of the page's style sheet, so that charts follow light and dark.

Each chart is 640 x 300 units large and scales to the width of the page.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

from visattn_dense.report.html import Markup, element

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 14, 12, 42
COLOURS = 6
"""Colours of lines in the style sheet: --line-0 to --line-5."""
_MOST_POINTS = 400


def lines(curves: Sequence[tuple[str, Points]], *, across: str, up: str,
          x_range: tuple[float, float] | None = None, y_range: tuple[float, float] | None = None,
          diagonal: bool = False, dots: bool = False,
          classes: Sequence[int] | None = None) -> Markup:
    """Lines in one frame, with a legend below where there are several.

    Args:
        curves: name and points of each line; points that are not finite are left out.
        across, up: what the axes show.
        x_range, y_range: of the axes; by default what the points need, upwards from 0.
        diagonal: draw a dashed line from corner to corner.
        dots: mark the points.
        classes: the class of each line, for the page's class filter.
    """
    curves = [(name, [p for p in points if all(map(math.isfinite, p))]) for name, points in curves]
    every = [point for _, points in curves for point in points] or [(0., 0.)]
    x0, x1 = x_range or (min(x for x, _ in every), max(x for x, _ in every))
    y0, y1 = y_range or (min(0., *(y for _, y in every)), 1.05 * max(y for _, y in every))
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return (_LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT),
                _HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM))

    inside = []
    if diagonal:
        (ax, ay), (bx, by) = place(x0, y0), place(x1, y1)
        inside.append(element('line', x1=ax, y1=ay, x2=bx, y2=by, class_='guide'))
    legend = []
    for number, (name, points) in enumerate(curves):
        of_class = None if classes is None else classes[number]
        # Colours come round again with dashes, then with dots.
        look = f'c{number % COLOURS} d{number // COLOURS % 3}'
        colour = f'line {look}'
        placed = [place(*point) for point in _thinned(points)]
        inside.append(element(
            'g', element('title', name),
            element('polyline', class_=colour, points=' '.join(f'{x:.1f},{y:.1f}'
                                                               for x, y in placed)),
            [element('circle', cx=f'{x:.1f}', cy=f'{y:.1f}', r=3, class_=f'dot {colour}')
             for x, y in (placed if dots else ())],
            data_classes=of_class))
        legend.append(element('span', element('i', class_=f'key {look}'), name,
                              data_classes=of_class))
    chart = _frame((x0, x1), (y0, y1), place, across, up, inside)
    return element('div', chart, element('p', legend, class_='legend') if len(curves) > 1 else None,
                   class_='chart')


def bars(edges: Sequence[float], counts: Sequence[float], *, across: str, up: str) -> Markup:
    """A histogram: `counts[i]` between `edges[i]` and `edges[i + 1]`."""
    x0, x1, top = edges[0], edges[-1], max(1., *counts) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        return (_LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT),
                _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM))

    inside = []
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        (ax, ay), (bx, by) = place(left, count), place(right, 0)
        inside.append(element('g', element('title', f'{left:g} to {right:g}: {count:g}'), element(
            'rect', x=f'{ax + 1:.1f}', y=f'{ay:.1f}', width=f'{bx - ax - 2:.1f}',
            height=f'{by - ay:.1f}', class_='bar')))
    return element('div', _frame((x0, x1), (0, top), place, across, up, inside), class_='chart')


def _frame(x_range, y_range, place, across: str, up: str, inside: list[Markup]) -> Markup:
    marks = []
    for value in _ticks(*y_range):
        x, y = place(x_range[0], value)
        marks += [element('line', x1=x, x2=_WIDTH - _RIGHT, y1=f'{y:.1f}', y2=f'{y:.1f}',
                          class_='grid'),
                  element('text', f'{value:g}', x=x - 6, y=f'{y + 4:.1f}', class_='tick end')]
    for value in _ticks(*x_range):
        x, y = place(value, y_range[0])
        marks.append(element('text', f'{value:g}', x=f'{x:.1f}', y=y + 17, class_='tick middle'))
    marks += [element('text', across, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 6,
                      class_='axis middle'),
              element('text', up, x=13, y=(_TOP + _HEIGHT - _BOTTOM) / 2, class_='axis middle',
                      transform=f'rotate(-90 13 {(_TOP + _HEIGHT - _BOTTOM) / 2})')]
    return element('svg', marks, inside, view_Box=f'0 0 {_WIDTH} {_HEIGHT}', role='img',
                   aria_label=f'{up} over {across}')


def _ticks(low: float, high: float) -> list[float]:
    """Round values between two others, about five."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, first + 12) if i * step <= high + step * 1e-9]


def _thinned(points: Points) -> Points:
    step = -(-len(points) // _MOST_POINTS)
    return [*points[::step], points[-1]] if step > 1 else points
