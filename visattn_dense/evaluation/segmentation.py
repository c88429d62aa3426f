"""Semantic segmentation scores of label maps: confusion matrix, IoU, accuracy, boundary IoU.

Counts are first summed over all images and then divided, as in mmsegmentation's IoUMetric, ADE20K
and Cityscapes. With C[i, j] the number of judged pixels of class i predicted as j:

    IoU_i = C[i, i] / (Σ_j C[i, j] + Σ_j C[j, i] - C[i, i])      mIoU: mean over classes seen
    Acc_i = C[i, i] / Σ_j C[i, j]                                mAcc: mean over classes labelled
    aAcc  = Σ_i C[i, i] / Σ_ij C[i, j]

A pixel is judged if its label is not the ignored value. Deviations from IoUMetric: counts are
integers (IoUMetric sums in float32, which loses single pixels above 2^24). A value that is not a
class is an error that names the file (IoUMetric drops such values).
"""
from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from visattn_dense.errors import UserError, few
from visattn_dense.evaluation.boundary import boundary_distance, boundary_region
from visattn_dense.evaluation.pairs import Pair, read_index_map

# Files for each message between processes: enough to hide the cost of a message, few enough for a
# steady progress bar.
_CHUNK = 8
# The confusion matrix of one image then takes 128 MiB.
_MOST_CLASSES = 4096
# Pixels that are counted at once. A larger image is counted in strips.
_STRIP = 2**24
Result = TypeVar('Result')


@dataclass(frozen=True)
class Settings:
    """The meaning of the values in the files.

    Attributes:
        num_classes: N; after reading, classes are 0..N-1.
        ignore_index: the value of label pixels that are not judged. In predictions this value is no
            class and always counts as wrong.
        reduce_zero_label: the files hold 0 for "other" and 1..N for the classes (ADE20K). As in
            mmsegmentation, 0 becomes 255, 255 stays, and 1 is subtracted from every other value.
        pred_zero_based: predictions hold 0..N-1, although the labels hold 1..N.
        boundary_ratio: width of the boundary regions as a share of the image diagonal; None:
            boundary regions are not counted.
        label_map: another class for each of some classes of the labels, after reduce_zero_label:
            mmsegmentation's `label_map` of a data set with some of its classes. Predictions have
            the new classes.
    """

    num_classes: int
    ignore_index: int = 255
    reduce_zero_label: bool = False
    pred_zero_based: bool = False
    boundary_ratio: float | None = None
    label_map: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= _MOST_CLASSES:
            raise UserError(f'{self.num_classes} classes; the number of classes is '
                            f'1..{_MOST_CLASSES}')
        if self.boundary_ratio is not None and not 0 < self.boundary_ratio <= 0.5:
            raise UserError(f'boundary width {self.boundary_ratio}; it is a share of the image '
                            'diagonal between 0 and 0.5, 0.02 in the paper')
        if self.pred_zero_based and not self.reduce_zero_label:
            raise UserError('predictions that count from zero are the normal case unless '
                            'reduce_zero_label is set; leave one of the two out')

    @cached_property
    def label_classes(self) -> np.ndarray:
        """(65536,) table from a label value to 0..N-1, N for not judged, N + 1 for wrong."""
        before = self._read(self.reduce_zero_label)
        read = before.copy()
        for old, new in (self.label_map or {}).items():
            read[before == old] = new
        table = np.where(read < self.num_classes, read, self.num_classes + 1)
        return self._narrow(np.where(read == self.ignore_index, self.num_classes, table))

    @cached_property
    def pred_classes(self) -> np.ndarray:
        """(65536,) table from a predicted value to 0..N-1, N for no class, N + 1 for wrong."""
        read = self._read(self.reduce_zero_label and not self.pred_zero_based)
        table = np.where(read == self.ignore_index, self.num_classes, self.num_classes + 1)
        return self._narrow(np.where(read < self.num_classes, read, table))

    def _narrow(self, table: np.ndarray) -> np.ndarray:
        """The smallest type in which (N + 2)² fits: the tables are read once for each pixel."""
        return table.astype(np.uint16 if (self.num_classes + 2) ** 2 <= 65536 else np.uint32)

    @staticmethod
    def _read(reduce: bool) -> np.ndarray:
        values = np.arange(65536)
        return np.where((values == 0) | (values == 255), 255, values - 1) if reduce else values


