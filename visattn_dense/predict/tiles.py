"""Windows over a picture of any height: blended without a seam, and in bounded memory.

Each class score at a pixel is the weighted mean of the windows that cover the pixel:

    score(y, x) = Σ_ij u_i(y) v_j(x) score_ij(y, x),    Σ_i u_i(y) = Σ_j v_j(x) = 1

u_i and v_j go to zero at the borders of their window, along sin², except at borders of the picture.
So the mean has no step where a window begins or ends.

Rows of windows are computed from the top. What lies above the next row is finished and handed out;
what the next row shares is kept: (C, overlap, W) scores, however high the picture is.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

Span = tuple[int, int]
Window = tuple[Span, Span]


def window_spans(length: int, crop: int, stride: int) -> list[Span]:
    """(start, end) of windows that cover `length`. The last one ends at `length`, as in mmseg."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, length) for i in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


def smooth_weights(spans: Sequence[Span]) -> list[np.ndarray]:
    """The weights u_i of windows along one axis: float32, summing to 1 at each pixel."""
    total = np.zeros(spans[-1][1])
    raw = []
    for i, (start, end) in enumerate(spans):
        weight = np.ones(end - start)
        for ramp, side in ((spans[i - 1][1] - start if i else 0, weight),
                           (end - spans[i + 1][0] if i + 1 < len(spans) else 0, weight[::-1])):
            ramp = min(ramp, len(weight))
            if ramp > 0:
                side[:ramp] *= np.sin(np.pi / 2 * (np.arange(ramp) + 0.5) / ramp)**2
        total[start:end] += weight
        raw.append(weight)
    return [(weight / total[start:end]).astype(np.float32)
            for weight, (start, end) in zip(raw, spans, strict=True)]


def windows_of(size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]
               ) -> list[Window]:
    """All windows over a picture of (H, W), row by row: ((y1, y2), (x1, x2)) each."""
    rows, columns = (window_spans(*sides) for sides in zip(size, crop, stride, strict=True))
    return [(row, column) for row in rows for column in columns]


def computed(windows: Sequence[Window], read: Callable[[Window], Any],
             compute: Callable[[list[Any]], Sequence[Any]], batch_size: int) -> Iterator[Any]:
    """The output for each window, in order; the next windows are read during the computation.

    Args:
        windows: all of one size, or of the picture's where it is smaller.
        read: gives what `compute` takes of a window; called in another thread.
        compute: gives the outputs of a batch.
        batch_size: windows that are computed at once.
    """
    todo = iter(windows)
    with ThreadPoolExecutor(1) as pool:
        reading = deque(pool.submit(read, window) for window in islice(todo, 2 * batch_size))
        while reading:
            batch = [reading.popleft().result() for _ in range(min(batch_size, len(reading)))]
            reading.extend(pool.submit(read, window) for window in islice(todo, len(batch)))
            outputs = deque(compute(batch))
            del batch
            while outputs:
                yield outputs.popleft()


def blended_bands(size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int],
                  scores: Iterator[Any], decide: Callable[[Any], np.ndarray],
                  array: Callable[[np.ndarray], Any] = np.asarray) -> Iterator[np.ndarray]:
    """What `decide` makes of the blended scores, in bands from the top to the bottom.

    Args:
        size: (H, W) of the picture.
        crop, stride: of the windows, in pixels.
        scores: (C, h, w) of each window, in the order of `windows_of`: NumPy arrays or tensors.
        decide: gives (..., h, w) of (C, h, w) blended scores.
        array: puts a NumPy array where the scores are.

    Yields:
        (..., h, W) for bands of heights that add up to H.
    """
    rows, columns = (window_spans(*sides) for sides in zip(size, crop, stride, strict=True))
    row_weights, column_weights = smooth_weights(rows), smooth_weights(columns)
    shared = max((end - start for (_, end), (start, _) in zip(rows, rows[1:], strict=False)),
                 default=0)
    above: Any = None
    for i, (top, bottom) in enumerate(rows):
        following = rows[i + 1][0] if i + 1 < len(rows) else size[0]
        came = rows[i - 1][1] - top if i else 0
        left, band = None, []
        for j, (start, _) in enumerate(columns):
            after = columns[j + 1][0] if j + 1 < len(columns) else size[1]
            part = next(scores) * array(row_weights[i][:, None] * column_weights[j])
            if left is not None:
                part[:, :, :left.shape[2]] += left
            left, part = part[:, :, after - start:], part[:, :, :after - start]
            if came:
                part[:, :came] += above[:, :came, start:after]
            band.append(decide(part[:, :following - top]))
            if following < bottom:
                if above is None:
                    above = array(np.zeros((len(part), shared, size[1]), np.float32))
                above[:, :bottom - following, start:after] = part[:, following - top:]
        yield np.concatenate(band, axis=-1)
