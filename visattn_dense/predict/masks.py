"""Masks as COCO's run lengths (RLE) and as polygons along the edges of pixels, in NumPy.

COCO counts pixels column by column: runs of 0 and 1 in turn, first of 0. The compressed form
writes a run as the difference to the run two places before, in characters of six bits
(maskApi.c, rleToString). pycocotools reads and writes the same.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

# A run of up to 2**31 pixels needs no more.
MOST_CHARACTERS = 7


class Rle(TypedDict):
    """A mask: size [height, width] in pixels, and the compressed runs."""

    size: list[int]
    counts: str


def encode(mask: np.ndarray, at: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None
           ) -> Rle:
    """The RLE of a mask.

    Args:
        mask: (h, w) bool.
        at: (y, x) of the mask's first pixel in the image.
        size: (H, W) of the image; that of the mask where None.
    """
    height, width = size or mask.shape
    columns = np.flatnonzero(mask.any(0)) if mask.size else np.zeros(0, int)
    if not columns.size:
        return Rle(size=[height, width], counts=_pack(np.array([height * width])))
    first, last = columns[0], columns[-1] + 1
    # A row of zeros below ends each run within its column.
    part = np.zeros((last - first, mask.shape[0] + 1), np.int8)
    part[:, :-1] = mask[:, first:last].T
    steps = np.diff(part.ravel(), prepend=0)
    place = np.flatnonzero(steps)
    x, y = np.divmod(place, mask.shape[0] + 1)
    edges = (x + first + at[1]) * height + y + at[0]
    # Two runs that touch across a column border are one.
    touch = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
    edges = np.delete(edges, np.concatenate([touch, touch + 1]))
    runs = np.diff(edges, prepend=0, append=height * width)
    return Rle(size=[height, width], counts=_pack(runs if runs[-1] else runs[:-1]))


def decode(rle: Rle) -> np.ndarray:
    """The mask of an RLE: (H, W) bool."""
    height, width = rle['size']
    runs = _unpack(rle['counts'])
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T


def decode_part(rle: Rle) -> tuple[np.ndarray, tuple[int, int]]:
    """The part around the mask of an RLE, (h, w) bool, and the (y, x) of its first pixel."""
    height = rle['size'][0]
    runs = _unpack(rle['counts'])
    starts, lengths = np.cumsum(runs)[:-1:2], runs[1::2]
    # The position of each pixel of the mask, run after run.
    before = np.cumsum(lengths) - lengths
    x, y = np.divmod(np.repeat(starts[:len(lengths)] - before, lengths)
                     + np.arange(lengths.sum()), height)
    if not len(x):
        return np.zeros((0, 0), bool), (0, 0)
    top, left = int(y.min()), int(x[0])
    mask = np.zeros((int(y.max()) + 1 - top, int(x[-1]) + 1 - left), bool)
    mask[y - top, x - left] = True
    return mask, (top, left)


def area(rle: Rle) -> int:
    """Number of pixels of the mask."""
    return int(_unpack(rle['counts'])[1::2].sum())


def _pack(runs: np.ndarray) -> str:
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    characters = np.zeros((len(values), MOST_CHARACTERS), np.uint8)
    going = np.ones(len(values), bool)
    for place in range(MOST_CHARACTERS):
        low = values & 31
        values >>= 5
        more = np.where(low & 16, values != -1, values != 0)
        characters[going, place] = (low + 32 * more + 48)[going]
        going &= more
    return characters[characters > 0].tobytes().decode('ascii')


def _unpack(counts: str) -> np.ndarray:
    return runs_of(np.frombuffer(counts.encode('ascii'), np.uint8).astype(np.int64) - 48)


def runs_of(codes: np.ndarray) -> np.ndarray:
    """The lengths of the runs, from the six bits of each character of the compressed form.

    Each number is a few characters, that of its lowest five bits first. Bit 5 says that another
    character follows; bit 4 of the last character is the sign.
    """
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    values -= ((codes[ends] & 16) > 0) * (np.int64(1) << (5 * (ends - starts + 1)))
    for parity in (1, 2):
        # The first three numbers are not differences. Add number 3 to number 1, 4 to 2, ...
        values[parity::2] = np.cumsum(values[parity::2])
    return values


def polygons(mask: np.ndarray) -> list[list[np.ndarray]]:
    """The outlines of a mask, along the edges of its pixels.

    Pixels that only touch at a corner belong to different polygons. The areas of the rings, holes
    subtracted, add up to the number of pixels.

    Args:
        mask: (H, W) bool.

    Returns:
        For each polygon its outer ring and then its holes. A ring is (K, 2): the x and y of its
        corners, in pixels, without the first corner again at the end. Seen on the screen, outer
        rings run clockwise and holes counter-clockwise.
    """
    rings, inside = _rings(np.asarray(mask, bool))
    areas = np.array([_signed_area(ring) for ring in rings])
    outer = [i for i in range(len(rings)) if areas[i] > 0]
    found = {i: [rings[i]] for i in outer}
    boxes = np.array([[*rings[i].min(0), *rings[i].max(0)] for i in outer]).reshape(-1, 4)
    for hole in np.flatnonzero(areas < 0):
        x, y = inside[hole]
        near = np.flatnonzero((boxes[:, :2] < (x, y)).all(1) & (boxes[:, 2:] > (x, y)).all(1))
        around = [outer[i] for i in near if _is_inside(x, y, rings[outer[i]])]
        # Of nested rings the smallest holds the pixel beside the hole.
        found[min(around, key=areas.__getitem__)].append(rings[hole])
    return list(found.values())


def _signed_area(ring: np.ndarray) -> float:
    x, y = ring.T.astype(np.int64)
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _is_inside(x: float, y: float, ring: np.ndarray) -> bool:
    """Whether an odd number of vertical edges lies to the right of a pixel's centre."""
    (x1, y1), y2 = ring.T, np.roll(ring[:, 1], -1)
    crosses = (np.minimum(y1, y2) < y) & (y < np.maximum(y1, y2)) & (x1 > x)
    return bool(crosses.sum() % 2)


