"""Text and class legends.

The font comes with matplotlib, else with Pillow. For names in other scripts (Chinese, Arabic, ...)
a font of this machine is looked for. A class of which no font has the letters is shown by its
number.
"""
from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visattn_dense.errors import few

from .colour import Palette

INK, PAPER, FAINT = (32, 33, 36), (255, 255, 255), (128, 131, 136)


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, `size` pixels high, which matplotlib installs; without it, Pillow's own font."""
    spec = importlib.util.find_spec('matplotlib')
    if spec is None:
        return ImageFont.load_default(size)
    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    return ImageFont.truetype(Path(spec.origin).parent / 'mpl-data/fonts/ttf' / name, size)


def font_for(text: str, size: int, bold: bool = False) -> ImageFont.FreeTypeFont | None:
    """A font with all letters of `text`; None if this machine has none."""
    usual = font(size, bold)
    if _has(usual, text):
        return usual
    found = _foreign_font(frozenset(text))
    return ImageFont.truetype(found, size) if found else None


@lru_cache(maxsize=4096)
def _foreign_font(letters: frozenset[str]) -> str | None:
    return next((path for path in _fonts_here() if _has_file(path, letters)), None)


@lru_cache
def _fonts_here() -> list[str]:
    """Font files of this machine, those for many scripts first."""
    folders = ('/usr/share/fonts', '/usr/local/share/fonts', '~/.fonts', '~/.local/share/fonts',
               '/System/Library/Fonts', '/Library/Fonts', 'C:/Windows/Fonts',
               *filter(None, os.environ.get('VISATTN_FONTS', '').split(os.pathsep)))
    found = [str(path) for folder in folders for path in Path(folder).expanduser().rglob('*')
             if path.suffix.lower() in ('.ttf', '.ttc', '.otf')]
    return sorted(found, key=lambda path: (not re.search(r'CJK|Unicode|unifont', path, re.I), path))


def _has_file(path: str, letters: Iterable[str]) -> bool:
    try:
        return _has(ImageFont.truetype(path, 20), letters)
    # A font that is damaged.
    except OSError:
        return False


def _has(letters: ImageFont.FreeTypeFont, text: Iterable[str]) -> bool:
    """Whether a font has all letters: a missing one looks like U+FFFF, which no font has."""
    missing = _shape(letters, '\uffff')
    return all(char.isspace() or _shape(letters, char) != missing for char in set(text))


def _shape(letters: ImageFont.FreeTypeFont, char: str) -> tuple:
    mask = letters.getmask(char)
    return mask.size, bytes(mask)


def legible(names: Sequence[str]) -> list[str]:
    """The names, and 'class NUMBER' for each name that no font here can write; said once."""
    return _legible(tuple(names))


@lru_cache
def _legible(names: tuple[str, ...]) -> list[str]:
    shown = [name if font_for(name, 20) else f'class {i}' for i, name in enumerate(names)]
    lost = [name for name, text in zip(names, shown, strict=True) if name != text]
    if lost:
        logging.getLogger('visattn_dense').warning(
            'No font of this machine has the letters of %s: pictures show the numbers of these '
            'classes. Install a font (for example fonts-noto-cjk), or name its folder in '
            'VISATTN_FONTS.', few(lost))
    return shown


def draw_text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int,
              colour: Sequence[int], width: int) -> None:
    """Write `text` above the point `at`, on a plate of that RGB colour inside the picture's width.

    The letters are dark on a light colour, and the other way round.
    """
    letters = font_for(text, size, bold=True) or font(size, bold=True)
    length, pad, high = letters.getlength(text), max(2, size // 6), round(1.3 * size)
    x, y = max(0., min(at[0], width - length - 2 * pad)), max(0., at[1] - high)
    red, green, blue = colour
    ink = INK if 0.3 * red + 0.6 * green + 0.1 * blue > 140 else PAPER
    draw.rectangle((x, y, x + length + 2 * pad, y + high), fill=tuple(colour))
    draw.text((x + pad, y + high / 2), text, ink, letters, anchor='lm')


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
    swatch, gap = round(size * 1.15), size
    room = width - swatch - 2 * gap
    fonts = [font_for(name, size) or font(size) for name in names]
    texts = [_shortened(name, letters, room) for name, letters in zip(names, fonts, strict=True)]
    widest = max((letters.getlength(text) for text, letters in zip(texts, fonts, strict=True)),
                 default=0)
    columns = max(1, min(len(texts) or 1, int(width // (swatch + 1.5 * gap + widest))))
    line = round(size * 1.75)
    rows = -(-len(texts) // columns)
    page = Image.new('RGB', (width, max(1, rows * line)), PAPER)
    draw = ImageDraw.Draw(page)
    for number, (text, letters, colour) in enumerate(zip(texts, fonts, palette, strict=True)):
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


def wrapped(text: str, letters: ImageFont.FreeTypeFont, room: float) -> list[str]:
    """The text in lines of at most `room` pixels, cut at spaces; a longer word is shortened."""
    lines = ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        if lines[-1] and letters.getlength(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_shortened(line, letters, room) for line in lines]


def as_array(page: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    return np.asarray(page.convert('RGB'))
