"""The equations of a linear layer, and of two with a GELU between."""
import math

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b.

    Args:
        x: (..., C).
        weight: (C', C).
        bias: (C',).

    Returns:
        (..., C'), in the dtype of x.
    """
    return x @ weight.T + bias


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor,
        bias2: Tensor | None) -> Tensor:
    """gelu(x W₁ᵀ + b₁) W₂ᵀ + b₂, with gelu(h) = h Φ(h) and Φ the normal distribution.

    Args:
        x: (..., C).
        weight1, bias1: (F, C) and (F,).
        weight2, bias2: (C', F) and (C',). Without a `bias2`, b₂ is 0.

    Returns:
        (..., C'), in the dtype of x.
    """
    hidden = linear(x, weight1, bias1)
    out = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2 @ weight2.T
    return out if bias2 is None else out + bias2
