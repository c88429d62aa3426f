"""Softmax attention by the kernel in C++. The kernel reads and writes rows of the map."""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import native
from ..choose import of_other_channels
from ..depthwise.compiled import taps, why_not_kernel
from ..kept import kept
from ..windows import Window
from .rows import region_groups, window_groups


def why_not_full(q: Tensor, k: Tensor, v: Tensor, **_: object) -> str | None:
    # Over a whole map the products are large, and torch has the tile registers for large products.
    if q.dtype == torch.bfloat16 and native.tiles():
        return "torch's fused attention is faster in bfloat16"
    return _why_not(q, k, v)


def _why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the kernel cannot read q, k and v by the same rows, or None."""
    if q.shape != k.shape or q.shape[:-1] != v.shape[:-1]:
        return 'the queries, keys or values are of different tokens'
    return native.why_not(q) or native.why_not(k) or native.why_not(v)


def full_attention(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int,
                   scale: float | None = None) -> Tensor:
    batch, tokens, _ = q.shape
    groups, _ = window_groups(batch, tokens, 1, (tokens, 1), False)
    out = v.new_empty(v.shape)
    native.attend(q, k, v, out, groups, heads=num_heads, scale=scale)
    return out


def why_not_windows(qkv: Tensor, windows: Sequence[Window], *, kernels: Sequence[Tensor],
                    biases: Sequence[Tensor | None], **_: object) -> str | None:
    if len({kernel.shape[-1] for kernel in kernels}) > 1:
        return 'the convolutions have different sides'
    return (of_other_channels(qkv.shape[-1] // len(windows), *kernels, *biases)
            or why_not_kernel(kernels[0]) or native.why_not(qkv[:, :, :, 0]))


def window_attention(qkv: Tensor, windows: Sequence[Window], *, num_heads: int,
                     kernels: Sequence[Tensor], biases: Sequence[Tensor | None],
                     scale: float | None = None, padding_counts: bool = True) -> Tensor:
    parts = []
    for window, kernel, bias in zip(windows, kernels, biases, strict=True):
        groups, corner = window_groups(*qkv.shape[:3], window, padding_counts)
        parts.append(native.Windows(groups, window, corner, kept(taps, kernel), bias))
    return native.windows(qkv, parts, heads=num_heads, scale=scale)


def why_not_regions(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *,
                    weight: Tensor | None = None, pool: Callable[[Tensor], Tensor] | None = None,
                    **_: object) -> str | None:
    if weight is not None or pool is not None:
        return 'keys and values are weighted or pooled'
    return _why_not(q, k, v)


def region_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, num_heads: int,
                     n_win: int, scale: float, weight: None = None,
                     pool: None = None) -> Tensor:
    batch, height, width, _ = q.shape
    if batch > 1:                                # regions are numbered through all images
        first = torch.arange(0, batch * n_win**2, n_win**2, device='cpu')
        index = index + first[:, None, None]
    out = v.new_empty(v.shape)
    native.attend(q, k, v, out, region_groups(batch, height, width, n_win), heads=num_heads,
                  scale=scale, routed=index.flatten(0, 1))
    return out
