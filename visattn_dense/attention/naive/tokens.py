"""The attentions of tokens-to-token, written out (T2T-ViT, arXiv 2101.11986, §3.1)."""
import math

import torch
from torch import Tensor, einsum

from ..self_attention import SelfAttention
from ..tokens import TokenPerformer, WideSelfAttention


class NaiveTokenPerformer(TokenPerformer):
    """The performer with its kernel matrix φ(q)·φ(k) in memory: quadratic, no reordering."""

    def attend(self, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """(B, N, D) each, and out."""
        m = self.w.shape[0]
        phi_k, phi_q = (
            (einsum('b n d, m d -> b n m', t, self.w) - (t * t).sum(-1, keepdim=True) / 2).exp()
            / math.sqrt(m) for t in (k, q))
        kernel = einsum('b n m, b s m -> b n s', phi_q, phi_k)
        return einsum('b n s, b s d -> b n d', kernel, v) / (kernel.sum(-1, keepdim=True)
                                                             + self.eps)


class NaiveWideSelfAttention(WideSelfAttention):
    """v + proj(softmax(q kᵀ · scale) v) with the matrix in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., C) to (B, ..., D)."""
        q, k, v = self.qkv(x.flatten(1, -2)).chunk(3, dim=-1)
        matrix = (einsum('b n d, b s d -> b n s', q, k) * self.scale).softmax(-1)
        out = v + self.proj(einsum('b n s, b s d -> b n d', matrix, v))
        return out.reshape(*x.shape[:-1], -1)


class NaiveSelfAttention(SelfAttention):
    """proj(softmax(q kᵀ · scale) v) with the matrices in memory."""

    def attend(self, x: Tensor) -> Tensor:
        """(B, ..., C) to the same shape."""
        tokens = x.flatten(1, -2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        heads = []
        for q_h, k_h, v_h in zip(*(t.chunk(self.num_heads, -1) for t in (q, k, v)), strict=True):
            scale = q_h.shape[-1] ** -.5 if self.scale is None else self.scale
            matrix = (einsum('b n d, b s d -> b n s', q_h, k_h) * scale).softmax(-1)
            heads.append(einsum('b n s, b s d -> b n d', matrix, v_h))
        return torch.cat(heads, -1).view(x.shape)
