"""Convolution at the marked positions of a map only (guided anchoring, Wang et al. 2019).

mmcv multiplies the weight with the windows of these positions in between the two operators, and has
no backward: the layer is for inference.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    features: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, data_col: Tensor, *, kernel_h: int,
    kernel_w: int, pad_h: int, pad_w: int,
) -> None:
    """Fill `data_col` (C · kernel_h · kernel_w, P) with the windows of P positions.

    Args:
        features: (1, C, H, W), seen as if zeros were around.
        mask_h_idx, mask_w_idx: (P,) rows and columns of the output.
    """
    padded = F.pad(features[0], (pad_w, pad_w, pad_h, pad_h))
    windows = padded.unfold(1, kernel_h, 1).unfold(2, kernel_w, 1)
    # (C, P, k_h, k_w)
    chosen = windows[:, mask_h_idx, mask_w_idx]
    data_col.copy_(chosen.permute(0, 2, 3, 1).reshape(data_col.shape))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, *, height: int, width: int,
    channels: int,
) -> None:
    """Write `col` (C, P) to the positions of `im` (1, C, height, width); the rest stays."""
    im[0][:, mask_h_idx, mask_w_idx] = col
