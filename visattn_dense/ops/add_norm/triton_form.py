"""A residual sum and its LayerNorm in one kernel, forward and backward.

For backward, the operator keeps the sum, which the residual stream keeps anyway, and two numbers
for each token. The gradients of weight and bias are sums in a fixed order, without atomic
additions: every run gives the same gradients. The arithmetic is float32 for every dtype.
"""
from functools import partial

import torch
from torch import Tensor

from .. import launching
from ..choose import of_other_channels, of_other_shapes
from ..launching import Launch, empty, once_for_a_size, power_of_two
from ..registered import registered
from ..sums import sum_rows

MAX_CHANNELS = 8192


def why_not(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, *,
            scale: Tensor | None = None, dtype: torch.dtype | None = None,
            update_bias: Tensor | None = None, **_: object) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    reason = launching.why_not(x, update, scale, weight, bias, update_bias)
    if reason is None and dtype not in (None, *launching.DTYPES):
        reason = 'the result is neither float32, bfloat16 nor float16'
    if reason is None and x.shape[-1] > MAX_CHANNELS:
        reason = f'there are more than {MAX_CHANNELS} channels'
    return (reason or of_other_shapes(x, update)
            or of_other_channels(x.shape[-1], weight, bias, update_bias))


def add_norm(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float,
             scale: Tensor | None = None, dtype: torch.dtype | None = None,
             update_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if dtype is None:
        # What torch's LayerNorm gives.
        autocast = x.is_cuda and torch.is_autocast_enabled('cuda')
        dtype = torch.float32 if autocast else _sum_dtype(x, update)
    total, normed, _ = _forward(x, update, update_bias, scale, weight, bias, eps, dtype)
    return x if update is None else total, normed


def _sum_dtype(x: Tensor, update: Tensor | None) -> torch.dtype:
    return x.dtype if update is None else torch.promote_types(x.dtype, update.dtype)


def _launch_options(channels: int, elements: int) -> dict[str, int]:
    """The tile of a program, of about `elements`."""
    block_c = power_of_two(channels)
    return dict(C=channels, BLOCK_C=block_c, BLOCK=max(1, elements // block_c),
                num_warps=4 if block_c <= 2048 else 8)


@registered(
    'visattn::add_norm_triton',
    '(Tensor x, Tensor? update, Tensor? update_bias, Tensor? scale, Tensor weight, Tensor bias, '
    'float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor)')
def _forward(x, update, update_bias, scale, weight, bias, eps, dtype):
    x, update, update_bias, scale = (None if t is None else t.contiguous()
                                     for t in (x, update, update_bias, scale))
    total, normed, statistics = _empty(x, update, update_bias, scale, weight, bias, eps, dtype)
    if x.numel() > 0:
        _forward_launch(x.shape, eps)(
            x, update, update_bias, scale, weight.contiguous(), bias.contiguous(),
            None if update is None else total, normed, statistics)
    return total, normed, statistics


@once_for_a_size
def _forward_launch(shape: torch.Size, eps: float) -> Launch:
    from .triton_kernels import forward_kernel
    tokens = shape[:-1].numel()
    tile = _launch_options(shape[-1], 4096)
    return Launch(forward_kernel, (-(-tokens // tile['BLOCK']),), float(eps), tokens,
                  tokens // shape[0], **tile)


@_forward.register_fake
def _empty(x, update, update_bias, scale, weight, bias, eps, dtype):
    """total (no numbers if there is no update), normed, and (2, ...): mean and 1 / √(σ² + eps)."""
    like = partial(torch.empty_like, x, memory_format=torch.contiguous_format)
    return (x.new_empty(0) if update is None else like(dtype=_sum_dtype(x, update)),
            like(dtype=dtype), empty((2, *x.shape[:-1]), x, torch.float32))


@registered(
    'visattn::add_norm_triton_backward',
    '(Tensor? grad_total, Tensor grad_normed, Tensor total, Tensor? scale, Tensor weight, '
    'Tensor statistics, ScalarType? update_dtype, bool biased) -> Tensor[]')
def _backward_op(grad_total, grad_normed, total, scale, weight, statistics, update_dtype, biased):
    """Gradients of x, of weight and bias (2, C), and with `update_dtype` that of the update. The
    gradient of the update's bias is a third row of the second."""
    grads = _empty_gradients(grad_total, grad_normed, total, scale, weight, statistics,
                             update_dtype, biased)
    if total.numel() == 0:
        return [grads[0], grads[1].zero_(), *grads[2:]]
    launch = _backward_launch(total.shape, biased)
    shares = empty((*launch.grid, len(grads[1]), total.shape[-1]), total, torch.float32)
    given = (None if t is None else t.contiguous()
             for t in (grad_total, grad_normed, total, scale, weight))
    launch(*given, statistics, grads[0], grads[2] if len(grads) > 2 else None, shares)
    return [grads[0], sum_rows(shares, 0, weight.dtype), *grads[2:]]


@once_for_a_size
def _backward_launch(shape: torch.Size, biased: bool) -> Launch:
    from .triton_kernels import backward_kernel
    tokens = shape[:-1].numel()
    tile = _launch_options(shape[-1], 2048)
    # The number of programs depends on the sizes alone, so that the sums are the same everywhere.
    programs = min(-(-tokens // tile['BLOCK']), max(128, min(1024, 2**19 // tile['BLOCK_C'])))
    return Launch(backward_kernel, (programs,), tokens, tokens // shape[0], BIASED=biased,
                  **tile)


@_backward_op.register_fake
def _empty_gradients(grad_total, grad_normed, total, scale, weight, statistics, update_dtype,
                     biased):
    update = [] if update_dtype is None else [empty(total.shape, total, update_dtype)]
    return [empty(total.shape, total), empty((3 if biased else 2, *weight.shape), weight),
            *update]


def _setup_context(ctx, inputs, output) -> None:
    x, update, update_bias, scale, weight, *_ = inputs
    total, _, statistics = output
    ctx.dtypes = [None if t is None else t.dtype for t in (x, update, update_bias)]
    ctx.save_for_backward(x if update is None else total, scale, weight, statistics)
    ctx.mark_non_differentiable(statistics)


def _backward(ctx, grad_total, grad_normed, _):
    total, scale, weight, statistics = ctx.saved_tensors
    x_dtype, update_dtype, bias_dtype = ctx.dtypes
    own = update_dtype is not None and (scale is not None or update_dtype != total.dtype)
    grad_weight = grad_bias = grad_update_bias = None
    if grad_normed is None:
        grad = grad_total
        grad_update = grad if scale is None else grad * scale
        if bias_dtype is not None:
            grad_update_bias = grad_update.reshape(-1, weight.shape[0]).sum(0).to(bias_dtype)
    else:
        if update_dtype is None:
            grad_total = None                        # `total` holds no numbers
        grad, affine, *grad_update = _backward_op(
            grad_total, grad_normed, total, scale, weight, statistics,
            update_dtype if own else None, bias_dtype is not None)
        grad_weight, grad_bias, *of_update = affine.unbind()
        if of_update:
            grad_update_bias = of_update[0].to(bias_dtype)
        grad_update = grad_update[0] if own else grad
    grad_update = None if update_dtype is None else grad_update.to(update_dtype)
    return (grad.to(x_dtype), grad_update, grad_update_bias, None, grad_weight, grad_bias, None,
            None)


_forward.register_autograd(_backward, setup_context=_setup_context)
