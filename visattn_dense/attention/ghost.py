"""Ghost features (GhostNet, arXiv 1911.11907) in a transformer: T2T-ViT-ghost (arXiv 2101.11986).

A part of the features is computed by a linear layer. The others are its ghosts: the same features,
each channel times a learned factor.

    attention:  q = [q', s_q q'], q' = W_q x, and so k and v;   out = proj(softmax(q kᵀ · scale) v)
    MLP:        h = gelu(fc1(x));   out = fc2([h, gelu(s_2 h), gelu(s_3 h)])

Shapes: x (B, ..., C); q', k' and v' have C/2 channels, h has C channels. With an even number of
heads, the second half of the heads works on ghosts alone.

Official code: yitu-opensource/T2T-ViT, models/t2t_vit_ghost.py. The factors have the official names
and shapes of grouped 1×1 convolutions: `cheap_operation_q.weight` (C/2, 1, 1). Deviations: none in
what is computed; the factors multiply the channels without a convolution.
"""
import torch
from torch import Tensor, nn

from visattn_dense.ops import UsesOperators
from visattn_dense.ops.group_attention import full_attention


class ChannelScale(nn.Module):
    """x · weight, channel by channel.

    Args:
        dim: C, the last dimension of x.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        # As torch starts the official convolution, which has one input for each output.
        self.weight = nn.Parameter(torch.empty(dim, 1, 1).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same shape and dtype."""
        return x * self.weight.flatten().to(x.dtype)


class GhostSelfAttention(UsesOperators, nn.Module):
    """proj(softmax(q kᵀ · scale) v) over all positions; half of q, of k and of v are ghosts.

    Args:
        dim: C, even.
        num_heads: divides `dim`.
        scale: factor of the logits, (C/num_heads)^-½ by default. The scale belongs to the
            checkpoint.

    Raises:
        ValueError: `dim` is odd, or heads do not divide channels.
    """

    def __init__(self, dim: int, num_heads: int, *, scale: float | None = None) -> None:
        super().__init__()
        if dim % 2 or dim % num_heads:
            raise ValueError(f'dim is even and a multiple of num_heads {num_heads}, got {dim}')
        self.num_heads = num_heads
        self.scale = scale
        half = dim // 2
        self.q = nn.Linear(dim, half, bias=False)
        self.k = nn.Linear(dim, half, bias=False)
        self.v = nn.Linear(dim, half, bias=False)
        self.cheap_operation_q = ChannelScale(half)
        self.cheap_operation_k = ChannelScale(half)
        self.cheap_operation_v = ChannelScale(half)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) to the same shape."""
        q, k, v = self.project(x.flatten(1, -2))
        out = full_attention(q, k, v, num_heads=self.num_heads, scale=self.scale, mode=self.mode)
        return self.proj(out.view(x.shape))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) to q, k and v, each like it: the linear halves, then their ghosts."""
        halves = self.q(tokens), self.k(tokens), self.v(tokens)           # each (B, N, C/2)
        factors = self.cheap_operation_q, self.cheap_operation_k, self.cheap_operation_v
        q, k, v = (torch.cat([half, ghost(half)], dim=-1)
                   for half, ghost in zip(halves, factors, strict=True))
        return q, k, v


class GhostMlp(nn.Module):
    """fc2([h, gelu(s_2 h), gelu(s_3 h)]) with h = gelu(fc1(x)).

    Args:
        dim: C, channels in and out.
        hidden_dim: channels of what fc2 takes, 3 · C.

    Raises:
        ValueError: another `hidden_dim`.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        if hidden_dim != 3 * dim:
            raise ValueError(f'hidden_dim of a ghost MLP is 3 · {dim}, got {hidden_dim}')
        self.fc1 = nn.Linear(dim, dim)
        self.act = nn.GELU()
        self.cheap_operation2 = ChannelScale(dim)
        self.cheap_operation3 = ChannelScale(dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        h = self.act(self.fc1(x))
        ghosts = (self.act(scale(h)) for scale in (self.cheap_operation2, self.cheap_operation3))
        return self.fc2(torch.cat([h, *ghosts], dim=-1))
