"""mmseg's cross entropy with class weights, where some pixels are ignored."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def average_with_ignored_pixels(losses: ModuleType) -> None:
    """Give the average of a weighted cross entropy a weight for ignored pixels too.

    The mean divides by the weights of all labels. mmseg looks up a weight for the ignored label,
    which has none. As without class weights, an ignored pixel counts as one pixel, or not at all
    with `avg_non_ignore`: so weights of 1 change nothing. The sum is taken in float32, because
    float16 ends at 65504 pixels.

    Args:
        losses: `mmseg.models.losses.cross_entropy_loss`.
    """
    import torch
    upstream = losses.cross_entropy

    @functools.wraps(upstream)
    def cross_entropy(pred: Tensor, label: Tensor, weight: Tensor | None = None,
                      class_weight: Tensor | None = None, reduction: str = 'mean',
                      avg_factor: Tensor | float | None = None, ignore_index: int = -100,
                      avg_non_ignore: bool = False) -> Tensor:
        if class_weight is not None and avg_factor is None and reduction == 'mean':
            known = label != ignore_index
            weights = class_weight.float()[label.where(known, torch.zeros_like(label))]
            avg_factor = weights.masked_fill(~known, float(not avg_non_ignore)).sum()
        return upstream(pred, label, weight=weight, class_weight=class_weight,
                        reduction=reduction, avg_factor=avg_factor, ignore_index=ignore_index,
                        avg_non_ignore=avg_non_ignore)

    losses.cross_entropy = cross_entropy
