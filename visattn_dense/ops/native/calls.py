"""Calls of the compiled kernels, as operators of torch: on the CPU, without a gradient.

The kernels see a map of shape (B, H, W, C) as a matrix of B·H·W rows. The channels of a row lie
side by side in memory. The distance from one row to the next is constant, but may be larger than C.
So q, k and v may be parts of one tensor, and the result may be a part of another tensor's channels.

Maps are float32 or bfloat16, all maps of a call in one dtype. Everything else (weights, position,
sums) is float32. The layers of `layers` take float32 alone.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..registered import is_traced
from . import build
from .recording import Recording

ACTIVATIONS = 'none', 'relu', 'hardswish', 'gelu', 'gelu_tanh'
"""The activations of layers, by their numbers in vectors.h. `depthwise` applies the first
three."""

DTYPES = torch.float32, torch.bfloat16
"""The dtypes of maps, by their numbers in vectors.h."""


def why_not(x: Tensor | None = None) -> str | None:
    """Why the kernels cannot compute with x, or None. Without x: why there are no kernels, or None.

    The kernels take float32 or bfloat16 on a CPU, in rows at a constant distance (see above), and
    give no gradient.
    """
    if x is None:
        return build.why_not()
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return 'the tensors are traced, or of a class of their own'
    if x.device.type != 'cpu' or x.dtype not in DTYPES:
        return f'the tensors are {x.dtype} on {x.device.type!r}, not float32 or bfloat16 on a CPU'
    if x.requires_grad and torch.is_grad_enabled():
        return 'a gradient is needed'
    if x.numel() == 0 or not is_rows(x):
        return 'the tensors are empty, or not in rows at one distance'
    return build.why_not()


def operator(name: str, *, mutates_args: Iterable[str],
              schema: str | None = None) -> Callable[[Callable], Callable]:
    """The function as an operator of torch, `torch.ops.visattn...`, for the CPU.

    A call goes past torch's dispatcher where nothing watches: this takes ten microseconds less.
    """
    def wrap(function: Callable) -> Callable:
        registered = torch.library.custom_op(name, mutates_args=mutates_args, device_types='cpu',
                                             schema=schema)(function)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            if not is_watched():
                return function(*args)
            recording = _recording()
            if recording is None:
                return registered(*args)
            recording.keep(args)
            return function(*args)

        call.register_fake = registered.register_fake
        return call
    return wrap


def is_watched() -> bool:
    """Whether autograd, a tracer, a profiler or a mode of torch has to know of each operator."""
    return torch.is_grad_enabled() or is_traced()


def run(kernel: str, *arguments: Any) -> None:
    """Call a kernel of the library; a recording notes the call."""
    function = getattr(build.library(), f'visattn_{kernel}')
    function(*arguments)
    recording = _recording()
    if recording is not None:
        recording.note(function, arguments)


def _recording() -> Recording | None:
    """The recording that is being made, or None."""
    if torch.compiler.is_compiling():
        return None
    mode = _get_current_dispatch_mode()
    return mode if isinstance(mode, Recording) else None


def rows_of(*maps: Tensor) -> list[Tensor]:
    """View each (..., C) as (rows, C), without a copy."""
    for x in maps:
        if x.dtype not in DTYPES or x.dtype != maps[0].dtype or not is_rows(x):
            raise RuntimeError('float32 or bfloat16 (one of the two in all maps) in rows at one '
                               'distance with the channels side by side is needed, got '
                               f'{x.dtype} of {tuple(x.shape)} with strides {x.stride()}')
    return [x.view(-1, x.shape[-1]) for x in maps]


def is_rows(x: Tensor) -> bool:
    """Whether (..., C) can be viewed as (rows, C) with the channels side by side."""
    return x.is_contiguous() or _are_rows(x.shape, x.stride())


@functools.lru_cache(maxsize=1024)
def _are_rows(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    if shape[-1] > 1 and strides[-1] != 1:
        return False
    outer = [(size, stride) for size, stride in zip(shape[:-1], strides[:-1], strict=True)
             if size != 1]
    return all(a[1] == b[0] * b[1] for a, b in zip(outer, outer[1:], strict=False))


def norm_of(x: Tensor, weight: Tensor | None) -> Tensor:
    """Memory for the norm of x, contiguous; for nothing without a weight."""
    return x.new_empty(0) if weight is None else x.new_empty(x.shape)


def side_of(kernel: Tensor) -> int:
    """The side of the kernel (k², C) of a depthwise convolution."""
    side = round(kernel.shape[0]**.5)
    if side not in (3, 5):
        raise RuntimeError(f'a kernel of 3x3 or 5x5 is needed, got {side}x{side}')
    return side


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
