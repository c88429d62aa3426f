"""RoIAlign, average and maximum, forward and backward, on torchvision's kernel.

torchvision has no maximum. With a grid of g×g samples per bin, the samples are exactly the bin
centres of a RoIAlign with bins that are g times finer and take one sample each. mmcv's maximum is
the maximum over each g×g block of this RoIAlign. Its gradient goes to the largest sample.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor

from visattn_dense.openmmlab.compat.kernels import torchvision_ops

_MAX = 0


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `output` (K, C, aligned_height, aligned_width) from `input` (N, C, H, W).

    Args:
        rois: (K, 5) as image index, x1, y1, x2, y2 in input pixels times 1 / spatial_scale.
        argmax_y, argmax_x: buffers like `output` for pool_mode 0 (empty for 1); they receive the
            row and the column of the largest sample in its bin's grid, for the backward.
        sampling_ratio: samples per bin and axis; 0 or less: as many as there are pixels.
        pool_mode: 0 maximum, 1 average. Reduced precision is computed in float32.
        aligned: shift by half a pixel (the correct form).
    """
    size = (aligned_height, aligned_width)
    features, boxes = torchvision_ops.full_precision(input, rois)
    kernel = torchvision_ops.load().roi_align
    if pool_mode != _MAX:
        output.copy_(kernel(features, boxes, spatial_scale, *size, sampling_ratio, aligned))
        return
    for chosen, grid in _sample_grids(boxes, size, spatial_scale, sampling_ratio, aligned):
        fine = kernel(
            features, boxes[chosen], spatial_scale, size[0] * grid[0], size[1] * grid[1], 1, aligned
        )
        blocks = rearrange(fine, 'k c (h i) (w j) -> k c h w (i j)', i=grid[0], j=grid[1])
        value, index = blocks.max(dim=-1)
        output[chosen] = value.to(output)
        argmax_y[chosen] = (index // grid[1]).to(argmax_y)
        argmax_x[chosen] = (index % grid[1]).to(argmax_x)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `grad_input` (N, C, H, W) from `grad_output` (K, C, aligned_height, aligned_width)."""
    size = (aligned_height, aligned_width)
    grad, boxes = torchvision_ops.full_precision(grad_output, rois)
    kernel = torchvision_ops.load()._roi_align_backward
    shape = tuple(grad_input.shape)
    if pool_mode != _MAX:
        grad_input.copy_(
            kernel(grad, boxes, spatial_scale, *size, *shape, sampling_ratio, aligned))
        return
    total = torch.zeros(shape, dtype=grad.dtype, device=grad.device)
    for chosen, grid in _sample_grids(boxes, size, spatial_scale, sampling_ratio, aligned):
        rows, columns = argmax_y[chosen].long(), argmax_x[chosen].long()
        blocks = grad.new_zeros(*rows.shape, grid[0] * grid[1])
        blocks.scatter_(-1, (rows * grid[1] + columns)[..., None], grad[chosen][..., None])
        fine = rearrange(blocks, 'k c h w (i j) -> k c (h i) (w j)', i=grid[0]).contiguous()
        total += kernel(
            fine, boxes[chosen], spatial_scale, *fine.shape[-2:], *shape, 1, aligned)
    grad_input.copy_(total)


def _sample_grids(
    boxes: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """The boxes grouped by their sampling grid: (indices, (rows, columns))."""
    if sampling_ratio > 0:
        grids = boxes.new_full((len(boxes), 2), sampling_ratio)
    else:
        extent = (boxes[:, [4, 3]] - boxes[:, [2, 1]]) * spatial_scale
        if not aligned:
            extent = extent.clamp(min=1)
        grids = torch.ceil(extent / extent.new_tensor(size)).clamp(min=1)
    for grid in grids.long().unique(dim=0).tolist():
        chosen = (grids == grids.new_tensor(grid)).all(dim=1).nonzero()[:, 0]
        yield chosen, (grid[0], grid[1])
