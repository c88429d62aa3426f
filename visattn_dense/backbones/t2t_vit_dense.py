"""T2T-ViT-dense: what stands in the list `blocks` of `T2TViT` in place of equal blocks.

    dense block:  y = x + attn(norm1(x));   y = y + mlp(norm2(y));   out = [x, dense_linear(y)]
    transition:   out = gelu(linear(x)), to half of the channels

Each block adds `growth` channels to the tokens, as in DenseNet (arXiv 1608.06993). A transition
stands between two stages, in the same list. Shapes: tokens (B, N, C) to (B, N, C').

Official code: yitu-opensource/T2T-ViT, models/t2t_vit_dense.py. Deviation: the rate of stochastic
depth grows from block to block. The official code makes 12 rates, and all blocks of the stage i
have the i-th of these.
"""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visattn_dense.layers import TransformerBlock


class DenseBlock(TransformerBlock):
    """[x, dense_linear(block(x))]: a block whose output is appended to its input.

    Args:
        dim: channels in.
        attn: the attention, a module that keeps the shape of x.
        growth: channels that are appended.
        options: see `TransformerBlock`.
    """

    def __init__(self, dim: int, attn: nn.Module, *, growth: int, **options: Any) -> None:
        super().__init__(dim, attn, **options)
        self.dense_linear = nn.Linear(dim, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C + growth)."""
        return torch.cat([x, self.dense_linear(super().forward(x))], dim=-1)


class Transition(nn.Module):
    """gelu(linear(x)).

    Args:
        dim, out_dim: channels in and out.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out_dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C')."""
        return self.act(self.linear(x))


def dense_steps(dim: int, depths: Sequence[int],
                growth: int) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    """The channels along the list of blocks and transitions.

    Args:
        dim: channels of the tokens before the first block.
        depths: blocks of each stage.
        growth: channels that a block adds.

    Returns:
        The channels in and out of each entry of the list (a transition has fewer out than in), and
        how many entries there are up to the end of each stage.
    """
    steps: list[tuple[int, int]] = []
    ends = []
    for depth in depths:
        if steps:
            steps.append((dim, dim // 2))
            dim //= 2
        for _ in range(depth):
            steps.append((dim, dim + growth))
            dim += growth
        ends.append(len(steps))
    return steps, tuple(ends)
