"""Focused linear attention in the cross of CSWin (FLatten, arXiv 2308.00442, §4.1–4.2).

Inside a window of N tokens, with q, k, v of C' channels in h heads of d = C'/h:

    φ(t) = f_p((relu(t) + ε) / softplus(scale)),   f_p(t) = t^p · ‖t‖ / ‖t^p‖,   k ← k + position
    out_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i) · Σ_j φ(k_j) + ε) + DWC(v)_i + LePE(v)_i

The norms run over all C' channels of a token, the products over the d channels of a head. DWC is a
depthwise convolution with one kernel for each channel of a head; all heads share these kernels.
LePE is CSWin's. DWC and LePE are both zero-padded at the border of the window, so one convolution
computes both.

Shapes: B batch, H×W map, C channels of the block, S windows (stripes, or one window for the whole
map). The sums over j are computed once for all i. They take N·d² products for each head, so the
cost is linear in the number of tokens.

Official code: LeapLabTHU/FLatten-Transformer, models/flatten_cswin.py. Deviations:
- The denominator is the paper's sum, Σ_j φ(k_j) + ε, in float32. Since May 2024 the official file
  has the mean, Σ_j φ(k_j) / N + ε, against overflow in half precision. With the mean, ε has N times
  the effect. The outputs differ clearly if nearly all channels of a head are inactive. The official
  file also fails if a window is smaller than the map.
- Any H and W work. The position table is resized (bicubic, two axes) from the window of its
  training. A map that stripes do not divide is padded as in CSWin. The padded keys take no part:
  φ(0 + position) is not zero, so they would count. The official code never pads.
- φ, the sums and the division are computed in float32, also inside autocast, because powers and
  sums overflow in half precision. t is divided by ‖t‖ before the power, so that the power does not
  overflow in float32.
"""
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visattn_dense.layers import DepthwiseConv, resize_position_grid
from visattn_dense.layers.plain import parameters_of
from visattn_dense.ops.linear_attention import focused_attention

from .cswin import CrossShapedAttention, Direction, StripeBranch

# ε of the official code (FocusedLinearAttention.forward), after the ReLU and in the denominator.
EPS = 1e-6


class FocusedStripeAttention(StripeBranch):
    """Focused linear attention inside the stripes of one direction: one branch of the cross.

    Args:
        dim, num_heads, direction, stripe_width: see `StripeBranch`.
        native_size: (H, W) of the map that the position table is made for. For a map of another
            size, each forward resizes the table.
        focusing_factor: p.
        kernel_size: side of DWC's kernel, odd.
    """

    def __init__(self, dim: int, num_heads: int, *, direction: Direction, stripe_width: int = 7,
                 native_size: tuple[int, int], focusing_factor: float = 3,
                 kernel_size: int = 5) -> None:
        super().__init__(dim, num_heads, direction=direction, stripe_width=stripe_width)
        self.native_window = self.window_size(*native_size)
        self.focusing_factor = focusing_factor
        # These names are the official names.
        self.dwc = DepthwiseConv(dim // num_heads, kernel_size)
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        height, width = self.native_window
        self.positional_encoding = nn.Parameter(torch.zeros(1, height * width, dim))

    def forward(self, qkv: Tensor) -> Tensor:
        """Attend.

        Args:
            qkv: (B, H, W, 3, C'), queries, keys and values of the branch.

        Returns:
            (B, H, W, C').
        """
        window = self.window_size(*qkv.shape[1:3])
        position = self.positional_encoding
        if window != self.native_window:
            position = self.prepared(resize_position_grid, position, self.native_window, window)
        kernel, bias = self.local_kernel()
        return focused_attention(
            qkv, window, num_heads=self.num_heads, position=position, scale=self.scale,
            power=self.focusing_factor, epsilon=EPS, kernel=kernel, bias=bias, mode=self.mode)

    def local_kernel(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of one convolution of v that equals the sum of DWC and LePE."""
        return self.prepared(_sum_of_convolutions, *parameters_of(self.dwc),
                             *parameters_of(self.get_v), self.num_heads)


def _sum_of_convolutions(weight: Tensor, bias: Tensor, own: Tensor, own_bias: Tensor,
                         num_heads: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of conv(each head; weight, bias) + conv(own, own_bias)."""
    shared = weight.repeat(num_heads, 1, 1, 1)
    margin = (shared.shape[-1] - own.shape[-1]) // 2
    kernel = (shared + F.pad(own, (margin,) * 4) if margin >= 0
              else F.pad(shared, (-margin,) * 4) + own)
    return kernel, bias.repeat(num_heads) + own_bias


class FocusedLinearAttention(CrossShapedAttention):
    """Focused linear attention on a map: the cross with `FocusedStripeAttention`.

    Args:
        dim, num_heads, stripe_width, qkv_bias: see `CrossShapedAttention`. By default all heads
            attend over the whole map, as in the released models.
        native_size, focusing_factor, kernel_size: see `FocusedStripeAttention`.
    """

    def __init__(self, dim: int, num_heads: int, *, native_size: tuple[int, int],
                 stripe_width: int | None = None, qkv_bias: bool = True,
                 focusing_factor: float = 3, kernel_size: int = 5) -> None:
        super().__init__(dim, num_heads, stripe_width=stripe_width, qkv_bias=qkv_bias,
                         branch=partial(FocusedStripeAttention, native_size=native_size,
                                        focusing_factor=focusing_factor, kernel_size=kernel_size))
