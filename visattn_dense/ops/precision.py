"""Islands of full precision inside autocast, for products that half precision cannot hold."""
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> AbstractContextManager:
    """A context with autocast off on the device of `like`; the caller casts its tensors.

    Devices that know no autocast (meta, on which shapes and operations are counted) need none.
    """
    kind = like.device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def is_half(weight: Tensor, x: Tensor) -> bool:
    """Whether an operator of `weight` on `x` computes in half precision, autocast considered."""
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return autocast or weight.dtype in (torch.float16, torch.bfloat16)
