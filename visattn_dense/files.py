"""Files: what lies in a folder, and reading many of them."""
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from visattn_dense.errors import UserError

Item = TypeVar('Item')
Result = TypeVar('Result')


def list_files(folder: str, suffix: str | tuple[str, ...] = '') -> list[str]:
    """Paths relative to `folder` of all files below it that end in `suffix`, sorted.

    Folders behind symbolic links are searched too.

    Raises:
        UserError: a folder cannot be read, or a symbolic link leads back into a folder above it.
    """
    found = []
    waiting = [('', (os.path.realpath(folder), ))]
    while waiting:
        below, above = waiting.pop()
        try:
            with os.scandir(os.path.join(folder, below)) as entries:
                for entry in entries:
                    if entry.name.startswith('.'):
                        continue
                    relative = os.path.join(below, entry.name)
                    if entry.is_dir():
                        real = os.path.realpath(entry.path) if entry.is_symlink() else (
                            os.path.join(above[-1], entry.name))
                        if real in above:
                            raise UserError(f'the symbolic link {entry.path} leads back to {real}: '
                                            'remove the link')
                        waiting.append((relative, (*above, real)))
                    elif entry.name.endswith(suffix):
                        found.append(relative)
        except OSError as error:
            raise UserError(f'the folder {os.path.join(folder, below)} cannot be read: '
                            f'{error.strerror}') from error
    return sorted(found)


def read_all(read: Callable[[Item], Result], items: Sequence[Item], *, workers: int,
             progress: str = '') -> Iterator[Result]:
    """`read(item)` for each item, in order, on `workers` threads.

    Threads are enough: Pillow decodes without holding Python's lock. `progress` is the label of a
    progress bar on stderr; the bar is shown only if stderr is a terminal.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        yield from tqdm(pool.map(read, items), total=len(items), desc=progress, unit='file',
                        disable=None if progress else True)


def cores() -> int:
    """Number of cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spread(items: Sequence[Item], count: int = 18) -> list[Item]:
    """The first, the last and evenly spaced ones between them: at most `count` of `items`."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
