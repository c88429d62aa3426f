"""The activations between layers, by name: 'none', 'relu', 'hardswish', 'gelu' or 'gelu_tanh'."""
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Hardswish(nn.Hardswish):
    """hardswish(x), in place where no gradient is needed.

    For an input that a layer has just written and no other code holds. With a gradient, torch would
    copy the input first; if the input is a view, torch would copy the gradient as well. A trace has
    one graph for both.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Like x."""
        needs_gradient = torch.is_grad_enabled() and x.requires_grad
        return F.hardswish(x, inplace=torch.jit.is_tracing() or not needs_gradient)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    'hardswish': Hardswish, 'gelu_tanh': partial(nn.GELU, approximate='tanh')}
"""What makes the module of each activation that a model may be given by name."""

_NAMES = {nn.Identity: 'none', nn.ReLU: 'relu', nn.Hardswish: 'hardswish', Hardswish: 'hardswish'}


def activation_name(module: nn.Module) -> str | None:
    """The name of an activation, or None for a module that is no activation of the list above."""
    if type(module) is nn.GELU:
        return 'gelu_tanh' if module.approximate == 'tanh' else 'gelu'
    return _NAMES.get(type(module))
