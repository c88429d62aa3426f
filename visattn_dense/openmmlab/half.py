"""A model in float16, for its exported file."""
from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from visattn_dense.attention import TokensToToken
from visattn_dense.attention.tokens import RunBlock


class TokensInFull(nn.Module):
    """The tokens of T2T-ViT in float32, between layers in float16.

    The performer takes exponentials of squared norms. They multiply the rounding error of the
    first attention's output, most where a picture has a flat part, such as its padding.
    """

    def __init__(self, tokens: TokensToToken) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, image: Tensor, run_block: RunBlock) -> tuple[Tensor, ...]:
        return tuple(part.to(image.dtype) for part in self.tokens(image.float(), run_block))


def compute_in_half(model: nn.Module) -> None:
    """Turn a model, in place, into one that takes and computes float16, but for `TokensInFull`."""
    kept = [(parent, name, deepcopy(child)) for parent in model.modules()
            for name, child in parent.named_children() if isinstance(child, TokensToToken)]
    model.to(torch.float16)
    for parent, name, child in kept:
        setattr(parent, name, TokensInFull(child))
