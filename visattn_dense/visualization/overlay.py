"""Labels over an image, and labels as files."""
from __future__ import annotations

import os
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from .colour import IGNORED, Palette, colourise
from .text import as_array, draw_legend


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
    mixed = cv2.addWeighted(image, 1 - opacity, colourise(label, palette, ignored), opacity, 0)
    painted = np.where(known[..., None], mixed, image)
    if names is None:
        return painted
    # Largest first: that is the order in which one looks.
    present, counts = np.unique(label[known], return_counts=True)
    present = present[np.argsort(-counts, kind='stable')]
    margin = 8
    width = max(painted.shape[1], 160)
    legend = as_array(draw_legend([names[i] for i in present], [palette[i] for i in present],
                                  width - 2 * margin))
    page = np.full((painted.shape[0] + legend.shape[0] + 2 * margin, width, 3), 255, np.uint8)
    page[:painted.shape[0], :painted.shape[1]] = painted
    page[painted.shape[0] + margin:-margin, margin:-margin] = legend
    return page


def write_label(path: str | os.PathLike, label: np.ndarray) -> None:
    """Write class indices as a grey PNG: 8 bits, or 16 where an index does not fit."""
    kind = np.uint8 if label.max(initial=0) <= 255 else np.uint16
    Image.fromarray(label.astype(kind)).save(path)
