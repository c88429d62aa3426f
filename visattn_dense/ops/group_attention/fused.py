"""torch's fused attention, by a backend that takes a new shape without building a plan.

cuDNN's backend, which torch prefers on new GPUs, builds a plan for each shape: 0.4 seconds and more
at each size never seen (docs/performance.md). The other backends build none.
"""
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The backends without plans."""

_lock = threading.Lock()
_inside = 0
_before = True


def fused_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None,
                    mask: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, on a GPU without cuDNN's backend."""
    if q.device.type != 'cuda':
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    # torch.compile chooses the backend while it traces, and it knows this context, not our lock.
    with sdpa_kernel(BACKENDS) if torch.compiler.is_compiling() else without_plans():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


@contextmanager
def without_plans() -> Iterator[None]:
    """Switch cuDNN's backend off while a thread is in such a block, and put the switch back.

    The switch belongs to the process: the last thread that leaves puts the switch back.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = cuda.cudnn_sdp_enabled()
            cuda.enable_cudnn_sdp(False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                cuda.enable_cudnn_sdp(_before)
