"""The pre-norm transformer block, and what it hands to the block after it."""
from dataclasses import dataclass

from torch import Tensor, nn

from .drop import DropPath
from .linear import bias_apart
from .mlp import Mlp
from .norm import PreNorm
from .plain import is_called_plainly


@dataclass
class Handover:
    """From a block to the next one: norm1 of the next block, computed with the block's last sum.

    A block may leave `normed` empty: then the next block computes its norm1.

    Attributes:
        following: norm1 of the next block, or None.
        normed: `following` of the block's result, until the next block takes it; else None.
    """
    following: PreNorm | None = None
    normed: Tensor | None = None

    def take(self, norm1: PreNorm, x: Tensor) -> Tensor:
        """norm1(x), from the block before or computed now. The handover keeps no reference."""
        normed, self.normed = self.normed, None
        return norm1(x) if normed is None else normed


class TransformerBlock(nn.Module):
    """x += DropPath(attn(norm1(x)));  x += DropPath(mlp(norm2(x))).

    The first sum and norm2 are one operator. With a `Handover`, so are the last sum and norm1 of
    the next block.

    Args:
        dim: channels, the last dimension of x.
        attn: the attention, a module that keeps the shape of x.
        mlp_ratio: hidden channels of the MLP over `dim`.
        mlp_layer: class of the MLP, which takes `dim` and the hidden channels.
        drop_path: probability that a residual branch is dropped.
        norm_eps: eps of both LayerNorms; it belongs to the checkpoint.
    """

    def __init__(self, dim: int, attn: nn.Module, *, mlp_ratio: float = 4.,
                 mlp_layer: type[nn.Module] = Mlp, drop_path: float = 0.,
                 norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = PreNorm(dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = PreNorm(dim, eps=norm_eps)
        self.mlp = mlp_layer(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, handover: Handover | None = None) -> Tensor:
        """(B, ..., C) to the same shape. A `handover` is for a block that `accepts_handover`."""
        handover = handover or Handover()
        parts = list(bias_apart(self.attn, handover.take(self.norm1, x)))
        # `finish` takes the only reference to the update, and frees it before the MLP.
        return self.finish(x, handover=handover, bias=parts.pop(), update=parts.pop())

    def finish(self, x: Tensor, update: Tensor, handover: Handover,
               bias: Tensor | None = None) -> Tensor:
        """The block after its attention.

        Args:
            x: (B, ..., C), the block's input.
            update: like x, the result of the attention.
            handover: gets `normed` if there is a `following` norm.
            bias: (C,), added to `update` first; or None.

        Returns:
            The block's result, like x.
        """
        x, normed = self.norm2(x, update, self.drop_path.factor(update), bias)
        del update
        if handover.following is None:
            return x + self.drop_path(self.mlp(normed))
        update, bias = bias_apart(self.mlp, normed)
        x, handover.normed = handover.following(x, update, self.drop_path.factor(update), bias)
        return x


def accepts_handover(block: nn.Module) -> bool:
    """Whether `block` can be called with a `Handover`, and the block before may compute its norm1.

    False if something can watch or change what goes in or out of the block or of norm1: a hook, or
    another forward, of a subclass or set by hand. False for a block that torch.compile has
    compiled: the first, the middle and the last block of a stage would need a graph each.
    """
    return (type(block).forward is TransformerBlock.forward and isinstance(block.norm1, PreNorm)
            and is_called_plainly(block) and is_called_plainly(block.norm1))
