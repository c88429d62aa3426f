"""Tokens-to-token (T2T-ViT, arXiv 2101.11986, §3.1): its two attentions, or convolutions instead.

Performer and transformer turn wide tokens (the pixels or features of a patch) into narrow tokens,
with v as the skip:

    y = v + Dropout(proj(attention(q, k, v)));   out = y + Dropout(mlp(norm2(y))),
    k, q, v = kqv(norm1(x))

The transformer's attention is softmax(q kᵀ · scale) v with one head. The performer's (arXiv
2009.14794) replaces exp(q·k) by φ(q)·φ(k) with positive random features

    φ(t) = exp(W t − ‖t‖²/2) / √m,    attention = φ(q) (Σ φ(k) vᵀ) / (φ(q) · Σ φ(k) + 1e-8)

and W a fixed random matrix (m × token_dim) with orthogonal rows, part of the checkpoint.

Shapes: (B, ..., C) in, (B, ..., D) out, D = token_dim; all dimensions between are positions. With a
`split`, a map (B, C', H, W) in.

Official code: yitu-opensource/T2T-ViT, models/token_performer.py and models/token_transformer.py.
The feature map and both products are computed in float32, also inside autocast.

`ConvolutionTokens`, which the authors compare with, has three convolutions in place of splits and
attentions. The official models/t2t_vit.py builds these convolutions, but its forward cannot run
them; a comment there says to call one after the other. Deviation: any number of image channels.
"""
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from visattn_dense.layers import Mlp, PreNorm, ProjectsSplit, SoftSplit
from visattn_dense.layers.linear import linear
from visattn_dense.ops import UsesOperators
from visattn_dense.ops.group_attention import full_attention
from visattn_dense.ops.linear_attention import performer_attention

RunBlock = Callable[[nn.Module, Tensor], Tensor]


