"""RoIPool (Girshick 2015) with mmcv's bins, which torchvision's operator does not have.

torchvision first rounds the box to whole pixels. mmcv does not round. It moves the end of the box
one pixel further, to (x2 + 1) · scale, and takes every pixel that a bin touches:

    output[k, c, i, j] = max of input[c, y, x] over floor(i·h + y1) <= y < ceil((i + 1)·h + y1), ...

with h the height of a bin. A bin without pixels is 0. One difference on purpose: a box without area
gets no gradient, where the compiled operator gives it to the first pixel of the image.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from visattn_dense.openmmlab.compat.kernels import torchvision_ops

_NO_PIXEL = -1


def roi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, *, pooled_height: int,
    pooled_width: int, spatial_scale: float,
) -> None:
    """Fill `output` (K, C, pooled_height, pooled_width) from `input` (N, C, H, W).

    Args:
        rois: (K, 5) as image index, x1, y1, x2, y2 in input pixels times 1 / spatial_scale.
        argmax: int buffer like `output`; receives y · W + x of each maximum, -1 for none.
    """
    features, boxes = torchvision_ops.full_precision(input, rois)
    height, width = features.shape[2:]
    top, bottom = _bins(boxes[:, 2], boxes[:, 4], spatial_scale, pooled_height, height)
    left, right = _bins(boxes[:, 1], boxes[:, 3], spatial_scale, pooled_width, width)
    area = ((boxes[:, 3:] + 1) * spatial_scale > boxes[:, 1:3] * spatial_scale).all(1)
    # (K, pooled_height, pooled_width)
    top, left = torch.broadcast_tensors(top[:, :, None], left[:, None, :])
    rows = (bottom[:, :, None] - top) * area[:, None, None]
    columns = right[:, None, :] - left
    image = boxes[:, 0].long()[:, None, None].expand_as(top)

    # One pixel is a row here, so that each bin reads all channels at once.
    pixels = features.permute(0, 2, 3, 1).contiguous()
    best = features.new_full((*top.shape, features.shape[1]), -torch.inf)
    chosen = torch.full(best.shape, _NO_PIXEL, dtype=torch.long, device=best.device)
    longest = (int(rows.max()), int(columns.max())) if len(boxes) else (0, 0)
    # Each bin's pixels in reading order: of equal values the first is the maximum.
    for y, x in itertools.product(*map(range, longest)):
        bins = (y < rows) & (x < columns)
        at_row, at_column = top[bins] + y, left[bins] + x
        value = pixels[image[bins], at_row, at_column]
        more = value > best[bins]
        best[bins] = value.where(more, best[bins])
        place = (at_row * width + at_column)[:, None]
        chosen[bins] = place.where(more, chosen[bins])
    best = best.where(chosen != _NO_PIXEL, 0)
    output.copy_(best.permute(0, 3, 1, 2))
    argmax.copy_(chosen.permute(0, 3, 1, 2))


def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, *, pooled_height: int,
    pooled_width: int, spatial_scale: float,
) -> None:
    """Fill `grad_input` (N, C, H, W) from `grad_output` (K, C, pooled_height, pooled_width)."""
    (grad,) = torchvision_ops.full_precision(grad_output)
    count, channels, height, width = grad_input.shape
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    index = plane[:, :, None, None] * (height * width) + argmax
    found = argmax != _NO_PIXEL
    total = grad.new_zeros(grad_input.numel()).index_add_(0, index[found], grad[found])
    grad_input.copy_(total.view(grad_input.shape))


def _bins(start: Tensor, end: Tensor, scale: float, bins: int, side: int) -> tuple[Tensor, Tensor]:
    """First pixel of each bin and the one after its last, both (K, bins) int64 within 0–side."""
    start = start * scale
    size = ((end + 1) * scale - start) / bins
    edges = torch.arange(bins + 1, device=start.device) * size[:, None] + start[:, None]
    # mmcv rounds to float32 before it takes the whole number.
    edges = edges.float()
    first = edges[:, :-1].floor().long().clamp(0, side)
    return first, edges[:, 1:].ceil().long().clamp(0, side)
