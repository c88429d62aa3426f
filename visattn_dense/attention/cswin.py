"""Cross-shaped window attention with LePE (CSWin, arXiv 2107.00652, §3.2–3.3).

Half of the heads attend in vertical stripes, the other half in horizontal stripes. Inside a stripe

    out = softmax(q kᵀ · scale) v + LePE(v)

LePE is a depthwise 3×3 convolution of v, zero-padded at the border of the stripe.

Shapes: B batch, H×W map, C channels of the block, h heads, d = C/h, S stripes of N tokens. A branch
has C' = C/2 channels and h/2 heads. If the stripe is the whole map, a branch has all C channels and
h heads.

Official code: microsoft/CSWin-Transformer, segmentation/backbone/cswin_transformer.py. Deviations:
heads and channels are arguments, not inferred from the stage; the padding of the map can be masked
(`mask_padding`), which the official code does not offer.
"""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from visattn_dense.layers import DepthwiseConv, is_called_plainly
from visattn_dense.layers.linear import EndsInLinear, linear
from visattn_dense.layers.plain import parameters_of
from visattn_dense.ops import UsesOperators
from visattn_dense.ops.group_attention import window_attention

Direction = Literal['vertical', 'horizontal', 'full']


class StripeBranch(UsesOperators, nn.Module):
    """One branch of the cross: the attention inside the stripes of one direction.

    A subclass defines forward(qkv): (B, H, W, 3, C') to (B, H, W, C'), and may define `cross`.

    Args:
        dim: C', channels of the branch.
        num_heads: heads of the branch; divides `dim`.
        direction: 'vertical': stripes with the map's height and `stripe_width` columns.
            'horizontal': stripes with `stripe_width` rows and the map's width.
            'full': one stripe, the whole map.
        stripe_width: columns or rows of a stripe; not used by 'full'.

    Raises:
        ValueError: heads do not divide channels, or an unknown direction.
    """

    def __init__(self, dim: int, num_heads: int, *, direction: Direction,
                 stripe_width: int = 7) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'num_heads {num_heads} does not divide dim {dim}')
        if direction not in ('vertical', 'horizontal', 'full'):
            raise ValueError(f"direction is 'vertical', 'horizontal' or 'full', got {direction!r}")
        if stripe_width < 1:
            raise ValueError(f'stripe_width is at least 1, got {stripe_width}')
        self.num_heads = num_heads
        self.direction = direction
        self.stripe_width = stripe_width
        self.get_v = DepthwiseConv(dim)

    def window_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of a stripe on a map of height × width."""
        if self.direction == 'vertical':
            return height, self.stripe_width
        return (self.stripe_width, width) if self.direction == 'horizontal' else (height, width)

    @staticmethod
    def cross(branches: Sequence['StripeBranch'], qkv: Tensor) -> Tensor:
        """All branches of a cross, side by side.

        Args:
            branches: of one class and one mode.
            qkv: (B, H, W, 3, C), queries, keys and values of the branches one after another.

        Returns:
            (B, H, W, C).
        """
        # The backward pass of unbind writes each gradient once.
        parts = qkv.unflatten(-1, (len(branches), -1)).unbind(-2)
        out = [branch(part) for branch, part in zip(branches, parts, strict=True)]
        return torch.cat(out, dim=-1) if len(out) > 1 else out[0]


class StripeAttention(StripeBranch):
    """Softmax attention inside the stripes of one direction.

    Args:
        dim, num_heads, direction, stripe_width: see `StripeBranch`.
        scale: factor of the logits, (C'/heads)^-½ by default.
        mask_padding: leave the padding out of the softmax. By default the keys in the padding take
            part with logit 0: the released dense checkpoints were trained in this way.
    """

    def __init__(self, dim: int, num_heads: int, *, direction: Direction, stripe_width: int = 7,
                 scale: float | None = None, mask_padding: bool = False) -> None:
        super().__init__(dim, num_heads, direction=direction, stripe_width=stripe_width)
        self.scale = scale
        self.mask_padding = mask_padding

    def forward(self, qkv: Tensor) -> Tensor:
        """Attend.

        Args:
            qkv: (B, H, W, 3, C'), queries, keys and values of the branch.

        Returns:
            (B, H, W, C').
        """
        return _attend([self], qkv)

    @staticmethod
    def cross(branches: Sequence['StripeAttention'], qkv: Tensor) -> Tensor:
        """See `StripeBranch.cross`. One call of the operator, where nothing watches a branch."""
        plain = all(type(branch).forward is StripeAttention.forward and (
            torch.compiler.is_compiling() or is_called_plainly(branch)) for branch in branches)
        return _attend(branches, qkv) if plain else StripeBranch.cross(branches, qkv)


def _attend(branches: Sequence[StripeAttention], qkv: Tensor) -> Tensor:
    """The branches, which differ in their direction and in LePE alone, side by side."""
    first, size = branches[0], qkv.shape[1:3]
    kernels, biases = zip(*[parameters_of(branch.get_v) for branch in branches], strict=True)
    return window_attention(
        qkv, [branch.window_size(*size) for branch in branches],
        num_heads=first.num_heads * len(branches), scale=first.scale,
        padding_counts=not first.mask_padding,
        kernels=kernels, biases=biases, mode=first.mode)


class CrossShapedAttention(EndsInLinear):
    """The cross on a map: project, attend in both directions, project. `branch` is the attention.

    The first half of the heads (and of the channels) attend in vertical stripes, the second half in
    horizontal stripes. With `stripe_width=None` all heads attend over the whole map.

    Args:
        dim: C.
        num_heads: h; even if there are stripes.
        stripe_width: columns (rows) of a vertical (horizontal) stripe, or None.
        qkv_bias: whether the qkv projection has a bias.
        branch: a function of (C', heads, direction=, stripe_width=) that returns a `StripeBranch`.

    Raises:
        ValueError: heads cannot be halved or do not divide the channels.
    """

    last = 'proj'

    def __init__(self, dim: int, num_heads: int, *, stripe_width: int | None, qkv_bias: bool,
                 branch: Callable[..., StripeBranch]) -> None:
        super().__init__()
        self.directions: tuple[Direction, ...] = (
            ('full',) if stripe_width is None else ('vertical', 'horizontal'))
        branches = len(self.directions)
        if num_heads % branches or dim % num_heads:
            raise ValueError(
                f'{branches} branch(es) need num_heads that {branches} divides and that divides '
                f'dim; got dim {dim}, num_heads {num_heads}')
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attns = nn.ModuleList(
            branch(dim // branches, num_heads // branches, direction=direction,
                   stripe_width=1 if stripe_width is None else stripe_width)
            for direction in self.directions)
        self.proj = nn.Linear(dim, dim)

    def before_last(self, x: Tensor) -> Tensor:
        """The attention without the last projection: (B, H, W, C) to (B, H, W, C)."""
        qkv = linear(self.qkv, x).unflatten(-1, (3, -1))
        branches = list(self.attns)
        return branches[0].cross(branches, qkv)


class CrossShapedWindowAttention(CrossShapedAttention):
    """Cross-shaped window attention on a map: the cross with `StripeAttention`.

    Args:
        dim, num_heads, stripe_width, qkv_bias: see `CrossShapedAttention`.
        mask_padding: see `StripeAttention`.
    """

    def __init__(self, dim: int, num_heads: int, *, stripe_width: int | None = 7,
                 qkv_bias: bool = True, mask_padding: bool = False) -> None:
        super().__init__(dim, num_heads, stripe_width=stripe_width, qkv_bias=qkv_bias,
                         branch=partial(StripeAttention, mask_padding=mask_padding))
