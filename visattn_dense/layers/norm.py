"""Normalisation over the channels of tokens or of a map."""
from torch import Tensor, nn

from visattn_dense.ops import UsesOperators
from visattn_dense.ops.add_norm import add_norm
from visattn_dense.ops.precision import product_dtype


class PreNorm(UsesOperators, nn.LayerNorm):
    """LayerNorm before a linear layer or a convolution.

    Inside autocast the result has autocast's dtype, to which the next layer would cast it anyway.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) to the same shape."""
        return add_norm(x, None, self.weight, self.bias, eps=self.eps, dtype=product_dtype(x),
                        mode=self.mode)[1]


class AddNorm(UsesOperators, nn.LayerNorm):
    """The sum of the residual stream and a branch, and LayerNorm of the sum for the next branch."""

    def forward(self, x: Tensor, update: Tensor,
                scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add and normalise.

        Args:
            x: (B, ..., C), the residual stream.
            update: like x, the result of the branch.
            scale: (B, 1, ..., 1), the factor of `update` for each sample; None for 1.

        Returns:
            x + scale · update, and its norm, of which the dtype is that of `PreNorm`.
        """
        return add_norm(x, update, self.weight, self.bias, eps=self.eps, scale=scale,
                        dtype=product_dtype(x), mode=self.mode)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each position of an NCHW map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