def _rings(mask: np.ndarray) -> tuple[list[np.ndarray], list[tuple[float, float]]]:
    """All rings with the mask on their right, and for each the centre of a mask pixel beside it."""
    padded = np.pad(mask, 1).astype(np.int8)
    width = padded.shape[1] + 1
    # An edge where mask begins (+1) runs right or up, an edge where mask ends left or down.
    down = np.diff(padded, axis=0)[:, 1:-1]
    across = np.diff(padded, axis=1)[1:-1]
    right, left = _runs(down == 1), _runs(down == -1)
    up, down = _runs((across == 1).T), _runs((across == -1).T)
    horizontal = np.concatenate([right, left[:, [0, 2, 1]]])
    vertical = np.concatenate([down, up[:, [0, 2, 1]]])
    if not len(horizontal):
        return [], []
    # Rows (y, x from, x to) and (x, y from, y to); a corner is y * width + x.
    h_from, h_to = (horizontal[:, 0] * width + horizontal[:, i] for i in (1, 2))
    v_from, v_to = (vertical[:, i] * width + vertical[:, 0] for i in (1, 2))
    # Where two edges leave a corner, turn right: right to down, left to up, down to left, up to
    # right. So pixels that touch at the corner stay apart.
    after_h = _following(h_to, np.arange(len(horizontal)) < len(right),
                         v_from, np.arange(len(vertical)) < len(down))
    after_v = _following(v_to, np.arange(len(vertical)) >= len(down),
                         h_from, np.arange(len(horizontal)) < len(right))
    after = after_v[after_h]
    rings, inside = [], []
    corners = np.stack([h_from, h_to], 1).tolist()
    after, seen = after.tolist(), [False] * len(after)
    # Every ring has an edge to the right, and those come first.
    for start in range(len(right)):
        if seen[start]:
            continue
        at, ring = start, []
        while not seen[at]:
            seen[at] = True
            ring += corners[at]
            at = after[at]
        y, x = np.divmod(np.array(ring), width)
        rings.append(np.stack([x, y], 1))
        inside.append((float(right[start, 1]) + 0.5, float(right[start, 0]) + 0.5))
    return rings, inside


def _runs(edges: np.ndarray) -> np.ndarray:
    """Rows (line, from, to) of the longest runs of True in each line."""
    steps = np.diff(edges.astype(np.int8), axis=1, prepend=0, append=0)
    lines, starts = np.nonzero(steps == 1)
    return np.stack([lines, starts, np.nonzero(steps == -1)[1]], 1)


def _following(ends: np.ndarray, wish: np.ndarray, starts: np.ndarray, kind: np.ndarray
               ) -> np.ndarray:
    """For each end the index of an edge that starts there; of two, the one of the wished kind."""
    keys = starts * 2 + kind
    order = np.argsort(keys)
    place = np.searchsorted(keys[order], ends * 2 + wish).clip(max=len(order) - 1)
    hit = keys[order][place] == ends * 2 + wish
    other = np.searchsorted(keys[order], ends * 2 + ~wish).clip(max=len(order) - 1)
    return order[np.where(hit, place, other)]


def flat(rings: Sequence[np.ndarray]) -> list[list[float]]:
    """Rings as COCO writes polygons: x, y, x, y, ..."""
    return [ring.ravel().astype(float).tolist() for ring in rings]
