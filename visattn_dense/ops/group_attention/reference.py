"""The equations of softmax attention, with the matrices of logits in memory."""
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, einsum

from ..depthwise.reference import depthwise


def rearrange(t: Tensor, pattern: str, **sizes: int) -> Tensor:
    """einops.rearrange. Only the equations need einops, so einops is imported on the first call."""
    import einops
    return einops.rearrange(t, pattern, **sizes)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None,
              counted: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ · scale) v, with the arguments of `attention_weights` and v (..., m, e)."""
    return einsum('... q k, ... k e -> ... q e', attention_weights(q, k, scale, counted), v)


def attention_weights(q: Tensor, k: Tensor, scale: float | None,
                      counted: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ · scale): the weight of every key for every query.

    Args:
        q, k: (..., n, d) and (..., m, d).
        scale: factor of the logits, d^-½ for None.
        counted: (..., 1, m) bool, True for the keys that take part; None for all keys.

    Returns:
        (..., n, m).
    """
    logits = einsum('... q d, ... k d -> ... q k', q, k)
    logits = logits * (q.shape[-1] ** -.5 if scale is None else scale)
    if counted is not None:
        logits = logits.masked_fill(~counted, float('-inf'))
    return logits.softmax(-1)


def full_attention(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int,
                   scale: float | None = None) -> Tensor:
    """All tokens attend to all: (B, N, h·d), (B, N, h·d) and (B, N, h·e) to (B, N, h·e)."""
    q, k, v = (rearrange(t, 'b n (m d) -> b m n d', m=num_heads) for t in (q, k, v))
    return rearrange(attention(q, k, v, scale), 'b m n d -> b n (m d)')


