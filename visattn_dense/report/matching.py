"""Which detection finds which object, and what kind of error each other detection is.

Matching follows COCO's rules (pycocotools, cocoeval.py): in each image and category, detections are
taken by falling score; each takes the free object that it overlaps most; a detection inside a crowd
region counts neither as right nor as wrong. `average_precision` equals COCO's AP (tested).

Kinds of errors are those of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object
Detection Errors", ECCV 2020, arXiv:2008.08115), section 2: at IoU 0.5, with 0.1 as the border to
the background. Where several kinds fit, the first of `KINDS` holds. Deviation: what a
classification or localisation error is mended to is the object that it overlaps most, and of
several such detections the one with the highest score gets the object.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from visattn_dense.evaluation.coco_files import FIELD, masks_as_rle
from visattn_dense.report.bootstrap import mean_over_classes

THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_BACKGROUND = 0.1
KINDS = ('localisation', 'duplicate', 'classification', 'background', 'both')
"""Of detections that are wrong. The sixth kind, 'missed', is of objects."""
RIGHT, IGNORED = -1, -2


@dataclass(frozen=True)
class Matches:
    """D detections and G objects, numbered through all images. Crowd regions are not objects.

    Attributes:
        image, category, score: (D,) of the detections, the first two as numbers in the truth.
        right, ignored: (10, D) bool for each of `THRESHOLDS`.
        kind: (D,) at IoU 0.5: a number of `KINDS`, `RIGHT` or `IGNORED`.
        target: (D,) the object that a detection found, or that its error is about; -1: none.
        box: (D, 4) x, y, width, height; NaN where the results hold no box.
        row: (D,) place in the results.
        close: (P, 3) the pairs with an IoU of 0.5 or more, of any categories: number of the
            detection, number of the object, IoU.
        object_image, object_category: (G,).
        object_box: (G, 4), likewise.
        object_row: (G,) place in the annotations of the truth.
        found: (G,) bool, at IoU 0.5.
        images, categories: how many there are.
    """

    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    kind: np.ndarray
    target: np.ndarray
    box: np.ndarray
    row: np.ndarray
    close: np.ndarray
    object_image: np.ndarray
    object_category: np.ndarray
    object_box: np.ndarray
    object_row: np.ndarray
    found: np.ndarray
    images: int
    categories: int

    @property
    def missed(self) -> np.ndarray:
        """(G,) bool: not found, and no classification or localisation error is about the object."""
        aimed = np.isin(self.kind, (KINDS.index('localisation'), KINDS.index('classification')))
        missed = ~self.found
        missed[self.target[aimed]] = False
        return missed

    @property
    def seen_categories(self) -> list[int]:
        """Categories that have an object or a detection."""
        return np.union1d(self.object_category, self.category).tolist()

    def images_of(self, category: int) -> int:
        """How many images show an object of a category."""
        return len(np.unique(self.object_image[self.object_category == category]))


def match(truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str,
          max_dets: int = 100) -> Matches:
    """Match the detections of all images.

    Args:
        truth, results: from `read_annotations` and `read_results`.
        kind: 'bbox' or 'segm'.
        max_dets: best detections of an image and category that count.

    Raises:
        UserError: a mask is missing or cannot be read.
    """
    number = {image['id']: i for i, image in enumerate(ordered(truth['images']))}
    category = {item['id']: i for i, item in enumerate(ordered(truth['categories']))}
    objects = list(truth['annotations'])
    if kind == 'segm':
        objects = masks_as_rle(objects, truth, 'annotation')
        results = masks_as_rle(results, truth, 'detection')
    objects_of: list[list] = [[] for _ in number]
    results_of: list[list] = [[] for _ in number]
    for at, item in enumerate(objects):
        objects_of[number[item['image_id']]].append((at, item))
    for at, item in enumerate(results):
        results_of[number[item['image_id']]].append((at, item))
    crowd = np.array([bool(item.get('iscrowd', 0)) for item in objects], bool)
    # Objects are numbered without the crowd regions.
    renumbered = np.where(crowd, -1, np.cumsum(~crowd) - 1)
    found = np.zeros(int((~crowd).sum()), bool)
    parts, close, before = [], [], 0
    for image, (here, there) in enumerate(zip(objects_of, results_of, strict=True)):
        kept, near, *part = _match_image(
            [item for _, item in here], [item for _, item in there], category, FIELD[kind],
            max_dets, renumbered[np.array([at for at, _ in here], int)], found)
        rows = np.array([at for at, _ in there], int)[kept]
        near[:, 0] += before
        before += len(kept)
        parts.append((np.full(len(kept), image), *part, rows))
        close.append(near)
    *joined, box, rows = zip(*parts, strict=True)
    joined = [np.concatenate(part, axis=-1) for part in joined]
    items = [(at, item) for at, item in enumerate(objects) if not crowd[at]]
    return Matches(
        *joined, np.concatenate(box), np.concatenate(rows), np.concatenate(close),
        np.array([number[item['image_id']] for _, item in items], int),
        np.array([category[item['category_id']] for _, item in items], int),
        np.array([_box(item) for _, item in items], float).reshape(-1, 4),
        np.array([at for at, _ in items], int), found, len(number), len(category))


def _match_image(objects: list[dict], detections: list[dict], category: dict, field: str,
                 max_dets: int, numbers: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, ...]:
    """The detections of one image that count, by falling score; marks in `found` what is found.

    Returns:
        Places of the detections that count, `Matches.close` of this image, and its columns
        from `Matches.category` to `Matches.box`.
    """
    score = np.array([item['score'] for item in detections], float)
    order = np.argsort(-score, kind='stable')
    of_class = np.array([category[item['category_id']] for item in detections], int)
    rank: dict[int, int] = {}
    kept = []
    for i in order:
        rank[of_class[i]] = rank.get(of_class[i], 0) + 1
        if rank[of_class[i]] <= max_dets:
            kept.append(i)
    detections = [detections[i] for i in kept]
    score, of_class = score[kept], of_class[kept]
    count, crowd = len(detections), numbers < 0
    classes = np.array([category[item['category_id']] for item in objects], int)
    iou = np.zeros((count, len(objects)))
    if count and objects:
        sides = [[item[field] for item in items] for items in (detections, objects)]
        if field == 'bbox':
            sides = [np.array(side, float) for side in sides]
        iou = rle_tools.iou(*sides, crowd.astype(np.uint8).tolist())
    right, ignored = np.zeros((2, 10, count), bool)
    free = np.ones((10, len(objects)), bool)
    target, duplicate = np.full(count, -1), np.zeros(count, bool)
    same = (of_class[:, None] == classes) & ~crowd
    levels = np.minimum(THRESHOLDS, 1 - 1e-10)
    for i in np.flatnonzero((iou * (of_class[:, None] == classes) >= 0.5).any(axis=1)):
        mine = np.flatnonzero(same[i])
        if len(mine):
            possible = np.where(free[:, mine] & (iou[i, mine] >= levels[:, None]), iou[i, mine], -1)
            # Of equal overlaps the last one counts, as in pycocotools.
            best = possible.shape[1] - 1 - possible[:, ::-1].argmax(axis=1)
            hit = possible[np.arange(10), best] >= 0
            right[hit, i] = True
            free[hit, mine[best[hit]]] = False
            if hit[0]:
                target[i] = numbers[mine[best[0]]]
                found[target[i]] = True
            else:
                duplicate[i] = iou[i, mine].max() >= 0.5
        crowds = (of_class[i] == classes) & crowd
        if crowds.any():
            ignored[:, i] = ~right[:, i] & (iou[i, crowds].max() >= levels)
    kind, about = _kinds(iou, same, crowd, right[0], ignored[0], duplicate)
    wrong = about >= 0
    target[wrong] = numbers[about[wrong]]
    detection, there = np.nonzero((iou >= 0.5) & ~crowd)
    near = np.stack([detection, numbers[there], iou[detection, there]], axis=1)
    return (np.array(kept, int), near, of_class, score, right, ignored, kind, target,
            np.array([_box(item) for item in detections], float).reshape(-1, 4))


def _kinds(iou: np.ndarray, same: np.ndarray, crowd: np.ndarray, right: np.ndarray,
           ignored: np.ndarray, duplicate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,) kind of each detection of an image, and which object here its error is about, or -1."""
    count = len(iou)
    about = np.full(count, -1)
    if not iou.shape[1]:
        kind = np.full(count, KINDS.index('background'))
        return np.where(right, RIGHT, np.where(ignored, IGNORED, kind)), about
    own = np.where(same, iou, 0)
    other = np.where(same | crowd, 0, iou)
    best_own, best_other = own.max(axis=1), other.max(axis=1)
    chosen = [
        (best_own >= _BACKGROUND) & (best_own < 0.5),
        duplicate,
        best_other >= 0.5,
        np.maximum(best_own, best_other) < _BACKGROUND,
    ]
    kind = np.select(chosen, range(4), default=4)
    kind = np.where(right, RIGHT, np.where(ignored, IGNORED, kind))
    about = np.where(kind == KINDS.index('localisation'), own.argmax(axis=1), about)
    about = np.where(kind == KINDS.index('classification'), other.argmax(axis=1), about)
    return kind, about


