"""A 1×1 convolution in groups by Triton: one kernel for all groups.

The result has the dtype of a linear layer, also inside autocast. The gradient of the weights is a
sum in a fixed order, without atomic additions.
"""
import torch
from torch import Tensor

from .. import launching
from ..choose import OTHER_CHANNELS
from ..launching import Launch, empty, once_for_a_size, power_of_two
from ..precision import product_dtype
from ..registered import registered
from ..sums import sum_rows

MAX_WIDTH = 128
MAX_FLOAT32_WIDTH = 64
"""Without matrix units, wider products do not fit in registers."""


def why_not(x: Tensor, weight: Tensor, *, groups: int) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    reason = launching.why_not(x, weight)
    most = MAX_FLOAT32_WIDTH if product_dtype(x) == torch.float32 else MAX_WIDTH
    if reason is None and max(weight.shape[1], weight.shape[0] // groups) > most:
        reason = f'a group has more than {most} channels'
    if reason is None and x.stride(-1) != 1:
        reason = 'the channels are not side by side in memory (channels_last)'
    if reason is None and x.shape[-1] != weight.shape[1] * groups:
        reason = OTHER_CHANNELS
    return reason


def grouped_pointwise(x: Tensor, weight: Tensor, *, groups: int) -> Tensor:
    return _forward(x, weight.flatten(1), groups, product_dtype(x))


def _launch_options(dtype: torch.dtype, inside: int, outside: int) -> dict:
    import triton.language as tl
    kinds = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    half = dtype != torch.float32
    widths = [max(16, power_of_two(width)) for width in (inside, outside)]
    return dict(IN=inside, OUT=outside, KIND=kinds[dtype],
                BLOCK=64 if half or max(widths) <= 32 else 32, BLOCK_I=widths[0],
                BLOCK_O=widths[1], PRECISION='tf32' if half else 'ieee', num_warps=4,
                num_stages=2)


def _product(x: Tensor, weight: Tensor, out: Tensor, groups: int, dtype: torch.dtype, *,
             transposed: bool) -> Tensor:
    if out.numel() > 0:
        _product_launch(x.shape, out.shape[-1], groups, dtype, transposed)(
            x.contiguous(), weight.contiguous(), out)
    return out


@once_for_a_size
def _product_launch(shape: torch.Size, outside: int, groups: int, dtype: torch.dtype,
                    transposed: bool) -> Launch:
    from .triton_kernels import product_kernel
    positions = shape[:-1].numel()
    options = _launch_options(dtype, shape[-1] // groups, outside // groups)
    return Launch(product_kernel, (-(-positions // options['BLOCK']), groups), positions, groups,
                  TRANSPOSED=transposed, **options)


@registered(
    'visattn::grouped_pointwise_triton',
    '(Tensor x, Tensor weight, int groups, ScalarType dtype) -> Tensor')
def _forward(x, weight, groups, dtype):
    return _product(x, weight, _empty(x, weight, groups, dtype), groups, dtype, transposed=False)


@_forward.register_fake
def _empty(x, weight, groups, dtype):
    return empty((*x.shape[:-1], weight.shape[0]), x, dtype)


@registered(
    'visattn::grouped_pointwise_triton_input_gradient',
    '(Tensor grad, Tensor x, Tensor weight, int groups) -> Tensor')
def _input_gradient(grad, x, weight, groups):
    return _product(grad, weight, empty(x.shape, x), groups, grad.dtype, transposed=True)


@_input_gradient.register_fake
def _(grad, x, weight, groups):
    return x.new_empty(x.shape)


@registered(
    'visattn::grouped_pointwise_triton_weight_gradient',
    '(Tensor grad, Tensor x, Tensor weight, int groups) -> Tensor')
def _weight_gradient(grad, x, weight, groups):
    if grad.numel() == 0:
        return torch.zeros_like(weight)
    launch = _weight_launch(x.shape, grad.shape[-1], groups, grad.dtype)
    shares = empty((launch.grid[0], *weight.shape), x, torch.float32)
    launch(x.contiguous(), grad.contiguous(), shares)
    return sum_rows(shares, 0, weight.dtype)


@once_for_a_size
def _weight_launch(shape: torch.Size, outside: int, groups: int, dtype: torch.dtype) -> Launch:
    from .triton_kernels import weight_gradient_kernel
    positions = shape[:-1].numel()
    options = _launch_options(dtype, shape[-1] // groups, outside // groups)
    # The number of programs depends on the sizes alone, so that the sums are the same everywhere.
    programs = max(1, min(-(-positions // options['BLOCK']), 1024 // groups))
    return Launch(weight_gradient_kernel, (programs, groups), positions, groups, **options)


@_weight_gradient.register_fake
def _(grad, x, weight, groups):
    return weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, ctx.groups, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = _input_gradient(
            grad, x, weight, ctx.groups)
    if ctx.needs_input_grad[1]:
        grad_weight = _weight_gradient(
            grad, x, weight, ctx.groups)
    return grad_x, grad_weight, None, None


_forward.register_autograd(_backward, setup_context=_setup_context)
