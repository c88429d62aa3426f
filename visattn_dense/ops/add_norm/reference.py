"""The equation of a residual sum and its LayerNorm."""
import torch
from torch import Tensor


def add_norm(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float,
             scale: Tensor | None = None, dtype: torch.dtype | None = None,
             update_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """normed = (total − mean) / √(variance + eps) · weight + bias, over the last dimension.

    Args:
        x: (B, ..., C), the residual stream.
        update: like x, what a branch adds; or None: nothing is added, and `total` is x itself.
        weight, bias: (C,).
        eps: added to the variance.
        scale: the factor of `update` for each sample, (B, 1, ..., 1); None for 1.
        dtype: of `normed`; None for the dtype of LayerNorm.
        update_bias: (C,), added to `update`; or None.

    Returns:
        total, normed: like x. `total` has the wider dtype of x and `update`.
    """
    if update_bias is not None:
        update = update + update_bias.to(update.dtype)
    total = x if update is None else x + (update if scale is None else scale * update)
    centred = total - total.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    normed = centred / (variance + eps).sqrt() * weight + bias
    return total, normed if dtype is None else normed.to(dtype)
