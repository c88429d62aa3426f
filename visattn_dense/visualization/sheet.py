"""A sheet of examples: rows of image | truth | prediction above a legend of the classes."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .colour import IGNORED, Palette, colourise
from .text import FAINT, INK, PAPER, draw_legend, font, legible

_MARGIN, _GAP = 28, 10


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
    if not rows:
        raise ValueError('a sheet needs at least one row')
    for number, row in enumerate(rows):
        sizes = {row.image.shape[:2], row.truth.shape, row.prediction.shape}
        if len(sizes) > 1:
            raise ValueError(f'row {number}: image, truth and prediction differ in size: '
                             f'{row.image.shape[:2]}, {row.truth.shape}, {row.prediction.shape}')
    width = 3 * cell_width + 2 * _GAP + 2 * _MARGIN
    heights = [round(cell_width * row.image.shape[0] / row.image.shape[1]) for row in rows]
    shown = sorted({int(value) for row in rows for part in (row.truth, row.prediction)
                    for value in np.unique(part) if 0 <= value < len(names) and value != ignored})
    written = legible(names)
    legend = draw_legend([written[i] for i in shown], [palette[i] for i in shown],
                         width - 2 * _MARGIN)
    lines = [(text, font(size, bold), colour) for text, size, bold, colour in
             ((title, 24, True, INK), (subtitle, 15, False, FAINT)) if text]
    head = sum(round(letters.size * 1.6) for _, letters, _ in lines)
    first = _MARGIN + head + 30
    page = Image.new('RGB', (width, first + sum(heights) + _GAP * len(rows) + legend.height
                             + _MARGIN + 8), PAPER)
    draw = ImageDraw.Draw(page)
    y = _MARGIN
    for text, letters, colour in lines:
        draw.text((_MARGIN, y), text, colour, letters)
        y += round(letters.size * 1.6)
    for column, heading in enumerate(('image', 'truth', 'prediction')):
        draw.text((_MARGIN + column * (cell_width + _GAP), first - 8), heading, INK,
                  font(15, bold=True), anchor='ls')
    y = first
    for row, height in zip(rows, heights, strict=True):
        for column, (picture, way) in enumerate((
                (row.image, Image.Resampling.LANCZOS),
                # Colours of classes do not mix.
                (colourise(row.truth, palette, ignored), Image.Resampling.NEAREST),
                (colourise(row.prediction, palette, ignored), Image.Resampling.NEAREST))):
            scaled = Image.fromarray(picture).resize((cell_width, height), way)
            page.paste(scaled, (_MARGIN + column * (cell_width + _GAP), y))
        y += height + _GAP
    page.paste(legend, (_MARGIN, y + 8))
    return page
