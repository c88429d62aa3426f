"""What every Triton form needs: whether Triton can compute here, and the launch of a kernel.

A form launches its kernels by a `Launch`. Inside `recorded()` nothing is launched: the launches
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

from .registered import why_not_transformed

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
    reason = why_not_transformed()
    if reason is not None:
        return reason
    kinds = tuple([(t.device, t.dtype) for t in tensors if t is not None])
    # torch.compile warns of a cache.
    return (_why_not if torch.compiler.is_compiling() else _known_why_not)(kinds, alike)


def _why_not(kinds: tuple[tuple[torch.device, torch.dtype], ...], alike: bool) -> str | None:
    """`why_not` for the device and the dtype of each tensor."""
    if not HAS_TRITON:
        return 'Triton is not installed'
    device = kinds[0][0]
    if any(other != device for other, _ in kinds):
        return 'the tensors are on several devices'
    if device.type not in DEVICES:
        return f'the tensors are on {device.type!r}, not a CUDA device'
    # Without a GPU, tensors on 'cuda' are fake: a program only asks for shapes or counts launches.
    if (device.type == 'cuda' and torch.cuda.is_available()
            and torch.cuda.get_device_properties(device).major < 8):
        return 'the GPU is older than compute capability 8.0, where Triton has no matrix units'
    dtypes = dict.fromkeys(dtype for _, dtype in kinds)
    if alike and (len(dtypes) > 1 or not dtypes.keys() <= set(DTYPES)):
        return (f'the tensors are {", ".join(map(str, dtypes))}, not alike float32, bfloat16 or '
                'float16')
    if not dtypes.keys() <= set(DTYPES):
        return 'a tensor is neither float32, bfloat16 nor float16'
    return None


_known_why_not = functools.lru_cache(maxsize=1024)(_why_not)


class Launch:
    """A launch of a kernel, ready for all tensors of a geometry: kernel[grid](*tensors, *numbers).

    Triton looks at every argument and constant at each launch, to find the compiled kernel. On the
    host, this takes several times as long as the launch. Here the tensors alone choose: the device,
    and of each tensor the dtype and whether the address is a multiple of 16.

    Args:
        kernel: takes tensors first, then `numbers`, then constants.
        grid: the numbers of programs.
        numbers: the arguments after the tensors, for which Triton specialises nothing.
        constants: what the kernel is compiled for, and options of Triton. Products and sums are
            always fused.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], *numbers: int | float,
                 **constants: Any) -> None:
        self.kernel, self.grid, self.numbers = kernel, grid, numbers
        # New versions of Triton ask for a choice.
        self.constants = constants | dict(enable_fp_fusion=True)
        # Triton compiles another kernel for numbers of 64 bits, and for AMD looks at the sizes of
        # tensors too.
        self._is_found_by_tensors = torch.version.hip is None and max(numbers) < 2**31
        self._grid = (*grid, 1, 1)[:3]
        self._compiled: dict[Any, tuple[Any, ...]] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch on the device of the tensors, or record the launch."""
        if _record is not None:
            _record.append(RecordedLaunch(self.kernel, self.grid, (*tensors, *self.numbers),
                                          self.constants))
            return
        some = tensors[0]
        if some is None:
            some = next(t for t in tensors if t is not None)
        device = some.get_device()
        if device < 0 or device == torch.cuda.current_device():
            self._launch(device, tensors)
        else:
            with torch.cuda.device(device):
                self._launch(device, tensors)

    def _launch(self, device: int, tensors: tuple[Tensor | None, ...]) -> None:
        key = device, *[t if t is None else t.dtype if t.data_ptr() % 16 == 0 else (t.dtype,)
                        for t in tensors]
        found = self._compiled.get(key)
        if found is not None and not _hooks_listen():
            run, function, packed, rest = found
            # What Triton's own launch passes; None stands for its hooks.
            run(*self._grid, torch._C._cuda_getCurrentRawStream(device), function, packed,
                None, None, None, *tensors, *rest)
            return
        compiled = self.kernel[self.grid](*tensors, *self.numbers, **self.constants)
        if self._is_found_by_tensors and not INTERPRETED:
            # A compiled kernel takes the constants too, but not that of Triton 3.2.
            names = self.kernel.arg_names[len(tensors) + len(self.numbers):]
            following = [self.constants[name] for name in names if _triton_version() >= (3, 3)]
            self._compiled[key] = (compiled.run, compiled.function, compiled.packed_metadata,
                                   (*self.numbers, *following))


def _hooks_listen() -> bool:
    """Whether a profiler of Triton has to hear of each launch."""
    holder = _hook_holder()
    return _calls(holder.launch_enter_hook) or _calls(holder.launch_exit_hook)


def _calls(hook: Any) -> bool:
    # New versions of Triton have a chain of hooks, which may be empty.
    return hook is not None and bool(getattr(hook, 'calls', True))


@functools.cache
def _hook_holder() -> Any:
    try:
        from triton import knobs
        return knobs.runtime
    except ImportError:                              # Triton 3.3 and before
        from triton.compiler import CompiledKernel
        return CompiledKernel


once_for_a_size = functools.lru_cache(maxsize=4096)
"""For a function that prepares a `Launch` for sizes and strides: keeps what it returns."""


@functools.cache
def _triton_version() -> tuple[int, ...]:
    import triton
    return tuple(int(part) for part in triton.__version__.split('.')[:2])


class RecordedLaunch(NamedTuple):
    """A launch that `recorded` collected: kernel[grid](*args, **constants)."""
    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]


_record: list[RecordedLaunch] | None = None


@contextmanager
def recorded() -> Iterator[list[RecordedLaunch]]:
    """Collect the launches of this process while the block runs, and launch nothing."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`like.new_empty`, which takes longer on the host where the shape is one argument."""
    return torch.empty(*shape, dtype=like.dtype if dtype is None else dtype, device=like.device)


def readable(t: Tensor) -> Tensor:
    """The map with channels side by side in memory, as the kernels read it."""
    return t if t.stride(-1) == 1 else t.contiguous()


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
