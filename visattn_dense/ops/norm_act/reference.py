"""The equation of a BatchNorm, or a bias, and an activation."""
import torch
from torch import Tensor

from .torch_form import ACTIVATIONS, Norm, TrainingNorm


def norm_act(x: Tensor, bias: Tensor | None, norm: Norm | TrainingNorm | None = None, *,
             activation: str = 'none', onto: Tensor | None = None) -> Tensor:
    """act((x − μ) · w / √(σ² + eps) + b) + onto, for each channel.

    Args:
        x: (B, C, H, W).
        bias: (C,): b; None adds nothing.
        norm: `TrainingNorm` takes μ and σ² from x; None normalises nothing.
        activation: 'none', 'relu', 'hardswish', 'gelu' or 'gelu_tanh'.
        onto: like x, what the result is added to; or None.

    Returns:
        Like x, in the wider dtype of x and `onto`.

    Raises:
        ValueError: a `TrainingNorm`, and x has one position for each channel.
    """
    out = x.permute(0, 2, 3, 1).to(torch.promote_types(x.dtype, torch.float32))
    if norm is not None:
        mean, variance = (_batch_statistics(out, norm) if isinstance(norm, TrainingNorm)
                          else (norm.mean, norm.variance))
        out = (out - mean) / (variance + norm.eps).sqrt() * norm.weight
    if bias is not None:
        out = out + bias
    out = ACTIVATIONS[activation](out).permute(0, 3, 1, 2)
    return out.to(x.dtype) if onto is None else (out + onto).to(
        torch.promote_types(x.dtype, onto.dtype))


def _batch_statistics(x: Tensor, norm: TrainingNorm) -> tuple[Tensor, Tensor]:
    """μ and σ² of x, (B, H, W, C); the running statistics move."""
    positions = x.flatten(0, 2)
    if len(positions) == 1:
        raise ValueError('a norm in training needs two positions; got one image of 1×1')
    mean, variance = positions.mean(0), positions.var(0, correction=0)
    with torch.no_grad():
        part, count = norm.counted(), len(positions)
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), part)
        unbiased = variance * count / (count - 1)
        norm.running_variance.lerp_(unbiased.to(norm.running_variance.dtype), part)
    return mean, variance
