"""Linear attention by torch's products. Sums over the keys are computed once for all queries."""
import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..depthwise.torch_form import depthwise
from ..padding import crop, is_padded, pad_to_multiple
from ..precision import without_autocast
from ..windows import merge_windows, partition_windows, tokens_on_map


def focused_attention(qkv: Tensor, window: tuple[int, int], *, num_heads: int, position: Tensor,
                      scale: Tensor, power: float, epsilon: float, kernel: Tensor,
                      bias: Tensor | None,
                      convolve: Callable[..., Tensor] = depthwise) -> Tensor:
    padded, pads = pad_to_multiple(qkv, window, centred=True)
    stripes = partition_windows(padded, window)                     # (B·S, h, w, 3, C)
    on_map = tokens_on_map(qkv, window) if is_padded(pads) else None

    local = convolve(stripes[..., 2, :], kernel, bias)             # (B·S, h, w, C)
    q, k, v = stripes.flatten(1, 2).unbind(2)                       # each (B·S, N, C)
    with without_autocast(q):
        dtype = torch.promote_types(q.dtype, torch.float32)
        q, k, v, position = (t.to(dtype) for t in (q, k, v, position))
        inverse_scale = 1 / F.softplus(scale.to(dtype))
        q, q_factor = focus(_positive(q, inverse_scale, epsilon), power)
        k, k_factor = focus(_positive(k + position, inverse_scale, epsilon), power)
        if on_map is not None:
            k_factor = k_factor * on_map[..., None]
        k = k * k_factor                                            # φ(k), 0 where padded

        q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        summary = k.transpose(-2, -1) @ v                           # (B·S, heads, d, d)
        weight = k.sum(-2, keepdim=True).transpose(-2, -1)          # (B·S, heads, d, 1)
        # The factor of q is in the numerator and in the denominator, so both omit the factor.
        norm = q @ weight + (epsilon / q_factor)[:, None]           # (B·S, heads, N, 1)
        out = ((q @ summary) / norm).transpose(1, 2)                # (B·S, N, heads, d)

    out = local.flatten(1, 2).unflatten(-1, (num_heads, -1)) + out
    out = out.to(qkv.dtype).reshape(local.shape)
    return crop(merge_windows(out, padded.shape[1:3]), pads)


def focus(t: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """f_p(t) = t^p · ‖t‖ / ‖t^p‖ as a factor times a tensor of powers, safe from overflow.

    Args:
        t: (..., C), positive.
        power: p, the focusing factor.

    Returns:
        u^p with u = t / ‖t‖, (..., C), and ‖t‖ / ‖u^p‖, (..., 1): their product is f_p(t).
    """
    norm = torch.linalg.vector_norm(t, dim=-1, keepdim=True)
    powers = (t / norm) ** power
    return powers, norm / torch.linalg.vector_norm(powers, dim=-1, keepdim=True)


def _positive(t: Tensor, inverse_scale: Tensor, epsilon: float) -> Tensor:
    """(relu(t) + ε) · inverse_scale."""
    return torch.addcmul(epsilon * inverse_scale, t.relu(), inverse_scale)


def of_each_set(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`attend` on each set of heads, the results side by side: (B, h, d, N) to (B, S·h, d, N)."""
    @functools.wraps(attend)
    def attend_each(*qkv: Tensor, epsilon: float) -> Tensor:
        out = [attend(each, epsilon=epsilon) for each in qkv]
        if out[0].permute(0, 3, 1, 2).is_contiguous():
            # From NHWC maps of a single image, torch.cat along dim 1 would make an NCHW map.
            return torch.cat([heads.permute(0, 3, 1, 2) for heads in out], 2).permute(0, 2, 3, 1)
        return torch.cat(out, 1)
    return attend_each


@of_each_set
def relu_attention(qkv: Tensor, *, epsilon: float) -> Tensor:
    # Both sums overflow in half precision, so products and division are in float32.
    with without_autocast(qkv):
        q, k, v = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).unbind(2)
        q, k = q.relu(), k.relu()                                   # each (B, h, d, N)
        keys = k.sum(-1, keepdim=True)                              # (B, h, d, 1)
        norm = keys.transpose(-2, -1) @ q + epsilon
        return ((v @ k.transpose(-2, -1)) @ q / norm).to(qkv.dtype)


def performer_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor, *, epsilon: float) -> Tensor:
    with without_autocast(v):
        dtype = torch.promote_types(v.dtype, torch.float32)
        phi_q, phi_k = (performer_features(t.to(dtype), w.to(dtype)) for t in (q, k))
        key_sum = phi_k.sum(1)[..., None]                           # (B, m, 1)
        context = phi_k.transpose(1, 2) @ v.to(dtype)               # (B, m, D)
        return (phi_q @ context / (phi_q @ key_sum + epsilon)).to(v.dtype)


def performer_features(t: Tensor, w: Tensor) -> Tensor:
    """φ(t) = exp(W t − ‖t‖²/2) / √m, positive: (B, N, D) to (B, N, m)."""
    half_norm = t.square().sum(-1, keepdim=True) / 2
    return (F.linear(t, w) - half_norm).exp() / math.sqrt(w.shape[0])
