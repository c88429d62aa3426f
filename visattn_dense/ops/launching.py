"""What every Triton form needs: whether Triton can compute here, and the launch of a kernel.

A form launches its kernels through `launch`. Inside `recorded()` nothing is launched: the launches
are collected, so that another program can count or compile exactly what a call would launch.
"""
import functools
import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


def why_not(*tensors: Tensor | None, alike: bool = False) -> str | None:
    """Why Triton cannot compute with these tensors, or None.

    Args:
        tensors: what the kernels read; None stands for a tensor that is left out.
        alike: the tensors must have one dtype.
    """
    if not HAS_TRITON:
        return 'Triton is not installed'
    given = [t for t in tensors if t is not None]
    device = given[0].device
    if any(t.device != device for t in given):
        return 'the tensors are on several devices'
    if device.type not in DEVICES:
        return f'the tensors are on {device.type!r}, not a CUDA device'
    # Without a GPU, tensors on 'cuda' are fake: a program only asks for shapes or counts launches.
    if (device.type == 'cuda' and torch.cuda.is_available()
            and torch.cuda.get_device_properties(device).major < 8):
        return 'the GPU is older than compute capability 8.0, where Triton has no matrix units'
    kinds = dict.fromkeys(t.dtype for t in given)
    if alike and (len(kinds) > 1 or not kinds.keys() <= set(DTYPES)):
        return (f'the tensors are {", ".join(map(str, kinds))}, not alike float32, bfloat16 or '
                'float16')
    if not kinds.keys() <= set(DTYPES):
        return 'a tensor is neither float32, bfloat16 nor float16'
    return None


class Launch(NamedTuple):
    """A launch that `recorded` collected: kernel[grid](*args, **constants)."""
    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]


_record: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """kernel[grid](*args, **constants), on the device of the first tensor of `args`.

    Args:
        kernel: its first parameters are `args`, and the others are compile-time constants.
        grid: the numbers of programs.
        args: tensors, None, and numbers for which Triton compiles no kernel of their own.
        constants: what the kernel is compiled for, and options of Triton.
    """
    if _record is not None:
        _record.append(Launch(kernel, grid, args, constants))
        return
    first = next(arg for arg in args if arg is not None)
    if not first.is_cuda:
        kernel[grid](*args, **constants)
    elif first.get_device() == torch.cuda.current_device():
        _launch_on_gpu(kernel, grid, args, constants)
    else:
        with torch.cuda.device(first.get_device()):
            _launch_on_gpu(kernel, grid, args, constants)


_compiled: dict[Any, tuple[Any, tuple[Any, ...]]] = {}
"""Compiled kernels, and the constants that follow their arguments."""


def _launch_on_gpu(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...],
                   constants: dict[str, Any]) -> None:
    """Launch on the current device.

    Triton looks at every argument to find the compiled kernel. On the host, this takes several
    times as long as the launch. Here few things choose the kernel: the constants, and of each
    tensor the dtype and whether the address is a multiple of 16.
    """
    chosen_by: list[Any] = [id(kernel), torch.cuda.current_device(), *constants.values()]
    for arg in args:
        kind = type(arg)
        if kind is int:
            if arg >= 2**31:                         # Triton compiles another kernel.
                kernel[grid](*args, **constants)
                return
        elif arg is None:
            chosen_by.append(None)
        elif kind is not float:
            chosen_by.append(arg.dtype if arg.data_ptr() % 16 == 0 else (arg.dtype,))
    key = tuple(chosen_by)
    found = _compiled.get(key)
    if found is not None:
        compiled, following = found
        compiled[(*grid, 1, 1)](*args, *following)
        return
    compiled = kernel[grid](*args, **constants)
    if _takes_constants():
        _compiled[key] = compiled, tuple(constants[name] for name in kernel.arg_names[len(args):])


@functools.cache
def _takes_constants() -> bool:
    """Whether a compiled kernel of this Triton takes all arguments, and is chosen by no others.

    Triton 3.2 leaves the constants out. Triton for AMD looks at the sizes of tensors too.
    """
    import triton
    version = tuple(int(part) for part in triton.__version__.split('.')[:2])
    return version >= (3, 3) and torch.version.hip is None


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect the launches of this process while the block runs, and launch nothing."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


def readable(t: Tensor) -> Tensor:
    """The map with channels side by side in memory, as the kernels read it."""
    return t if t.stride(-1) == 1 else t.contiguous()


def map_strides(*maps: Tensor) -> list[int]:
    """The strides of maps by image, row and column."""
    return [stride for t in maps for stride in t.stride()[:3]]


def in_units(strides: Sequence[int], *widths: int) -> tuple[list[int], int]:
    """Strides in units, and the unit: the largest divisor of 16 that divides them all and `widths`.

    The unit is a constant of a kernel. So the compiler knows how many numbers a thread may load at
    once, for every size.
    """
    unit = math.gcd(16, *strides, *widths)
    return [stride // unit for stride in strides], unit


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
