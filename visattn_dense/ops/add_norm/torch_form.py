"""A residual sum and its LayerNorm by torch."""
import torch
import torch.nn.functional as F
from torch import Tensor


def add_norm(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float,
             scale: Tensor | None = None, dtype: torch.dtype | None = None,
             update_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if update_bias is not None:
        update = update + update_bias.to(update.dtype)
    total = x if update is None else x + (update if scale is None else update * scale)
    normed = F.layer_norm(total, weight.shape, weight, bias, eps)
    return total, normed if dtype is None else normed.to(dtype)
