"""A sheet of examples: rows of image | truth | prediction above a legend of the classes."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from .colour import IGNORED, Palette, colourise
from .layout import fit, lay_out


class Row(NamedTuple):
    """One example: image (H, W, 3) uint8 RGB, truth and prediction (H, W) class indices."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def draw_sheet(rows: Sequence[Row], names: Sequence[str], palette: Palette, *, title: str = '',
               subtitle: str = '', cell_width: int = 360, ignored: int = IGNORED) -> Image.Image:
    """Lay examples out for a reader.

    Args:
        rows: the examples, best of one aspect ratio; each is scaled to the width of a cell.
        names: of all classes; the legend shows those that occur.
        palette: one RGB triple per class.
        title, subtitle: above the pictures, left out where empty.
        cell_width: of each picture, in pixels.
        ignored: truth of pixels without a label: black in the truth.

    Returns:
        An RGB image.

    Raises:
        ValueError: no rows, or a truth or prediction of another size than its image.
    """
    cells = []
    for number, row in enumerate(rows):
        sizes = {row.image.shape[:2], row.truth.shape, row.prediction.shape}
        if len(sizes) > 1:
            raise ValueError(f'row {number}: image, truth and prediction differ in size: '
                             f'{row.image.shape[:2]}, {row.truth.shape}, {row.prediction.shape}')
        size = fit(row.image.shape[1], row.image.shape[0], cell_width)
        # Colours of classes do not mix.
        cells.append([Image.fromarray(row.image).resize(size, Image.Resampling.LANCZOS), *(
            Image.fromarray(colourise(label, palette, ignored)).resize(
                size, Image.Resampling.NEAREST) for label in (row.truth, row.prediction))])
    shown = sorted({int(value) for row in rows for part in (row.truth, row.prediction)
                    for value in np.unique(part) if 0 <= value < len(names) and value != ignored})
    return lay_out(cells, names=names, palette=palette, shown=shown, title=title,
                   headings=('image', 'truth', 'prediction'), subtitle=subtitle,
                   cell_width=cell_width)
