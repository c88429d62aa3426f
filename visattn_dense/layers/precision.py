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
