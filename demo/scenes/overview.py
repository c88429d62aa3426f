"""Contact sheets of rendered scenes: pictures, labels in colour, outlines of the instances."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .compose import Scene

# ADE20K index -> RGB.
PALETTE = {
    0: (0, 0, 0), 2: (150, 110, 110), 3: (120, 180, 230), 5: (50, 130, 50), 7: (110, 110, 115),
    10: (130, 200, 80), 12: (215, 190, 160), 13: (235, 60, 80), 14: (150, 105, 60),
    17: (130, 130, 170), 18: (170, 220, 110), 21: (40, 90, 220), 33: (200, 150, 220),
    44: (250, 230, 60), 81: (0, 200, 200), 84: (0, 130, 150), 88: (250, 160, 40),
    94: (90, 50, 40), 128: (160, 40, 170), 137: (255, 90, 0),
}


def colourise(label: np.ndarray) -> np.ndarray:
    """(H, W) ADE20K indices to (H, W, 3) uint8 RGB."""
    table = np.zeros((256, 3), np.uint8)
    for index, colour in PALETTE.items():
        table[index] = colour
    return table[label]


def outlined(scene: Scene) -> np.ndarray:
    """Return the picture with every instance outlined, crowds in white: (H, W, 3) uint8."""
    picture = scene.image.copy()
    for i, instance in enumerate(scene.instances):
        outlines, _ = cv2.findContours(instance.mask.astype(np.uint8), cv2.RETR_EXTERNAL,
                                       cv2.CHAIN_APPROX_NONE)
        hue = cv2.cvtColor(np.uint8([[[i * 53 % 180, 220, 255]]]), cv2.COLOR_HSV2RGB)[0, 0]
        tone = (255, 255, 255) if instance.crowd else tuple(hue.tolist())
        cv2.drawContours(picture, outlines, -1, tone, 1)
    return picture


def contact_sheet(scenes: Sequence[Scene], columns: int = 3) -> np.ndarray:
    """Lay scenes out as rows of (picture, labels, outlines) triples: one RGB uint8 array."""
    cells = [np.hstack([s.image, colourise(s.label), outlined(s)]) for s in scenes]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    rows = [np.hstack(cells[i:i + columns]) for i in range(0, len(cells), columns)]
    return np.vstack(rows)
