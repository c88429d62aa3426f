"""Depthwise convolution on an NHWC map: CSWin's locally-enhanced positional encoding (LePE)."""
from torch import Tensor, nn

from visattn_dense.ops import UsesOperators
from visattn_dense.ops.depthwise import depthwise, depthwise_norm
from visattn_dense.ops.precision import product_dtype

from .norm import PreNorm
from .plain import is_called_plainly, parameters_of


class DepthwiseConv(UsesOperators, nn.Conv2d):
    """A k×k convolution of each channel with itself, zero-padded to keep the size, NHWC in and out.

    On the values of an attention this convolution is LePE (CSWin, arXiv 2107.00652, §3.3). The
    parameters are those of nn.Conv2d: weight (C, 1, k, k), bias (C,).

    Args:
        dim: C, number of channels.
        kernel_size: k, odd.
        bias: whether there is a bias.
    """

    def __init__(self, dim: int, kernel_size: int = 3, *, bias: bool = True) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd to keep the size, got {kernel_size}')
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor, *, onto: Tensor | None = None) -> Tensor:
        """conv(x), or onto + conv(x), (B, H, W, C) to (B, H, W, C); may overwrite `onto`."""
        return depthwise(x, self.weight, self.bias, onto=onto, mode=self.mode)

    def add_to(self, x: Tensor) -> Tensor:
        """x + conv(x), (B, H, W, C) to (B, H, W, C)."""
        weight, bias = parameters_of(self)
        return depthwise(x, weight, bias, plus_input=True, mode=self.mode)

    def add_to_and_norm(self, x: Tensor, norm: PreNorm) -> tuple[Tensor, Tensor]:
        """y = x + conv(x) and norm(y), (B, H, W, C) to (B, H, W, C) each."""
        if type(norm) is not PreNorm or not is_called_plainly(norm):
            total = self.add_to(x)
            return total, norm(total)
        weight, bias = parameters_of(self)
        return depthwise_norm(x, weight, bias, norm.weight, norm.bias, eps=norm.eps,
                              dtype=product_dtype(x), mode=self.mode)
