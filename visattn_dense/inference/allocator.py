"""Tell the C library's allocator to keep freed memory."""
import ctypes
import sys

# <malloc.h>, and glibc's largest threshold for mmap on 64 bits.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next tensor, in the whole process.

    By default glibc returns large blocks to the system at once. Then every new large tensor costs a
    page fault for each 4 KiB. With freed memory kept, the CPU needs 5 to 10 % less time
    (docs/notes/performance.md), but the process keeps the highest memory that it had. torch's CUDA
    allocator is not affected.

    Returns:
        True if glibc was told; False if the C library is not glibc.
    """
    if not sys.platform.startswith('linux'):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, 'gnu_get_libc_version'):
        return False
    return bool(library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
                and library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD))
