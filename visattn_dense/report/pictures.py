"""Pictures inside the page: small, and bounded in number and in bytes."""
from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from visattn_dense.errors import UserError
from visattn_dense.files import list_files
from visattn_dense.images import opened
from visattn_dense.predict.sources import as_rgb
from visattn_dense.report.html import Markup, element
from visattn_dense.visualization.colour import Palette

SIDE = 320
"""Longer side of a picture in the page, in pixels."""
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm')
# EXIF orientations that exchange width and height.
_QUARTER_TURNS = (5, 6, 7, 8)
_DIFFERENCE = ((120, 128, 138), (214, 40, 57))
"""Right and wrong pixels; everything else is black."""


class Budget:
    """Counts the pictures of a page.

    Args:
        most: pictures.
        most_bytes: of all pictures together, as they stand in the page.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.used = self.used_bytes = 0

    def take(self, pictures: list[str]) -> bool:
        """Whether these pictures still fit; if they do, they count."""
        size = sum(map(len, pictures))
        if self.used + len(pictures) > self.most or self.used_bytes + size > self.most_bytes:
            return False
        self.used, self.used_bytes = self.used + len(pictures), self.used_bytes + size
        return True

    @property
    def full(self) -> bool:
        return self.used >= self.most or self.used_bytes >= self.most_bytes


def small_size(width: int, height: int) -> tuple[int, int]:
    """The size of a picture in the page: no side above `SIDE`, none below 1."""
    ratio = min(1., SIDE / max(width, height))
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def photo(path: str | os.PathLike) -> tuple[str, tuple[int, int]] | None:
    """An image file as the address of a small JPEG, and its (width, height).

    The image is turned as its EXIF entry says, and so are width and height, which are those of the
    file.

    Returns:
        None where the file cannot be read: a report without one picture is still a report.
    """
    try:
        with opened(path) as image:
            # A JPEG can be decoded at a fraction of its size.
            size = image.size
            image.draft('RGB', small_size(*size))
            # Pillow turns a TIFF file itself.
            if image.format != 'TIFF' and (
                    image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS):
                size = size[::-1]
            small = Image.fromarray(as_rgb(image)).resize(small_size(*size),
                                                          Image.Resampling.BICUBIC)
    except OSError:
        return None
    out = io.BytesIO()
    small.save(out, 'JPEG', quality=80, optimize=True)
    return _address('jpeg', out), size


def label_picture(classes: np.ndarray, palette: Palette) -> str:
    """A label map as the address of a small PNG.

    Args:
        classes: (H, W); values outside the palette become black.
        palette: one RGB triple per class.
    """
    small = Image.fromarray(classes.astype(np.uint16)).resize(
        small_size(*classes.shape[::-1]), Image.Resampling.NEAREST)
    colours = np.array([*palette, (0, 0, 0)], np.uint8)[np.minimum(small, len(palette))]
    out = io.BytesIO()
    # Few colours in a picture: 256 of a palette keep them all, but for very many classes.
    Image.fromarray(colours).quantize(256, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
    return _address('png', out)


def difference_picture(truth: np.ndarray, prediction: np.ndarray, judged: np.ndarray) -> str:
    """Right pixels grey, wrong pixels red, pixels that are not judged black."""
    return label_picture(np.where(judged, truth != prediction, 2), _DIFFERENCE)


def matrix_picture(share: np.ndarray) -> str:
    """A matrix of shares 0..1 as the address of a PNG, a pixel for each entry; NaN is grey.

    The square root keeps shares of a few per cent visible.
    """
    depth = np.sqrt(np.nan_to_num(share))[..., None]
    colours = (1 - depth) * np.array([255, 255, 255]) + depth * np.array([8, 69, 148])
    colours[np.isnan(share)] = 200
    out = io.BytesIO()
    Image.fromarray(colours.round().astype(np.uint8)).save(out, 'PNG', optimize=True)
    return _address('png', out)


def images_by_stem(folder: str | os.PathLike, stems: Iterable[str]) -> dict[str, Path]:
    """The image files below a folder that have one of these names without suffix, by this name.

    Raises:
        UserError: a folder cannot be read, or two files have one of the names.
    """
    asked, found = set(stems), {}
    for name in list_files(os.fspath(folder)):
        path = Path(folder, name)
        if path.stem in asked and name.lower().endswith(SUFFIXES):
            other = found.setdefault(path.stem, path)
            if other != path:
                raise UserError(f'{other} and {path} have the same name, and one of them is the '
                                'photograph of a prediction; give a folder with these photographs '
                                'alone')
    return found


def figure(address: str, caption: str) -> Markup:
    """A picture with a line below."""
    return element('figure', element('img', src=address, alt=caption, loading='lazy'),
                   element('figcaption', caption))


def _address(kind: str, out: io.BytesIO) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}'