def ordered(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By id, as `Matches` numbers images and categories."""
    return sorted(items, key=lambda item: (type(item['id']).__name__, item['id']))


def _box(item: dict[str, Any]) -> list[float]:
    if 'bbox' in item:
        return item['bbox']
    mask = item.get('segmentation')
    if isinstance(mask, dict) and not isinstance(mask['counts'], list):
        return rle_tools.toBbox(mask).tolist()
    return [np.nan] * 4


def confusion(matches: Matches, threshold: float) -> np.ndarray:
    """What objects were taken for, at IoU 0.5, of detections with a score of `threshold` or more.

    Each object and each detection has at most one partner of any category. Pairs are taken by
    falling IoU; of equal ones, the same category and then the higher score come first. So a row
    adds up to the objects of the category, and a column to its detections. Detections of crowd
    regions do not count. The rule is that of ultralytics' ConfusionMatrix (utils/metrics.py), with
    COCO's IoU of 0.5 for its 0.45.

    Returns:
        (K + 1, K + 1) int64, [truth, prediction]; the last row and column are the background:
        detections of nothing, and objects that were not detected.
    """
    sure = (matches.score >= threshold) & (matches.kind != IGNORED)
    detection, there = matches.close[:, :2].astype(int).T
    other = matches.category[detection] != matches.object_category[there]
    order = np.lexsort((-matches.score[detection], other, -matches.close[:, 2]))
    counts = np.zeros((matches.categories + 1, matches.categories + 1), np.int64)
    single, lost = sure.copy(), np.ones(len(matches.found), bool)
    for i, j in zip(detection[order], there[order], strict=True):
        if single[i] and lost[j]:
            single[i] = lost[j] = False
            counts[matches.object_category[j], matches.category[i]] += 1
    counts[-1, :-1] = np.bincount(matches.category[single], minlength=matches.categories)
    counts[:-1, -1] = np.bincount(matches.object_category[lost], minlength=matches.categories)
    return counts


class PrecisionRecall:
    """Average precision of resamples: the detections of each category, sorted once."""

    def __init__(self, matches: Matches, thresholds: int = 10) -> None:
        self.parts = []
        objects = np.zeros((matches.categories, matches.images), np.int32)
        np.add.at(objects, (matches.object_category, matches.object_image), 1)
        self.objects = objects
        for i in range(matches.categories):
            which = np.flatnonzero(matches.category == i)
            which = which[np.argsort(-matches.score[which], kind='stable')]
            hits = np.flatnonzero(matches.right[:thresholds, which].any(axis=0))
            # Behind the last hit recall no longer grows.
            which = which[:hits[-1] + 1] if len(hits) else which[:0]
            self.parts.append((matches.image[which], matches.right[:thresholds, which],
                               matches.ignored[:thresholds, which]))

    def ap(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(K, thresholds) AP of each category, NaN without objects.

        Args:
            weights: (images,) how often each image counts; None: once.
        """
        values = np.full((len(self.parts), max(len(p[1]) for p in self.parts)), np.nan)
        for i, (image, right, ignored) in enumerate(self.parts):
            objects = (self.objects[i].sum() if weights is None else self.objects[i] @ weights)
            if objects <= 0:
                continue
            each = np.ones(len(image)) if weights is None else weights[image]
            hits = np.cumsum(each * right, axis=1)
            wrong = np.cumsum(each * ~(right | ignored), axis=1)
            values[i] = [_area_below(h, w, objects) for h, w in zip(hits, wrong, strict=True)]
        return values


def _area_below(hits: np.ndarray, wrong: np.ndarray, objects: float) -> float:
    """COCO's average of the precision at 101 recalls."""
    if not len(hits):
        return 0.
    precision = hits / np.maximum(hits + wrong, np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / objects, _RECALLS, side='left')
    return float(precision[at[at < len(precision)]].sum() / len(_RECALLS))


def mean_ap(matches: Matches, thresholds: int = 10) -> float:
    """AP over categories and thresholds, 0..1; with one threshold, AP50. NaN without objects."""
    return float(mean_over_classes(PrecisionRecall(matches, thresholds).ap().ravel()))


def gains(matches: Matches) -> dict[str, float]:
    """What mending all errors of one kind would add to AP50, 0..1, by kind; 'missed' is last.

    Mended, a missed object no longer counts: the gain is NaN where no object would be left.
    """
    before = mean_ap(matches, 1)
    found = {kind: mean_ap(_mended(matches, number), 1) - before
             for number, kind in enumerate(KINDS)}
    seen = ~matches.missed
    without = replace(matches, object_image=matches.object_image[seen],
                      object_category=matches.object_category[seen])
    return {**found, 'missed': mean_ap(without, 1) - before}


def _mended(matches: Matches, number: int) -> Matches:
    """The matches without the errors of one kind, for AP: made right where an object waits, or left
    out."""
    of_kind = matches.kind == number
    keep, category, right = ~of_kind, matches.category.copy(), matches.right.copy()
    if KINDS[number] in ('localisation', 'classification'):
        wrong = np.flatnonzero(of_kind)
        wrong = wrong[np.argsort(-matches.score[wrong], kind='stable')]
        taken = matches.found.copy()
        for i in wrong:
            target = matches.target[i]
            if not taken[target]:
                taken[target] = keep[i] = right[0, i] = True
                category[i] = matches.object_category[target]
    return replace(matches, image=matches.image[keep], category=category[keep],
                   score=matches.score[keep], right=right[:, keep],
                   ignored=matches.ignored[:, keep], kind=matches.kind[keep])
