"""FLOPs of a forward pass, attention included.

    FLOPs = 2 · MACs,   MACs: multiplications of matrix products, convolutions and attention

Counters that hook modules leave attention out where it is a fused call without a module (mmcv
#2342). torch's counter sees every operator instead; it is told here about those it does not know.
Norms, activations, softmax and sampling are not counted, as usual. With a runtime of operators that
skip work (masks), the count is that of the dense form.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

Shape = torch.Size


class FlopCount(NamedTuple):
    """FLOPs of one pass; `attention` are those of fused attention operators."""

    total: int
    attention: int


def count_flops(run: Callable[[], object]) -> FlopCount:
    """Run once and count.

    Args:
        run: the pass, eager: compiled code hides its operators.

    Returns:
        The FLOPs of all operators that ran, and of them those of fused attention.
    """
    with FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
        run()
    found = counter.get_flop_counts().get('Global', {})
    attention = sum(count for operator, count in found.items() if 'attention' in str(operator))
    return FlopCount(counter.get_total_flops(), attention)


def formulas() -> dict:
    """Formulas for our operators, and for those of torch that this release does not count."""
    # The operators are registered by their import.
    from visattn_dense.attention import routed  # noqa: F401
    known = {torch.ops.visattn.routed_attention: _routed_attention,
             torch.ops.visattn.group_attention: _group_attention,
             torch.ops.visattn.window_attention: _window_attention,
             torch.ops.visattn.depthwise_triton: _depthwise,
             torch.ops.visattn.grouped_pointwise_triton: _grouped_pointwise,
             torch.ops.visattn.linear_attention_triton: _linear_attention,
             torch.ops.visattn.top_regions_triton: _routing,
             torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    return {operator: formula for operator, formula in known.items()
            if operator not in flop_registry}


def _attention(query: Shape, key: Shape, value: Shape, *args, out_shape=None, **kwargs) -> int:
    """softmax(q kᵀ) v for (B, h, N, d), (B, h, M, d), (B, h, M, e)."""
    batch, heads, queries, dim = query
    return 2 * batch * heads * queries * key[2] * (dim + value[3])


def _routed_attention(query: Shape, key: Shape, value: Shape, index: Shape, *args,
                      out_shape=None, **kwargs) -> int:
    """The same for each region: q (B, R, N, h, d), k (B, R, M, h, d), v (·, e), index (B, R, K).

    R, N and M may be two dimensions each.
    """
    batch, *where, heads, dim = query
    keys = index[2] * math.prod(key[1 + len(where) // 2:-2])
    return 2 * batch * math.prod(where) * heads * keys * (dim + value[-1])


def _group_attention(query: Shape, key: Shape, value: Shape, index: Shape | None,
                     weight: Shape | None, heads: int, q_height: int, q_width: int, k_height: int,
                     k_width: int, *args, out_shape=None, **kwargs) -> int:
    """The same on maps (B, H, W, h·d): a group of queries has `listed` groups of keys."""
    listed = 1 if index is None else index[2]
    keys = listed * k_height * k_width
    return 2 * math.prod(query[:3]) * keys * (query[3] + value[3])


def _depthwise(x: Shape, weight: Shape, bias: Shape | None, onto: Shape | None, plus_input: bool,
               stride: int, window: Sequence[int], *args, out_shape=None, **kwargs) -> int:
    """k × k taps of each channel of the result; the padding of windows is counted."""
    batch, rows, columns, channels = out_shape
    if window:
        height, width = window[:2]
        rows, columns = -(-rows // height) * height, -(-columns // width) * width
    return 2 * batch * rows * columns * channels * weight[-1]**2


def _grouped_pointwise(x: Shape, weight: Shape, *args, out_shape=None, **kwargs) -> int:
    """Each number of the result is a product of the weights (C', C/groups) of one channel."""
    return 2 * math.prod(out_shape) * weight[1]


def _linear_attention(query: Shape, key: Shape | None, value: Shape | None, second: Shape | None,
                      matrix: Shape | None, position: Shape | None, scale: Shape | None,
                      onto: Shape | None, window: Sequence[int], *args, out_shape=None, **kwargs
                      ) -> int:
    """Sums over the keys, then products with them; random features of q and of k before.

    q is (B, H, W, h, d), or (B, H, W, 3, h, d) with k and v; `second` is of as many heads more. The
    padding of windows is counted.
    """
    batch, rows, columns, heads, dim = out_shape[0]
    height, width = window[:2]
    tokens = batch * -(-rows // height) * height * -(-columns // width) * width * heads
    features = dim if matrix is None else matrix[0]
    made = 0 if matrix is None else 2 * dim * features
    return 2 * tokens * (2 * features * dim + features + made)


def _routing(query: Shape, key: Shape, *args, out_shape=None, **kwargs) -> int:
    """q kᵀ for (B, R, Q) each."""
    batch, regions, channels = query
    return 2 * batch * regions * key[1] * channels


def _window_attention(qkv: Shape, kernels: Sequence[Shape], biases: Sequence[Shape],
                      heads: int, windows: Sequence[int], *args, out_shape=None, **kwargs) -> int:
    """Windows of the padded map (B, H, W, 3, C), and a k × k convolution of each token.

    Each kind of windows has a part of the channels. The padding is counted, as where it is
    computed, so that the count does not depend on the form.
    """
    batch, rows, columns, _, channels = qkv
    total = 0
    for kernel, height, width in zip(kernels, windows[::2], windows[1::2], strict=True):
        tokens = batch * -(-rows // height) * height * -(-columns // width) * width
        total += 2 * tokens * channels // len(kernels) * (2 * height * width + kernel[-1]**2)
    return total
