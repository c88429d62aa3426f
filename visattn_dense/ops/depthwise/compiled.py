"""Depthwise convolution by the kernel in C++."""
import torch
from torch import Tensor

from .. import native
from ..choose import of_other_channels, of_other_shapes
from ..kept import kept
from ..windows import window_corner


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1,
            onto: Tensor | None = None, **_: object) -> str | None:
    if stride != 1:
        return 'the convolution has a stride'
    if onto is not None and (onto.dtype != x.dtype or native.why_not(onto)):
        return 'the map that the result is added to has another dtype or is not in rows'
    return (of_other_channels(x.shape[-1], weight, bias) or of_other_shapes(x, onto)
            or why_not_kernel(weight) or native.why_not(x))


def why_not_kernel(weight: Tensor) -> str | None:
    """Why the kernel cannot take such weights, or None."""
    return None if weight.shape[-1] in (3, 5) else 'the kernel is neither 3x3 nor 5x5'


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, plus_input: bool = False,
              onto: Tensor | None = None, activation: str = 'none', stride: int = 1,
              window: tuple[int, int] | None = None) -> Tensor:
    out = x.new_empty(x.shape) if onto is None else onto
    native.depthwise(x, out, kept(_with_identity if plus_input else taps, weight),
                     None if bias is None else bias.detach(), window=window,
                     corner=(0, 0) if window is None else window_corner(x.shape[1:3], window),
                     accumulate=onto is not None, activation=activation)
    return out


def why_not_norm(x: Tensor, weight: Tensor, *vectors: Tensor | None, dtype: torch.dtype | None,
                 **_: object) -> str | None:
    if dtype not in (None, x.dtype):
        return 'the norm has another dtype'
    return of_other_channels(x.shape[-1], *vectors) or why_not(x, weight)


def depthwise_norm(x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor,
                   norm_bias: Tensor, *, eps: float, **_: object) -> tuple[Tensor, Tensor]:
    out = x.new_empty(x.shape)
    normed = native.depthwise(x, out, kept(_with_identity, weight),
                              None if bias is None else bias.detach(),
                              norm=(norm_weight.detach(), norm_bias.detach(), eps))
    return out, normed


def taps(weight: Tensor) -> Tensor:
    """(C, 1, k, k) to (k², C), position by position, as the kernel reads the weights: float32."""
    return weight.detach().float().flatten(1).t().contiguous()


def _with_identity(weight: Tensor) -> Tensor:
    """`taps` of x + conv(x)."""
    found = taps(weight).clone()                # of one channel, taps are the weight's own memory
    found[len(found) // 2] += 1
    return found