@dataclass(frozen=True)
class Counts:
    """Pixel counts of any number of images. Counts can be added.

    Attributes:
        confusion: (N, N + 1) int64, [label, prediction]; the last column is "no class".
        boundary: (3, N) int64 pixels of boundary regions: in both, of the prediction, of the
            label. None if boundary regions were not counted.
        images: how many images these are.
        pred_zeros: predicted pixels that hold 0 in the file.
    """

    confusion: np.ndarray
    boundary: np.ndarray | None
    images: int
    pred_zeros: int

    @classmethod
    def none(cls, settings: Settings) -> Counts:
        """The counts of no image."""
        n = settings.num_classes
        boundary = None if settings.boundary_ratio is None else np.zeros((3, n), np.int64)
        return cls(np.zeros((n, n + 1), np.int64), boundary, 0, 0)

    @property
    def areas(self) -> np.ndarray:
        """(3, N) judged pixels of each class: in both, of the prediction, of the label."""
        return np.stack([np.diagonal(self.confusion), self.confusion[:, :-1].sum(axis=0),
                         self.confusion.sum(axis=1)])

    def __add__(self, other: Counts) -> Counts:
        boundary = None if self.boundary is None else self.boundary + other.boundary
        return Counts(self.confusion + other.confusion, boundary, self.images + other.images,
                      self.pred_zeros + other.pred_zeros)


def count_image(pred: np.ndarray, label: np.ndarray, settings: Settings) -> Counts:
    """Counts of one image.

    Args:
        pred, label: (H, W) uint8 or uint16, values as they stand in the files.

    Raises:
        UserError: sizes differ, or a value is neither a class nor the ignored value.
    """
    if pred.shape != label.shape:
        raise UserError(f'the prediction is {pred.shape}, the label {label.shape}')
    n = settings.num_classes
    joint = np.zeros((n + 2) ** 2, np.int64)
    boundary = distance = None
    if settings.boundary_ratio is not None:
        boundary = np.zeros((3, n), np.int64)
        distance = boundary_distance(*label.shape, settings.boundary_ratio)
    for seen, counted in _strips(*label.shape, distance or 0):
        classes = (np.take(settings.pred_classes, pred[seen]),
                   np.take(settings.label_classes, label[seen]))
        joint += np.bincount((classes[1][counted] * (n + 2) + classes[0][counted]).ravel(),
                             minlength=(n + 2) ** 2)
        if boundary is not None:
            boundary += _count_boundary(*classes, counted, distance, n)
    joint = joint.reshape(n + 2, n + 2)
    for values, found, what in ((label, joint[n + 1].sum(), 'label'),
                                (pred, joint[:, n + 1].sum(), 'prediction')):
        if found:
            raise UserError(_wrong_values(values, what, settings))
    return Counts(joint[:n, :n + 1], boundary, 1, int(np.count_nonzero(pred == 0)))


def count_pairs(pairs: Sequence[Pair], settings: Settings, *, workers: int = 1,
                progress: bool = False) -> Counts:
    """Counts of all pairs of files. Memory does not depend on the number of pairs.

    Args:
        workers: number of processes. With more than one, the calling script needs
            `if __name__ == '__main__':` before its main part, as always with multiprocessing.
        progress: show a bar on stderr.

    Raises:
        UserError: a file cannot be read, or holds a value that is not a class. The message names
            the file.
    """
    return sum((counts for counts, _ in _counted(pairs, settings, workers, progress)),
               Counts.none(settings))


def count_each(pairs: Sequence[Pair], settings: Settings, *, workers: int = 1,
               progress: bool = False) -> tuple[Counts, np.ndarray, np.ndarray | None]:
    """Counts of all pairs, and the areas of each image: `count_pairs` for statistics over images.

    Args:
        workers, progress: as in `count_pairs`.

    Returns:
        The sum; (images, 3, N) uint32 `Counts.areas` of each image; likewise its boundary, None
        without a boundary width. 12 bytes for each image and class.

    Raises:
        UserError: as in `count_pairs`.
    """
    kinds = 1 if settings.boundary_ratio is None else 2
    each = np.zeros((kinds, len(pairs), 3, settings.num_classes), np.uint32)
    total, seen = Counts.none(settings), 0
    for counts, areas in _counted(pairs, settings, workers, progress, each=True):
        each[:, seen:seen + counts.images] = areas
        total, seen = total + counts, seen + counts.images
    return total, each[0], each[1] if kinds == 2 else None


def _counted(pairs: Sequence[Pair], settings: Settings, workers: int, progress: bool,
             each: bool = False) -> Iterator[tuple[Counts, np.ndarray | None]]:
    """Some images at a time, in order: the sum of their counts, and the areas of each image."""
    chunks = [pairs[i:i + _CHUNK] for i in range(0, len(pairs), _CHUNK)]
    # A terminal shows a moving bar; a log file gets a line every ten seconds.
    pause = 0.2 if sys.stderr.isatty() else 10.
    with tqdm(total=len(pairs), unit='image', mininterval=pause, disable=not progress) as bar:
        count = partial(_count_chunk, settings=settings, each=each)
        for counts, areas in _in_processes(count, chunks, min(workers, len(chunks))):
            yield counts, areas
            bar.update(counts.images)


