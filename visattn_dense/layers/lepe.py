"""Depthwise convolution on an NHWC map: CSWin's locally-enhanced positional encoding (LePE)."""
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from visattn_dense.ops import native
from visattn_dense.ops.precision import is_half


class DepthwiseTaps(NamedTuple):
    """A depthwise convolution as the compiled kernel wants it. Inference alone.

    Attributes:
        weight: (k², C), position by position.
        bias: (C,) or None.
    """
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> 'DepthwiseTaps':
        """Of a convolution's (C, 1, k, k) and (C,)."""
        return cls(weight.detach().flatten(1).t().contiguous(),
                   None if bias is None else bias.detach())

    def takes(self, x: Tensor) -> bool:
        """Whether the kernel computes this on x; else torch does."""
        return len(self.weight) in (9, 25) and native.takes(x)

    def plus_identity(self) -> 'DepthwiseTaps':
        """x + conv(x) as one convolution."""
        weight = self.weight.clone()
        weight[len(weight) // 2] += 1
        return self._replace(weight=weight)

    def convolve(self, x: Tensor, **options: Any) -> Tensor:
        """conv(x): (B, H, W, C) to the same."""
        out = x.new_empty(x.shape)
        self.write(x, out, **options)
        return out

    def write(self, x: Tensor, out: Tensor, **options: Any) -> None:
        """`native.depthwise` of this kernel: to `out`, or added to it; inside windows, if given."""
        native.depthwise(x, out, self.weight, self.bias, **options)


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
        self.taps: DepthwiseTaps | None = None
        self.taps_with_input: DepthwiseTaps | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        if self.taps is not None and self.taps.takes(x):
            return self.taps.convolve(x)
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def add_to(self, x: Tensor) -> Tensor:
        """x + conv(x), (B, H, W, C) to (B, H, W, C): one convolution, with 1 added to its centre.

        In half precision that 1 would drown the weights, so there it is the sum of two tensors.
        """
        if self.taps_with_input is not None and self.taps_with_input.takes(x):
            return self.taps_with_input.convolve(x)
        if is_half(self.weight, x):
            return x + self(x)
        identity = F.pad(self.weight.new_ones(1, 1, 1, 1), self.padding[::-1] * 2)
        kernel = self.weight + identity
        return self._conv_forward(x.permute(0, 3, 1, 2), kernel, self.bias).permute(0, 2, 3, 1)

    def prepare_for_inference(self) -> None:
        """See `visattn_dense.layers.optimize_for_inference`."""
        self.taps = DepthwiseTaps.of(self.weight, self.bias)
        self.taps_with_input = self.taps.plus_identity()
