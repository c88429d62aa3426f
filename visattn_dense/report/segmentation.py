"""The report of a segmentation: scores of each image, confused classes, and where the model fails.

A score of a data set is counted as in `evaluation.segmentation`: pixels are summed over all images,
then divided. The score of an image is the mean IoU, in this image, over the classes of its truth.
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from visattn_dense.evaluation.pairs import Pair, read_index_map
from visattn_dense.evaluation.report import segmentation_summary
from visattn_dense.evaluation.segmentation import Counts, Scores, Settings, count_each, ratio
from visattn_dense.report import charts, confusion, page, pictures
from visattn_dense.report.bootstrap import LEAST, LEVEL, Interval, mean_over_classes, resamples
from visattn_dense.report.html import Markup, element
from visattn_dense.visualization.colour import Palette

RESAMPLES = 1000
_WORST, _MEDIAN = 12, 6
_MOST_IMAGES = 200
# Resamples that are summed at once, times numbers of an image: memory of the sums.
_AT_ONCE = 2**24


@dataclass(frozen=True)
class Task:
    """What the label files mean, and how classes are shown.

    Attributes:
        classes: N names.
        palette: one RGB triple per class.
        settings: of the counting.
        images: the photograph of each pair by `Pair.name`; pairs without one are shown without.
    """

    classes: Sequence[str]
    palette: Palette
    settings: Settings
    images: Mapping[str, str | os.PathLike]


@dataclass(frozen=True)
class Measured:
    """The counts of one model on M images.

    Attributes:
        pairs: M files of predictions and labels.
        total: the sum of all counts.
        areas: (M, 3, N) `Counts.areas` of each image.
        boundary: likewise for the boundary regions, or None.
    """

    pairs: Sequence[Pair]
    total: Counts
    areas: np.ndarray
    boundary: np.ndarray | None

    @cached_property
    def scores(self) -> Scores:
        return Scores(self.total)

    @cached_property
    def image_iou(self) -> np.ndarray:
        """(M, N) per cent: IoU of each class in each image; NaN where the class is not there."""
        return iou_of(self.areas)

    @cached_property
    def image_scores(self) -> np.ndarray:
        """(M,) per cent: the score of each image; NaN for an image without judged pixels."""
        return mean_over_classes(np.where(self.areas[:, 2] > 0, self.image_iou, np.nan))

    @cached_property
    def worst_first(self) -> np.ndarray:
        """Numbers of the images that have a score, the lowest score first."""
        order = np.argsort(self.image_scores, kind='stable')
        return order[~np.isnan(self.image_scores[order])]


def measure(pairs: Sequence[Pair], task: Task, *, workers: int = 2,
            progress: bool = False) -> Measured:
    """Read and count all files.

    Raises:
        UserError: a file cannot be read or holds a value that is not a class; no pixel is judged.
    """
    measured = Measured(pairs, *count_each(pairs, task.settings, workers=workers,
                                           progress=progress))
    _ = measured.scores
    return measured


def iou_of(areas: np.ndarray) -> np.ndarray:
    """(..., 3, N) areas to (..., N) IoU in per cent, NaN for a class without pixels."""
    areas = areas.astype(np.float64)
    both, union = areas[..., 0, :], areas[..., 1, :] + areas[..., 2, :] - areas[..., 0, :]
    return ratio(100 * both, union)


def resampled(areas: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of each resample.

    Args:
        areas: (M, 3, N) of the images.
        weights: (B, M) from `bootstrap.resamples`.

    Returns:
        IoU (B, N), mIoU, aAcc and mAcc (B,), in per cent.
    """
    images, _, classes = areas.shape
    flat = areas.reshape(images, -1)
    sums = np.zeros((len(weights), flat.shape[1]))
    # Some images at a time: floats of all areas would take much more than the areas.
    step = max(1, _AT_ONCE // max(1, flat.shape[1]))
    for first in range(0, images, step):
        part = np.s_[first:first + step]
        sums += weights[:, part].astype(np.float64) @ flat[part].astype(np.float64)
    sums = sums.reshape(len(weights), 3, classes)
    iou = iou_of(sums)
    right, labelled = sums[:, 0], sums[:, 2]
    return {'IoU': iou, 'mIoU': mean_over_classes(iou),
            'aAcc': ratio(100 * right.sum(axis=1), labelled.sum(axis=1)),
            'mAcc': mean_over_classes(ratio(100 * right, labelled))}


def sections(measured: Measured, task: Task, budget: pictures.Budget
             ) -> tuple[list[tuple[str, str, str]], list[page.Section]]:
    """The headline numbers and the parts of the page.

    Returns:
        Cards and sections for `page.Report`.
    """
    weights = resamples(len(measured.pairs), RESAMPLES)
    drawn = resampled(measured.areas, weights)
    if measured.boundary is not None:
        drawn['mBoundaryIoU'] = resampled(measured.boundary, weights)['mIoU']
    names = {'aAcc': 'pixel accuracy', 'mIoU': 'mIoU', 'mAcc': 'mean accuracy',
             'mBoundaryIoU': 'mean boundary IoU'}
    summary = segmentation_summary(measured.scores)
    order = sorted(summary, key=lambda name: name != 'mIoU')
    cards = [(names[name], f'{summary[name]:.1f} %',
              page.likely(Interval.of_score(drawn[name], summary[name], len(measured.pairs))))
             for name in order]
    cards.append(('images', f'{len(measured.pairs):,}', ''))
    counted = _confusion(measured.total, task)
    return cards, [
        page.Section('Classes', f'In per cent. "{LEVEL} % interval": the range of the IoU over '
                     f'{RESAMPLES} resamples of the images, where {LEAST} or more show the class. '
                     'Click on a heading to sort.',
                     _class_table(measured, task, drawn['IoU'])),
        page.Section('Classes that are confused', 'Pixels of the truth that were predicted as '
                     'another class, most pixels first.', confusion.pairs(*counted, 'pixels')),
        page.Section('Confusion matrix', 'A row is a class of the truth and adds up to 100 %. A '
                     'column is a predicted class.',
                     confusion.matrix(*counted, range(len(task.classes)))),
        page.Section('Scores of the images', 'The score of an image: the mean IoU, in this image, '
                     'over the classes of its truth.', _image_scores(measured, task)),
        *_galleries(measured, task, budget)]


def _class_table(measured: Measured, task: Task, drawn: np.ndarray) -> Markup:
    scores, labelled = measured.scores, measured.total.areas[2]
    header = ['class', 'IoU', f'{LEVEL} % interval', 'recall', 'precision', 'Dice',
              'share of the truth', 'images']
    if scores.boundary_iou is not None:
        header.insert(3, 'boundary IoU')
    in_images = (measured.areas[:, 2] > 0).sum(axis=0)
    rows = []
    for i, name in enumerate(task.classes):
        interval = Interval.of_score(drawn[:, i], scores.iou[i], in_images[i])
        row = [name, page.number(scores.iou[i]),
               page.Cell(page.between(interval), interval.low),
               page.number(scores.acc[i]),
               page.number(scores.precision[i]), page.number(scores.dice[i]),
               page.number(100 * labelled[i] / labelled.sum(), 2),
               page.number(float(in_images[i]), 0)]
        if scores.boundary_iou is not None:
            row.insert(3, page.number(scores.boundary_iou[i]))
        rows.append(row)
    return page.table(header, rows, [[i] for i in range(len(task.classes))])


def _confusion(total: Counts, task: Task) -> tuple[np.ndarray, Sequence[str], list[str]]:
    """Counts, rows and columns; the column of no class stands there where pixels have none."""
    columns = [*task.classes, *(['(no class)'] if total.confusion[:, -1].any() else [])]
    return total.confusion[:, :len(columns)], task.classes, columns


def _image_scores(measured: Measured, task: Task) -> Markup:
    known = measured.image_scores[measured.worst_first]
    edges = np.linspace(0, 100, 21)
    chart = charts.bars(edges.tolist(), np.histogram(known, edges)[0].tolist(),
                        across='score of the image, per cent', up='images')
    rows, classes = [], []
    for i in measured.worst_first[:_MOST_IMAGES]:
        both, _, labelled = measured.areas[i].astype(np.float64)
        there = np.flatnonzero(labelled)
        weakest = there[np.argmin(measured.image_iou[i, there])]
        rows.append([measured.pairs[i].name, page.number(measured.image_scores[i]),
                     page.number(100 * both.sum() / labelled.sum()),
                     f'{task.classes[weakest]} ({measured.image_iou[i, weakest]:.0f})'])
        classes.append(there.tolist())
    note = (f'The {_MOST_IMAGES} lowest of {len(known)} images.' if len(known) > _MOST_IMAGES
            else None)
    return element('div', chart, page.note(note), page.table(
        ['image', 'score', 'pixel accuracy', 'weakest class (IoU)'], rows, classes))


def _galleries(measured: Measured, task: Task, budget: pictures.Budget) -> list[page.Section]:
    """The worst and the median images, and the worst images of each class, each image once."""
    def draw(i: int) -> Markup | None:
        pair = measured.pairs[i]
        return draw_example(pair.name, f'score {measured.image_scores[i]:.1f}',
                            [('prediction', pair.prediction)], pair.label, task, budget)

    order = measured.worst_first
    middle = max(0, len(order) // 2 - _MEDIAN // 2)
    return page.galleries([
        ('Worst images', 'The images with the lowest scores.', order[:_WORST]),
        ('Median images', 'Images from the middle of the ranking: what to expect.',
         order[middle:middle + _MEDIAN]),
        ('Worst images of each class', 'For each class, the weakest first, the images with its '
         'lowest IoU. Choose a class above.', _worst_of_classes(measured))], draw)


def _worst_of_classes(measured: Measured, each: int = 3) -> list[int]:
    """For each class, weakest class first, the images with its lowest IoU.

    A class that covers less than a hundredth of the image's judged pixels does not count there,
    unless no image has more of the class: a few pixels say little.
    """
    labelled = measured.areas[:, 2].astype(np.float64)
    share = labelled / np.maximum(1, labelled.sum(axis=1, keepdims=True))
    by_class = []
    for i in np.argsort(measured.scores.iou, kind='stable'):
        there = np.flatnonzero(share[:, i] >= 0.01)
        if not len(there):
            there = np.flatnonzero(share[:, i] > 0)
        by_class.append(there[np.argsort(measured.image_iou[there, i], kind='stable')][:each])
    # The first image of every class comes before the second of any.
    return [int(images[rank]) for rank in range(each) for images in by_class if rank < len(images)]


def draw_example(name: str, note: str, predictions: Sequence[tuple[str, str]], label: str,
                 task: Task, budget: pictures.Budget) -> Markup | None:
    """One image with truth, predictions and their differences; None where the budget is used up.

    Args:
        name, note: above the pictures.
        predictions: caption and file of each.
        label: file of the truth.
        task: classes and photographs.
        budget: of the page.
    """
    if budget.full:
        return None
    n = task.settings.num_classes
    truth = np.take(task.settings.label_classes, read_index_map(label))
    judged = truth < n
    shown = [('truth', pictures.label_picture(truth, task.palette))]
    there = set(np.flatnonzero(np.bincount(truth.ravel(), minlength=n)[:n]).tolist())
    for caption, file in predictions:
        found = np.take(task.settings.pred_classes, read_index_map(file))
        there |= set(np.flatnonzero(np.bincount(found.ravel(), minlength=n)[:n]).tolist())
        shown += [(caption, pictures.label_picture(found, task.palette)),
                  (f'difference of {caption}' if len(predictions) > 1
                   else 'difference (red: wrong)',
                   pictures.difference_picture(truth, found, judged))]
    photo = pictures.photo(task.images[name]) if name in task.images else None
    if photo:
        shown.insert(0, ('image', photo[0]))
    if not budget.take([address for _, address in shown]):
        return None
    classes = sorted(there)
    return page.example(name, note, [pictures.figure(address, caption)
                                     for caption, address in shown], classes,
                        page.legend(task.classes, task.palette, classes))