class TokenPerformer(ProjectsSplit, UsesOperators, nn.Module):
    """Wide tokens to narrow tokens, with the performer's linear attention.

    Args:
        dim: C, channels in.
        token_dim: D, channels out.
        kernel_ratio: m / D, random features for each channel.
        dropout: probability of dropout in both residual branches, in training.
        eps: added to the denominator.
        split: makes the wide tokens from a map; None if the tokens are given.
    """

    projection = 'norm1', 'kqv'

    def __init__(self, dim: int, token_dim: int = 64, *, kernel_ratio: float = 0.5,
                 dropout: float = 0.1, eps: float = 1e-8, split: SoftSplit | None = None) -> None:
        super().__init__()
        self.split = split or nn.Identity()
        self.eps = eps
        self.norm1 = PreNorm(dim)
        self.kqv = nn.Linear(dim, 3 * token_dim)
        self.proj = nn.Linear(token_dim, token_dim)
        self.norm2 = PreNorm(token_dim)
        self.mlp = Mlp(token_dim, token_dim)
        self.dropout = nn.Dropout(dropout)
        features = int(token_dim * kernel_ratio)
        w = nn.init.orthogonal_(torch.empty(features, token_dim)) * math.sqrt(features)
        self.register_buffer('w', w)

    def attend(self, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """Linear attention: (B, N, D) each to (B, N, D)."""
        return performer_attention(q, k, v, self.w, epsilon=self.eps, mode=self.mode)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `forward` takes to k, q and v, (B, ..., D) each."""
        return linear(self.kqv, self.norm1(self.split(x))).chunk(3, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) to (B, ..., D); with a split, from (B, C', H, W) to (B, H', W', D)."""
        k, q, v = self.project(x)
        y = self.attend(k.flatten(1, -2), q.flatten(1, -2), v.flatten(1, -2)).view(v.shape)
        x, normed = self.norm2(v, self.dropout(linear(self.proj, y)))
        return x + self.dropout(self.mlp(normed))


class WideSelfAttention(UsesOperators, nn.Module):
    """One-head self-attention from C channels to D, with v as the skip.

    Args:
        dim: C.
        token_dim: D.
        scale: factor of the logits, C^-½ by default; C is the width of the input, not of the head.
    """

    def __init__(self, dim: int, token_dim: int, *, scale: float | None = None) -> None:
        super().__init__()
        self.scale = dim ** -.5 if scale is None else scale
        self.qkv = nn.Linear(dim, 3 * token_dim, bias=False)
        self.proj = nn.Linear(token_dim, token_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) to (B, ..., D)."""
        q, k, v = linear(self.qkv, x).chunk(3, dim=-1)
        tokens = (t.flatten(1, -2) for t in (q, k, v))           # each (B, N, D)
        out = full_attention(*tokens, num_heads=1, scale=self.scale, mode=self.mode)
        return v + linear(self.proj, out).view(v.shape)


class TokenTransformer(ProjectsSplit, nn.Module):
    """Wide tokens to narrow tokens, with softmax attention.

    Args:
        dim: C, channels in.
        token_dim: D, channels out.
        scale: factor of the logits, C^-½ by default.
        split: makes the wide tokens from a map; None if the tokens are given.
    """

    projection = 'norm1', 'attn.qkv'

    def __init__(self, dim: int, token_dim: int = 64, *, scale: float | None = None,
                 split: SoftSplit | None = None) -> None:
        super().__init__()
        self.split = split or nn.Identity()
        self.norm1 = PreNorm(dim)
        self.attn = WideSelfAttention(dim, token_dim, scale=scale)
        self.norm2 = PreNorm(token_dim)
        self.mlp = Mlp(token_dim, token_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) to (B, ..., D); with a split, from (B, C', H, W) to (B, H', W', D)."""
        x = self.attn(self.norm1(self.split(x)))
        return x + self.mlp(self.norm2(x))


class TokensToToken(ProjectsSplit, nn.Module):
    """Turn the image into tokens at stride 16, with two attentions at strides 4 and 8.

    Args:
        embed_dim: channels of the tokens.
        tokens: the kind of the two attentions, 'performer' or 'transformer'.
        in_channels: channels of the image.
    """

    token_dim = 64
    projection = '', 'project'

    def __init__(self, embed_dim: int, *, tokens: str, in_channels: int = 3) -> None:
        super().__init__()
        kinds = {'performer': TokenPerformer, 'transformer': TokenTransformer}
        if tokens not in kinds:
            raise ValueError(f'tokens are made by {" or ".join(kinds)}, got {tokens!r}')
        self.attention1 = kinds[tokens](in_channels * 7 * 7, self.token_dim,
                                        split=SoftSplit(7, 4, 2))
        self.attention2 = kinds[tokens](self.token_dim * 3 * 3, self.token_dim,
                                        split=SoftSplit(3, 2, 1))
        self.split = SoftSplit(3, 2, 1)
        self.project = nn.Linear(self.token_dim * 3 * 3, embed_dim)

    def forward(self, image: Tensor, run_block: RunBlock) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) to maps (B, H/s, W/s, ·) at the strides 4, 8 and 16.

        `run_block(attention, x)` calls an attention, with or without activation checkpointing.
        """
        fine = run_block(self.attention1, image)
        middle = run_block(self.attention2, fine.permute(0, 3, 1, 2))
        return fine, middle, linear(self.project, self.split(middle.permute(0, 3, 1, 2)))


class ConvolutionTokens(nn.Module):
    """Turn the image into tokens at stride 16 with three convolutions, and nothing between them.

    The convolutions have the kernels, strides and paddings of the soft splits.

    Args:
        embed_dim: channels of the tokens.
        in_channels: channels of the image.
    """

    token_dim = TokensToToken.token_dim

    def __init__(self, embed_dim: int, *, in_channels: int = 3) -> None:
        super().__init__()
        self.soft_split0 = nn.Conv2d(in_channels, self.token_dim, 7, 4, 2)
        self.soft_split1 = nn.Conv2d(self.token_dim, self.token_dim, 3, 2, 1)
        self.project = nn.Conv2d(self.token_dim, embed_dim, 3, 2, 1)

    def forward(self, image: Tensor, run_block: RunBlock) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) to maps (B, H/s, W/s, ·) at the strides 4, 8 and 16.

        `run_block` is not called: a convolution keeps nothing for backward but its input.
        """
        fine = self.soft_split0(image)
        middle = self.soft_split1(fine)
        return tuple(x.permute(0, 2, 3, 1) for x in (fine, middle, self.project(middle)))
