"""Giving back the memory of a mapped file while its tensors are being copied.

Pages of a mapped file count as the process's own once they are read, so a copy of a checkpoint
into a model would peak at twice its size.
"""
import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor


class MappedPages:
    """The places where a file is mapped into this process, by the kernel's account.

    On systems without /proc there are none, and nothing is given back.

    Args:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._ranges: list[tuple[int, int]] = []
        maps = Path('/proc/self/maps')
        if not sys.platform.startswith('linux') or not maps.exists():
            return
        path = os.path.realpath(path)
        for line in maps.read_text(errors='surrogateescape').splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] == path:
                start, end = (int(number, 16) for number in fields[0].split('-'))
                self._ranges.append((start, end))

    def release(self, tensors: Iterable[Tensor]) -> None:
        """Drop the pages of `tensors` that lie in the file; they are read again when needed.

        The tensors must not have been written to: that is lost. Others are left alone.
        """
        for tensor in tensors:
            storage = tensor.untyped_storage()
            begin, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
            if not any(low <= begin and end <= high for low, high in self._ranges):
                continue
            # Whole pages only: the first and the last may be shared with a neighbour.
            begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end & -mmap.PAGESIZE
            if begin < end:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin),
                                          ctypes.c_int(mmap.MADV_DONTNEED))
