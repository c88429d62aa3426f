"""The equations of linear attention, with the matrices of weights in memory."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, einsum

from ..depthwise.reference import depthwise
from ..group_attention.reference import cut, rearrange


def attention(q: Tensor, k: Tensor, v: Tensor, epsilon: float,
              counted: Tensor | None = None) -> Tensor:
    """Σ_j a_ij v_j / (Σ_j a_ij + ε), with the arguments of `attention_weights` and v (..., m, e).
    """
    return einsum('... q k, ... k e -> ... q e', attention_weights(q, k, epsilon, counted), v)


def attention_weights(q: Tensor, k: Tensor, epsilon: float,
                      counted: Tensor | None = None) -> Tensor:
    """a_ij / (Σ_j a_ij + ε) with a_ij = q_i · k_j: the weight of every key for every query.

    Args:
        q, k: (..., n, d) and (..., m, d), features.
        epsilon: ε.
        counted: (..., 1, m) bool, True for the keys that take part; None for all keys.

    Returns:
        (..., n, m).
    """
    weights = einsum('... q d, ... k d -> ... q k', q, k)
    if counted is not None:
        weights = weights * counted
    return weights / (weights.sum(-1, keepdim=True) + epsilon)


def focused_feature(t: Tensor, *, scale: Tensor, power: float, epsilon: float) -> Tensor:
    """φ(t) = f_p((relu(t) + ε) / softplus(scale)),   f_p(t) = t^p · ‖t‖ / ‖t^p‖.

    Args:
        t: (..., C); the norms run over C.
        scale: broadcast to `t`.
        power: p.
        epsilon: ε.
    """
    t = (t.relu() + epsilon) / F.softplus(scale)
    powers = t ** power
    return powers * t.norm(dim=-1, keepdim=True) / powers.norm(dim=-1, keepdim=True)


def performer_feature(t: Tensor, w: Tensor) -> Tensor:
    """φ(t) = exp(W t − ‖t‖²/2) / √m, positive random features of the exponential function.

    Args:
        t: (..., D).
        w: W, (m, D).

    Returns:
        (..., m).
    """
    projected = einsum('... d, m d -> ... m', t, w) - (t * t).sum(-1, keepdim=True) / 2
    return projected.exp() / math.sqrt(w.shape[0])


def focused_attention(qkv: Tensor, window: tuple[int, int], *, num_heads: int, position: Tensor,
                      scale: Tensor, power: float, epsilon: float, kernel: Tensor,
                      bias: Tensor | None) -> Tensor:
    """Focused linear attention window by window, and conv(v).

    The features are those of `focused_feature`. Their norms run over all C channels of a token, the
    products over those of a head.

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
    q, k = (focused_feature(t, scale=scale, power=power, epsilon=epsilon) for t in (q, k))
    heads = (rearrange(t, 's h w (m d) -> s m (h w) d', m=num_heads) for t in (q, k, v))
    out = attention(*heads, epsilon, rearrange(real, 's h w -> s 1 1 (h w)'))
    out = rearrange(out, 's m (h w) d -> s h w (m d)', h=window[0])
    return whole(out + depthwise(v, kernel, bias))


def relu_attention(*qkv: Tensor, epsilon: float) -> Tensor:
    """a_ij = relu(q_i) · relu(k_j).

    Args:
        qkv: S sets of heads, (B, h, 3, d, N) each: q, k and v, tokens last.
        epsilon: added to the denominator.

    Returns:
        (B, S·h, d, N), in the dtype of qkv.
    """
    q, k, v = torch.cat(qkv, 1).transpose(-2, -1).unbind(2)
    return attention(q.relu(), k.relu(), v, epsilon).transpose(-2, -1)


def performer_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor, *, epsilon: float) -> Tensor:
    """a_ij = φ(q_i) · φ(k_j) with the features of `performer_feature`.

    Args:
        q, k, v: (B, N, D).
        w: W, (m, D).
        epsilon: added to the denominator.

    Returns:
        (B, N, D), in the dtype of v.
    """
    return attention(performer_feature(q, w), performer_feature(k, w), v, epsilon)
