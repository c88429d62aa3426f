"""Multi-scale ReLU linear attention with the N×N weights written out (arXiv 2205.14756, §3.1)."""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, einsum

from ..litemla import LiteMLA


class NaiveLiteMLA(LiteMLA):
    """out_i = Σ_j w_ij v_j with w_ij = q_i·k_j / (Σ_j q_i·k_j + eps), head by head."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_dim, H, W)."""
        qkv = self.qkv(x)
        scales = [qkv]
        for depthwise, grouped in self.aggreg:
            near = F.conv2d(qkv, depthwise.weight, padding=depthwise.weight.shape[-1] // 2,
                            groups=qkv.shape[1])
            # The 1×1 convolution mixes the d channels of q, of k and of v of each head.
            weight = rearrange(grouped.weight, '(g o) i 1 1 -> g o i', g=3 * self.num_heads)
            near = rearrange(near, 'b (g i) h w -> b g i h w', g=3 * self.num_heads)
            near = einsum('g o i, b g i h w -> b g o h w', weight, near)
            scales.append(rearrange(near, 'b g o h w -> b (g o) h w'))

        q, k, v = rearrange(torch.cat(scales, dim=1), 'b (n t d) h w -> t b n (h w) d', t=3,
                            d=self.head_dim)
        products = einsum('b n q d, b n k d -> b n q k', q.relu(), k.relu())
        weights = products / (products.sum(-1, keepdim=True) + self.eps)
        out = einsum('b n q k, b n k d -> b n q d', weights, v)
        return self.proj(rearrange(out, 'b n (h w) d -> b (n d) h w', h=x.shape[2]))
