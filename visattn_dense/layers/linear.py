"""Linear layers whose biases, in training on a GPU, get their gradients from kernels."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visattn_dense.ops import linear as _ops
from visattn_dense.ops.precision import autocast_dtype

from .plain import gains_by_operators, is_called_plainly


def linear(layer: nn.Module, x: Tensor, *, biased: bool = True) -> Tensor:
    """layer(x), (..., C) to (..., C').

    Args:
        layer: an nn.Linear, or what a user has put in its place.
        biased: False leaves out the bias; then `layer` is an nn.Linear.
    """
    if not biased:
        return F.linear(x, layer.weight)
    return _ops.linear(x, layer.weight, layer.bias) if trains_plainly(x, layer) else layer(x)


def trains_plainly(x: Tensor, *layers: nn.Module) -> bool:
    """Whether an operator may take the place of linear layers: in training on a GPU, where each is
    torch's own, has a bias and the dtype of x, and nothing watches it."""
    return (torch.is_grad_enabled() and gains_by_operators(x)
            and autocast_dtype(x) in (None, x.dtype)
            and all(type(layer) is nn.Linear and layer.bias is not None
                    and layer.weight.dtype == x.dtype and is_called_plainly(layer)
                    for layer in layers))


class EndsInLinear(nn.Module):
    """A module that ends in a linear layer. A subclass defines `before_last` or `result`.

    Attributes:
        last: the name of the layer.
    """
    last: str

    def before_last(self, x: Tensor) -> Tensor:
        """What the last layer takes."""
        raise NotImplementedError

    def result(self, x: Tensor, *, biased: bool) -> Tensor:
        """What `forward` gives; or this without the bias of the last layer."""
        return linear(getattr(self, self.last), self.before_last(x), biased=biased)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) to the same shape."""
        return self.result(x, biased=True)


def bias_apart(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """module(x) and None; or, for a module that `EndsInLinear`, the result without the bias of the
    last layer, and this bias, which autocast has not cast.

    In training on a GPU, the kernel that adds the result to the residual stream can add the bias as
    well, and sum its gradient.
    """
    # The forward of a subclass may do more.
    if (torch.is_grad_enabled() and isinstance(module, EndsInLinear)
            and type(module).forward is EndsInLinear.forward and is_called_plainly(module)):
        last = getattr(module, module.last)
        if trains_plainly(x, last):
            # A replica of nn.DataParallel has no parameters.
            return module.result(x, biased=False), last._parameters.get('bias', last.bias)
    return module(x), None
