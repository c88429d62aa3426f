"""Deformable convolution, plain (v1) and modulated (v2), on torchvision's kernels.

mmcv and torchvision descend from the same code: offsets are laid out alike, as (dy, dx) per kernel
point. mmcv splits the backward of v1 into inputs and parameters; torchvision computes both at once.
Two habits of mmcv are added here:

- a sample whose row or column is -1 or less has no gradient for its offset. torchvision gives a
  gradient to a sample exactly on -1. Every convolution with padding has such samples while its
  offsets are zero, as at the begin of a training;
- the modulated form takes offset and mask maps that are larger than the output, and reads the first
  numbers of each sample as if they were a map of the output's size. DyHead and GLIP rely on that.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from visattn_dense.errors import UserError
from visattn_dense.openmmlab.compat.kernels import torchvision_ops


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor,
    **geometry: int,
) -> None:
    """Fill `output` (N, C_out, H', W'); `columns` and `ones` are mmcv's work space, unused here."""
    output.copy_(_forward(input, weight, offset, None, None, _layout(geometry)))


def deform_conv_backward_input(
    input: Tensor, offset: Tensor, grad_output: Tensor, grad_input: Tensor, grad_offset: Tensor,
    weight: Tensor, columns: Tensor, **geometry: int,
) -> None:
    """Fill `grad_input` and `grad_offset`."""
    grads = _backward(grad_output, input, weight, offset, None, None, _layout(geometry))
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor, offset: Tensor, grad_output: Tensor, grad_weight: Tensor, columns: Tensor,
    ones: Tensor, *, scale: float, **geometry: int,
) -> None:
    """Add `scale` times the gradient of the weight to `grad_weight`."""
    # The kernel wants the weight for its shape and for the gradients that are not used here.
    grads = _backward(
        grad_output, input, torch.zeros_like(grad_weight), offset, None, None, _layout(geometry))
    grad_weight.add_(grads[1].to(grad_weight), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor,
    output: Tensor, columns: Tensor, *, with_bias: bool, **geometry: int,
) -> None:
    """Fill `output` (N, C_out, H', W').

    Args:
        offset: (N, 2 · deformable_group · k_h · k_w, H, W) with H · W of at least H' · W'.
        mask: (N, deformable_group · k_h · k_w, H, W), likewise.

    Raises:
        UserError: an offset or mask map smaller than the output.
    """
    used = bias if with_bias else None
    layout = _layout(geometry)
    offset, mask = _first_numbers(offset, mask, output, weight, layout)
    output.copy_(_forward(input, weight, offset, mask, used, layout).view_as(output))


def modulated_deform_conv_backward(
    input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor,
    columns: Tensor, grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor,
    grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor, *, with_bias: bool,
    **geometry: int,
) -> None:
    """Fill the five gradients; `grad_bias` only where there is a bias.

    The gradients of numbers of larger maps that the forward does not read are zero.
    """
    used = bias if with_bias else None
    layout = _layout(geometry)
    offset, mask = _first_numbers(offset, mask, grad_output, weight, layout)
    grads = _backward(grad_output, input, weight, offset, mask, used, layout)
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    for buffer, grad in ((grad_offset, grads[2]), (grad_mask, grads[3])):
        rest = buffer[0].numel() - grad[0].numel()
        buffer.copy_(F.pad(grad.flatten(1), (0, rest)).view_as(buffer))
    if with_bias:
        grad_bias.copy_(grads[4])


def _layout(geometry: dict[str, int]) -> tuple[int, ...]:
    """torchvision's order of mmcv's arguments; v1 and v2 spell them differently."""
    get = {name.lower(): value for name, value in geometry.items()}
    if 'dw' in get:
        stride, pad = (get['dh'], get['dw']), (get['padh'], get['padw'])
        dilation = (get['dilationh'], get['dilationw'])
    else:
        stride, pad = (get['stride_h'], get['stride_w']), (get['pad_h'], get['pad_w'])
        dilation = (get['dilation_h'], get['dilation_w'])
    return (*stride, *pad, *dilation, get['group'], get['deformable_group'])


def _first_numbers(
    offset: Tensor, mask: Tensor, output: Tensor, weight: Tensor, layout: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Maps of the size of `output` (N, C, H', W') from the first numbers of each sample."""
    points = layout[-1] * math.prod(weight.shape[2:])
    size = output.shape[2:]
    maps = []
    for name, given, channels in (('offset', offset, 2 * points), ('mask', mask, points)):
        wanted = channels * math.prod(size)
        if given[0].numel() < wanted:
            raise UserError(
                f'Deformable convolution got an {name} map of shape {tuple(given.shape)}, too '
                f'small for an output of {size[0]}×{size[1]}: give it {channels} channels of at '
                'least that size.')
        maps.append(given.flatten(1)[:, :wanted].reshape(-1, channels, *size))
    return maps[0], maps[1]


def _has_gradient(offset: Tensor, weight: Tensor, layout: tuple[int, ...]) -> Tensor:
    """For each number of `offset`: are row and column of its sample both above -1?

    Args:
        offset: (N, 2 · deformable groups · k_h · k_w, H', W'), in the dtype of the computation.

    Returns:
        Tensor: bool, of the shape of `offset`.
    """
    above = []
    # (N, groups, k_h, k_w, (row, column), H', W')
    pairs = offset.unflatten(1, (layout[-1], *weight.shape[2:], 2))
    for axis in (0, 1):
        stride, pad, dilation = layout[axis], layout[2 + axis], layout[4 + axis]
        outputs = torch.arange(offset.shape[2 + axis], device=offset.device) * stride - pad
        points = torch.arange(weight.shape[2 + axis], device=offset.device) * dilation
        grid = points[:, None] + outputs
        grid = grid[:, None, :, None] if axis == 0 else grid[None, :, None, :]
        above.append(grid + pairs[:, :, :, :, axis] > -1)
    inside = above[0] & above[1]
    return torch.stack([inside, inside], dim=4).view_as(offset)


def _arguments(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """The five tensors of the kernel; absent ones become the empty ones it expects."""
    use_mask = offset.new_zeros(len(offset), 1) if mask is None else mask
    use_bias = weight.new_zeros(len(weight)) if bias is None else bias
    return torchvision_ops.full_precision(input, weight, offset, use_mask, use_bias)


def _forward(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None,
    layout: tuple[int, ...],
) -> Tensor:
    tensors = _arguments(input, weight, offset, mask, bias)
    return torchvision_ops.load().deform_conv2d(*tensors, *layout, mask is not None)


def _backward(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None,
    bias: Tensor | None, layout: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask, bias."""
    tensors = _arguments(input, weight, offset, mask, bias)
    (grad,) = torchvision_ops.full_precision(grad)
    kernel = torchvision_ops.load()._deform_conv2d_backward
    grads = list(kernel(grad.to(tensors[0]), *tensors, *layout, mask is not None))
    grads[2] = grads[2].where(_has_gradient(tensors[2], weight, layout), 0)
    return tuple(grads)
