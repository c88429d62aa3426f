"""Deformable RoIPool (Dai et al. 2017): the average of each bin, at a place that the net has moved.

A bin is sampled at the centres of a grid, as in RoIAlign with `aligned=True`. The offset moves it:

    dx = gamma · width of the box · offset[0],    dy = gamma · height of the box · offset[1]

The gradient for the offset is mmcv's. Within the map it is the derivative. A sample outside of the
map, by at most one pixel, has the value of the border; mmcv computes its gradient from the border's
cell with weights that it extrapolates, and so does this file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from visattn_dense.openmmlab.compat.kernels import torchvision_ops


@dataclass
class _Samples:
    """One sample for each bin of the boxes `chosen`; all tensors are (k, P_h, P_w).

    `corners` are index tuples (image, row, column), upper left, upper right, lower left, lower
    right, with the bilinear `weights`. `edges` are (y - top, bottom - y, x - left, right - x) with
    the coordinates of the sample itself. Outside of the map, weights and edges are 0.
    """

    chosen: Tensor
    count: int
    corners: list[tuple[Tensor, Tensor, Tensor]]
    weights: list[Tensor]
    edges: list[Tensor]


def deform_roi_pool_forward(
    input: Tensor, rois: Tensor, offset: Tensor, output: Tensor, *, pooled_height: int,
    pooled_width: int, spatial_scale: float, sampling_ratio: int, gamma: float,
) -> None:
    """Fill `output` (K, C, pooled_height, pooled_width) from `input` (N, C, H, W).

    Args:
        rois: (K, 5) as image index, x1, y1, x2, y2 in input pixels times 1 / spatial_scale.
        offset: (K, 2, pooled_height, pooled_width) as dx, dy; empty for none.
        sampling_ratio: samples per bin and axis; 0 or less: as many as there are pixels.
        gamma: factor of the offsets.
    """
    features, boxes, shifts = torchvision_ops.full_precision(input, rois, offset)
    size = (pooled_height, pooled_width)
    # One pixel is a row here, so that each sample reads all channels at once.
    pixels = features.permute(0, 2, 3, 1).contiguous()
    total = features.new_zeros(len(boxes), *size, features.shape[1])
    for sample in _samples(boxes, shifts, features.shape, size, spatial_scale, sampling_ratio,
                           gamma):
        for corner, weight in zip(sample.corners, sample.weights, strict=True):
            total[sample.chosen] += pixels[corner] * (weight / sample.count)[..., None]
    output.copy_(total.permute(0, 3, 1, 2))


def deform_roi_pool_backward(
    grad_output: Tensor, input: Tensor, rois: Tensor, offset: Tensor, grad_input: Tensor,
    grad_offset: Tensor, *, pooled_height: int, pooled_width: int, spatial_scale: float,
    sampling_ratio: int, gamma: float,
) -> None:
    """Fill `grad_input`, and `grad_offset` where it is not empty."""
    features, boxes, shifts, grad = torchvision_ops.full_precision(
        input, rois, offset, grad_output)
    size = (pooled_height, pooled_width)
    pixels, grad = features.permute(0, 2, 3, 1).contiguous(), grad.permute(0, 2, 3, 1)
    pixel_grads = torch.zeros_like(pixels)
    # (K, 2, P_h, P_w) as dx, dy, in pixels of the map
    moved = grad.new_zeros(len(boxes), 2, *size)
    for sample in _samples(boxes, shifts, features.shape, size, spatial_scale, sampling_ratio,
                           gamma):
        share = grad[sample.chosen] / sample.count
        for corner, weight in zip(sample.corners, sample.weights, strict=True):
            pixel_grads.index_put_(corner, share * weight[..., None], accumulate=True)
        if grad_offset.numel():
            pulls = [(pixels[corner] * share).sum(-1) for corner in sample.corners]
            below, above, right, left = sample.edges
            moved[sample.chosen, 0] += (pulls[3] - pulls[2]) * below + (pulls[1] - pulls[0]) * above
            moved[sample.chosen, 1] += (pulls[3] - pulls[1]) * right + (pulls[2] - pulls[0]) * left
    grad_input.copy_(pixel_grads.permute(0, 3, 1, 2))
    if grad_offset.numel():
        extent = (boxes[:, 3:] - boxes[:, 1:3]) * spatial_scale
        grad_offset.copy_(moved * gamma * extent[:, :, None, None])


def _samples(
    boxes: Tensor, offset: Tensor, shape: torch.Size, size: tuple[int, int], scale: float,
    ratio: int, gamma: float,
) -> Iterator[_Samples]:
    """The samples of all bins; boxes that have as many samples per bin come together.

    Args:
        shape: (N, C, H, W) of the features. size: (P_h, P_w).
    """
    start, end = boxes[:, [2, 1]] * scale - 0.5, boxes[:, [4, 3]] * scale - 0.5
    extent = end - start
    step = extent / extent.new_tensor(size)
    # mmcv rounds to float32 before it takes the whole number.
    grids = torch.full_like(step, ratio) if ratio > 0 else step.float().ceil()
    # (K, P_h, P_w) rows and columns of the first corner of each bin
    first = [(start[:, axis, None] + torch.arange(size[axis], device=boxes.device)
              * step[:, axis, None]).unsqueeze(2 - axis).expand(-1, *size) for axis in (0, 1)]
    if offset.numel():
        first = [first[axis] + gamma * extent[:, axis, None, None] * offset[:, 1 - axis]
                 for axis in (0, 1)]
    for rows, columns in grids.long().unique(dim=0).tolist():
        chosen = (grids == grids.new_tensor([rows, columns])).all(dim=1).nonzero()[:, 0]
        image = boxes[chosen, 0].long()[:, None, None].expand(-1, *size)
        for i, j in itertools.product(range(rows), range(columns)):
            y, x = (first[axis][chosen] + (index + 0.5) * step[chosen, axis, None, None] / count
                    for axis, index, count in ((0, i, rows), (1, j, columns)))
            yield _sample(chosen, image, y, x, rows * columns, shape)


def _sample(
    chosen: Tensor, image: Tensor, y: Tensor, x: Tensor, count: int, shape: torch.Size
) -> _Samples:
    height, width = shape[2:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    top, bottom, fy = _cell(y, height)
    left, right, fx = _cell(x, width)
    return _Samples(
        chosen, count,
        [(image, row, column) for row in (top, bottom) for column in (left, right)],
        [wy * wx * inside for wy in (1 - fy, fy) for wx in (1 - fx, fx)],
        [edge * inside for edge in (y - top, bottom - y, x - left, right - x)])


def _cell(coordinate: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels before and after a coordinate, and how far it is on the way between them."""
    coordinate = coordinate.clamp(0, side - 1)
    low = coordinate.long()
    return low, (low + 1).clamp(max=side - 1), coordinate - low
