"""The equation of a BatchNorm by running statistics, or a bias, and an activation."""
import torch
from torch import Tensor

from .torch_form import ACTIVATIONS, Norm


def norm_act(x: Tensor, bias: Tensor | None, norm: Norm | None = None, *,
             activation: str = 'none') -> Tensor:
    """act((x − μ) · w / √(σ² + eps) + b), over the last dimension.

    Args:
        x: (B, H, W, C).
        bias: (C,): b; None adds nothing.
        norm: None normalises nothing.
        activation: 'none', 'relu', 'hardswish' or 'gelu_tanh'.

    Returns:
        Like x.
    """
    out = x.to(torch.promote_types(x.dtype, torch.float32))
    if norm is not None:
        out = (out - norm.mean) / (norm.variance + norm.eps).sqrt() * norm.weight
    if bias is not None:
        out = out + bias
    return ACTIVATIONS[activation](out).to(x.dtype)
