"""Labels over an image, and labels as files."""
from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .colour import IGNORED, Palette, colourise
from .text import as_array, draw_legend, legible

_ROWS = 256


def overlay(image: np.ndarray, label: np.ndarray, palette: Palette, *, opacity: float = 0.5,
            names: Sequence[str] | None = None, ignored: int = IGNORED) -> np.ndarray:
    """The image with its labels laid over it.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) class indices; `ignored` and values outside the palette leave the image bare.
        palette: one RGB triple per class.
        opacity: of the colours, from 0 (the image) to 1 (the colours).
        names: of the classes; where given, a legend of those that occur is put below.
        ignored: the value of pixels without a label.

    Returns:
        (H, W, 3) uint8 RGB, higher by the legend.

    Raises:
        ValueError: image and label differ in size, or `opacity` is out of range.
    """
    if image.shape[:2] != label.shape:
        raise ValueError(f'the image is {image.shape[:2]}, its label {label.shape}: '
                         'they must have the same height and width')
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity is from 0 to 1, got {opacity}')
    known = (label >= 0) & (label < len(palette)) & (label != ignored)
    painted = image.copy()
    # Some rows at a time: the floats of a large image would take four times its memory.
    for first in range(0, len(image), _ROWS):
        rows = np.s_[first:first + _ROWS]
        mixed = (1 - opacity) * image[rows] + opacity * colourise(label[rows], palette, ignored)
        np.copyto(painted[rows], mixed.round().astype(np.uint8), where=known[rows][..., None])
    if names is None:
        return painted
    # Largest first: that is the order in which one looks.
    counts = np.bincount(label[known].ravel())
    present = [i for i in np.argsort(-counts, kind='stable') if counts[i]]
    shown = legible(names)
    return with_legend(painted, [shown[i] for i in present], [palette[i] for i in present])


def with_legend(painted: np.ndarray, names: Sequence[str], palette: Palette) -> np.ndarray:
    """The picture above a legend, whose letters grow with the picture.

    Args:
        painted: (H, W, 3) uint8 RGB.
        names, palette: name and RGB triple of each class to show.

    Returns:
        (H, W, 3) uint8 RGB, at least 160 pixels wide.
    """
    width = max(painted.shape[1], 160)
    size = max(15, round(width / 60))
    margin = size // 2 + 1
    legend = as_array(draw_legend(names, palette, width - 2 * margin, size))
    page = np.full((painted.shape[0] + legend.shape[0] + 2 * margin, width, 3), 255, np.uint8)
    page[:painted.shape[0], :painted.shape[1]] = painted
    page[painted.shape[0] + margin:-margin, margin:-margin] = legend
    return page


def write_label(path: str | os.PathLike, label: np.ndarray) -> None:
    """Write class indices as a grey PNG: 8 bits, or 16 where an index does not fit."""
    kind = np.uint8 if label.max(initial=0) <= 255 else np.uint16
    Image.fromarray(label.astype(kind)).save(path, 'PNG')
