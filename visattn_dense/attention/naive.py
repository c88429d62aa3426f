"""The equation of every attention, slow and obvious. The tests compare the fast modules with it.

Each naive class is a subclass of the module that it explains, with the same parameters. The
operators of a naive class compute by their equations (`reference` in the folders of
`visattn_dense.ops`). The rest of the module is written out here. `as_naive` converts a whole
network.
"""
import copy

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, einsum, nn

from visattn_dense.ops.group_attention import reference

from .bra import BiLevelRoutingAttention
from .cswin import StripeAttention
from .focused import FocusedStripeAttention
from .ghost import GhostSelfAttention
from .litemla import LiteMLA
from .self_attention import SelfAttention
from .squeeze_excitation import SESelfAttention
from .tokens import TokenPerformer, WideSelfAttention


class NaiveStripeAttention(StripeAttention):
    """softmax(q kᵀ · scale) v + LePE(v), stripe by stripe, with the (N×N) matrix in memory."""
    mode = 'reference'


class NaiveSelfAttention(SelfAttention):
    """proj(softmax(q kᵀ · scale) v) with the matrices in memory."""
    mode = 'reference'


class NaiveSESelfAttention(SESelfAttention):
    """The same, with squeeze-and-excitation after proj."""
    mode = 'reference'


class NaiveGhostSelfAttention(GhostSelfAttention):
    """proj(softmax(q kᵀ · scale) v) with the matrices in memory; half of q, k and v are ghosts."""
    mode = 'reference'


class NaiveWideSelfAttention(WideSelfAttention):
    """v + proj(softmax(q kᵀ · scale) v) with the matrix in memory."""
    mode = 'reference'


class NaiveTokenPerformer(TokenPerformer):
    """The performer with its kernel matrix φ(q)·φ(k) in memory: quadratic, no reordering."""
    mode = 'reference'


class NaiveFocusedStripeAttention(FocusedStripeAttention):
    """a_ij = φ(q_i) · φ(k_j),  out_i = Σ_j a_ij v_j / (Σ_j a_ij + ε) + DWC(v)_i + LePE(v)_i."""
    mode = 'reference'


class NaiveLiteMLA(LiteMLA):
    """out_i = Σ_j w_ij v_j with w_ij = q_i·k_j / (Σ_j q_i·k_j + eps), head by head."""
    mode = 'reference'

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
        return self.proj(self.attend(*scales))


class NaiveBiLevelRoutingAttention(BiLevelRoutingAttention):
    """Gathers k and v for every region, and keeps the copies and the attention matrix."""
    mode = 'reference'

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        height, width = x.shape[1:3]
        n = self.n_win
        x = F.pad(x, (0, 0, 0, -width % n, 0, -height % n))
        q, k, v = self.qkv['qkv'](x).split([self.qk_dim, self.qk_dim, self.dim], dim=-1)

        q_region, k_region = (rearrange(t, 'b (j h) (i w) c -> b (j i) (h w) c', j=n, i=n).mean(2)
                              for t in (q, k))
        if not self.router.diff_routing:
            q_region, k_region = q_region.detach(), k_region.detach()
        logits = einsum('b r c, b s c -> b r s', self.router.emb(q_region),
                        self.router.emb(k_region)) * self.scale
        kept, index = logits.topk(min(self.router.topk, n * n))
        weight = kept.softmax(-1)
        factor = (weight if self.soft_routing else
                  1 + weight - weight.detach() if self.router.diff_routing else None)

        out = reference.region_attention(q, k, v, index, num_heads=self.num_heads, n_win=n,
                                         scale=self.scale, weight=factor, pool=self.pool)
        if self.lepe is not None:
            lepe = F.conv2d(rearrange(v, 'b h w c -> b c h w'), self.lepe.weight, self.lepe.bias,
                            padding=self.lepe.kernel_size[0] // 2, groups=self.dim)
            out = out + rearrange(lepe, 'b c h w -> b h w c')
        return self.wo(out)[:, :height, :width]


NAIVE: dict[type[nn.Module], type[nn.Module]] = {
    BiLevelRoutingAttention: NaiveBiLevelRoutingAttention,
    StripeAttention: NaiveStripeAttention,
    FocusedStripeAttention: NaiveFocusedStripeAttention,
    GhostSelfAttention: NaiveGhostSelfAttention,
    LiteMLA: NaiveLiteMLA,
    SESelfAttention: NaiveSESelfAttention,
    SelfAttention: NaiveSelfAttention,
    TokenPerformer: NaiveTokenPerformer,
    WideSelfAttention: NaiveWideSelfAttention,
}


def as_naive(module: nn.Module) -> nn.Module:
    """Replace every attention inside `module` by its naive form.

    Returns:
        `module`, changed in place. If `module` itself is an attention: its naive form.
        Parameters and buffers are not copied: they are those of `module`.

    Raises:
        ValueError: there is nothing to replace.
    """
    if type(module) in NAIVE:
        return _naive(module)
    found = [(parent, name, child) for parent in module.modules()
             for name, child in parent.named_children() if type(child) in NAIVE]
    if not found:
        raise ValueError(f'{type(module).__name__} holds no attention that has a naive form; '
                         f'those are {", ".join(cls.__name__ for cls in NAIVE)}')
    for parent, name, child in found:
        setattr(parent, name, _naive(child))
    return module


def _naive(attention: nn.Module) -> nn.Module:
    """A module of the naive class with the parameters, buffers and attributes of `attention`."""
    naive = NAIVE[type(attention)].__new__(NAIVE[type(attention)])
    naive.__setstate__({key: copy.copy(held) for key, held in vars(attention).items()})
    return naive
