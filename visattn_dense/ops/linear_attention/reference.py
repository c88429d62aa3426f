"""The equations of linear attention, with the matrices of weights in memory."""
import math

import torch.nn.functional as F
from torch import Tensor, einsum

from ..depthwise.reference import depthwise
from ..group_attention.reference import cut, rearrange


def attention(q: Tensor, k: Tensor, v: Tensor, epsilon: float,
              counted: Tensor | None = None) -> Tensor:
    """out_i = Σ_j a_ij v_j / (Σ_j a_ij + ε) with a_ij = q_i · k_j.

    Args:
        q, k, v: (..., n, d), (..., m, d) and (..., m, e); q and k are features.
        epsilon: ε.
        counted: (..., 1, m) bool, True for the keys that take part; None for all keys.
    """
    weights = einsum('... q d, ... k d -> ... q k', q, k)
    if counted is not None:
        weights = weights * counted
    weights = weights / (weights.sum(-1, keepdim=True) + epsilon)
    return einsum('... q k, ... k e -> ... q e', weights, v)


def focused_attention(qkv: Tensor, window: tuple[int, int], *, num_heads: int, position: Tensor,
                      scale: Tensor, power: float, epsilon: float, kernel: Tensor,
                      bias: Tensor | None) -> Tensor:
    """Focused linear attention window by window, and conv(v).

        φ(t) = f_p((relu(t) + ε) / softplus(scale)),   f_p(t) = t^p · ‖t‖ / ‖t^p‖

    The norms run over all C channels of a token, the products over those of a head.

    Args:
        qkv: (B, H, W, 3, C): q, k and v. The windows are centred on the map and may reach beyond
            the map; positions beyond the map take no part.
        window: (h, w).
        num_heads: heads; divides C.
        position: (1, h·w, C), added to the keys of each window.
        scale: (1, 1, C).
        power: p.
        epsilon: ε, in φ and in the denominator.
        kernel, bias: (C, 1, k, k) and (C,), of the depthwise convolution of v, which is
            zero-padded around each window.

    Returns:
        (B, H, W, C).
    """
    q, k, v, real, whole = cut(qkv, window)                         # (windows, h, w, C)
    k = k + rearrange(position, '1 (h w) c -> h w c', h=window[0])

    def feature(t: Tensor) -> Tensor:
        t = (t.relu() + epsilon) / F.softplus(scale)
        powers = t ** power
        return powers * t.norm(dim=-1, keepdim=True) / powers.norm(dim=-1, keepdim=True)
    heads = (rearrange(t, 's h w (m d) -> s m (h w) d', m=num_heads)
             for t in (feature(q), feature(k), v))
    out = attention(*heads, epsilon, rearrange(real, 's h w -> s 1 1 (h w)'))
    out = rearrange(out, 's m (h w) d -> s h w (m d)', h=window[0])
    return whole(out + depthwise(v, kernel, bias))


def relu_attention(qkv: Tensor, *, epsilon: float) -> Tensor:
    """a_ij = relu(q_i) · relu(k_j).

    Args:
        qkv: (B, h, 3, d, N): q, k and v, tokens last.
        epsilon: added to the denominator.

    Returns:
        (B, h, d, N), in the dtype of qkv.
    """
    q, k, v = qkv.mT.unbind(2)
    return attention(q.relu(), k.relu(), v, epsilon).mT


def performer_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor, *, epsilon: float) -> Tensor:
    """φ(t) = exp(W t − ‖t‖²/2) / √m, positive random features of the exponential function.

    Args:
        q, k, v: (B, N, D).
        w: W, (m, D).
        epsilon: added to the denominator.

    Returns:
        (B, N, D), in the dtype of v.
    """
    def feature(t: Tensor) -> Tensor:
        projected = einsum('b n d, m d -> b n m', t, w) - (t * t).sum(-1, keepdim=True) / 2
        return projected.exp() / math.sqrt(w.shape[0])
    return attention(feature(q), feature(k), v, epsilon)
