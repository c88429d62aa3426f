"""What is taken for what: a matrix of shares, and the pairs that are confused most."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visattn_dense.evaluation.segmentation import ratio
from visattn_dense.report import page, pictures
from visattn_dense.report.html import Markup, element

_MOST_PAIRS = 40
# With more rows than this, the matrix is a picture.
_WRITTEN = 30


def matrix(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str],
           classes: Sequence[int | None]) -> Markup:
    """The shares of each row: a table, or a picture where rows are many.

    Args:
        counts: (R, C), [truth, prediction].
        rows, columns: names.
        classes: of each row, for the page's class filter; None: the row always stays.
    """
    whole = counts.sum(axis=1, keepdims=True)
    share = ratio(counts, whole)
    if len(rows) > _WRITTEN:
        return element('img', src=pictures.matrix_picture(share), class_='pixels', loading='lazy',
                       alt='confusion matrix, a pixel for each pair of classes')
    head = element('tr', element('th', 'truth \\ predicted'),
                   [element('th', name, scope='col', title=name) for name in columns])
    body = [element('tr', element('th', name, scope='row', title=name),
                    [_cell(share[i, j], f'{name} predicted as {column}: {counts[i, j]:,}')
                     for j, column in enumerate(columns)], data_classes=classes[i])
            for i, name in enumerate(rows)]
    return element('div', element('table', element('thead', head), element('tbody', body),
                                  class_='matrix'), class_='scroll')


def _cell(value: float, title: str) -> Markup:
    if np.isnan(value):
        return element('td', class_='none', title=title)
    # The square root keeps shares of a few per cent visible.
    depth = float(np.sqrt(value))
    return element('td', f'{100 * value:.0f}' if value >= 0.005 else '', title=title,
                   class_='deep' if depth > 0.6 else None, style=f'--share:{depth:.2f}')


def pairs(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str], what: str,
          numbers: Sequence[int] | None = None, whole: np.ndarray | None = None) -> Markup:
    """A table of the pairs of classes that are confused most.

    Args:
        counts: (R, C), [truth, prediction]; row i and column i are one class.
        rows, columns: names.
        what: is counted, for example 'pixels'.
        numbers: of the classes, for the page's class filter; None: 0, 1, 2, ...
        whole: (R,) of each class; None: its row.
    """
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    labelled = counts.sum(axis=1) if whole is None else whole
    found, classes = [], []
    for at in np.argsort(-wrong.ravel(), kind='stable')[:_MOST_PAIRS]:
        i, j = divmod(int(at), wrong.shape[1])
        if not wrong[i, j]:
            break
        found.append([rows[i], columns[j], page.number(float(wrong[i, j]), 0),
                      page.number(100 * wrong[i, j] / labelled[i]),
                      page.number(100 * wrong[i, j] / wrong.sum())])
        classes.append([i, j] if numbers is None else [numbers[i], numbers[j]])
    if not found:
        return element('p', f'None: no {what} of one class were predicted as another.')
    return page.table(['truth', 'predicted', what, '% of the class', '% of all errors'], found,
                      classes)
