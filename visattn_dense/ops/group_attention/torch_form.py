"""Softmax attention by torch's fused operator: inside windows, and on whole maps."""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..depthwise.torch_form import depthwise
from ..padding import crop, is_padded, pad_to_multiple
from ..windows import (
    Window,
    merge_windows,
    partition_windows,
    pool_regions,
    regions_of,
    tokens_on_map,
)
from .fused import fused_attention
from .routed import routed_attention


def full_attention(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int,
                   scale: float | None = None) -> Tensor:
    heads = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, h, N, d)
    out = fused_attention(*heads, scale=scale)
    return out.transpose(1, 2).flatten(2)


def window_attention(qkv: Tensor, windows: Sequence[Window], *, num_heads: int,
                     kernels: Sequence[Tensor], biases: Sequence[Tensor | None],
                     scale: float | None = None, padding_counts: bool = True) -> Tensor:
    # The backward pass of unbind writes each gradient once.
    parts = qkv.unflatten(-1, (len(windows), -1)).unbind(-2)
    heads = num_heads // len(windows)
    out = [_one_kind(part, window, heads, kernel, bias, scale, padding_counts)
           for part, window, kernel, bias in zip(parts, windows, kernels, biases, strict=True)]
    return torch.cat(out, -1) if len(out) > 1 else out[0]


def _one_kind(qkv: Tensor, window: Window, num_heads: int, kernel: Tensor, bias: Tensor | None,
              scale: float | None, padding_counts: bool) -> Tensor:
    padded, pads = pad_to_multiple(qkv, window, centred=True)
    stripes = partition_windows(padded, window)                     # (B·S, h, w, 3, C)
    mask = (tokens_on_map(qkv, window)[:, None, None]               # (B·S, 1, 1, N)
            if not padding_counts and is_padded(pads) else None)

    tokens = stripes.flatten(1, 2).unflatten(-1, (num_heads, -1))
    q, k, v = tokens.permute(2, 0, 3, 1, 4)                         # each (B·S, heads, N, d)
    out = fused_attention(q, k, v, mask=mask, scale=scale)
    out = out.transpose(1, 2).flatten(2).unflatten(1, stripes.shape[1:3])   # (B·S, h, w, C)

    out = out + depthwise(stripes[..., 2, :], kernel, bias)
    return crop(merge_windows(out, padded.shape[1:3]), pads)


def region_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, num_heads: int,
                     n_win: int, scale: float, weight: Tensor | None = None,
                     pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    # Views of (B, n_win, n_win, h, w, heads, d). The form of routed attention cuts the regions.
    k, v = ((regions_of(k, n_win), regions_of(v, n_win)) if pool is None
            else pool_regions(k, v, n_win, pool))
    q, k, v = (t.unflatten(-1, (num_heads, -1)) for t in (regions_of(q, n_win), k, v))
    out = routed_attention(q, k, v, index, scale=scale, weight=weight)
    return out.flatten(-2).transpose(2, 3).flatten(3, 4).flatten(1, 2)