def window_attention(qkv: Tensor, windows: Sequence[tuple[int, int]], *, num_heads: int,
                     kernels: Sequence[Tensor], biases: Sequence[Tensor | None],
                     scale: float | None = None, padding_counts: bool = True) -> Tensor:
    """softmax(q kᵀ · scale) v + conv(v), window by window.

    With G kinds of windows, part g of the heads and channels attends inside windows of kind g.

    Args:
        qkv: (B, H, W, 3, C): q, k and v. The map is zero-padded, centred, to whole windows.
        windows: (h, w) of each kind of windows.
        num_heads: heads; divides C.
        kernels, biases: for each kind (C / G, 1, k, k) and (C / G,), of the depthwise convolution
            of v (LePE), which is zero-padded around each window.
        scale: factor of the logits, (C / heads)^-½ by default.
        padding_counts: True: the padding takes part, with keys and values of zero. False: the
            padding takes no part.

    Returns:
        (B, H, W, C).
    """
    parts = rearrange(qkv, 'b h w t (g c) -> g b h w t c', g=len(windows))
    return torch.cat([
        _one_kind(part, window, num_heads // len(windows), kernel, bias, scale, padding_counts)
        for part, window, kernel, bias in zip(parts, windows, kernels, biases, strict=True)], -1)


def _one_kind(qkv: Tensor, window: tuple[int, int], num_heads: int, kernel: Tensor,
              bias: Tensor | None, scale: float | None, padding_counts: bool) -> Tensor:
    q, k, v, real, whole = cut(qkv, window)                         # (windows, h, w, C)
    heads = (rearrange(t, 's h w (m d) -> s m (h w) d', m=num_heads) for t in (q, k, v))
    counted = None if padding_counts else rearrange(real, 's h w -> s 1 1 (h w)')
    out = attention(*heads, scale, counted)
    out = rearrange(out, 's m (h w) d -> s h w (m d)', h=window[0])
    return whole(out + depthwise(v, kernel, bias))


def cut(qkv: Tensor, window: tuple[int, int]):
    """Cut a map into windows.

    Returns:
        q, k, v: (windows, h, w, C) each, of the padded map.
        real: (windows, h, w) bool, False for padding.
        whole: a function that merges windows into the map again, without the padding.
    """
    (batch, height, width), (h, w) = qkv.shape[:3], window
    pad_h, pad_w = -height % h, -width % w
    top, left = pad_h // 2, pad_w // 2
    pads = (left, pad_w - left, top, pad_h - top)
    padded = F.pad(qkv, (0, 0, 0, 0, *pads))
    rows = padded.shape[1] // h
    q, k, v = rearrange(padded, 'b (i h) (j w) t c -> t (b i j) h w c', h=h, w=w)
    real = F.pad(qkv.new_ones(batch, height, width), pads).bool()
    real = rearrange(real, 'b (i h) (j w) -> (b i j) h w', h=h, w=w)

    def whole(windows: Tensor) -> Tensor:
        out = rearrange(windows, '(b i j) h w c -> b (i h) (j w) c', b=batch, i=rows)
        return out[:, top:top + height, left:left + width]
    return q, k, v, real, whole


def routed_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, scale: float,
                     weight: Tensor | None = None) -> Tensor:
    """softmax(q_r [k_i]ᵀ · scale) [v_i], i in index_r, with k and v gathered for every region.

    Args:
        q, k, v: (B, R, N, h, d), (B, R, M, h, d) and (B, R, M, h, e), region by region. Or with
            rows and columns: r × r' regions of n × n' tokens, (B, r, r', n, n', h, d).
        index: (B, R, K), the regions that each region attends to.
        scale: factor of the logits.
        weight: (B, R, K), multiplies k and v of each routed region, or None.

    Returns:
        (B, R, N, h, e), or (B, r, r', n, n', h, e) if q has rows and columns.
    """
    shape = q.shape[:-1]
    q, k, v = (flat_regions(t) for t in (q, k, v))
    image = torch.arange(q.shape[0], device=q.device)[:, None, None]
    k, v = k[image, index], v[image, index]                         # (B, R, K, M, h, ·)
    if weight is not None:
        k, v = (t * weight[..., None, None, None] for t in (k, v))
    q = rearrange(q, 'b r n h d -> b r h n d')
    k, v = (rearrange(t, 'b r k m h d -> b r h (k m) d') for t in (k, v))
    out = rearrange(attention(q, k, v, scale), 'b r h n d -> b r n h d')
    return out.reshape(*shape, -1)


def flat_regions(t: Tensor) -> Tensor:
    """(B, r, r', n, n', h, d), or (B, R, N, h, d), to (B, R, N, h, d)."""
    return t if t.ndim == 5 else t.flatten(3, 4).flatten(1, 2)


def region_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, num_heads: int,
                     n_win: int, scale: float, weight: Tensor | None = None,
                     pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """`routed_attention` between the regions of a map.

    Args:
        q, k, v: (B, H, W, h·d), (B, H, W, h·d) and (B, H, W, h·e); n_win divides H and W.
        index: (B, n_win², K), the regions that each region attends to.
        num_heads: h.
        n_win: regions along each side.
        scale: factor of the logits.
        weight: see `routed_attention`.
        pool: reduces the keys, and the values, of each region: (batch, C, h, w) to
            (batch, C, h', w'). None: all tokens stay.

    Returns:
        (B, H, W, h·e).
    """
    height = q.shape[1]
    q = rearrange(q, 'b (j y) (i x) (h d) -> b (j i) (y x) h d', j=n_win, i=n_win, h=num_heads)
    regions = (rearrange(t, 'b (j y) (i x) c -> b (j i) c y x', j=n_win, i=n_win) for t in (k, v))
    if pool is not None:
        regions = (torch.stack([pool(image) for image in t]) for t in regions)
    k, v = (rearrange(t, 'b r (h d) y x -> b r (y x) h d', h=num_heads) for t in regions)
    out = routed_attention(q, k, v, index, scale=scale, weight=weight)
    return rearrange(out, 'b (j i) (y x) h d -> b (j y) (i x) (h d)', j=n_win,
                     y=height // n_win)
