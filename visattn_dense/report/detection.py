"""The report of a detector: AP with intervals, curves, kinds of errors, calibration, examples."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from visattn_dense.errors import UserError
from visattn_dense.evaluation.coco import CocoScores, evaluate_coco
from visattn_dense.evaluation.coco_files import masks_as_rle
from visattn_dense.evaluation.segmentation import ratio
from visattn_dense.report import charts, confusion, page, pictures
from visattn_dense.report.bootstrap import LEAST, LEVEL, Interval, mean_over_classes, resamples
from visattn_dense.report.html import Markup, element
from visattn_dense.report.matching import (
    IGNORED,
    KINDS,
    RIGHT,
    Matches,
    PrecisionRecall,
    gains,
    match,
    ordered,
)
from visattn_dense.report.matching import confusion as confusion_counts
from visattn_dense.report.outlines import Drawn, view
from visattn_dense.visualization.colour import Palette, distinct_palette
from visattn_dense.visualization.objects import instance_colours

RESAMPLES = 200
_WORST, _MEDIAN, _MOST_IMAGES, _MOST_BOXES, _MOST_CURVES = 12, 6, 200, 60, 60
_BINS = 10
_WHAT = {
    'localisation': 'right class, IoU from 0.1 to 0.5',
    'classification': 'IoU of 0.5 or more with an object of another class',
    'duplicate': 'the object was found already, with a higher score',
    'background': 'IoU below 0.1 with every object',
    'both': 'wrong class, IoU from 0.1 to 0.5',
    'missed': 'an object that no detection is about',
}


@dataclass(frozen=True)
class Task:
    """The truth. truth: from `read_annotations`; kind: 'bbox' or 'segm'; folder: of the images."""

    truth: dict[str, Any]
    kind: str
    folder: str | os.PathLike | None = None

    @cached_property
    def images(self) -> list[dict[str, Any]]:
        """By id, as `Matches` counts them."""
        return ordered(self.truth['images'])

    @cached_property
    def classes(self) -> list[str]:
        return [str(item['name']) for item in ordered(self.truth['categories'])]

    @cached_property
    def palette(self) -> Palette:
        return distinct_palette(len(self.classes))

    def mask(self, item: dict[str, Any]) -> dict[str, Any] | None:
        """The mask of an annotation or a detection as compressed RLE; None where it has none."""
        try:
            return masks_as_rle([item], self.truth, 'object')[0]['segmentation']
        except UserError:
            # Boxes are scored without a look at the masks: one that cannot be read is not drawn.
            return None

    def name(self, image: int) -> str:
        return str(self.images[image].get('file_name', self.images[image]['id']))


@dataclass(frozen=True)
class Measured:
    """The detections of one model, their matches and scores."""

    results: Sequence[dict[str, Any]]
    matches: Matches
    scores: CocoScores

    @cached_property
    def has_masks(self) -> bool:
        return any('segmentation' in item for item in self.results)

    @cached_property
    def threshold(self) -> float:
        """The score above which precision and recall at IoU 0.5 balance best (highest F1)."""
        known = self.matches.kind != IGNORED
        score, right = self.matches.score[known], self.matches.kind[known] == RIGHT
        order = np.argsort(-score, kind='stable')
        hits = np.cumsum(right[order])
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + len(self.matches.found))
        return float(score[order][f1.argmax()]) if len(f1) else 0.

    @cached_property
    def image_counts(self) -> np.ndarray:
        """(images, 3): right, wrong and lost at `threshold`."""
        m = self.matches
        sure = m.score >= self.threshold
        right = np.bincount(m.image[sure & (m.kind == RIGHT)], minlength=m.images)
        wrong = np.bincount(m.image[sure & (m.kind >= 0)], minlength=m.images)
        objects = np.bincount(m.object_image, minlength=m.images)
        return np.stack([right, wrong, objects - right], axis=1)

    @cached_property
    def image_scores(self) -> np.ndarray:
        """(images,) F1 in per cent; NaN where there is neither an object nor a detection."""
        right, wrong, lost = self.image_counts.T.astype(float)
        whole = 2 * right + wrong + lost
        return ratio(200 * right, whole)

    @cached_property
    def worst_first(self) -> np.ndarray:
        """Images that have a score: the lowest first, of equal ones those with more errors."""
        order = np.lexsort((-self.image_counts[:, 1:].sum(axis=1), self.image_scores))
        return order[~np.isnan(self.image_scores[order])]


def measure(results: Sequence[dict[str, Any]], task: Task) -> Measured:
    """Score and match the detections.

    Raises:
        UserError: see `evaluate_coco`.
    """
    # The evaluation looks at the files first: it refuses a truth without objects.
    scores = evaluate_coco(task.truth, results, task.kind)
    return Measured(results, match(task.truth, results, task.kind), scores)


def resampled(measured: Measured, weights: np.ndarray) -> np.ndarray:
    """(B, K, 10) AP in per cent of each resample, category and IoU threshold."""
    curves = PrecisionRecall(measured.matches)
    return np.stack([100 * curves.ap(row) for row in weights])


def sections(measured: Measured, task: Task, budget: pictures.Budget
             ) -> tuple[list[tuple[str, str, str]], list[page.Section]]:
    """The headline numbers and the parts of the page."""
    drawn = resampled(measured, resamples(measured.matches.images, RESAMPLES))
    metrics = measured.scores.metrics()
    ranges = {'AP': drawn.mean(axis=2), 'AP50': drawn[..., 0], 'AP75': drawn[..., 5]}
    cards = [(name, f'{100 * metrics[name]:.1f}',
              page.likely(Interval.of_score(mean_over_classes(values), 100 * metrics[name],
                                            measured.matches.images)))
             for name, values in ranges.items()]
    m = measured.matches
    cards += [('objects', f'{len(m.found):,}', f'in {m.images:,} images'),
              ('detections', f'{len(m.score):,}', 'at most 100 per image and class')]
    return cards, [
        page.Section('Classes', f'AP in per cent. "{LEVEL} % interval": the range of the AP over '
                     f'{RESAMPLES} resamples of the images, where {LEAST} or more show the class. '
                     'Small: area up to 32², medium: up to 96² pixels.',
                     _class_table(measured, task, ranges['AP'])),
        page.Section('Errors', 'Each wrong detection has one kind, at IoU 0.5. "Mending adds": how '
                     'much AP50 would grow without the errors of this kind.', _errors(measured)),
        page.Section('Confusion matrix', 'In per cent of each row, at IoU 0.5, of detections with '
                     f'a score of {measured.threshold:.2f} or more. A row is a class of the truth, '
                     'a column a predicted class. "Background" as a column: objects that were not '
                     'detected; as a row: detections where no object is.',
                     _confusion(measured, task)),
        page.Section('Precision and recall', 'Mean over the classes, and each class at IoU 0.5.',
                     _curves(measured, task)),
        page.Section('Calibration of the scores', 'Of detections with a score, how many are right '
                     'at IoU 0.5. On the dashed line, a score says how often a detection is right.',
                     _calibration(m)),
        page.Section('Scores of the images', f'F1 at IoU 0.5, of detections with a score of '
                     f'{measured.threshold:.2f} or more: there F1 of all images is highest.',
                     _image_scores(measured, task)),
        *_galleries(measured, task, budget)]


def _class_table(measured: Measured, task: Task, drawn: np.ndarray) -> Markup:
    m = measured.matches
    kinds = np.array([np.bincount(m.category[m.kind == k], minlength=m.categories)
                      for k in range(len(KINDS))])
    missed = np.bincount(m.object_category[m.missed], minlength=m.categories)
    rows, classes = [], []
    for i in m.seen_categories:
        _, name, objects = measured.scores.categories[i]
        metrics = measured.scores.metrics(i)
        interval = Interval.of_score(drawn[:, i], 100 * metrics['AP'], m.images_of(i))
        worst = int(kinds[:, i].argmax())
        classes.append([i])
        rows.append([str(name), page.number(100 * metrics['AP']),
                     page.Cell(page.between(interval), interval.low),
                     *(page.number(100 * metrics[key])
                       for key in ('AP50', 'AP75', 'APs', 'APm', 'APl', 'AR100')),
                     page.number(objects, 0), page.number(missed[i], 0),
                     KINDS[worst] if kinds[worst, i] else '–'])
    table = page.table(['class', 'AP', f'{LEVEL} % interval', 'AP50', 'AP75', 'small', 'medium',
                        'large', 'recall (AR100)', 'objects', 'missed', 'most errors'], rows,
                       classes)
    absent = len(task.classes) - len(rows)
    note = (f'{absent} classes of the annotations have no object and no detection.' if absent
            else None)
    return element('div', table, page.note(note))


def _errors(measured: Measured) -> Markup:
    m = measured.matches
    counts = {kind: int((m.kind == k).sum()) for k, kind in enumerate(KINDS)}
    counts['missed'] = int(m.missed.sum())
    sure = {kind: int(((m.kind == k) & (m.score >= measured.threshold)).sum())
            for k, kind in enumerate(KINDS)}
    rows = [[kind, page.number(100 * gain), page.number(counts[kind], 0),
             page.number(sure.get(kind, np.nan), 0), _WHAT[kind]]
            for kind, gain in sorted(gains(m).items(),
                                     key=lambda item: (np.isnan(item[1]), -item[1]))]
    return page.table(['kind', 'mending adds (AP50)', 'number',
                       f'with a score of {measured.threshold:.2f} or more', 'what this is'], rows)


def _confusion(measured: Measured, task: Task) -> Markup:
    counts = confusion_counts(measured.matches, measured.threshold)
    # Classes without an object and without a detection say nothing.
    seen = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    shown = [i for i in seen.tolist() if i < len(task.classes)]
    names = [*(task.classes[i] for i in shown), 'background']
    counts = counts[np.ix_([*shown, -1], [*shown, -1])]
    return element('div', confusion.matrix(counts, names, names, [*shown, None]),
                   element('h3', 'Classes that are confused'),
                   confusion.pairs(counts[:-1, :-1], names[:-1], names[:-1], 'detections', shown,
                                   counts[:-1].sum(axis=1)))


def _curves(measured: Measured, task: Task) -> Markup:
    # (10, 101, K): all areas, the largest number of detections.
    precision = np.where(measured.scores.precision > -1, measured.scores.precision, np.nan)
    precision = precision[..., 0, -1]
    recalls = np.linspace(0, 1, 101)

    def points(values: np.ndarray) -> list[tuple[float, float]]:
        return list(zip(recalls.tolist(), values.tolist(), strict=True))

    mean = mean_over_classes(precision)
    axes = {'across': 'recall', 'up': 'precision', 'x_range': (0, 1), 'y_range': (0, 1)}
    known = [i for i in range(len(task.classes)) if np.isfinite(precision[0, :, i]).any()]
    known = sorted(known, key=lambda i: precision[0, :, i].mean())[:_MOST_CURVES]
    return element('div', charts.lines(
        [('IoU 0.50', points(mean[0])), ('IoU 0.75', points(mean[5])),
         ('mean of IoU 0.50 to 0.95', points(mean.mean(axis=0)))], **axes),
        charts.lines([(task.classes[i], points(precision[0, :, i])) for i in known], classes=known,
                     **axes), class_='two')


def calibration(matches: Matches) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """How often detections are right, by score, at IoU 0.5.

    Returns:
        Mean score, share that is right and number of detections of each of 10 equal ranges of the
        score from 0 to 1 (NaN where a range is empty); and the expected calibration error: the
        mean distance of score and share, weighted by the numbers (Naeini et al., AAAI 2015).
    """
    known = matches.kind != IGNORED
    score, right = np.clip(matches.score[known], 0, 1), matches.kind[known] == RIGHT
    at = np.minimum((score * _BINS).astype(int), _BINS - 1)
    count = np.bincount(at, minlength=_BINS).astype(float)
    sums = [np.bincount(at, values, minlength=_BINS) for values in (score, right.astype(float))]
    mean, share = (ratio(part, count) for part in sums)
    error = np.nansum(np.abs(mean - share) * count) / max(1., count.sum())
    return mean, share, count, float(error)


def _calibration(matches: Matches) -> Markup:
    mean, share, count, error = calibration(matches)
    edges = np.linspace(0, 1, _BINS + 1).tolist()
    return element('div', element('p', f'Expected calibration error: {error:.3f}'), element(
        'div', charts.lines([('detections', list(zip(mean.tolist(), share.tolist(), strict=True)))],
                            across='score', up='share that is right', x_range=(0, 1),
                            y_range=(0, 1), diagonal=True, dots=True),
        charts.bars(edges, count.tolist(), across='score', up='detections'), class_='two'))


def _image_scores(measured: Measured, task: Task) -> Markup:
    order = measured.worst_first
    edges = np.linspace(0, 100, 21)
    chart = charts.bars(edges.tolist(), np.histogram(measured.image_scores[order], edges)[0]
                        .tolist(), across='F1 of the image, per cent', up='images')
    there = classes_of_images(measured)
    rows = [[task.name(i), page.number(measured.image_scores[i]),
             *(page.number(n, 0) for n in measured.image_counts[i])]
            for i in order[:_MOST_IMAGES]]
    note = (f'The {_MOST_IMAGES} lowest of {len(order)} images.' if len(order) > _MOST_IMAGES
            else None)
    return element('div', chart, page.note(note), page.table(
        ['image', 'F1', 'right', 'wrong', 'lost'], rows,
        [there.get(i, []) for i in order[:_MOST_IMAGES]]))


def classes_of_images(measured: Measured) -> Mapping[int, list[int]]:
    """The classes of the objects, and of the detections above the threshold, of each image."""
    m = measured.matches
    sure = m.score >= measured.threshold
    both = np.unique(np.stack([np.concatenate([m.object_image, m.image[sure]]),
                               np.concatenate([m.object_category, m.category[sure]])]), axis=1)
    found: dict[int, list[int]] = {}
    for image, category in both.T.tolist():
        found.setdefault(image, []).append(category)
    return found


def _galleries(measured: Measured, task: Task, budget: pictures.Budget) -> list[page.Section]:
    order = measured.worst_first
    middle = max(0, len(order) // 2 - _MEDIAN // 2)
    there = classes_of_images(measured)
    by_class = [[i for i in order if c in there.get(i, ())][:2] for c in range(len(task.classes))]

    def draw(i: int) -> Markup | None:
        right, wrong, lost = measured.image_counts[i]
        return draw_example(
            f'F1 {measured.image_scores[i]:.0f}: {right} right, {wrong} wrong, {lost} lost', i,
            [('prediction', measured)], task, budget, there.get(i, []))

    return page.galleries([
        ('Worst images', 'The images with the lowest F1, those with most errors first.',
         order[:_WORST]),
        ('Median images', 'Images from the middle of the ranking: what to expect.',
         order[middle:middle + _MEDIAN]),
        ('Worst images of each class', 'For each class, images with a low F1 that show it. Choose '
         'a class above.', [i for images in by_class for i in images])], draw)


def draw_example(note: str, image: int, models: Sequence[tuple[str, Measured]], task: Task,
                 budget: pictures.Budget, classes: Sequence[int]) -> Markup | None:
    """One image: truth, and predictions and their differences; None where the budget is used up.

    The photograph stands in the page once, and all views show it. Masks are drawn where the models
    give masks; the objects of a class have tones of its colour.
    """
    if budget.full:
        return None
    info = task.images[image]
    photo = None
    if task.folder is not None and 'file_name' in info:
        photo = pictures.photo(Path(task.folder, str(info['file_name'])))
    address = photo[0] if photo else None
    size = info['width'], info['height']
    mark = f'photo-{budget.used}'
    with_masks = any(measured.has_masks for _, measured in models)
    m = models[0][1].matches
    objects = np.flatnonzero(m.object_image == image)
    # Large ones keep their names where names would cover each other.
    objects = objects[np.argsort(-m.object_box[objects, 2:].prod(axis=1), kind='stable')]
    masks = {i: task.mask(task.truth['annotations'][m.object_row[i]]) if with_masks else None
             for i in objects}
    boxed = task.kind == 'bbox'
    views = [view([Drawn(m.object_box[i], task.classes[m.object_category[i]], None, colour,
                         masks[i], boxed)
                   for i, colour in zip(objects, instance_colours(
                       m.object_category[objects], task.palette), strict=True)],
                  'truth', mark, size, address)]
    for caption, measured in models:
        m = measured.matches
        here = np.flatnonzero((m.image == image) & (m.score >= measured.threshold))
        lost = np.setdiff1d(objects, m.target[here[m.kind[here] == RIGHT]])
        here = here[:_MOST_BOXES]
        of_result = {i: task.mask(measured.results[m.row[i]]) if measured.has_masks else None
                     for i in here}
        views.append(view(
            [Drawn(m.box[i], f'{task.classes[m.category[i]]} {100 * m.score[i]:.0f}', None, colour,
                   of_result[i], boxed)
             for i, colour in zip(here, instance_colours(m.category[here], task.palette),
                                  strict=True)], caption, mark, size))
        views.append(view(
            [Drawn(m.box[i], 'right' if m.kind[i] < 0 else KINDS[m.kind[i]],
                   'bad' if m.kind[i] >= 0 else 'good', None, of_result[i], boxed, m.kind[i] >= 0)
             for i in here]
            + [Drawn(m.object_box[i], 'lost', 'lost', None, masks[i], boxed, False) for i in lost],
            f'difference of {caption}' if len(models) > 1
            else 'green: right, red: wrong, dashed: lost', mark, size))
    if not budget.take([''.join(views)]):
        return None
    return page.example(task.name(image), note, views, classes,
                        page.legend(task.classes, task.palette, classes))
