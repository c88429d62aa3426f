"""The equation of depthwise convolution."""
import torch.nn.functional as F
from torch import Tensor

from .torch_form import ACTIVATIONS


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, plus_input: bool = False,
              onto: Tensor | None = None, activation: str = 'none') -> Tensor:
    """conv(x)[y, x] = Σ_ij weight[i, j] · x[y + i − k/2, x + j − k/2] + bias, each channel alone.

    Args:
        x: (B, H, W, C).
        weight: (C, 1, k, k), k odd.
        bias: (C,) or None.
        plus_input: add x to the result.
        onto: (B, H, W, C), also added to the result, or None. The operator may overwrite `onto`
            with the result.
        activation: 'none', 'relu' or 'hardswish', applied to the sum.

    Returns:
        (B, H, W, C).
    """
    (height, width), side = x.shape[1:3], weight.shape[-1]
    padded = F.pad(x, (0, 0) + (side // 2,) * 4)
    out = sum(weight[:, 0, i, j] * padded[:, i:i + height, j:j + width]
              for i in range(side) for j in range(side))
    for term in (bias, x if plus_input else None, onto):
        out = out if term is None else out + term
    return ACTIVATIONS[activation](out)
