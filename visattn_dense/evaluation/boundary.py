"""The boundary region of boundary IoU (Cheng et al., "Boundary IoU", CVPR 2021, arXiv:2103.16562).

For a mask G, the region G_d holds the pixels of G that are at most d pixels from the contour of G:

    boundary IoU(G, P) = |G_d ∩ P_d| / |G_d ∪ P_d|

As in the authors' boundary-iou-api: d = round(ratio · image diagonal), at least 1; the ratio is
0.02; the distance is the Chebyshev distance (d erosions with a 3x3 square); the edge of the image
is a contour.
"""
from __future__ import annotations

import cv2
import numpy as np

# "2 % of the image diagonal", section 5 of the paper; boundary_utils.py of the authors.
DEFAULT_RATIO = 0.02


def boundary_distance(height: int, width: int, ratio: float = DEFAULT_RATIO) -> int:
    """d in pixels for an image of this size."""
    return max(1, round(ratio * float(np.hypot(height, width))))


def boundary_region(classes: np.ndarray, distance: int,
                    unknown: np.ndarray | None = None) -> np.ndarray:
    """The pixels that are at most `distance` from the contour of their own class.

    One pass serves all classes. A pixel is inside, away from the contour, exactly if the largest
    and the smallest class in the square around the pixel are both the pixel's class.

    Args:
        classes: (H, W) integers in 0..65532.
        distance: d in pixels, at least 1.
        unknown: (H, W) bool, pixels of unknown class. Such pixels belong to no region. There is no
            contour beside them, because they may have the same class.

    Returns:
        np.ndarray: (H, W) bool.
    """
    top = int(classes.max(initial=0)) + 2
    # Unknown pixels are 0 for the maximum and `top` for the minimum, so they are neither the
    # largest nor the smallest. Pixels outside the image are `top`, which makes a contour.
    codes = classes.astype(np.uint8 if top < 256 else np.uint16) + 1
    outside = [1, 1, 1, 1, cv2.BORDER_CONSTANT]
    upper, lower = codes, codes
    if unknown is not None:
        upper, lower = np.where(unknown, 0, codes), np.where(unknown, top, codes)
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    largest = cv2.dilate(cv2.copyMakeBorder(upper.astype(codes.dtype), *outside, value=top), square)
    smallest = cv2.erode(cv2.copyMakeBorder(lower.astype(codes.dtype), *outside, value=top), square)
    region = (largest[1:-1, 1:-1] != codes) | (smallest[1:-1, 1:-1] != codes)
    return region if unknown is None else region & ~unknown
