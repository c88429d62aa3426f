"""What every Triton form needs: whether Triton can compute here, and the launch of a kernel.

A form launches its kernels through `launch`. Inside `recorded()` nothing is launched: the launches
are collected, so that another program can count or compile exactly what a call would launch.
"""
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec('triton') is not None

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
"""Whether the kernels run in Triton's interpreter, on CPU tensors. Triton reads the variable when
it is imported."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that the kernels take."""

DEVICES = ('cuda', 'cpu') if INTERPRETED else ('cuda',)
"""The device types on which an operator asks its Triton form."""


def why_not(*tensors: Tensor) -> str | None:
    """Why Triton cannot compute with these tensors, or None. The tensors must have one dtype."""
    x = tensors[0]
    if not HAS_TRITON:
        return 'Triton is not installed'
    if x.device.type not in DEVICES:
        return f'the tensors are on {x.device.type!r}, not a CUDA device'
    # Without a GPU, tensors on 'cuda' are fake: a program only asks for shapes or counts launches.
    if (x.device.type == 'cuda' and torch.cuda.is_available()
            and torch.cuda.get_device_properties(x.device).major < 8):
        return 'the GPU is older than compute capability 8.0, where Triton has no matrix units'
    kinds = [t.dtype for t in tensors]
    if kinds[0] not in DTYPES or any(kind != kinds[0] for kind in kinds):
        return (f'the tensors are {", ".join(str(kind) for kind in dict.fromkeys(kinds))}, not '
                'alike float32, bfloat16 or float16')
    return None


class Launch(NamedTuple):
    """A launch that `recorded` collected: kernel[grid](*args, **constants)."""
    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]


_record: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """kernel[grid](*args, **constants), on the device of the first argument, a tensor."""
    if _record is not None:
        _record.append(Launch(kernel, grid, args, constants))
        return
    with torch.cuda.device(args[0].device) if args[0].is_cuda else nullcontext():
        kernel[grid](*args, **constants)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect the launches of this process while the block runs, and launch nothing."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
