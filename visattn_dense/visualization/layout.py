"""Pictures in rows below a title, above a legend: the page of every sheet."""
from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .colour import Palette
from .text import FAINT, INK, PAPER, draw_legend, font, legible, wrapped

_MARGIN, _GAP = 28, 10
_TALLEST = 1.5
"""Height of the tallest cell, in widths of a cell."""


def fit(width: int, height: int, cell_width: int) -> tuple[int, int]:
    """The (width, height) at which a picture fills a cell and keeps its proportions."""
    ratio = min(cell_width / width, _TALLEST * cell_width / height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def lay_out(rows: Sequence[Sequence[Image.Image]], *, names: Sequence[str], palette: Palette,
            shown: Sequence[int], headings: Sequence[str] = (), title: str = '',
            subtitle: str = '', cell_width: int = 360) -> Image.Image:
    """Put pictures on a page.

    Args:
        rows: the pictures, none wider than `cell_width`; every row begins at the left.
        names, palette: name and RGB triple of every class.
        shown: indices of the classes in the legend.
        headings: above the columns.
        title, subtitle: above the pictures, left out where empty.
        cell_width: of a column, in pixels.

    Returns:
        An RGB image.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError('a sheet needs at least one row')
    columns = max(map(len, rows))
    width = columns * (cell_width + _GAP) - _GAP + 2 * _MARGIN
    written = legible(names)
    legend = draw_legend([written[i] for i in shown], [palette[i] for i in shown],
                         width - 2 * _MARGIN)
    lines = [(line, font(size, bold), colour) for text, size, bold, colour in
             ((title, 24, True, INK), (subtitle, 15, False, FAINT)) if text
             for line in wrapped(text, font(size, bold), width - 2 * _MARGIN)]
    first = (_MARGIN + sum(round(letters.size * 1.6) for _, letters, _ in lines)
             + (30 if headings else 10))
    heights = [max(picture.height for picture in row) + _GAP for row in rows]
    page = Image.new('RGB', (width, first + sum(heights) + legend.height + _MARGIN + 8), PAPER)
    draw = ImageDraw.Draw(page)
    y = _MARGIN
    for line, letters, colour in lines:
        draw.text((_MARGIN, y), line, colour, letters)
        y += round(letters.size * 1.6)
    for column, heading in enumerate(headings):
        draw.text((_MARGIN + column * (cell_width + _GAP), first - 8), heading, INK,
                  font(15, bold=True), anchor='ls')
    y = first
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            page.paste(picture, (_MARGIN + column * (cell_width + _GAP), y))
        y += height
    page.paste(legend, (_MARGIN, y + 8))
    return page
