"""Focused linear attention with its (N×N) weights written out (FLatten, arXiv 2308.00442, §4)."""
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, einsum

from ..cswin import StripeBranch
from ..focused import FocusedStripeAttention


class NaiveFocusedStripeAttention(FocusedStripeAttention):
    """a_ij = φ(q_i) · φ(k_j),  out_i = Σ_j a_ij v_j / (Σ_j a_ij + ε) + DWC(v)_i + LePE(v)_i."""

    write = StripeBranch.write                # this forward's result, not the kernels'

    def forward(self, qkv: Tensor) -> Tensor:
        """(B, H, W, 3, C') to (B, H, W, C')."""
        height, width = qkv.shape[1:3]
        h, w = self.window_size(height, width)
        pad_h, pad_w = -height % h, -width % w
        pads = (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2)
        real = F.pad(qkv.new_ones(1, height, width), pads)
        padded = F.pad(qkv, (0, 0, 0, 0, *pads))
        rows, cols = padded.shape[1] // h, padded.shape[2] // w
        q, k, v = rearrange(padded, 'b (i h) (j w) t c -> t (b i j) (h w) c', h=h, w=w)
        real = rearrange(real, 'b (i h) (j w) -> (b i j) (h w)', h=h, w=w)
        real = real.repeat(qkv.shape[0], 1)

        native_h, native_w = self.native_window
        table = rearrange(self.positional_encoding, 'b (h w) c -> b c h w', h=native_h, w=native_w)
        table = F.interpolate(table, (h, w), mode='bicubic')
        k = k + rearrange(table, 'b c h w -> b (h w) c')

        q, k, v = (rearrange(t, 'b n (m d) -> b m n d', m=self.num_heads)
                   for t in (self.feature(q), self.feature(k), v))
        weights = einsum('b m q d, b m k d -> b m q k', q, k)
        weights = weights * real[:, None, None, :]
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
        out = einsum('b m q k, b m k d -> b m q d', weights, v)

        image = rearrange(v, 'b m (h w) d -> (b m) d h w', h=h)
        dwc = F.conv2d(image, self.dwc.weight, self.dwc.bias, padding='same', groups=image.shape[1])
        out = out + rearrange(dwc, '(b m) d h w -> b m (h w) d', m=self.num_heads)
        image = rearrange(v, 'b m (h w) d -> b (m d) h w', h=h)
        lepe = F.conv2d(image, self.get_v.weight, self.get_v.bias, padding=1, groups=image.shape[1])
        out = out + rearrange(lepe, 'b (m d) h w -> b m (h w) d', m=self.num_heads)
        out = rearrange(out, '(b i j) m (h w) d -> b (i h) (j w) (m d)', i=rows, j=cols, h=h)
        return out[:, pads[2]:pads[2] + height, pads[0]:pads[0] + width]

    def feature(self, t: Tensor) -> Tensor:
        """φ(t): (..., C') to (..., C')."""
        t = (t.relu() + 1e-6) / F.softplus(self.scale)
        powers = t ** self.focusing_factor
        return powers * t.norm(dim=-1, keepdim=True) / powers.norm(dim=-1, keepdim=True)
