"""A BatchNorm by running statistics, or a bias, and an activation, by torch."""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..depthwise import torch_form as depthwise

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **depthwise.ACTIVATIONS, 'gelu_tanh': partial(F.gelu, approximate='tanh')}


class Norm(NamedTuple):
    """A BatchNorm in evaluation mode without its bias: the means and variances are known.

    Attributes:
        mean, variance, weight: (C,): μ, σ², w.
        eps: added to the variance.
    """
    mean: Tensor
    variance: Tensor
    weight: Tensor
    eps: float


def norm_act(x: Tensor, bias: Tensor | None, norm: Norm | None = None, *,
             activation: str = 'none', onto: Tensor | None = None) -> Tensor:
    if norm is not None:
        mean, variance, weight, eps = norm
        x = F.batch_norm(x.permute(0, 3, 1, 2), mean, variance, weight, bias,
                         eps=eps).permute(0, 2, 3, 1)
    elif bias is not None:
        x = x + bias.to(x.dtype)
    x = ACTIVATIONS[activation](x)
    return x if onto is None else onto + x
