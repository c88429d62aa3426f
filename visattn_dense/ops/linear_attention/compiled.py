"""Linear attention by the kernels in C++. The kernels read and write rows of the map."""
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .. import native
from ..choose import of_other_channels, of_other_shapes
from ..depthwise.compiled import depthwise, taps, why_not_kernel
from ..group_attention.rows import window_groups
from ..kept import kept
from . import torch_form


def why_not(qkv: Tensor, window: tuple[int, int], *, power: float, kernel: Tensor,
            bias: Tensor | None, **_: object) -> str | None:
    if power not in range(1, 9):
        return 'the focusing factor is not a whole number from 1 to 8'
    return why_not_convolution(qkv, window, kernel=kernel, bias=bias)


def why_not_convolution(qkv: Tensor, window: tuple[int, int], *, kernel: Tensor,
                        bias: Tensor | None, **_: object) -> str | None:
    return (of_other_channels(qkv.shape[-1], kernel, bias) or why_not_kernel(kernel)
            or native.why_not(qkv[:, :, :, 0]))


def convolution_alone(*args: Any, **kwargs: Any) -> Tensor:
    """The torch form, with the compiled convolution of v."""
    return torch_form.focused_attention(*args, **kwargs, convolve=depthwise)


def focused_attention(qkv: Tensor, window: tuple[int, int], *, num_heads: int, position: Tensor,
                      scale: Tensor, power: float, epsilon: float, kernel: Tensor,
                      bias: Tensor | None) -> Tensor:
    q, k, v = qkv.unbind(3)
    groups, corner = window_groups(*v.shape[:3], window, False)
    out = v.new_empty(v.shape)
    native.depthwise(v, out, kept(taps, kernel), bias, window=window, corner=corner)
    native.focused(q, k, v, out, groups, heads=num_heads, epsilon=epsilon, position=position,
                   inverse_scale=kept(_inverse, scale), power=int(power))
    return out


def _inverse(scale: Tensor) -> Tensor:
    return 1 / F.softplus(scale.detach().flatten().float())


def why_not_relu(*qkv: Tensor, **_: object) -> str | None:
    if any(each.dtype != qkv[0].dtype for each in qkv):
        return 'the sets of heads have several dtypes'
    return of_other_shapes(*qkv) or next(
        filter(None, (native.why_not(_rows_of_tokens(each)) for each in qkv)), None)


def relu_attention(*qkv: Tensor, epsilon: float) -> Tensor:
    return native.relu_attention(*map(_rows_of_tokens, qkv), epsilon=epsilon).permute(0, 2, 3, 1)


def _rows_of_tokens(qkv: Tensor) -> Tensor:
    """(B, h, 3, d, N) to (B, N, h, 3, d). If the map is NHWC in memory, these are rows."""
    return qkv.permute(0, 4, 1, 2, 3)
