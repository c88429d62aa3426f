"""Focused linear attention in the cross of CSWin (FLatten, arXiv 2308.00442, §4.1–4.2).

Inside a window of N tokens, with q, k, v of C' channels in h heads of d = C'/h:

    φ(t) = f_p((relu(t) + ε) / softplus(scale)),   f_p(t) = t^p · ‖t‖ / ‖t^p‖,   k ← k + position
    out_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i) · Σ_j φ(k_j) + ε) + DWC(v)_i + LePE(v)_i

The norms run over all C' channels of a token, the products over those of a head. DWC is a depthwise
convolution with one kernel for each channel of a head, the same for all heads; LePE is CSWin's.
Both are zero-padded at the border of the window, so they are carried out as one convolution.

Shapes: B batch, H×W map, C channels of the block, S windows (stripes, or the whole map as one).
The sums over j are taken once for all i, N·d² for each head: linear in the number of tokens.

Official code: LeapLabTHU/FLatten-Transformer, models/flatten_cswin.py. Deviations:
- the official file now has Σ_j φ(k_j) / N in the denominator, against overflow in half precision.
  That makes its ε count N times as much, which shows where a head has hardly an active channel,
  and it fails where windows are smaller than the map. Here it is the paper's sum, in float32;
- any H and W: the position table is resized (bicubic, two axes) from the window it was trained on,
  and the map is padded as in CSWin where stripes do not divide it. φ(0 + position) is not zero, so
  padded keys would count; they are left out exactly (the official code never pads);
- φ, the sums and the division are computed in float32 whatever the autocast, so that neither the
  powers nor the sums leave the range of half precision; ‖t‖ is divided out before the power, so
  that it does not leave float32's either.
"""
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visattn_dense.layers import (
    DepthwiseConv,
    DepthwiseTaps,
    crop,
    is_padded,
    merge_windows,
    pad_to_multiple,
    partition_windows,
    resize_position_grid,
    without_autocast,
)
from visattn_dense.ops import native
from visattn_dense.ops.group_attention.rows import window_groups

from .cswin import CrossShapedAttention, Direction, StripeBranch

# Official code, FocusedLinearAttention.forward: both after the ReLU and in the denominator.
EPS = 1e-6


