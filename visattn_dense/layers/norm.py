"""Normalisation over the channels of tokens or of a map."""
from torch import Tensor, nn

from visattn_dense.ops import UsesOperators
from visattn_dense.ops.add_norm import add_norm
from visattn_dense.ops.precision import product_dtype


class PreNorm(UsesOperators, nn.LayerNorm):
    """LayerNorm before a linear layer or a convolution, alone or after the sum with a branch.

    Inside autocast the norm has autocast's dtype, to which the next layer would cast it anyway.
    """

    def forward(self, x: Tensor, update: Tensor | None = None,
                scale: Tensor | None = None, update_bias: Tensor | None = None
                ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise x, or add and normalise.

        Args:
            x: (B, ..., C), the residual stream.
            update: like x, the result of a branch; None adds nothing.
            scale: (B, 1, ..., 1), the factor of `update` for each sample; None for 1.
            update_bias: (C,), added to `update` first; or None.

        Returns:
            The norm of x, like x. With `update`: x + scale · update, and the norm of this sum.
        """
        total, normed = add_norm(x, update, self.weight, self.bias, eps=self.eps, scale=scale,
                                 dtype=product_dtype(x), update_bias=update_bias, mode=self.mode)
        return normed if update is None else (total, normed)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each position of an NCHW map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
