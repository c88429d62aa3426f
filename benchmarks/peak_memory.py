"""Peak memory of what runs inside a `with` block."""
from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from types import TracebackType

import torch

_CLEAR, _STATUS = Path('/proc/self/clear_refs'), Path('/proc/self/status')


class PeakMemory:
    """Watches a block.

    On a GPU: the peak of the allocator, with weights and inputs. On the CPU: the peak of the
    resident memory of the process during the block, with Python and the libraries. Only Linux can
    reset this peak; elsewhere it is the peak since the start of the process.

    Attributes:
        mib: the peak in MiB, after the block.
        kind: which peak this is, in words.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mib = 0.
        self.kind = "the GPU allocator's" if device.type == 'cuda' else "the process's"

    def __enter__(self) -> PeakMemory:
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _CLEAR.exists():
            try:
                # 5 resets VmHWM to what is resident now; see proc(5).
                _CLEAR.write_text('5')
            except OSError:
                self.kind = "the process's, since its start"
        else:
            self.kind = "the process's, since its start"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.mib = (torch.cuda.max_memory_allocated(self.device) / 2**20
                    if self.device.type == 'cuda' else _highest_resident())


def _highest_resident() -> float:
    """Of this process, in MiB."""
    if _STATUS.exists() and (found := re.search(r'VmHWM:\s*(\d+) kB', _STATUS.read_text())):
        return int(found[1]) / 2**10
    # Kilobytes on Linux, bytes on macOS.
    unit = 2**20 if sys.platform == 'darwin' else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
