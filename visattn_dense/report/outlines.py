"""Objects over a photograph, as SVG: masks, boxes and names that do not cover each other."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as rle_tools

from visattn_dense.report.html import Markup, element

# Letters of a name: their height as a share of the longer side, their mean width in heights.
_LETTERS, _WIDE = 1 / 30, 0.66
# More names than this hide the picture; each box tells its name when the pointer is on it.
_MOST_NAMES = 12
# A mask is outlined in a picture of at most this size: an outline stays short.
_SIDE = 480


class Drawn(NamedTuple):
    """One object of a view.

    box x, y, width, height in pixels, NaN for none; text says what it is, and is written where
    `named`; style is a class of the style sheet ('good', 'bad', 'lost'), or None with a colour
    (RGB); mask a compressed RLE or None; with_box draws the box beside a mask.
    """

    box: np.ndarray
    text: str
    style: str | None = None
    colour: Sequence[int] | None = None
    mask: dict[str, Any] | None = None
    with_box: bool = True
    named: bool = True


def view(objects: Sequence[Drawn], caption: str, mark: str, size: tuple[int, int],
         photo: str | None = None) -> Markup:
    """One picture with its line below.

    Args:
        objects: the most important first: where names would cover each other, the first keeps its
            name.
        caption: the line.
        mark: id of the photograph in the page. The view that gets `photo` defines the photograph,
            the other views of the same image show it again.
        size: (width, height) of the image in pixels.
        photo: address of the photograph.
    """
    width, height = size
    inside: list[Markup] = [element('rect', width=width, height=height, fill='#3a4049')]
    if photo:
        inside.append(element('image', href=photo, width=width, height=height, id=mark,
                              preserveAspectRatio='none'))
    else:
        inside.append(element('use', href=f'#{mark}'))
    # Large ones first, so that they lie below small ones.
    for item in sorted(objects, key=_area, reverse=True):
        inside += _shapes(item)
    letters = max(size) * _LETTERS
    named = [item for item in objects if item.named and not np.isnan(item.box[0])][:_MOST_NAMES]
    for item, place in zip(named, places(named, letters, size), strict=True):
        if place:
            inside.append(element('text', item.text, class_='name', x=f'{place[0]:.1f}',
                                  y=f'{place[1]:.1f}', font_size=f'{letters:.1f}'))
    return element('figure', element('svg', inside, view_Box=f'0 0 {width} {height}', role='img',
                                     aria_label=caption), element('figcaption', caption))


def _area(item: Drawn) -> float:
    return float(np.nan_to_num(item.box[2] * item.box[3]))


def _shapes(item: Drawn) -> list[Markup]:
    found = []
    colour = None if item.colour is None else '#{:02x}{:02x}{:02x}'.format(*item.colour)
    style = item.style or ''
    if item.mask is not None and (path := outline(item.mask)):
        found.append(element('path', element('title', item.text), d=path, fill_rule='evenodd',
                             class_=f'mask {style}',
                             style=colour and f'fill:{colour};stroke:{colour}'))
    if not np.isnan(item.box[0]) and (item.with_box or not found):
        x, y, w, h = item.box
        found.append(element('rect', element('title', item.text), x=f'{x:.1f}', y=f'{y:.1f}',
                             width=f'{w:.1f}', height=f'{h:.1f}', class_=f'box {style}',
                             style=colour and f'stroke:{colour}'))
    return found


def outline(mask: dict[str, Any]) -> str:
    """The outline of a compressed RLE mask as an SVG path in pixels of the image; '' for none."""
    pixels = rle_tools.decode(mask)
    height, width = pixels.shape
    ratio = min(1., _SIDE / max(height, width))
    if ratio < 1:
        small = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        pixels = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    scale = np.array([width / pixels.shape[1], height / pixels.shape[0]])
    contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        points = (cv2.approxPolyDP(contour, 0.7, True)[:, 0] + 0.5) * scale
        parts.append('M' + ' '.join(f'{x:.1f},{y:.1f}' for x, y in points) + 'z')
    return ''.join(parts)


def places(objects: Sequence[Drawn], letters: float, size: tuple[int, int]
           ) -> list[tuple[float, float] | None]:
    """Where the name of each object begins (x, baseline y), or None where it would cover another.

    A name stands above its box, else inside at the top, inside at the bottom, or below.
    """
    taken: list[tuple[float, float, float, float]] = []
    found: list[tuple[float, float] | None] = []
    for item in objects:
        x, y, _, h = (float(value) for value in item.box)
        wide = _WIDE * letters * len(item.text)
        left = max(0., min(x + letters / 6, size[0] - wide))
        lines = (y - letters / 5, y + letters, y + h - letters / 5, y + h + letters)
        free = None
        for line in lines:
            # From the top of the letters to below the baseline.
            area = (left, line - 0.85 * letters, left + wide, line + letters / 5)
            if area[1] < 0 or area[3] > size[1]:
                continue
            if not any(area[0] < other[2] and other[0] < area[2] and area[1] < other[3]
                       and other[1] < area[3] for other in taken):
                free = (left, line)
                taken.append(area)
                break
        found.append(free)
    return found
