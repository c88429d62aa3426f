"""Squeeze-and-excitation (arXiv 1709.01507) of tokens, and the self-attention of T2T-ViT-SE.

    se(x) = x · sigmoid(fc(mean over positions of x)),   out = se(proj(softmax(q kᵀ · scale) v))

Shapes: x (B, ..., C); all dimensions between are positions, whose mean is taken.

Official code: yitu-opensource/T2T-ViT, models/t2t_vit_se.py. Deviations: none.
"""
from torch import Tensor, nn

from .self_attention import SelfAttention


class SqueezeExcitation(nn.Module):
    """x · sigmoid(fc(mean over positions of x)); fc has one hidden layer and no biases.

    Args:
        dim: channels.
        reduction: `dim` over the hidden channels.
    """

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(dim, dim // reduction, bias=False), nn.ReLU(),
                                nn.Linear(dim // reduction, dim, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) to the same shape."""
        return x * self.fc(x.mean(tuple(range(1, x.ndim - 1)), keepdim=True))


class SESelfAttention(SelfAttention):
    """Self-attention with squeeze-and-excitation after its projection."""

    def __init__(self, dim: int, num_heads: int, *, scale: float | None = None) -> None:
        super().__init__(dim, num_heads, scale=scale)
        self.se_layer = SqueezeExcitation(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) to the same shape."""
        return self.se_layer(super().forward(x))
