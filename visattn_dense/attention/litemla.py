"""Multi-scale ReLU linear attention (EfficientViT of MIT, arXiv 2205.14756, §3.1).

A 1×1 convolution makes q, k and v. For each scale s, a depthwise s×s convolution and a grouped 1×1
convolution make another set of q, k and v from neighbouring positions. Every head of every set
attends over the whole map:

    out_i = (Σ_j v_j (k_jᵀ q_i)) / (Σ_j k_jᵀ q_i + eps),  q = relu(·), k = relu(·)

The numerator is computed as (Σ_j v_j k_jᵀ) q_i: linear in the number of positions. The heads of all
sets are concatenated and projected by a 1×1 convolution with BatchNorm.

Shapes: B batch, H×W map, N = H·W positions, C channels, h heads of each scale, d head_dim, S number
of scales. The layout is (B, C, H, W), unlike the other attentions here, because every step except
the products is a convolution.

Official code: mit-han-lab/efficientvit, efficientvit/models/nn/ops.py (`LiteMLA`), with the same
parameter names. Deviations:
- the sum of the keys is computed directly. The official code pads v with ones, which TensorRT
  cannot read (efficientvit issue 63);
- the products are in float32 on every device type; in the official code, on CUDA alone;
- one linear form serves every map. If N ≤ d, the official code computes the same result by the
  quadratic form.
timm's LiteMLA has eps 1e-5.
"""
from collections.abc import Sequence

from torch import Tensor, nn

from visattn_dense.layers import (
    ConvNormAct,
    DepthwiseConv2d,
    EndsInProjection,
    GroupedPointwiseConv,
)
from visattn_dense.ops import UsesOperators
from visattn_dense.ops.linear_attention import relu_attention


class LiteMLA(UsesOperators, EndsInProjection):
    """Multi-scale ReLU linear attention on a map, NCHW in and out.

    Args:
        dim: C, channels in.
        num_heads: h; there are h heads for the original q, k, v and h heads for each scale.
        head_dim: d, C/h by default.
        out_dim: channels out, C by default.
        scales: kernel sizes of the depthwise convolutions, odd; () for none.
        eps: added to the denominator (`eps` of the official `LiteMLA`).
        norm_eps: eps of the BatchNorm after the projection; 1e-7 in the released L models
            (efficientvit/cls_model_zoo.py).

    Raises:
        ValueError: num_heads does not divide dim and head_dim is not given, or a scale is even.
    """

    def __init__(self, dim: int, num_heads: int, *, head_dim: int | None = None,
                 out_dim: int | None = None, scales: Sequence[int] = (5,), eps: float = 1e-15,
                 norm_eps: float = 1e-5) -> None:
        super().__init__()
        if head_dim is None:
            if dim % num_heads:
                raise ValueError(f'num_heads {num_heads} does not divide dim {dim}; '
                                 'choose another or give head_dim')
            head_dim = dim // num_heads
        if any(scale % 2 == 0 for scale in scales):
            raise ValueError(f'scales are odd, so that the map keeps its size; got {scales}')
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.eps = eps
        width = num_heads * head_dim
        self.qkv = ConvNormAct(dim, 3 * width, norm_eps=None, bias=False)
        self.aggreg = nn.ModuleList(
            nn.Sequential(
                DepthwiseConv2d(3 * width, scale, bias=False),
                GroupedPointwiseConv(3 * width, 3 * width, groups=3 * num_heads))
            for scale in scales)
        self.proj = ConvNormAct((1 + len(scales)) * width, out_dim or dim, norm_eps=norm_eps)

    def added(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, out_dim, H, W), plus `onto`, like the result, if given."""
        qkv = self.qkv(x)
        x = self.attend(qkv, *(scale(qkv) for scale in self.aggreg))
        return self.proj(x) if onto is None else self.proj(x, onto)

    def attend(self, *qkv: Tensor) -> Tensor:
        """Attend with the heads of S scales.

        Args:
            qkv: (B, 3·h·d, H, W) of each scale; channels ordered by head, and in a head by q, k, v.

        Returns:
            (B, S·h·d, H, W), in the dtype of `qkv`.
        """
        tokens = [scale.flatten(2).unflatten(1, (self.num_heads, 3, self.head_dim))
                  for scale in qkv]
        out = relu_attention(*tokens, epsilon=self.eps, mode=self.mode)         # (B, S·h, d, N)
        return out.flatten(1, 2).unflatten(-1, qkv[0].shape[2:])
