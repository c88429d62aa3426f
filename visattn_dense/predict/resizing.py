"""Resizing as OpenCV and torch do it: from pixel centres, and without smoothing when it shrinks.

Pillow smooths when it shrinks, so a model would see other pixels than in its training.
"""
from __future__ import annotations

import numpy as np

_A = -0.75


def resize(array: np.ndarray, size: tuple[int, int], *, method: str = 'bilinear',
           align_corners: bool = False) -> np.ndarray:
    """Resize (H, W) or (H, W, C) to (h, w) = `size`.

    Args:
        array: uint8, or floats.
        size: (h, w) in pixels, at least 1.
        method: 'bilinear', or 'bicubic' (with a = -0.75).
        align_corners: the centres of the corner pixels stay the corners.

    Returns:
        The same dtype; uint8 is rounded. OpenCV rounds its weights to 1/2048 and may differ by 1.
    """
    result = array.astype(np.float32)
    for axis, target in enumerate(size):
        result = _along(result, axis, target, method, align_corners)
    if array.dtype == np.uint8:
        return (result + 0.5).clip(0, 255).astype(np.uint8)
    return result.astype(array.dtype, copy=False)


def _along(array: np.ndarray, axis: int, target: int, method: str, align_corners: bool
           ) -> np.ndarray:
    source = array.shape[axis]
    if source == target:
        return array
    if align_corners:
        places = np.arange(target) * ((source - 1) / max(target - 1, 1))
    else:
        places = (np.arange(target) + 0.5) * (source / target) - 0.5
        if method == 'bilinear':
            places = places.clip(0)
    first = np.floor(places).astype(int)
    rest = places - first
    taps = (((0, 1 - rest), (1, rest)) if method == 'bilinear' else
            [(i, _cubic(np.abs(rest - i))) for i in (-1, 0, 1, 2)])
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    total: np.ndarray | float = 0.
    for offset, weight in taps:
        part = array.take((first + offset).clip(0, source - 1), axis)
        total = total + part * weight.reshape(shape).astype(np.float32)
    return np.asarray(total)


def _cubic(t: np.ndarray) -> np.ndarray:
    """The kernel of cubic convolution at distance t from 0 to 2."""
    near = ((_A + 2) * t - (_A + 3)) * t * t + 1
    far = ((_A * t - 5 * _A) * t + 8 * _A) * t - 4 * _A
    return np.where(t <= 1, near, far)
