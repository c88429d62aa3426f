"""Routing by one Triton kernel: the product, the scale and the choice. There is no gradient."""
import torch
from torch import Tensor

from .. import launching
from ..choose import of_other_shapes
from ..launching import Launch, empty, in_units, once_for_a_size, power_of_two, readable
from ..registered import registered

MAX_REGIONS = 256
"""Whose logits to one region lie in the registers of a program."""


def why_not(q: Tensor, k: Tensor, *, count: int, scale: float) -> str | None:
    """Why the kernel cannot take these tensors, or None."""
    reason = launching.why_not(q, k, alike=True)
    if reason is None and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        reason = 'a gradient is needed'
    if reason is None and k.shape[1] > MAX_REGIONS:
        reason = f'there are more than {MAX_REGIONS} regions'
    return reason or of_other_shapes(q, k)


def top_regions(q: Tensor, k: Tensor, *, count: int, scale: float) -> tuple[Tensor, Tensor]:
    return _forward(q, k, min(count, k.shape[1]), scale)


@registered('visattn::top_regions_triton',
            '(Tensor q, Tensor k, SymInt count, float scale) -> (Tensor, Tensor)')
def _forward(q, k, count, scale):
    logits, index = _empty(q, k, count, scale)
    if logits.numel() > 0:
        q, k = readable(q), readable(k)
        _launch(q.shape, q.dtype, count, scale, q.stride(), k.stride())(q, k, logits, index)
    return logits, index


@_forward.register_fake
def _empty(q, k, count, scale):
    shape = *q.shape[:2], count
    return empty(shape, q), empty(shape, q, torch.int64)


@once_for_a_size
def _launch(shape: torch.Size, dtype: torch.dtype, count: int, scale: float,
            q_strides: tuple[int, ...], k_strides: tuple[int, ...]) -> Launch:
    from .triton_kernels import top_regions_kernel
    batch, regions, channels = shape
    strides, unit = in_units([*q_strides[:2], *k_strides[:2]])
    block_r = max(16, power_of_two(regions))
    return Launch(top_regions_kernel, (-(-regions // 16), batch), float(scale), regions, *strides,
                  Q=channels, COUNT=count, PRECISION='ieee' if dtype == torch.float32 else 'tf32',
                  UNIT=unit, BLOCK=16, BLOCK_R=block_r, BLOCK_Q=32 if block_r > 64 else 64,
                  num_warps=4, num_stages=2)
