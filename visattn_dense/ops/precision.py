"""Which precision: full inside autocast, for products that overflow; that of autocast's products.
"""
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> AbstractContextManager:
    """A context with autocast off on the device of `like`. The caller casts the tensors.

    On a device without autocast, such as meta, the context does nothing.
    """
    kind = like.device.type
    if not _has_autocast(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives to products on the device of `x`; None without autocast."""
    # `x.device.type` makes a new string.
    kind = 'cuda' if x.is_cuda else 'cpu' if x.is_cpu else x.device.type
    if (x.is_cuda or x.is_cpu or _has_autocast(kind)) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def is_half(weight: Tensor, x: Tensor) -> bool:
    """Whether an operator with `weight` on `x` computes in half precision, also by autocast."""
    return autocast_dtype(x) is not None or weight.dtype in (torch.float16, torch.bfloat16)


def product_dtype(like: Tensor) -> torch.dtype:
    """The dtype in which a linear layer or a convolution takes `like`, also inside autocast."""
    if like.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return autocast_dtype(like) or like.dtype
    return like.dtype


def _has_autocast(kind: str) -> bool:
    """`torch.amp.is_autocast_available`, which torch.compile cannot trace before torch 2.15."""
    return torch.amp.is_autocast_available(kind)


# What torch.compiler.assume_constant_result sets. That function imports the compiler: two seconds
# and 150 MB at every start, in programs that compile nothing too.
_has_autocast._dynamo_marked_constant = True
