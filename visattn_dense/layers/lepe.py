"""Depthwise convolution on an NHWC map: CSWin's locally-enhanced positional encoding (LePE)."""
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import is_half


class DepthwiseConv(nn.Conv2d):
    """A k×k convolution of each channel with itself, zero-padded to keep the size, NHWC in and out.

    On the values of an attention it is LePE (CSWin, arXiv 2107.00652, §3.3). Its parameters are
    those of nn.Conv2d: weight (C, 1, k, k), bias (C,).

    Args:
        dim: C, number of channels.
        kernel_size: k, odd.
        bias: whether there is a bias.
    """

    def __init__(self, dim: int, kernel_size: int = 3, *, bias: bool = True) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd to keep the size, got {kernel_size}')
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def add_to(self, x: Tensor) -> Tensor:
        """x + conv(x), (B, H, W, C) to (B, H, W, C): one convolution, with 1 added to its centre.

        In half precision that 1 would drown the weights, so there it is the sum of two tensors.
        """
        if is_half(self.weight, x):
            return x + self(x)
        identity = F.pad(self.weight.new_ones(1, 1, 1, 1), self.padding[::-1] * 2)
        kernel = self.weight + identity
        return self._conv_forward(x.permute(0, 3, 1, 2), kernel, self.bias).permute(0, 2, 3, 1)
