"""A BatchNorm, or a bias, and an activation, by Triton kernels, forward and backward.

In training mode, two kernels take the statistics of the batch, and a third one normalises and
activates. For backward, the operator keeps x and two numbers for each channel: the normalised map
is computed again. All sums have a fixed order, without atomic additions: every run gives the same
numbers. All arithmetic is float32.

With running statistics there is no gradient.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import launching
from ..choose import of_other_channels
from ..launching import Launch, empty, once_for_a_size, power_of_two
from ..registered import registered, why_not_direct
from ..sums import shares_of, sum_rows
from . import torch_form
from .torch_form import ACTIVATIONS, Norm, TrainingNorm


def why_not(x: Tensor, bias: Tensor | None, norm: Norm | TrainingNorm | None = None, *,
            activation: str = 'none', onto: Tensor | None = None) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    tensors = x, bias, onto, *(() if norm is None else norm[:3])
    reason = launching.why_not(*tensors)
    if reason is None and isinstance(norm, TrainingNorm):
        reason = _why_not_training(x, bias, onto, norm)
    elif reason is None and torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in tensors):
        reason = ('a gradient of a norm by running statistics is needed' if norm is not None
                  else why_not_direct(*tensors))
    if reason is None and not (_is_channels_last(x) and (onto is None or _is_channels_last(onto))):
        reason = 'a map is not channels_last'
    if reason is None and not all(t is None or t.is_contiguous()
                                  for t in (bias, *(() if norm is None else norm[:3]))):
        reason = 'the numbers of a vector are not side by side in memory'
    if reason is None and activation not in ACTIVATIONS:
        reason = f'the activation {activation!r} has no kernel'
    return reason or of_other_channels(x.shape[1], bias, *(() if norm is None else norm[:3]))


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _why_not_training(x: Tensor, bias: Tensor | None, onto: Tensor | None,
                      norm: TrainingNorm) -> str | None:
    mean, variance, weight, batches, *_ = norm
    reason = why_not_direct(x, bias, onto, mean, variance, weight, batches)
    if reason is not None:
        return reason
    channels = x.shape[1]
    for t in (mean, variance, weight, bias):
        if t is None or t.dtype is not torch.float32 or t.numel() != channels:
            return 'a vector of the norm is missing, or not float32 numbers of the channels'
    if batches.dtype is not torch.int64 or batches.device != x.device:
        return 'the number of batches is not an int64 beside the map'
    # torch has the error message.
    return None if x.numel() > channels else 'there are no two positions'


def norm_act(x: Tensor, bias: Tensor | None, norm: Norm | TrainingNorm | None = None, *,
             activation: str = 'none', onto: Tensor | None = None) -> Tensor:
    if norm is None:
        return _forward(x, None, None, None, bias, onto, 0., activation)
    mean, variance, weight, *_, eps = norm
    if isinstance(norm, TrainingNorm):
        mean, variance = _batch_statistics(x, norm), None
    return _forward(x, mean, variance, weight, bias, onto, eps, activation)


def _batch_statistics(x: Tensor, norm: TrainingNorm) -> Tensor:
    """μ and σ² of x, (2, C); the running statistics move, and the batch is counted."""
    running_mean, running_variance, _, batches, momentum, _ = norm
    channels = x.shape[1]
    take, merge = _statistics_launches(x.shape, momentum)
    shares = empty((take.grid[0], 3, channels), x, torch.float32)
    statistics = empty((2, channels), x, torch.float32)
    take(x, shares, batches)
    merge(shares, batches, statistics, running_mean, running_variance)
    # As torch's norm does. It leaves the versions of the running statistics as they are.
    torch.autograd.graph.increment_version(batches)
    return statistics


def _tile(channels: int, elements: int) -> dict[str, int]:
    """The tile of a program, of `elements`."""
    block_c = min(128, power_of_two(channels))
    return dict(C=channels, BLOCK=elements // block_c, BLOCK_C=block_c)


def _positions(shape: torch.Size) -> int:
    batch, _, height, width = shape
    return batch * height * width


def _grid(shape: torch.Size, tile: dict[str, int], shared: bool) -> tuple[int, int]:
    """Programs of positions, and of channels. `shared`: a program computes several tiles."""
    positions, channels, block, block_c = (_positions(shape), shape[1], tile['BLOCK'],
                                           tile['BLOCK_C'])
    programs = (shares_of(positions, channels, block=block, block_c=block_c) if shared
                else -(-positions // block))
    return programs, -(-channels // block_c)


@once_for_a_size
def _statistics_launches(shape: torch.Size, momentum: float | None) -> tuple[Launch, Launch]:
    from .triton_kernels import batch_statistics_kernel, merge_statistics_kernel
    channels, tile = shape[1], _tile(shape[1], 2048)
    grid = _grid(shape, tile, shared=True)
    block_c = min(16, power_of_two(channels))
    return (Launch(batch_statistics_kernel, grid, _positions(shape), **tile, num_warps=4),
            Launch(merge_statistics_kernel, (-(-channels // block_c),), float(momentum or 0.),
                   grid[0], C=channels, CUMULATIVE=momentum is None, BLOCK=128, BLOCK_C=block_c,
                   num_warps=4))


@registered(
    'visattn::norm_act_triton',
    '(Tensor x, Tensor? mean, Tensor? variance, Tensor? weight, Tensor? bias, Tensor? onto, '
    'float eps, str activation) -> Tensor')
def _forward(x, mean, variance, weight, bias, onto, eps, activation):
    out = _empty(x, mean, variance, weight, bias, onto, eps, activation)
    if x.numel() > 0:
        _forward_launch(x.shape, eps, activation)(x, mean, variance, weight, bias, onto, out)
    return out


@_forward.register_fake
def _empty(x, mean, variance, weight, bias, onto, eps, activation):
    return torch.empty_like(x, dtype=x.dtype if onto is None else
                            torch.promote_types(x.dtype, onto.dtype))


@once_for_a_size
def _forward_launch(shape: torch.Size, eps: float, activation: str) -> Launch:
    from .triton_kernels import norm_act_kernel
    tile = _tile(shape[1], 4096)
    return Launch(norm_act_kernel, _grid(shape, tile, shared=False), float(eps),
                  _positions(shape), ACTIVATION=activation, **tile, num_warps=4)


@registered(
    'visattn::norm_act_triton_backward',
    '(Tensor grad, Tensor x, Tensor? statistics, Tensor? weight, Tensor? bias, float eps, '
    'str activation) -> (Tensor, Tensor)')
def _backward_op(grad, x, statistics, weight, bias, eps, activation):
    """The gradient of x, and that of the bias (C,); with a norm (2, C): of the bias, the weight."""
    # A hook of saved tensors may give x back with other strides.
    grad, x = (t.contiguous(memory_format=torch.channels_last) for t in (grad, x))
    grad_x, sums = _empty_gradients(grad, x, statistics, weight, bias, eps, activation)
    if x.numel() == 0:
        return grad_x, sums.zero_()
    add, finish = _backward_launches(x.shape, eps, activation)
    shares = empty((add.grid[0], *sums.shape), x, torch.float32)
    add(grad, x, statistics, None, weight, bias, grad_x if statistics is None else None, shares)
    sum_rows(shares, 0, out=sums)
    if statistics is not None:
        finish(grad, x, statistics, None, weight, bias, sums, grad_x)
    return grad_x, sums


@_backward_op.register_fake
def _empty_gradients(grad, x, statistics, weight, bias, eps, activation):
    sums = x.shape[1:2] if statistics is None else statistics.shape
    # A norm has float32 parameters.
    dtype = torch.float32 if bias is None else bias.dtype
    return torch.empty_like(x), empty(sums, x, dtype)


@once_for_a_size
def _backward_launches(shape: torch.Size, eps: float, activation: str) -> tuple[Launch, Launch]:
    from .triton_kernels import norm_act_gradient_kernel, norm_act_sums_kernel
    tile = _tile(shape[1], 2048)
    options = dict(ACTIVATION=activation, **tile, num_warps=4)
    numbers = float(eps), _positions(shape)
    return (Launch(norm_act_sums_kernel, _grid(shape, tile, shared=True), *numbers, **options),
            Launch(norm_act_gradient_kernel, _grid(shape, tile, shared=False), *numbers, **options))


def _setup_context(ctx, inputs, output) -> None:
    # With a gradient, the mean is that of the batch, and holds the variance too.
    x, statistics, _, weight, bias, onto, ctx.eps, ctx.activation = inputs
    ctx.onto_dtype = None if onto is None else onto.dtype
    ctx.save_for_backward(x, statistics, weight, bias)


def _backward(ctx, grad):
    x, statistics, weight, bias = ctx.saved_tensors
    if torch.is_grad_enabled():
        return _differentiable(ctx, grad)
    grad_x, sums = _backward_op(grad, x, statistics, weight, bias, ctx.eps, ctx.activation)
    grad_bias, grad_weight = (sums, None) if statistics is None else sums.unbind()
    grad_onto = None if ctx.onto_dtype is None else grad.to(ctx.onto_dtype)
    return (grad_x, None, None, grad_weight, None if bias is None else grad_bias, grad_onto, None,
            None)


def _differentiable(ctx, grad):
    """`_backward` by torch, for the gradient of the gradient."""
    x, statistics, weight, bias = ctx.saved_tensors
    value, added = x, bias
    if statistics is not None:
        value, added = F.batch_norm(x, None, None, weight, bias, True, 0., ctx.eps), None
    out = torch_form.norm_act(value, added, activation=ctx.activation)
    of = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    found = dict(zip(map(id, of), torch.autograd.grad(out, of, grad, create_graph=True),
                     strict=True))
    grad_onto = None if ctx.onto_dtype is None else grad.to(ctx.onto_dtype)
    return (found.get(id(x)), None, None, found.get(id(weight)), found.get(id(bias)), grad_onto,
            None, None)


_forward.register_autograd(_backward, setup_context=_setup_context)
