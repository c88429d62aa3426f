"""Detected objects over an image of any size: each object told apart, widths that fit the image."""
from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from .colour import Palette
from .overlay import with_legend
from .text import draw_text, legible


def draw_objects(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray,
                 palette: Palette, names: Sequence[str], *,
                 mask: Callable[[int], tuple[np.ndarray, tuple[int, int]]] | None = None,
                 opacity: float = 0.5, legend: bool = True) -> np.ndarray:
    """The image with its objects laid over it, large ones below small ones.

    Objects of one class have tones of the class colour. Lines and letters grow with the image.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4): x1, y1, x2, y2 in pixels.
        labels: (N,) class indices.
        scores: (N,), from 0 to 1.
        palette, names: RGB triple and name of each class.
        mask: gives the part around the mask of object i, (h, w) bool, and the (y, x) of its first
            pixel; None where there are boxes only.
        opacity: of the masks, from 0 to 1.
        legend: put a legend of the classes found below the image.

    Returns:
        (H, W, 3) uint8 RGB, higher by the legend.
    """
    picture = image.copy()
    height, width = image.shape[:2]
    line = max(1, round(min(height, width) / 320))
    letters = max(11, round(min(height, width) / 40))
    sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-sizes, kind='stable').tolist()
    colours = instance_colours(labels, palette)
    for i in order if mask is not None else ():
        part, (y, x) = mask(i)
        _paint(picture[y:y + part.shape[0], x:x + part.shape[1]], part, colours[i], opacity, line)
    page = Image.fromarray(picture)
    draw = ImageDraw.Draw(page)
    shown = legible(names)
    for i in order:
        x1, y1, x2, y2 = (float(value) for value in boxes[i])
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colours[i], width=line)
    # Texts come last: a box must not run through the name of another object.
    for i in order:
        x1, y1 = (float(value) for value in boxes[i][:2])
        text = f'{shown[labels[i]]} {100 * scores[i]:.0f}'
        draw_text(draw, (x1, y1), text, letters, colours[i], width)
    painted = np.asarray(page)
    if not legend:
        return painted
    counts = np.bincount(labels, minlength=len(names)) if len(labels) else np.zeros(len(names))
    present = [int(i) for i in np.argsort(-counts, kind='stable') if counts[i]]
    return with_legend(painted, [f'{shown[i]} ({int(counts[i])})' for i in present],
                       [palette[i] for i in present])


def instance_colours(labels: Sequence[int] | np.ndarray, palette: Palette
                     ) -> list[tuple[int, int, int]]:
    """A colour for each object: tones of the class colour, the first object the colour itself.

    Args:
        labels: (N,) class indices.
        palette: one RGB triple per class.
    """
    seen: dict[int, int] = {}
    colours = []
    for label in map(int, labels):
        number = seen[label] = seen.get(label, -1) + 1
        colours.append(_tone(palette[label], number))
    return colours


def _tone(colour: Sequence[int], number: int) -> tuple[int, int, int]:
    """The tone of a class colour for its object `number`; object 0 has the colour itself."""
    hue, light, saturation = colorsys.rgb_to_hls(*(part / 255 for part in colour))
    if number:
        # Between a quarter darker and a quarter lighter, neighbours far apart; hues stay near.
        step = number * 0.618034 % 1 - 0.5
        light = min(0.85, max(0.2, light + 0.5 * step))
        hue = (hue + 0.08 * (number * 0.754878 % 1 - 0.5)) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, light, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def _paint(target: np.ndarray, mask: np.ndarray, colour: Sequence[int], opacity: float,
           line: int) -> None:
    """Lay a mask over a part of the picture, in place, with an outline of `line` pixels."""
    mixed = (1 - opacity) * target[mask] + opacity * np.array(colour, np.float32)
    target[mask] = mixed.round().astype(np.uint8)
    target[outline(mask, line)] = colour


def outline(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """The pixels of a mask, (H, W) bool, that are at most `width` steps away from its outside."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1)
        inner = (inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2]
                 & padded[1:-1, 2:])
    return mask & ~inner
