"""Stripe attention with the matrix of logits written out (CSWin, arXiv 2107.00652, §3.2–3.3)."""
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, einsum

from ..cswin import StripeAttention, StripeBranch


class NaiveStripeAttention(StripeAttention):
    """softmax(q kᵀ · scale) v + LePE(v), stripe by stripe, with the (N×N) matrix in memory."""

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
        q, k, v = rearrange(padded, 'b (i h) (j w) t (n d) -> t (b i j) n (h w) d',
                            h=h, w=w, n=self.num_heads)
        logits = einsum('b n q d, b n k d -> b n q k', q, k)
        logits = logits * (q.shape[-1] ** -.5 if self.scale is None else self.scale)
        if self.mask_padding:
            real = rearrange(real, 'b (i h) (j w) -> (b i j) 1 1 (h w)', h=h, w=w)
            real = real.repeat(qkv.shape[0], 1, 1, 1)
            logits = logits.masked_fill(real == 0, float('-inf'))
        out = einsum('b n q k, b n k d -> b n q d', logits.softmax(-1), v)

        image = rearrange(v, 'b n (h w) d -> b (n d) h w', h=h)
        lepe = F.conv2d(image, self.get_v.weight, self.get_v.bias, padding=1, groups=image.shape[1])
        out = out + rearrange(lepe, 'b (n d) h w -> b n (h w) d', n=self.num_heads)
        out = rearrange(out, '(b i j) n (h w) d -> b (i h) (j w) (n d)', i=rows, j=cols, h=h)
        return out[:, pads[2]:pads[2] + height, pads[0]:pads[0] + width]
