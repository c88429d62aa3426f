"""Objects over an image: masks, boxes, names; and a sheet of truth beside prediction."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .colour import Palette
from .layout import fit, lay_out
from .objects import outline
from .text import draw_text, legible


class Instances(NamedTuple):
    """The objects of an image.

    masks (N, H, W) bool, or None where there are boxes alone; boxes (N, 4) as x1, y1, x2, y2 in
    pixels; labels (N,) class indices; scores (N,), or None where they are the truth; crowd (N,)
    bool: a region of many, or None.
    """

    masks: np.ndarray | None
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
                    width: int | None = None, opacity: float = 0.5,
                    names: Sequence[str] | None = None) -> Image.Image:
    """The image with its objects laid over it, large ones below small ones.

    Args:
        image: (H, W, 3) uint8 RGB.
        objects: with masks of the image's size; scores are written at the boxes, crowd regions are
            outlined without a fill.
        palette: one RGB triple per class.
        width: of the picture, in pixels; that of the image where None.
        opacity: of the masks, from 0 to 1.
        names: of the classes, written at the largest box of each class; None: scores alone.

    Raises:
        ValueError: masks of another size than the image.
    """
    masks, boxes = objects.masks, objects.boxes
    if masks is not None and masks.shape[1:] != image.shape[:2]:
        raise ValueError(f'the image is {image.shape[:2]}, the masks are '
                         f'{masks.shape[1:]}: they must have the same height and width')
    ratio = (width or image.shape[1]) / image.shape[1]
    size = (round(image.shape[1] * ratio), max(1, round(image.shape[0] * ratio)))
    picture = np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), np.float32)
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) if masks is None else
             masks.sum((1, 2)))
    order = np.argsort(-areas, kind='stable')
    crowd = np.zeros(len(order), bool) if objects.crowd is None else objects.crowd
    for i in order if masks is not None else ():
        mask = np.array(Image.fromarray(masks[i].astype(np.uint8)).resize(
            size, Image.Resampling.NEAREST), bool)
        colour = np.array(palette[objects.labels[i]], np.float32)
        if not crowd[i]:
            picture[mask] = (1 - opacity) * picture[mask] + opacity * colour
        picture[outline(mask)] = colour
    page = Image.fromarray(picture.round().astype(np.uint8))
    draw = ImageDraw.Draw(page)
    written = None if names is None else legible(names)
    line, letters = max(1, round(size[0] / 240)), max(11, round(size[0] / 30))
    colours = [tuple(int(part) for part in palette[label]) for label in objects.labels]
    for i in order:
        x1, y1, x2, y2 = (float(value) * ratio for value in boxes[i])
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colours[i], width=line)
    # Texts come last: a box must not run through the text of another object.
    named: set[int] = set()
    for i in order:
        label = int(objects.labels[i])
        words = ['crowd'] if crowd[i] else []
        if written is not None and not crowd[i] and label not in named:
            words.append(written[label])
            named.add(label)
        words += [] if objects.scores is None else [f'{100 * objects.scores[i]:.0f}']
        if words:
            x1, y1 = (float(value) * ratio for value in boxes[i][:2])
            draw_text(draw, (x1, y1), ' '.join(words), letters, colours[i], size[0])
    return page


def draw_instance_sheet(rows: Sequence[InstanceRow], names: Sequence[str], palette: Palette, *,
                        title: str = '', subtitle: str = '', cell_width: int = 400
                        ) -> Image.Image:
    """Image, truth and prediction of each of the rows, above a legend of the classes.

    Args:
        rows: the examples, best of one aspect ratio.
        names: of all classes; the legend shows those that occur.
        palette: one RGB triple per class.
        title, subtitle: above the pictures, left out where empty.
        cell_width: of each picture, in pixels.

    Raises:
        ValueError: no rows, or masks of another size than their image.
    """
    cells = []
    for row in rows:
        width, height = fit(row.image.shape[1], row.image.shape[0], cell_width)
        bare = Image.fromarray(row.image).resize((width, height), Image.Resampling.LANCZOS)
        cells.append([bare, *(paint_instances(row.image, objects, palette, width=width)
                              for objects in (row.truth, row.prediction))])
    shown = sorted({int(label) for row in rows for objects in (row.truth, row.prediction)
                    for label in objects.labels})
    return lay_out(cells, names=names, palette=palette, shown=shown, title=title,
                   headings=('image', 'truth', 'prediction, with its score in percent'),
                   subtitle=subtitle, cell_width=cell_width)