def focus(t: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """f_p(t) = t^p · ‖t‖ / ‖t^p‖ as a factor times a tensor of powers, safe from overflow.

    Args:
        t: (..., C'), positive.
        power: p, the focusing factor.

    Returns:
        u^p with u = t / ‖t‖, (..., C'), and ‖t‖ / ‖u^p‖, (..., 1): their product is f_p(t).
    """
    norm = torch.linalg.vector_norm(t, dim=-1, keepdim=True)
    powers = (t / norm) ** power
    return powers, norm / torch.linalg.vector_norm(powers, dim=-1, keepdim=True)


class FocusedStripeAttention(StripeBranch):
    """Focused linear attention inside the stripes of one direction: one branch of the cross.

    Args:
        dim, num_heads, direction, stripe_width: see `StripeBranch`.
        native_size: (H, W) of the map that the position table is made for; on any other map the
            table is resized as it is used.
        focusing_factor: p.
        kernel_size: side of DWC's kernel, odd.
    """

    def __init__(self, dim: int, num_heads: int, *, direction: Direction, stripe_width: int = 7,
                 native_size: tuple[int, int], focusing_factor: float = 3,
                 kernel_size: int = 5) -> None:
        super().__init__(dim, num_heads, direction=direction, stripe_width=stripe_width)
        self.native_window = self.window_size(*native_size)
        self.focusing_factor = focusing_factor
        # The names are the official ones.
        self.dwc = DepthwiseConv(dim // num_heads, kernel_size)
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        height, width = self.native_window
        self.positional_encoding = nn.Parameter(torch.zeros(1, height * width, dim))
        self.taps: DepthwiseTaps | None = None

    def prepare_for_inference(self) -> None:
        """See `visattn_dense.layers.optimize_for_inference`."""
        self.taps = DepthwiseTaps.of(*self._both_kernels())
        self.inverse_scale = 1 / F.softplus(self.scale.detach().flatten())

    def write(self, qkv: Tensor, out: Tensor) -> None:
        q, k, v = qkv.unbind(3)
        if self.focusing_factor not in range(1, 9) or not self.taps.takes(v):
            return super().write(qkv, out)
        batch, height, width, _ = v.shape
        window = self.window_size(height, width)
        groups, corner = window_groups(batch, height, width, window, False)
        position = resize_position_grid(self.positional_encoding, self.native_window, window)
        self.taps.write(v, out, window=window, corner=corner)
        native.focused(q, k, v, out, groups, heads=self.num_heads, epsilon=EPS,
                       position=position, inverse_scale=self.inverse_scale,
                       power=int(self.focusing_factor))

    def forward(self, qkv: Tensor) -> Tensor:
        """Attend.

        Args:
            qkv: (B, H, W, 3, C'), queries, keys and values of the branch.

        Returns:
            (B, H, W, C').
        """
        window = self.window_size(*qkv.shape[1:3])
        padded, pads = pad_to_multiple(qkv, window, centred=True)
        stripes = partition_windows(padded, window)              # (B·S, h, w, 3, C')
        on_map = self.tokens_on_map(qkv) if is_padded(pads) else None

        local = self.convolve(stripes[..., 2, :])
        q, k, v = stripes.flatten(1, 2).unbind(2)                # each (B·S, N, C')
        position = resize_position_grid(self.positional_encoding, self.native_window, window)
        out = self.attend(q, k, v, position, on_map)             # (B·S, N, heads, d), float32

        out = local.flatten(1, 2).unflatten(-1, (self.num_heads, -1)) + out
        out = out.to(qkv.dtype).reshape(local.shape)
        return crop(merge_windows(out, padded.shape[1:3]), pads)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, position: Tensor,
               on_map: Tensor | None) -> Tensor:
        """The linear attention of each window, in float32 or wider.

        Args:
            q, k, v: (B·S, N, C').
            position: (1, N, C'), added to k.
            on_map: (B·S, N) bool, the tokens that are no padding; None where all are.

        Returns:
            (B·S, N, heads, d).
        """
        with without_autocast(q):
            dtype = torch.promote_types(q.dtype, torch.float32)
            q, k, v, position = (t.to(dtype) for t in (q, k, v, position))
            inverse_scale = 1 / F.softplus(self.scale.to(dtype))
            q, q_factor = focus(self._positive(q, inverse_scale), self.focusing_factor)
            k, k_factor = focus(self._positive(k + position, inverse_scale), self.focusing_factor)
            if on_map is not None:
                k_factor = k_factor * on_map[..., None]
            k = k * k_factor                                     # φ(k), 0 where padded

            q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
            summary = k.transpose(-2, -1) @ v                    # (B·S, heads, d, d)
            weight = k.sum(-2, keepdim=True).transpose(-2, -1)   # (B·S, heads, d, 1)
            # q's factor stands above and below the line, so it is divided out of both.
            norm = q @ weight + (EPS / q_factor)[:, None]        # (B·S, heads, N, 1)
            return ((q @ summary) / norm).transpose(1, 2)

    def convolve(self, v: Tensor) -> Tensor:
        """DWC(v) + LePE(v) as one convolution with the sum of both kernels: (B·S, h, w, C')."""
        if self.taps is not None and self.taps.takes(v):
            return self.taps.convolve(v)
        kernel, bias = self._both_kernels()
        out = F.conv2d(v.permute(0, 3, 1, 2), kernel, bias, padding=kernel.shape[-1] // 2,
                       groups=kernel.shape[0])
        return out.permute(0, 2, 3, 1)

    def _both_kernels(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that is the sum of DWC and LePE."""
        shared, own = self.dwc.weight.repeat(self.num_heads, 1, 1, 1), self.get_v.weight
        margin = (shared.shape[-1] - own.shape[-1]) // 2
        kernel = (shared + F.pad(own, (margin,) * 4) if margin >= 0
                  else F.pad(shared, (-margin,) * 4) + own)
        return kernel, self.dwc.bias.repeat(self.num_heads) + self.get_v.bias

    @staticmethod
    def _positive(t: Tensor, inverse_scale: Tensor) -> Tensor:
        """(relu(t) + ε) / softplus(scale)."""
        return torch.addcmul(EPS * inverse_scale, t.relu(), inverse_scale)


class FocusedLinearAttention(CrossShapedAttention):
    """Focused linear attention on a map: the cross of `FocusedStripeAttention`.

    Args:
        dim, num_heads, stripe_width, qkv_bias: see `CrossShapedAttention`; all heads over the whole
            map by default, as in the released models.
        native_size, focusing_factor, kernel_size: see `FocusedStripeAttention`.
    """

    def __init__(self, dim: int, num_heads: int, *, native_size: tuple[int, int],
                 stripe_width: int | None = None, qkv_bias: bool = True,
                 focusing_factor: float = 3, kernel_size: int = 5) -> None:
        super().__init__(dim, num_heads, stripe_width=stripe_width, qkv_bias=qkv_bias,
                         branch=partial(FocusedStripeAttention, native_size=native_size,
                                        focusing_factor=focusing_factor, kernel_size=kernel_size))
