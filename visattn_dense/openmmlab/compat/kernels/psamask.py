"""The masks of PSANet (Zhao et al. 2018): from relative positions to positions of the map.

For each position p of an H×W map, PSANet predicts a weight for each relative position within a
window of h_mask×w_mask. The operator lays these weights out over the positions q of the map:

    collect:     output[q, p] = input[window index of q - p, p]
    distribute:  output[p, q] = input[window index of q - p, p]

A q outside of p's window has weight 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLLECT = 0


def psamask_forward(
    input: Tensor, output: Tensor, *, psa_type: int, num_: int, h_feature: int, w_feature: int,
    h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int,
) -> None:
    """Fill `output` (N, H·W, H, W) from `input` (N, h_mask·w_mask, H, W).

    Args:
        psa_type: 0 collect, 1 distribute.
        num_: N. h_feature, w_feature: H and W.
        half_h_mask, half_w_mask: the window's row and column of the position itself.
    """
    index, inside = _window_index(
        (h_feature, w_feature), (h_mask, w_mask), (half_h_mask, half_w_mask), input.device)
    collected = input.gather(1, index.expand(num_, -1, -1, -1)).where(inside, 0)
    output.copy_(collected if psa_type == _COLLECT else _exchange(collected))


def psamask_backward(
    grad_output: Tensor, grad_input: Tensor, *, psa_type: int, num_: int, h_feature: int,
    w_feature: int, h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int,
) -> None:
    """Fill `grad_input` (N, h_mask·w_mask, H, W) from `grad_output` (N, H·W, H, W)."""
    index, inside = _window_index(
        (h_feature, w_feature), (h_mask, w_mask), (half_h_mask, half_w_mask), grad_output.device)
    grad = grad_output if psa_type == _COLLECT else _exchange(grad_output)
    # No two positions inside share an index; those outside add zero.
    grad_input.zero_().scatter_add_(
        1, index.expand(num_, -1, -1, -1), grad.where(inside, 0).to(grad_input))


def _exchange(pairs: Tensor) -> Tensor:
    """(N, H·W, H, W) with the two positions exchanged."""
    return pairs.flatten(2).transpose(1, 2).reshape(pairs.shape)


def _window_index(
    size: tuple[int, int], window: tuple[int, int], half: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """For q and p, each of `size`: the index of q - p in p's window, and whether q is inside.

    Returns:
        tuple: int64 and bool, both (1, H·W, H, W); the index is valid outside too.
    """
    # (H, 1, H, 1) and (1, W, 1, W): q first, p second
    axes = [torch.arange(length, device=device) for length in size]
    row = (axes[0][:, None] - axes[0] + half[0])[:, None, :, None]
    column = (axes[1][:, None] - axes[1] + half[1])[None, :, None, :]
    inside = (row >= 0) & (row < window[0]) & (column >= 0) & (column < window[1])
    index = row.clamp(0, window[0] - 1) * window[1] + column.clamp(0, window[1] - 1)
    return index.flatten(0, 1)[None], inside.flatten(0, 1)[None]
