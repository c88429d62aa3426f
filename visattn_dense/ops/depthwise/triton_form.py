"""Depthwise convolution of an NHWC map by Triton, forward and backward.

One kernel computes the sum of the convolution, the bias, the input and `onto`; inside windows, the
map is neither padded nor cut. The gradient of the kernel is a sum in a fixed order, without atomic
additions. All arithmetic is float32, and the weights are read in their own dtype.
"""
import math

import torch
from torch import Tensor

from .. import launching
from ..launching import launch, power_of_two
from ..precision import product_dtype
from ..windows import window_corner
from .torch_form import ACTIVATIONS

SIDES = (3, 5, 7)


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, onto: Tensor | None = None,
            **_: object) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    reason = launching.why_not(x, weight, bias, onto)
    if reason is None and weight.shape[-1] not in SIDES:
        reason = f'the kernel has none of the sides {", ".join(map(str, SIDES))}'
    if reason is None and x.stride(-1) != 1:
        reason = 'the channels are not side by side in memory (channels_last)'
    return reason


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, plus_input: bool = False,
              onto: Tensor | None = None, activation: str = 'none', stride: int = 1,
              window: tuple[int, int] | None = None) -> Tensor:
    dtype = product_dtype(x)
    for term in (x if plus_input else None, onto):
        dtype = dtype if term is None else torch.promote_types(dtype, term.dtype)
    cut = [] if window is None else [*window, *window_corner(x.shape[1:3], window)]
    # The gradient of an activation needs the sum, so there the activation is an operator of torch.
    trains = activation != 'none' and torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias, onto))
    out = torch.ops.visattn.depthwise_triton(x, weight, bias, onto, plus_input, stride, cut,
                                      'none' if trains else activation, dtype)
    return ACTIVATIONS[activation](out) if trains else out


def _geometry(x: Tensor, size: tuple[int, int], window: list[int]) -> tuple[tuple[int, ...], int]:
    """The sizes and strides that the kernels take, from H to left; and ALIGN."""
    (batch, height, width, _), strides = x.shape, x.stride()[:3]
    align = math.gcd(16, *strides)
    return (height, width, *size, batch * size[0] * size[1], *(s // align for s in strides),
            *(window or (1, 1, 0, 0))), align


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, out: Tensor,
              window: list[int], **options) -> Tensor:
    from .triton_kernels import convolve_kernel
    if out.numel() == 0:
        return out
    sizes, align = _geometry(x, out.shape[1:3], window)
    channels = x.shape[-1]
    block_c = min(64, max(8, power_of_two(channels)))
    # 16 sums for each thread: larger tiles take more registers than four blocks can have at a time.
    block = 2048 // block_c
    # The other axes of a GPU's grid end at 65535.
    grid = -(-sizes[4] // block), -(-channels // block_c)
    launch(convolve_kernel, grid, x, weight.contiguous(), bias, onto, out, *sizes, C=channels,
           K=weight.shape[-1], WINDOWED=bool(window), ALIGN=align, BLOCK=block, BLOCK_C=block_c,
           num_warps=4, enable_fp_fusion=True, **options)
    return out


@torch.library.custom_op(
    'visattn::depthwise_triton', mutates_args=(),
    schema='(Tensor x, Tensor weight, Tensor? bias, Tensor? onto, bool plus_input, int stride, '
           'SymInt[] window, str activation, ScalarType dtype) -> Tensor')
def _forward(x, weight, bias, onto, plus_input, stride, window, activation, dtype):
    out = _empty(x, weight, bias, onto, plus_input, stride, window, activation, dtype)
    bias, onto = (None if t is None else t.contiguous() for t in (bias, onto))
    return _convolve(x, weight, bias, onto, out, window, STRIDE=stride, TRANSPOSED=False,
                     PLUS_INPUT=plus_input, ACTIVATION=activation)


@_forward.register_fake
def _empty(x, weight, bias, onto, plus_input, stride, window, activation, dtype):
    batch, height, width, channels = x.shape
    return x.new_empty(batch, (height - 1) // stride + 1, (width - 1) // stride + 1, channels,
                       dtype=dtype)


@torch.library.custom_op(
    'visattn::depthwise_triton_input_gradient', mutates_args=(),
    schema='(Tensor grad, Tensor x, Tensor weight, bool plus_input, int stride, SymInt[] window) '
           '-> Tensor')
def _input_gradient(grad, x, weight, plus_input, stride, window):
    return _convolve(grad.contiguous(), weight, None, None, x.new_empty(x.shape), window,
                     STRIDE=stride, TRANSPOSED=True, PLUS_INPUT=plus_input, ACTIVATION='none')


@_input_gradient.register_fake
def _(grad, x, weight, plus_input, stride, window):
    return x.new_empty(x.shape)


@torch.library.custom_op(
    'visattn::depthwise_triton_weight_gradient', mutates_args=(),
    schema='(Tensor grad, Tensor x, Tensor weight, int stride, SymInt[] window) -> Tensor')
def _weight_gradient(grad, x, weight, stride, window):
    """The gradient of the kernel, tap by tap, and that of the bias: (k² + 1, C) in float32."""
    from .triton_kernels import weight_gradient_kernel
    channels, side = x.shape[-1], weight.shape[-1]
    if grad.numel() == 0:
        return x.new_zeros(side**2 + 1, channels, dtype=torch.float32)
    sizes, align = _geometry(x, grad.shape[1:3], window)
    block_c = min(64, max(8, power_of_two(channels)))
    block_k = power_of_two(side)
    block = 4096 // (block_c * block_k)
    blocks = -(-channels // block_c)
    # The number of programs depends on the sizes alone, so that the sums are the same everywhere.
    programs = min(-(-sizes[4] // block), max(16, 2048 // (blocks * side)))
    shares = x.new_empty(programs, side**2 + 1, channels, dtype=torch.float32)
    launch(weight_gradient_kernel, (programs, blocks, side), x, grad.contiguous(), shares, *sizes,
           C=channels, K=side, STRIDE=stride, WINDOWED=bool(window), ALIGN=align, BLOCK=block,
           BLOCK_K=block_k, BLOCK_C=block_c, num_warps=4, enable_fp_fusion=True)
    return shares.sum(0)


@_weight_gradient.register_fake
def _(grad, x, weight, stride, window):
    return x.new_empty(weight.shape[-1]**2 + 1, x.shape[-1], dtype=torch.float32)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, onto, ctx.plus_input, ctx.stride, ctx.window, *_ = inputs
    ctx.dtypes = [None if t is None else t.dtype for t in (bias, onto)]
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.visattn.depthwise_triton_input_gradient(
            grad, x, weight, ctx.plus_input, ctx.stride, ctx.window)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        grads = torch.ops.visattn.depthwise_triton_weight_gradient(
            grad, x, weight, ctx.stride, ctx.window)
        grad_weight = grads[:-1].t().reshape(weight.shape).to(weight.dtype)
        grad_bias = None if ctx.dtypes[0] is None else grads[-1].to(ctx.dtypes[0])
    grad_onto = None if ctx.dtypes[1] is None else grad.to(ctx.dtypes[1])
    return grad_x, grad_weight, grad_bias, grad_onto, None, None, None, None, None


_forward.register_autograd(_backward, setup_context=_setup_context)
