"""Tileable noise, the grain of clouds, ridges and ground."""

from __future__ import annotations

import cv2
import numpy as np


def fractal_noise(rng: np.random.Generator, size: int = 256, octaves: int = 5) -> np.ndarray:
    """Return tileable noise (size, size) float32 in 0..1, smooth to fine."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        cells = 4 << octave
        grid = np.pad(rng.random((cells, cells), np.float32), 2, mode='wrap')
        step = size // cells
        big = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += big[2 * step:2 * step + size, 2 * step:2 * step + size] * 0.55**octave
    low, high = map(float, np.percentile(total, (1, 99)))
    return np.clip((total - low) / (high - low), 0, 1)


def sample(noise: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Read tileable noise at any coordinates, in texels."""
    size = noise.shape[0]
    # remap keeps coordinates in 16 bits: fold them before.
    return cv2.remap(noise, np.mod(x, size).astype(np.float32), np.mod(y, size).astype(np.float32),
                     cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
