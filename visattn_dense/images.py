"""Opening image files: one limit on their size, one bound on memory, one kind of error.

Pillow refuses images above 179 million pixels, but satellites and microscopes make such images.
`import visattn_dense` raises this limit to `MOST_PIXELS` for the whole process. OpenCV has the same
limit, so both decoders of a pipeline read the same files. `opened` bounds the memory instead: its
threads decode one GiB at a time, and an image that does not fit into the free memory is refused.
"""
from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from visattn_dense.errors import UserError

MOST_PIXELS = 2**30
"""Pixels of one image: the default of OpenCV's CV_IO_MAX_IMAGE_PIXELS."""
LOSSY = ('JPEG', 'MPO')
"""Formats (Pillow's names) that change the class indices of a label."""
_AT_ONCE = 2**30
_LARGE = 2**28
# Pillow warns above its limit and refuses above twice its limit. `import visattn_dense` imports
# this module as soon as Pillow is imported by anybody.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2


class _Budget:
    """Bytes that the threads of this process decode at the same time."""

    def __init__(self, most: int) -> None:
        self.most, self.used, self.changed = most, 0, threading.Condition()

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        # An image above the bound waits until it is alone.
        size = min(size, self.most)
        with self.changed:
            self.changed.wait_for(lambda: self.used + size <= self.most)
            self.used += size
        try:
            yield
        finally:
            with self.changed:
                self.used -= size
                self.changed.notify_all()


_budget = _Budget(_AT_ONCE)


def free_memory() -> int | None:
    """Bytes of memory that are free on this machine; None if the system does not say."""
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines
                 if line.startswith('MemAvailable:')), None)


@contextmanager
def opened(path: str | os.PathLike, *, decode: bool = True) -> Iterator[Image.Image]:
    """An image file, opened by Pillow. Pillow reads the pixels when they are first used.

    Args:
        path: the file.
        decode: the caller will use the pixels. If False, only the head of the file is read, and no
            memory is reserved.

    Raises:
        OSError: the file is missing, damaged, too large, not an image, or not a regular file (a
            folder, a pipe). Every other error of Pillow becomes an OSError too. PIL's
            UnidentifiedImageError, a kind of OSError, says that the format is unknown.
    """
    # A read from a pipe may wait without end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError('not a regular file')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            size = _decoded_bytes(image)
            free = free_memory() if decode and size > _LARGE else None
            if free is not None and size > free:
                raise OSError(f'{image.width}x{image.height} pixels take {size / 2**30:.1f} GiB, '
                              f'and {free / 2**30:.1f} GiB of memory are free')
            with _budget.held(size if decode else 0):
                yield image
    except (OSError, UserError):
        raise
    except MemoryError as error:
        raise OSError('too large for the memory that is free') from error
    # Broken PNG chunks are SyntaxErrors, broken heads of other formats ValueErrors and more.
    except Exception as error:
        raise OSError(f'{error}' or type(error).__name__) from error


def raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, by Pillow's name, before they are decoded.

    'RGB;16B' for 16 bits in colour, of which Pillow itself keeps the upper 8.
    """
    raw = image.tile[0][3] if image.tile else ''
    return str(raw[0] if isinstance(raw, tuple) and raw else raw)


def _decoded_bytes(image: Image.Image) -> int:
    """Bytes of the decoded image inside Pillow: one a pixel, two for 16 bits, else four."""
    wide = 1 if image.mode in ('1', 'L', 'P') else 2 if '16' in image.mode else 4
    return image.width * image.height * wide
