"""Bi-level routing attention with everything written out (BiFormer, arXiv 2303.08810, §3.2)."""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, einsum

from ..bra import BiLevelRoutingAttention


class NaiveBiLevelRoutingAttention(BiLevelRoutingAttention):
    """Gathers k and v for every region, keeps the copies and the attention matrix."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        height, width = x.shape[1:3]
        n = self.n_win
        x = F.pad(x, (0, 0, 0, -width % n, 0, -height % n))
        qkv = rearrange(self.qkv['qkv'](x), 'b (j h) (i w) c -> b (j i) c h w', j=n, i=n)
        q, k, v = qkv.split([self.qk_dim, self.qk_dim, self.dim], dim=2)
        h, w = q.shape[-2:]

        q_region, k_region = q.mean((-1, -2)), k.mean((-1, -2))
        if not self.router.diff_routing:
            q_region, k_region = q_region.detach(), k_region.detach()
        logits = einsum('b r c, b s c -> b r s', self.router.emb(q_region),
                        self.router.emb(k_region)) * self.scale
        kept, index = logits.topk(min(self.router.topk, n * n))
        weight = kept.softmax(-1)

        k, v = ([self.kv_down(region) for region in t.flatten(0, 1)] for t in (k, v))
        k, v = (torch.stack(t).unflatten(0, (x.shape[0], n * n)) for t in (k, v))
        image = torch.arange(x.shape[0], device=x.device)[:, None, None]
        k, v = k[image, index], v[image, index]                  # (B, R, K, c, h', w')
        if self.soft_routing:
            k, v = k * weight[..., None, None, None], v * weight[..., None, None, None]
        elif self.router.diff_routing:
            factor = 1 + weight - weight.detach()
            k, v = k * factor[..., None, None, None], v * factor[..., None, None, None]

        q = rearrange(q, 'b r (m d) h w -> b r m (h w) d', m=self.num_heads)
        k, v = (rearrange(t, 'b r k (m d) h w -> b r m (k h w) d', m=self.num_heads)
                for t in (k, v))
        attention = (einsum('b r m q d, b r m k d -> b r m q k', q, k) * self.scale).softmax(-1)
        out = einsum('b r m q k, b r m k d -> b r m q d', attention, v)
        out = rearrange(out, 'b (j i) m (h w) d -> b (j h) (i w) (m d)', j=n, h=h)

        if self.lepe is not None:
            values = rearrange(qkv[:, :, 2 * self.qk_dim:], 'b (j i) c h w -> b c (j h) (i w)', j=n)
            lepe = F.conv2d(values, self.lepe.weight, self.lepe.bias,
                            padding=self.lepe.kernel_size[0] // 2, groups=self.dim)
            out = out + rearrange(lepe, 'b c h w -> b h w c')
        return self.wo(out)[:, :height, :width]
