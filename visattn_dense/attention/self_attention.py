"""Multi-head self-attention over all positions (arXiv 1706.03762), plain and with LePE.

    out = softmax(q kᵀ · scale) v,  q, k, v = qkv(x)

Shapes: x (B, ..., C); all dimensions between the first and the last are positions: N tokens
(B, N, C), or a map (B, H, W, C) of any size. h heads, d = C/h.
"""
from torch import Tensor, nn

from visattn_dense.layers import DepthwiseConv
from visattn_dense.layers.linear import EndsInLinear, linear
from visattn_dense.ops import UsesOperators
from visattn_dense.ops.group_attention import full_attention


class SelfAttention(UsesOperators, EndsInLinear):
    """proj(softmax(q kᵀ · scale) v) over all positions.

    Args:
        dim: C.
        num_heads: h; divides `dim`.
        qkv_bias: whether the qkv projection has a bias.
        scale: factor of the logits, d^-½ by default. The scale belongs to the checkpoint: the
            released T2T-ViT weights were trained with C^-½.

    Raises:
        ValueError: heads do not divide channels.
    """

    last = 'proj'

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = False,
                 scale: float | None = None) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'num_heads {num_heads} does not divide dim {dim}')
        self.num_heads = num_heads
        self.scale = scale
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def attend(self, x: Tensor) -> Tensor:
        """The attention without the last projection: (B, ..., C) to (B, ..., C)."""
        q, k, v = linear(self.qkv, x).flatten(1, -2).chunk(3, dim=-1)     # each (B, N, C)
        out = full_attention(q, k, v, num_heads=self.num_heads, scale=self.scale, mode=self.mode)
        return out.view(x.shape)

    def before_last(self, x: Tensor) -> Tensor:
        """See `EndsInLinear`."""
        return self.attend(x)


class LePESelfAttention(SelfAttention):
    """Self-attention on a map with a depthwise convolution of its *input* added before `proj`.

    The attention of BiFormer's last stage (rayleizhu/BiFormer, models/_common.py, AttentionLePE).
    Here LePE is a convolution of the attention's input; in other attentions, of the values.

    Args:
        dim, num_heads, qkv_bias, scale: see `SelfAttention`.
        lepe_kernel_size: kernel size of the depthwise convolution, odd.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, qkv_bias: bool = False,
                 scale: float | None = None, lepe_kernel_size: int = 5) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, scale=scale)
        self.lepe = DepthwiseConv(dim, lepe_kernel_size)

    def before_last(self, x: Tensor) -> Tensor:
        """The attention and LePE without the last projection: (B, H, W, C) to (B, H, W, C)."""
        return self.lepe(x, onto=self.attend(x))
