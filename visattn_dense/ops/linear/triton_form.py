"""Linear layers whose biases get their gradients from `sum_rows`, not from torch's sum.

Each is an autograd function, not an operator of torch: its products are torch's, which tracers and
counters have to see. Where something traces, the torch form computes.

A perceptron keeps its input and the values before the GELU for backward. Backward computes the GELU
again, beside its gradient. torch keeps both sides of the GELU, its largest maps.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import launching
from ..launching import Launch, empty, once_for_a_size, power_of_two
from ..precision import autocast_dtype
from ..registered import is_batched, why_not_direct
from ..sums import shares_of, sum_rows


def why_not(x: Tensor, *parameters: Tensor | None) -> str | None:
    """Why torch should compute, or None."""
    tensors = [t for t in (x, *parameters) if t is not None]
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return 'there is no gradient'
    reason = why_not_direct(*tensors) or launching.why_not(*tensors, alike=True)
    if reason is None and autocast_dtype(x) not in (None, x.dtype):
        reason = 'autocast casts the tensors'
    if reason is None and x.numel() == 0:
        reason = 'there are no tokens'
    return reason


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _Linear.apply(x, weight, bias)


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor,
        bias2: Tensor | None) -> Tensor:
    return _Mlp.apply(x, weight1, bias1, weight2, bias2)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _shaped(F.linear(_rows(x), weight, bias), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = _rows(grad)
        return ((rows @ weight).view(x.shape) if of_x else None,
                rows.T @ _rows(x) if of_weight else None, _sum(rows) if of_bias else None)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor,
                bias2: Tensor | None) -> Tensor:
        hidden = F.linear(_rows(x), weight1, bias1)
        ctx.save_for_backward(x, hidden, weight1, bias1, weight2)
        return _shaped(F.linear(F.gelu(hidden), weight2, bias2), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight1, bias1, weight2 = ctx.saved_tensors
        of_x, of_weight1, of_bias1, of_weight2, of_bias2 = ctx.needs_input_grad
        grad, rows = _rows(grad), _rows(x)
        if torch.is_grad_enabled():
            hidden = F.linear(rows, weight1, bias1)  # the gradient of the gradient goes this way
        activated, of_hidden, bias_sum = _gelu_backward(hidden, grad @ weight2)
        of_weight2 = grad.T @ activated if of_weight2 else None
        del activated
        return ((of_hidden @ weight1).view(x.shape) if of_x else None,
                of_hidden.T @ rows if of_weight1 else None, bias_sum if of_bias1 else None,
                of_weight2, _sum(grad) if of_bias2 else None)


def _rows(t: Tensor) -> Tensor:
    """(..., C) to (T, C)."""
    return t.reshape(-1, t.shape[-1])


def _shaped(rows: Tensor, x: Tensor) -> Tensor:
    """(T, C) to (..., C), as x. Nobody could change a view in place that a function returns."""
    return torch.ops.aten._unsafe_view(rows, (*x.shape[:-1], rows.shape[-1]))


def _is_plain(grad: Tensor) -> bool:
    """Whether the kernels can take a gradient: it is no batch of gradients, and has none itself."""
    return not torch.is_grad_enabled() and not is_batched(grad)


def _sum(grad: Tensor) -> Tensor:
    """(T, C) to (C,)."""
    return sum_rows(grad.contiguous(), 0, many=True) if _is_plain(grad) else grad.sum(0)


def _gelu_backward(hidden: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gelu(hidden), the gradient of `hidden`, and its sum over the rows; overwrites `grad`.

    Args:
        hidden, grad: (T, C), contiguous.
    """
    if not _is_plain(grad):
        grad = torch.ops.aten.gelu_backward(grad, hidden)
        return F.gelu(hidden), grad, grad.sum(0)
    activated = torch.empty_like(hidden)
    launch = _gelu_launch(hidden.shape)
    shares = empty((launch.numbers[1], hidden.shape[1]), hidden, torch.float32)
    launch(hidden, grad, activated, shares)
    return activated, grad, sum_rows(shares, 0, hidden.dtype)


@once_for_a_size
def _gelu_launch(shape: torch.Size) -> Launch:
    from .triton_kernels import gelu_backward_kernel
    tokens, channels = shape
    block_c = min(64, power_of_two(channels))
    block = 2048 // block_c
    programs = shares_of(tokens, channels, block=block, block_c=block_c)
    return Launch(gelu_backward_kernel, (-(-channels // block_c) * programs,), tokens, programs,
                  C=channels, BLOCK_C=block_c, BLOCK=block, num_warps=4)
