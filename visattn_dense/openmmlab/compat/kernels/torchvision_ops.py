"""torchvision's operator library, loaded at the first call of one of its kernels.

A segmentation run that calls no such kernel does not need the library. If the library does not
load, the error names the two packages that do not fit together, and the command that mends them.
"""

from __future__ import annotations

import functools
from importlib import metadata

import torch
from torch import Tensor

#: What mends a torch and a torchvision that were not built for each other.
FIX_TORCHVISION = 'python -m pip install --force-reinstall torch torchvision'


class TorchvisionKernelsError(RuntimeError):
    """torchvision's compiled operators do not load beside this torch."""


@functools.cache
def load() -> object:
    """The namespace `torch.ops.torchvision` with its kernels registered.

    Raises:
        TorchvisionKernelsError: naming both versions and the command that mends it.
    """
    try:
        # Registers the operators; raises if torchvision's library does not fit this torch.
        import torchvision

        ops = torch.ops.torchvision
        for name in ('nms', 'roi_align', '_roi_align_backward'):
            getattr(ops, name)
        assert torchvision is not None
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise TorchvisionKernelsError(_explain(error)) from error
    return ops


def _explain(error: BaseException) -> str:
    try:
        found = f'torchvision {metadata.version("torchvision")}'
    except metadata.PackageNotFoundError:
        found = 'no torchvision'
    build = 'CPU-only build' if torch.version.cuda is None else f'CUDA {torch.version.cuda} build'
    return (
        f"torchvision's kernels (NMS, RoIAlign) cannot be loaded: torch {torch.__version__} "
        f'({build}) and {found} do not fit together. A CPU-only torch beside the torchvision of '
        'PyPI is the usual cause. Install the matching pair from PyPI, which serves CPU and GPU: '
        f'{FIX_TORCHVISION}\n(first cause: {type(error).__name__}: {error})'
    )


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The floating-point tensors in one dtype of at least float32, integer ones as they are.

    Box coordinates above 256 (bfloat16) or 2048 (float16) are not even whole pixels in reduced
    precision, and torchvision's CPU kernels do not know these dtypes.
    """
    dtype = torch.float32
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        dtype = torch.float64
    return tuple(
        tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for tensor in tensors
    )
