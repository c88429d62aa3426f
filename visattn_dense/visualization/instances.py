"""Objects over an image: masks, boxes, names; and a sheet of truth beside prediction."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .colour import Palette
from .text import FAINT, INK, PAPER, draw_legend, font, legible

_MARGIN, _GAP = 28, 10


class Instances(NamedTuple):
    """The objects of an image.

    masks (N, H, W) bool; boxes (N, 4) as x1, y1, x2, y2 in pixels; labels (N,) class indices;
    scores (N,), or None where they are the truth; crowd (N,) bool: a region of many, or None.
    """

    masks: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None


class InstanceRow(NamedTuple):
    """One example: image (H, W, 3) uint8 RGB, and its objects."""

    image: np.ndarray
    truth: Instances
    prediction: Instances


def paint_instances(image: np.ndarray, objects: Instances, palette: Palette, *,
                    width: int | None = None, opacity: float = 0.5) -> Image.Image:
    """The image with its objects laid over it, large ones below small ones.

    Args:
        image: (H, W, 3) uint8 RGB.
        objects: with masks of the image's size; scores are written at the boxes, crowd regions are
            outlined without a fill.
        palette: one RGB triple per class.
        width: of the picture, in pixels; that of the image where None.
        opacity: of the masks, from 0 to 1.

    Raises:
        ValueError: masks of another size than the image.
    """
    if objects.masks.shape[1:] != image.shape[:2]:
        raise ValueError(f'the image is {image.shape[:2]}, the masks are '
                         f'{objects.masks.shape[1:]}: they must have the same height and width')
    ratio = (width or image.shape[1]) / image.shape[1]
    size = (round(image.shape[1] * ratio), round(image.shape[0] * ratio))
    picture = np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), np.float32)
    order = np.argsort(-objects.masks.sum((1, 2)), kind='stable')
    crowd = np.zeros(len(order), bool) if objects.crowd is None else objects.crowd
    for i in order:
        mask = np.array(Image.fromarray(objects.masks[i].astype(np.uint8)).resize(
            size, Image.Resampling.NEAREST), bool)
        colour = np.array(palette[objects.labels[i]], np.float32)
        if not crowd[i]:
            picture[mask] = (1 - opacity) * picture[mask] + opacity * colour
        picture[_outline(mask)] = colour
    page = Image.fromarray(picture.round().astype(np.uint8))
    draw = ImageDraw.Draw(page)
    letters = font(11, bold=True)
    for i in order:
        colour = tuple(int(part) for part in palette[objects.labels[i]])
        x1, y1, x2, y2 = (float(value) * ratio for value in objects.boxes[i])
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour)
        text = ('crowd' if crowd[i] else '' if objects.scores is None else
                f'{100 * objects.scores[i]:.0f}')
        if text:
            top = max(0., y1 - 13)
            draw.rectangle((x1, top, x1 + letters.getlength(text) + 4, top + 13), fill=colour)
            # Dark letters on light colours, and the other way round.
            light = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] > 140
            draw.text((x1 + 2, top), text, INK if light else PAPER, letters)
    return page


def draw_instance_sheet(rows: Sequence[InstanceRow], names: Sequence[str], palette: Palette, *,
                        title: str = '', subtitle: str = '', cell_width: int = 480
                        ) -> Image.Image:
    """Truth beside prediction for each of the rows, above a legend of the classes.

    Args:
        rows: the examples, best of one aspect ratio.
        names: of all classes; the legend shows those that occur.
        palette: one RGB triple per class.
        title, subtitle: above the pictures, left out where empty.
        cell_width: of each picture, in pixels.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError('a sheet needs at least one row')
    width = 2 * cell_width + _GAP + 2 * _MARGIN
    pictures = [[paint_instances(row.image, objects, palette, width=cell_width)
                 for objects in (row.truth, row.prediction)] for row in rows]
    shown = sorted({int(label) for row in rows for objects in (row.truth, row.prediction)
                    for label in objects.labels})
    written = legible(names)
    legend = draw_legend([written[i] for i in shown], [palette[i] for i in shown],
                         width - 2 * _MARGIN)
    lines = [(text, font(size, bold), colour) for text, size, bold, colour in
             ((title, 24, True, INK), (subtitle, 15, False, FAINT)) if text]
    first = _MARGIN + sum(round(letters.size * 1.6) for _, letters, _ in lines) + 30
    height = sum(pair[0].height + _GAP for pair in pictures)
    page = Image.new('RGB', (width, first + height + legend.height + _MARGIN + 8), PAPER)
    draw = ImageDraw.Draw(page)
    y = _MARGIN
    for text, letters, colour in lines:
        draw.text((_MARGIN, y), text, colour, letters)
        y += round(letters.size * 1.6)
    for column, heading in enumerate(('truth', 'prediction, with its score in percent')):
        draw.text((_MARGIN + column * (cell_width + _GAP), first - 8), heading, INK,
                  font(15, bold=True), anchor='ls')
    y = first
    for pair in pictures:
        for column, picture in enumerate(pair):
            page.paste(picture, (_MARGIN + column * (cell_width + _GAP), y))
        y += pair[0].height + _GAP
    page.paste(legend, (_MARGIN, y + 8))
    return page


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask that have a neighbour outside it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
