"""The pre-norm transformer block."""
from torch import Tensor, nn

from .drop import DropPath
from .mlp import Mlp
from .norm import AddNorm, PreNorm


class TransformerBlock(nn.Module):
    """x += DropPath(attn(norm1(x)));  x += DropPath(mlp(norm2(x))).

    The first sum and the norm of the sum are one operator.

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
        self.norm2 = AddNorm(dim, eps=norm_eps)
        self.mlp = mlp_layer(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) to the same shape."""
        return self.feed_forward(x, self.attn(self.norm1(x)))

    def feed_forward(self, x: Tensor, update: Tensor) -> Tensor:
        """All that follows the attention, of which `update` is the result."""
        x, normed = self.norm2(x, update, self.drop_path.factor(update))
        del update                               # The MLP can have its memory.
        return x + self.drop_path(self.mlp(normed))
