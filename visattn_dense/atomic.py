"""Files that are written whole, or stay as they were."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from visattn_dense.errors import FullDiskError, is_full_disk


def temporary_name(path: Path) -> Path:
    """Where `path` is written before it gets its name: hidden, in the same folder."""
    return path.with_name(f'.{path.name}.tmp')


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path to write to. The file gets its real name when it is on the disk.

    After a kill or a power cut at any moment, `path` is either the old file or the whole new file.
    An exception inside removes the temporary file; then `path` stays as it was.

    Raises:
        FullDiskError: there is no room for the file.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if is_full_disk(error):
            # Pillow's error does not name the file.
            raise FullDiskError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    _sync(path.parent)


def write_text_whole(path: str | os.PathLike, text: str) -> None:
    """`Path.write_text` through `written_whole`."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def remove_leftovers(folder: str | os.PathLike, suffix: str = '.pth') -> list[Path]:
    """Delete the temporary files that a killed run left in `folder`; returns them."""
    leftovers = list(Path(folder).glob(f'.*{suffix}.tmp'))
    for leftover in leftovers:
        with suppress(FileNotFoundError):
            leftover.unlink()
    return leftovers


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # Some network file systems cannot sync a folder. The rename has happened nevertheless.
        if not path.is_dir():
            raise
    finally:
        os.close(handle)
