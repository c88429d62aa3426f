"""Objects of overlapping windows become objects of the picture.

Two windows saw the same pixels where they overlap, so an object that both saw looks alike there:
two detections of one class are one object if their parts inside the overlap have an IoU of at
least 0.5: the parts of their masks, or of their boxes where there are no masks. So an object that
is larger than the overlap, of which each window has another part, is put together too. The union of
boxes and masks is kept, with the best score. What is left of an object that a window's border cuts,
and that lies inside an object of its class, is dropped.

Boxes alone say little about a long object that crosses the overlap at a slant: it may stay in
pieces.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .tiles import Window

_SAME, _INSIDE = 0.5, 0.7
# Pixels from a border of the window up to which a box counts as cut.
_NEAR = 2.


@dataclass
class Found:
    """The objects of one window, in coordinates of the picture.

    boxes (N, 4) as x1, y1, x2, y2; scores (N,); labels (N,); masks: for each object its part around
    the mask, (h, w) bool, and the (y, x) of the part's first pixel; None for boxes only.
    """

    window: Window
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[tuple[np.ndarray, tuple[int, int]]] | None = None

    @property
    def area(self) -> np.ndarray:
        """The window as x1, y1, x2, y2."""
        (y1, y2), (x1, x2) = self.window
        return np.array([x1, y1, x2, y2], float)


def merged(parts: Sequence[Found], size: tuple[int, int]) -> Found:
    """The objects of all windows of a picture of (H, W), those of high scores first."""
    firsts = np.cumsum([0, *(len(part.boxes) for part in parts)])
    group = np.arange(firsts[-1])
    for a, b in _neighbours(parts):
        for i, j in _same(parts[a], parts[b]):
            _unite(group, firsts[a] + i, firsts[b] + j)
    boxes = np.concatenate([np.zeros((0, 4)), *(part.boxes for part in parts)])
    scores = np.concatenate([np.zeros(0), *(part.scores for part in parts)])
    labels = np.concatenate([np.zeros(0, int), *(part.labels for part in parts)]).astype(int)
    masks = None if any(part.masks is None for part in parts) else [
        mask for part in parts for mask in part.masks]
    roots = np.array([_root(group, i) for i in range(len(group))], int)
    members: dict[int, list[int]] = {}
    for i, root in enumerate(roots.tolist()):
        members.setdefault(root, []).append(i)
    groups = sorted(members.values(), key=lambda group: -scores[group].max())
    cut = np.concatenate([np.zeros(0, bool), *(_is_cut(part, size) for part in parts)])
    whole = Found(
        ((0, size[0]), (0, size[1])),
        np.array([[*boxes[g, :2].min(0), *boxes[g, 2:].max(0)] for g in groups]).reshape(-1, 4),
        np.array([scores[g].max() for g in groups]), np.array([labels[g[0]] for g in groups], int),
        None if masks is None else [_union([masks[i] for i in g]) for g in groups])
    kept = ~_swallowed(whole, np.array([len(g) == 1 and cut[g[0]] for g in groups], bool))
    return Found(whole.window, whole.boxes[kept], whole.scores[kept], whole.labels[kept],
                 whole.masks and [mask for mask, keep in zip(whole.masks, kept, strict=True)
                                  if keep])


def _neighbours(parts: Sequence[Found]) -> Iterable[tuple[int, int]]:
    """Pairs of windows that overlap and have objects both."""
    full = [i for i, part in enumerate(parts) if len(part.boxes)]
    areas = np.array([parts[i].area for i in full]).reshape(-1, 4)
    for k, i in enumerate(full):
        later = areas[k + 1:]
        hits = (np.minimum(later[:, 2:], areas[k, 2:]) > np.maximum(later[:, :2], areas[k, :2])
                ).all(1)
        for m in np.flatnonzero(hits):
            yield i, full[k + 1 + int(m)]


def _same(one: Found, other: Found) -> list[tuple[int, int]]:
    """Pairs of objects of two windows that look alike where the windows overlap."""
    shared = np.concatenate([np.maximum(one.area[:2], other.area[:2]),
                             np.minimum(one.area[2:], other.area[2:])])
    a, b = _meet(one.boxes, shared), _meet(other.boxes, shared)
    both = _areas(_meet(a[:, None], b[None]))
    union = _areas(a)[:, None] + _areas(b) - both
    alike = (both > 0) & (one.labels[:, None] == other.labels)
    if one.masks is None:
        alike &= both >= _SAME * union
    pairs = zip(*(places.tolist() for places in np.nonzero(alike)), strict=True)
    return [(i, j) for i, j in pairs if one.masks is None
            or _masks_alike(one.masks[i], other.masks[j], shared.astype(int))]


def _masks_alike(one: tuple, other: tuple, shared: np.ndarray) -> bool:
    x1, y1, x2, y2 = shared
    canvas = np.zeros((2, y2 - y1, x2 - x1), bool)
    for page, (mask, (y, x)) in zip(canvas, (one, other), strict=True):
        top, left = max(y, y1), max(x, x1)
        part = mask[top - y:max(y2 - y, 0), left - x:max(x2 - x, 0)]
        page[top - y1:top - y1 + part.shape[0], left - x1:left - x1 + part.shape[1]] = part
    both, either = (canvas[0] & canvas[1]).sum(), (canvas[0] | canvas[1]).sum()
    return bool(both and both >= _SAME * either)


def _union(masks: Sequence[tuple]) -> tuple[np.ndarray, tuple[int, int]]:
    y, x = (min(at[axis] for _, at in masks) for axis in (0, 1))
    bottom, right = (max(at[axis] + mask.shape[axis] for mask, at in masks) for axis in (0, 1))
    whole = np.zeros((bottom - y, right - x), bool)
    for mask, at in masks:
        whole[at[0] - y:at[0] - y + mask.shape[0], at[1] - x:at[1] - x + mask.shape[1]] |= mask
    return whole, (y, x)


def _is_cut(part: Found, size: tuple[int, int]) -> np.ndarray:
    """Whether a border of the window, inside the picture, cuts a box."""
    area, limits = part.area, np.array([0, 0, size[1], size[0]])
    return ((np.abs(part.boxes - area) <= _NEAR) & (area != limits)).any(1)


def _swallowed(whole: Found, loose: np.ndarray) -> np.ndarray:
    """Cut objects that lie inside another object of their class."""
    gone = np.zeros(len(whole.boxes), bool)
    areas = _areas(whole.boxes)
    for i in np.flatnonzero(loose):
        inside = _areas(_meet(whole.boxes[i], whole.boxes)) >= _INSIDE * areas[i]
        gone[i] = (inside & (whole.labels == whole.labels[i]) & ~gone & (areas > areas[i])).any()
    return gone


def _meet(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])],
                          axis=-1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).clip(0).prod(-1)


def _root(group: np.ndarray, i: int) -> int:
    while group[i] != i:
        group[i] = group[group[i]]
        i = group[i]
    return int(i)


def _unite(group: np.ndarray, i: int, j: int) -> None:
    i, j = _root(group, i), _root(group, j)
    group[max(i, j)] = min(i, j)
