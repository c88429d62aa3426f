"""Sigmoid focal loss (Lin et al. 2017, eq. 5) in plain torch, forward and analytic backward.

With p = sigmoid(x), γ = gamma, α = alpha:
    target class:  L = -α (1 - p)^γ log p         dL/dx = -α (1 - p)^γ (1 - p - γ p log p)
    other classes: L = -(1 - α) p^γ log(1 - p)    dL/dx = (1 - α) p^γ (p - γ (1 - p) log(1 - p))

Reduced precision is computed in float32, float64 in float64. mmcv cuts log p off at -87.3, the
logarithm of the smallest float32; here log p has no limit.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from visattn_dense.openmmlab.compat.kernels import torchvision_ops


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Fill `output` (N, C) from logits `input` (N, C) and classes `target` (N,).

    A target equal to C is background: no class is its own. `weight` is (C,) or empty; background
    has weight 1.
    """
    (x,) = torchvision_ops.full_precision(input)
    p, log_p, log_q = x.sigmoid(), F.logsigmoid(x), F.logsigmoid(-x)
    positive = -alpha * (1 - p) ** gamma * log_p
    negative = -(1 - alpha) * p**gamma * log_q
    loss = positive.where(_is_class(target, x), negative)
    output.copy_(loss * _class_weight(target, weight, x))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Fill `grad_input` (N, C) with the derivative of each entry of the loss by its logit."""
    (x,) = torchvision_ops.full_precision(input)
    p, log_p, log_q = x.sigmoid(), F.logsigmoid(x), F.logsigmoid(-x)
    positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * log_p)
    negative = (1 - alpha) * p**gamma * (p - gamma * (1 - p) * log_q)
    grad = positive.where(_is_class(target, x), negative)
    grad_input.copy_(grad * _class_weight(target, weight, x))


def _is_class(target: Tensor, x: Tensor) -> Tensor:
    """(N, C) bool: is column c the target of row n?"""
    columns = target.new_tensor(range(x.shape[1]))
    return target[:, None] == columns


def _class_weight(target: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """(N, 1) factor per row."""
    if weight.numel() == 0:
        return x.new_ones(1, 1)
    # The last entry is the background's.
    return F.pad(weight.to(x), (0, 1), value=1.0)[target][:, None]
