"""CARAFE (Wang et al. 2019): upsampling in which each new pixel has its own k×k kernel.

With the channel group g of c, the scale s and the window's points (i, j) around the source pixel:

    output[c, y, x] = Σ_ij masks[g, i, j, y, x] · features[c, y//s + i - k//2, x//s + j - k//2]

Features outside of the map are 0. One point of the window is computed after the other: the unfolded
features would take k² times their memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from visattn_dense.openmmlab.compat.kernels import torchvision_ops


def carafe_forward(
    features: Tensor, masks: Tensor, rfeatures: Tensor, routput: Tensor, rmasks: Tensor,
    output: Tensor, *, kernel_size: int, group_size: int, scale_factor: int,
) -> None:
    """Fill `output` (N, C, s·H, s·W) from `features` (N, C, H, W).

    Args:
        masks: (N, group_size · kernel_size², s·H, s·W).
        rfeatures: receives the features, which mmcv hands to the backward under this name.
        routput, rmasks: work space of the compiled operator, unused here.
        group_size: the number of channel groups. scale_factor: s.
    """
    rfeatures.copy_(features)
    x, masks = torchvision_ops.full_precision(features, masks)
    masks = _by_source(masks, group_size, scale_factor)
    total = _by_source(torch.zeros_like(output, dtype=x.dtype), group_size, scale_factor)
    for point, window in _windows(_pad(x, group_size, kernel_size), kernel_size):
        total += window[..., :, None, :, None] * masks[:, :, None, point]
    output.copy_(total.reshape(output.shape))


def carafe_backward(
    grad_output: Tensor, rfeatures: Tensor, masks: Tensor, rgrad_output: Tensor,
    rgrad_input_hs: Tensor, rgrad_input: Tensor, rgrad_masks: Tensor, grad_input: Tensor,
    grad_masks: Tensor, *, kernel_size: int, group_size: int, scale_factor: int,
) -> None:
    """Fill `grad_input` and `grad_masks`; those that begin with r are mmcv's work space."""
    x, masks, grad = torchvision_ops.full_precision(rfeatures, masks, grad_output)
    masks, grad = (_by_source(part, group_size, scale_factor) for part in (masks, grad))
    padded = _pad(x, group_size, kernel_size)
    padded_grad = torch.zeros_like(padded)
    mask_grads = []
    for (point, window), (_, window_grad) in zip(
            _windows(padded, kernel_size), _windows(padded_grad, kernel_size), strict=True):
        mask_grads.append((window[..., :, None, :, None] * grad).sum(2))
        window_grad += (masks[:, :, None, point] * grad).sum((-3, -1))
    edge = kernel_size // 2
    grad_input.copy_(F.pad(padded_grad, [-edge] * 4).reshape(grad_input.shape))
    grad_masks.copy_(torch.stack(mask_grads, dim=2).reshape(grad_masks.shape))


def _by_source(upsampled: Tensor, groups: int, scale: int) -> Tensor:
    """(N, groups · D, s·H, s·W) -> (N, groups, D, H, s, W, s), a view."""
    return upsampled.unflatten(3, (-1, scale)).unflatten(2, (-1, scale)).unflatten(1, (groups, -1))


def _pad(x: Tensor, groups: int, kernel_size: int) -> Tensor:
    """(N, C, H, W) -> (N, groups, C / groups, H + k - 1, W + k - 1) with zeros around."""
    return F.pad(x, [kernel_size // 2] * 4).unflatten(1, (groups, -1))


def _windows(padded: Tensor, kernel_size: int) -> Iterator[tuple[int, Tensor]]:
    """For each point of the window its index and the view (..., H, W) of what it sees."""
    height, width = (side - kernel_size + 1 for side in padded.shape[-2:])
    for i, j in itertools.product(range(kernel_size), repeat=2):
        yield i * kernel_size + j, padded[..., i:i + height, j:j + width]