def _in_processes(count: Callable[[Sequence[Pair]], Result], chunks: Sequence[Sequence[Pair]],
                  workers: int) -> Iterator[Result]:
    if workers <= 1:
        yield from map(count, chunks)
        return
    # New processes, not forks: a fork of a process with threads (torch, OpenCV) can hang.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context('spawn'),
                               initializer=cv2.setNumThreads, initargs=(1,))
    try:
        yield from pool.map(count, chunks)
    except BrokenProcessPool as error:
        raise UserError('a worker process was killed, most likely for lack of memory; try '
                        '--workers 1') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _count_chunk(pairs: Sequence[Pair], settings: Settings,
                 each: bool) -> tuple[Counts, np.ndarray | None]:
    """The sum of the counts; (1 or 2, images, 3, N) areas and boundaries, if asked for."""
    total, areas = Counts.none(settings), []
    for pair in pairs:
        pred, label = read_index_map(pair.prediction), read_index_map(pair.label)
        try:
            counts = count_image(pred, label, settings)
        except UserError as error:
            raise UserError(f'{pair.prediction} and {pair.label}: {error}') from None
        total += counts
        if each:
            areas.append([counts.areas, *([] if counts.boundary is None else [counts.boundary])])
    return total, np.moveaxis(np.array(areas, np.uint32), 1, 0) if each else None


def _strips(height: int, width: int, reach: int) -> Iterator[tuple[slice, slice]]:
    """Rows of an image in strips of bounded memory.

    Args:
        height, width: of the image, in pixels.
        reach: the result for a pixel depends on this many rows above and below the pixel.

    Yields:
        The rows to read, and which of these rows to count.
    """
    rows = max(1, _STRIP // width) if width else max(1, height)
    for top in range(0, height, rows):
        start = max(0, top - reach)
        bottom = min(height, top + rows)
        yield slice(start, bottom + reach), slice(top - start, bottom - start)


def _count_boundary(pred: np.ndarray, label: np.ndarray, counted: slice, distance: int,
                    n: int) -> np.ndarray:
    """(3, N) boundary pixels of some rows: in both, of the prediction, of the label."""
    # A label outside the judged area is not known, and neither is whether a prediction is right.
    unknown = label == n
    of_pred = boundary_region(pred, distance, unknown)[counted]
    of_label = boundary_region(label, distance, unknown)[counted]
    pred, label = pred[counted], label[counted]
    both = label[of_pred & of_label & (pred == label)]
    # "No class" is N; its boundary is nobody's.
    return np.stack([np.bincount(found, minlength=n + 1)[:n]
                     for found in (both, pred[of_pred], label[of_label])])


def _wrong_values(values: np.ndarray, what: str, settings: Settings) -> str:
    table = settings.label_classes if what == 'label' else settings.pred_classes
    wrong = np.unique(values[table[values] == settings.num_classes + 1])
    n = settings.num_classes
    counted_from_one = settings.reduce_zero_label and not (
        what == 'prediction' and settings.pred_zero_based)
    allowed = f'1..{n}, and 0 is not judged' if counted_from_one else f'0..{n - 1}'
    hint = 'is the number of classes right?'
    if n in wrong and not counted_from_one:
        hint = 'if the files count classes from 1 and hold 0 for "other", give --reduce-zero-label'
    return (f'the {what} holds {few(wrong)}, but the {n} classes are {allowed} (ignored: '
            f'{settings.ignore_index}); {hint}')


class Scores:
    """The scores of some counts, in per cent; NaN where a class was never seen.

    Attributes:
        iou, acc: (N,) per class; acc is also called recall.
        precision: (N,) the share of a class's predicted pixels that are right.
        dice: (N,) 2·right / (labelled + predicted): the F-score, the harmonic mean of precision
            and recall.
        boundary_iou: (N,) or None.
        aacc, miou, macc, boundary_miou: over all classes; boundary_miou may be None.
    """

    def __init__(self, counts: Counts) -> None:
        n = len(counts.confusion)
        right = np.diagonal(counts.confusion).astype(np.float64)
        labelled = counts.confusion.sum(axis=1)
        predicted = counts.confusion[:, :n].sum(axis=0)
        if not labelled.any():
            raise UserError('not one pixel of the labels is judged: all hold the ignored value')
        self.counts = counts
        self.iou = ratio(100 * right, labelled + predicted - right)
        self.acc = ratio(100 * right, labelled)
        self.precision = ratio(100 * right, predicted)
        self.dice = ratio(200 * right, labelled + predicted)
        self.aacc = float(100 * right.sum() / labelled.sum())
        self.miou, self.macc = float(np.nanmean(self.iou)), float(np.nanmean(self.acc))
        self.boundary_iou = self.boundary_miou = None
        if counts.boundary is not None:
            both, of_pred, of_label = counts.boundary
            self.boundary_iou = ratio(100 * both, of_pred + of_label - both)
            self.boundary_miou = float(np.nanmean(self.boundary_iou))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in the shape of `part`; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
