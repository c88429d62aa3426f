"""A BatchNorm, or a bias, and an activation, by torch."""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..depthwise import torch_form as depthwise

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **depthwise.ACTIVATIONS, 'gelu': F.gelu, 'gelu_tanh': partial(F.gelu, approximate='tanh')}


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


class TrainingNorm(NamedTuple):
    """A BatchNorm in training mode without its bias: the batch gives μ and σ².

    The call moves the running statistics towards those of the batch, in place. The running
    variance is without bias, σ² n / (n − 1) of n positions.

    Attributes:
        running_mean, running_variance: (C,).
        weight: (C,): w.
        batches: (), int64: how many batches there were; the call adds one.
        momentum: the part of the batch in the new running statistics; None: these are means over
            all batches.
        eps: added to the variance.
    """
    running_mean: Tensor
    running_variance: Tensor
    weight: Tensor
    batches: Tensor
    momentum: float | None
    eps: float

    def counted(self) -> float:
        """Count the batch. The part of the batch in the new running statistics."""
        self.batches.add_(1)
        return 1 / float(self.batches) if self.momentum is None else self.momentum


def norm_act(x: Tensor, bias: Tensor | None, norm: Norm | TrainingNorm | None = None, *,
             activation: str = 'none', onto: Tensor | None = None) -> Tensor:
    if norm is not None:
        trains = isinstance(norm, TrainingNorm)
        x = F.batch_norm(x, norm[0], norm[1], norm.weight, bias, trains,
                         norm.counted() if trains else 0., norm.eps)
    elif bias is not None:
        x = x + bias.to(x.dtype)[:, None, None]
    x = ACTIVATIONS[activation](x)
    return x if onto is None else onto + x
