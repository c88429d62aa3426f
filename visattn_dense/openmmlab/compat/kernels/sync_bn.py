"""mmcv's own synchronised batch norm (`MMSyncBN`), the five steps between which mmcv communicates.

All statistics are over the batch and the map, for each channel, in float32:

    norm = (input - mean) / std,    std = √(var + eps),    output = weight · norm + bias
    grad_input = weight / std · (grad_output - (grad_weight · norm + grad_bias) / (N · L))

Maps are flat: (N, C, L).
"""

from __future__ import annotations

from torch import Tensor

_ALL_BUT_CHANNELS = (0, 2)


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Fill `mean` (C,) from `input` (N, C, L)."""
    mean.copy_(input.float().mean(_ALL_BUT_CHANNELS))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Fill `var` (C,), the mean squared distance from `mean` (C,)."""
    var.copy_((input.float() - mean[:, None]).square().mean(_ALL_BUT_CHANNELS))


def sync_bn_forward_output(
    input: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor,
    running_var: Tensor, norm: Tensor, std: Tensor, output: Tensor, *, eps: float,
    momentum: float | Tensor, group_size: int,
) -> None:
    """Fill `norm`, `output` (N, C, L) and `std` (C,), and move the running statistics.

    Args:
        mean, var: (C,) over all processes. weight, bias: (C,).
        running_mean, running_var: (C,), moved by `momentum`; the variance is the unbiased one.
        group_size: number of processes, each with as many numbers as this one.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = input.shape[0] * input.shape[2] * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    running_mean.copy_(momentum * mean + (1 - momentum) * running_mean)
    running_var.copy_(momentum * unbiased + (1 - momentum) * running_var)


def sync_bn_backward_param(
    grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Fill `grad_weight` and `grad_bias` (C,) from `grad_output` (N, C, L)."""
    grad_weight.copy_((grad_output.float() * norm).sum(_ALL_BUT_CHANNELS))
    grad_bias.copy_(grad_output.float().sum(_ALL_BUT_CHANNELS))


def sync_bn_backward_data(
    grad_output: Tensor, weight: Tensor, grad_weight: Tensor, grad_bias: Tensor, norm: Tensor,
    std: Tensor, grad_input: Tensor,
) -> None:
    """Fill `grad_input` (N, C, L); `grad_weight` and `grad_bias` are means over the processes."""
    count = grad_output.shape[0] * grad_output.shape[2]
    common = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_((grad_output.float() - common) * (weight / std)[:, None])
