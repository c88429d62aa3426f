"""Routing by torch."""
import torch
from torch import Tensor


def region_means(x: Tensor, n_win: int) -> Tensor:
    regions = x.unflatten(2, (n_win, -1)).unflatten(1, (n_win, -1))
    if x.device.type == 'cpu' and x.dtype in (torch.float32, torch.float64):
        means = regions.mean(4).mean(2)          # faster than both axes at a time
    else:
        means = regions.mean((2, 4))
    return means.flatten(1, 2)


def top_regions(q: Tensor, k: Tensor, *, count: int, scale: float) -> tuple[Tensor, Tensor]:
    logits = q * scale @ k.transpose(1, 2)
    return logits.topk(min(count, logits.shape[-1]), dim=-1)
