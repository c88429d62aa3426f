"""Text and class legends, drawn with a font that comes with matplotlib."""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .colour import Palette

INK, PAPER, FAINT = (32, 33, 36), (255, 255, 255), (128, 131, 136)


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, `size` pixels high: matplotlib installs it, so it is on every machine."""
    import matplotlib
    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / 'fonts/ttf' / name, size)


def draw_legend(names: Sequence[str], palette: Palette, width: int, size: int = 15) -> Image.Image:
    """Swatches and names in columns of equal width.

    Args:
        names: of the classes to show.
        palette: one RGB triple per name.
        width: of the result, in pixels; a name too long for it is cut with an ellipsis.
        size: of the letters, in pixels.

    Returns:
        An RGB image of that width, as high as it needs.
    """
    letters, swatch, gap = font(size), round(size * 1.15), size
    room = width - swatch - 2 * gap
    texts = [_shortened(name, letters, room) for name in names]
    widest = max((letters.getlength(text) for text in texts), default=0)
    columns = max(1, min(len(texts) or 1, int(width // (swatch + 1.5 * gap + widest))))
    line = round(size * 1.75)
    rows = -(-len(texts) // columns)
    page = Image.new('RGB', (width, max(1, rows * line)), PAPER)
    draw = ImageDraw.Draw(page)
    for number, (text, colour) in enumerate(zip(texts, palette, strict=True)):
        x, y = number % columns * width // columns, number // columns * line
        top = y + (line - swatch) // 2
        draw.rounded_rectangle((x, top, x + swatch, top + swatch), radius=size // 5,
                               fill=tuple(int(part) for part in colour), outline=FAINT)
        draw.text((x + swatch + gap // 2, y + line // 2), text, INK, letters, anchor='lm')
    return page


def _shortened(text: str, letters: ImageFont.FreeTypeFont, room: float) -> str:
    if letters.getlength(text) <= room:
        return text
    while text and letters.getlength(text + '…') > room:
        text = text[:-1]
    return text + '…'


def as_array(page: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    return np.asarray(page.convert('RGB'))
