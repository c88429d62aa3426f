"""Give back the memory of a mapped file while its tensors are being copied.

After a read, pages of a mapped file count as the process's memory. So a copy of a checkpoint into a
model would need twice the size of the checkpoint at the peak.
"""
import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor


class MappedPages:
    """The address ranges at which a file is mapped into this process, from /proc/self/maps.

    On a system without /proc there are no ranges, and no memory is given back.

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
        """Drop the pages of `tensors` that are mapped from the file. A later access reads the file.

        Changes to the tensors would be lost, so do not write to them. Other tensors stay.
        """
        for tensor in tensors:
            storage = tensor.untyped_storage()
            begin, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
            if not any(low <= begin and end <= high for low, high in self._ranges):
                continue
            # Whole pages only: a neighbour may share the first and the last page.
            begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end & -mmap.PAGESIZE
            if begin < end:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin),
                                          ctypes.c_int(mmap.MADV_DONTNEED))
