"""What the Triton forms share: whether Triton can compute with some tensors, and where."""
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec('triton') is not None

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
"""Whether the kernels run in Triton's interpreter, on CPU tensors. Triton reads the variable when
it is imported."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(*tensors: Tensor | None) -> str | None:
    """Why Triton cannot compute with these tensors, or None. A tensor that is None is left out."""
    if not HAS_TRITON:
        return 'Triton is not installed'
    given = [t for t in tensors if t is not None]
    device = given[0].device
    if any(t.device != device for t in given):
        return 'the tensors are on several devices'
    if device.type != 'cuda' and not (INTERPRETED and device.type == 'cpu'):
        return f'the tensors are on {device.type!r}, not a CUDA device'
    # A fake tensor may be on 'cuda' where there is no GPU.
    if (device.type == 'cuda' and torch.cuda.is_available()
            and torch.cuda.get_device_properties(device).major < 8):
        return 'the GPU is older than compute capability 8.0, where Triton has no matrix units'
    if any(t.dtype not in DTYPES for t in given):
        return 'a tensor is neither float32, bfloat16 nor float16'
    return None


def on(tensor: Tensor) -> AbstractContextManager:
    """A context with the device of `tensor` as current device, where Triton launches kernels."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
