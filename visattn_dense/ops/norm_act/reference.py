"""The equation of a BatchNorm by running statistics, or a bias, and an activation."""
import torch
from torch import Tensor

from .torch_form import ACTIVATIONS, Norm


def norm_act(x: Tensor, bias: Tensor | None, norm: Norm | None = None, *,
             activation: str = 'none', onto: Tensor | None = None) -> Tensor:
    """act((x − μ) · w / √(σ² + eps) + b) + onto, over the last dimension.

    Args:
        x: (B, H, W, C).
        bias: (C,): b; None adds nothing.
        norm: None normalises nothing.
        activation: 'none', 'relu', 'hardswish' or 'gelu_tanh'.
        onto: (B, H, W, C), what the result is added to; or None.

    Returns:
        Like x, in the wider dtype of x and `onto`.
    """
    out = x.to(torch.promote_types(x.dtype, torch.float32))
    if norm is not None:
        out = (out - norm.mean) / (norm.variance + norm.eps).sqrt() * norm.weight
    if bias is not None:
        out = out + bias
    out = ACTIVATIONS[activation](out)
    return out.to(x.dtype) if onto is None else (out + onto).to(
        torch.promote_types(x.dtype, onto.dtype))
