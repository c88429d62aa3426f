"""Two models on the same images: is B better than A, where, and is it more than chance?

Both models are scored on the same resamples of the images (paired bootstrap). The difference is
more than chance where its interval leaves 0 out.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from visattn_dense.errors import UserError, few
from visattn_dense.report import detection, page, pictures, segmentation
from visattn_dense.report.bootstrap import LEAST, LEVEL, Interval, mean_over_classes, resamples
from visattn_dense.report.html import Markup, element

_MOST_IMAGES, _MOST_EXAMPLES = 200, 8
Draw = Callable[[int, str], Markup | None]


def labels(a: segmentation.Measured, b: segmentation.Measured, task: segmentation.Task,
           budget: pictures.Budget) -> page.Section:
    """Compare two segmentations of the same images.

    Raises:
        UserError: the images differ.
    """
    if [p.name for p in a.pairs] != [p.name for p in b.pairs]:
        alone = {p.name for p in a.pairs} ^ {p.name for p in b.pairs}
        raise UserError('the two models were not tested on the same images: only one has '
                        f'{few(sorted(alone))}')
    weights = resamples(len(a.pairs), segmentation.RESAMPLES)
    drawn = [segmentation.resampled(m.areas, weights) for m in (a, b)]
    rows = [_row(name, value_a, value_b, drawn[1][key] - drawn[0][key], len(a.pairs))
            for name, value_a, value_b, key in (
                ('mIoU', a.scores.miou, b.scores.miou, 'mIoU'),
                ('pixel accuracy', a.scores.aacc, b.scores.aacc, 'aAcc'),
                ('mean accuracy', a.scores.macc, b.scores.macc, 'mAcc'))]
    by_class = [_row(name, a.scores.iou[i], b.scores.iou[i],
                     drawn[1]['IoU'][:, i] - drawn[0]['IoU'][:, i],
                     int((a.areas[:, 2, i] > 0).sum()))
                for i, name in enumerate(task.classes)]
    there = [np.flatnonzero(areas[2]).tolist() for areas in a.areas]

    def draw(i: int, note: str) -> Markup | None:
        files = [('A', a.pairs[i].prediction), ('B', b.pairs[i].prediction)]
        return segmentation.draw_example(a.pairs[i].name, note, files, a.pairs[i].label, task,
                                         budget)

    return _section('IoU', rows, by_class, a.image_scores, b.image_scores,
                    [pair.name for pair in a.pairs], there, draw)


def detections(a: detection.Measured, b: detection.Measured, task: detection.Task,
               budget: pictures.Budget) -> page.Section:
    """Compare two detectors on the same annotations."""
    weights = resamples(a.matches.images, detection.RESAMPLES)
    # (B, K, 10) per cent
    drawn = [detection.resampled(m, weights) for m in (a, b)]
    metrics = [m.scores.metrics() for m in (a, b)]
    rows = []
    for name, part in (('AP', slice(None)), ('AP50', slice(0, 1)), ('AP75', slice(5, 6))):
        values = [mean_over_classes(d[..., part].mean(axis=2)) for d in drawn]
        rows.append(_row(name, 100 * metrics[0][name], 100 * metrics[1][name],
                         values[1] - values[0], a.matches.images))
    by_class = [_row(name, *(100 * m.scores.metrics(i)['AP'] for m in (a, b)),
                     drawn[1][:, i].mean(axis=1) - drawn[0][:, i].mean(axis=1),
                     a.matches.images_of(i))
                for i, name in enumerate(task.classes)]
    classes = [detection.classes_of_images(m) for m in (a, b)]
    there = [sorted({i for of_model in classes for i in of_model.get(image, ())})
             for image in range(a.matches.images)]

    def draw(i: int, note: str) -> Markup | None:
        return detection.draw_example(note, i, [('A', a), ('B', b)], task, budget, there[i])

    return _section('AP', rows, by_class, a.image_scores, b.image_scores,
                    [task.name(i) for i in range(a.matches.images)], there, draw)


def verdict(name: str, difference: Interval) -> str:
    """The comparison in one sentence."""
    if np.isnan(difference.low):
        return (f'Whether the difference by {name} is chance cannot be said of fewer than {LEAST} '
                'images.')
    if difference.excludes_zero:
        better = 'B' if difference.low > 0 else 'A'
        return (f'{better} is better by {name}: the {LEVEL} % interval of the difference, '
                f'{page.between(difference)}, leaves 0 out.')
    return (f'By {name} the difference may be chance: its {LEVEL} % interval, '
            f'{page.between(difference)}, holds 0.')


def _row(name: str, a: float, b: float, drawn: np.ndarray, images: int) -> tuple[list, Interval]:
    interval = Interval.of(drawn, b - a, images)
    chance = '–' if np.isnan(interval.low) else 'yes' if interval.excludes_zero else 'no'
    return [name, page.number(a), page.number(b), page.number(b - a),
            page.Cell(page.between(interval), interval.low), chance], interval


def _section(name: str, rows: Sequence[tuple[list, Interval]],
             by_class: Sequence[tuple[list, Interval]], a: np.ndarray, b: np.ndarray,
             names: Sequence[str], there: Sequence[Sequence[int]], draw: Draw) -> page.Section:
    """Verdict, tables of scores, classes and images, and the images that changed most."""
    columns = ['A', 'B', 'B − A', f'{LEVEL} % interval of B − A', 'more than chance']
    change = b - a
    known = np.flatnonzero(~np.isnan(change))
    order = known[np.argsort(-np.abs(change[known]), kind='stable')]
    order = order[change[order] != 0]
    counts = (f'{int((change[known] > 0).sum())} images are better with B, '
              f'{int((change[known] < 0).sum())} worse, {int((change[known] == 0).sum())} equal.')
    image_rows = [[names[i], page.number(a[i]), page.number(b[i]), page.number(change[i])]
                  for i in order[:_MOST_IMAGES]]
    content = [
        element('p', element('b', verdict(rows[0][0][0], rows[0][1]))),
        page.table(['score', *columns], [row for row, _ in rows]),
        element('h3', f'{name} of each class'),
        page.table(['class', *columns], [row for row, _ in by_class],
                   [[i] for i in range(len(by_class))]),
        element('h3', 'Images that changed most'), page.note(counts),
        page.table(['image', 'A', 'B', 'B − A'], image_rows,
                   [there[i] for i in order[:_MOST_IMAGES]]),
        page.gallery(draw(i, f'A {a[i]:.1f}, B {b[i]:.1f}')
                     for i in map(int, order[:_MOST_EXAMPLES]))]
    return page.Section('Comparison', 'A is the model of this page, B the one that it is compared '
                        'with. Of many classes, some differ by chance all the same: one in twenty. '
                        f'Where fewer than {LEAST} images show a class, there is no interval.',
                        content)
