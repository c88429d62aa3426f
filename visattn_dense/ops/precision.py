"""Full precision inside autocast, for products that overflow in half precision."""
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> AbstractContextManager:
    """A context with autocast off on the device of `like`. The caller casts the tensors.

    On a device without autocast, such as meta, the context does nothing.
    """
    kind = like.device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives to products on the device of `x`; None without autocast."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def is_half(weight: Tensor, x: Tensor) -> bool:
    """Whether an operator with `weight` on `x` computes in half precision, also by autocast."""
    return autocast_dtype(x) is not None or weight.dtype in (torch.float16, torch.bfloat16)
