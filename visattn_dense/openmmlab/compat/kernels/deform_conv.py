"""Deformable convolution, plain (v1) and modulated (v2), on torchvision's kernels.

mmcv and torchvision descend from the same code: offsets are laid out alike, as (dy, dx) per kernel
point. mmcv splits the backward of v1 into inputs and parameters; torchvision computes both at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    """Fill `output` (N, C_out, H', W')."""
    used = bias if with_bias else None
    output.copy_(_forward(input, weight, offset, mask, used, _layout(geometry)).view_as(output))


def modulated_deform_conv_backward(
    input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor,
    columns: Tensor, grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor,
    grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor, *, with_bias: bool,
    **geometry: int,
) -> None:
    """Fill the five gradients; `grad_bias` only where there is a bias."""
    used = bias if with_bias else None
    grads = _backward(grad_output, input, weight, offset, mask, used, _layout(geometry))
    buffers = (grad_input, grad_weight, grad_offset, grad_mask)
    for buffer, grad in zip(buffers, grads[:4], strict=True):
        buffer.copy_(grad)
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
    return kernel(grad.to(tensors[0]), *tensors, *layout, mask is not None)
