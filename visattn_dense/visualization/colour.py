"""Labels to colours. Images are (H, W, 3) uint8 RGB here, labels (H, W) integers, 255 ignored."""
from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

IGNORED = 255
_IGNORED_COLOUR = (0, 0, 0)

Palette = Sequence[Sequence[int]]


def distinct_palette(count: int) -> list[tuple[int, int, int]]:
    """`count` colours that are easy to tell apart; the first ones do not depend on `count`.

    Hues follow the golden ratio, which never comes near an earlier one soon; three pairs of
    saturation and brightness alternate.
    """
    tones = ((0.65, 0.95), (0.9, 0.7), (0.4, 0.85))
    colours = (colorsys.hsv_to_rgb(i * 0.618034 % 1, *tones[i % 3]) for i in range(count))
    return [tuple(round(255 * part) for part in colour) for colour in colours]


def colourise(label: np.ndarray, palette: Palette, ignored: int = IGNORED) -> np.ndarray:
    """Label values to the colours of `palette`.

    Args:
        label: (H, W) integers; values outside the palette, such as `ignored`, become black.
        palette: one RGB triple per class.
        ignored: the value of pixels without a label, also where the palette reaches that far.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    # The entry after the last class is for everything that is no class.
    table = np.array([*palette, _IGNORED_COLOUR], np.uint8)
    outside = (label < 0) | (label >= len(palette)) | (label == ignored)
    return table[np.where(outside, len(palette), label)]
