"""A BatchNorm by running statistics, or a bias, and an activation, by torch."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from ..depthwise import torch_form as depthwise

if TYPE_CHECKING:
    from .reference import Norm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **depthwise.ACTIVATIONS, 'gelu_tanh': partial(F.gelu, approximate='tanh')}


def norm_act(x: Tensor, bias: Tensor | None, norm: Norm | None = None, *,
             activation: str = 'none') -> Tensor:
    if norm is not None:
        mean, variance, weight, eps = norm
        x = F.batch_norm(x.permute(0, 3, 1, 2), mean, variance, weight, bias,
                         eps=eps).permute(0, 2, 3, 1)
    elif bias is not None:
        x = x + bias.to(x.dtype)
    return ACTIVATIONS[activation](x)
