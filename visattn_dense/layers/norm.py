"""Normalisation over the channels of tokens or of a map."""
from torch import Tensor, nn

from visattn_dense.ops import UsesOperators
from visattn_dense.ops.add_norm import add_norm
from visattn_dense.ops.precision import product_dtype

from .plain import gains_by_operators, is_called_plainly


def layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x), (..., C) to the same shape; on a GPU by the kernel of `add_norm`.

    Inside autocast, torch casts x to float32, and keeps that map for backward.

    Args:
        norm: an nn.LayerNorm, or what a user has put in its place.
    """
    if type(norm) is nn.LayerNorm and _suits_operator(norm, x) and is_called_plainly(norm):
        return _by_operator(norm, x)
    return norm(x)


def _suits_operator(norm: nn.LayerNorm, x: Tensor) -> bool:
    return (gains_by_operators(x) and norm.normalized_shape == x.shape[-1:]
            and norm.bias is not None)


def _by_operator(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return add_norm(x, None, norm.weight, norm.bias, eps=norm.eps)[1]


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
        x = x.permute(0, 2, 3, 1)
        normed = _by_operator(self, x) if _suits_operator(self, x) else super().forward(x)
        return normed.permute(0, 3, 1, 2)
