"""`routed_attention` on the GPU: the operators around the Triton kernels.

The kernels read q, k and v by their strides. For backward they keep the output and the logarithm of
the softmax's sum, so nothing larger than the tensors is in memory. The gradients of k and v are
sums over the transpose of the routing: for each key region, the query regions that attend to the
key region. The sums run in a fixed order without atomic additions, so every run gives the same
gradients.

Products of float32 inputs are in float32 ('ieee'), never in TF32, whatever torch's own setting is.

Shapes: as in `visattn_dense.ops.group_attention.routed`.
"""
import importlib.util
import os
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from .reference import flat_regions

HAS_TRITON = importlib.util.find_spec('triton') is not None

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
"""Whether the kernels run in Triton's interpreter, on CPU tensors. Triton reads the variable when
it is imported."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 128


def why_not(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    if not HAS_TRITON:
        return 'Triton is not installed'
    if q.device.type != 'cuda' and not (INTERPRETED and q.device.type == 'cpu'):
        return f'the tensors are on {q.device.type!r}, not a CUDA device'
    if q.is_cuda and torch.cuda.get_device_properties(q.device).major < 8:
        return 'the GPU is older than compute capability 8.0, where Triton has no matrix units'
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        return (f'q, k and v are {q.dtype}, {k.dtype} and {v.dtype}, not alike float32, bfloat16 '
                'or float16')
    if max(q.shape[-1], v.shape[-1]) > MAX_HEAD_DIM:
        return (f'a head has {q.shape[-1]} channels in q and {v.shape[-1]} in v, more than '
                f'{MAX_HEAD_DIM}')
    return None


def routed_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, scale: float,
                     weight: Tensor | None = None) -> Tensor:
    return torch.ops.visattn.routed_attention_triton(q, k, v, index, weight, scale)[0]


class _Regions(NamedTuple):
    """The layout of a tensor: its regions, and the tokens of a region."""
    regions: int
    region_columns: int
    tokens: int
    token_columns: int
    strides: tuple[int, ...]

    @classmethod
    def of(cls, t: Tensor) -> '_Regions':
        """Of (B, R, N, h, d), or of (B, r, r', n, n', h, d)."""
        if t.ndim == 5:
            (image, region, token, head, channel), (_, regions, tokens, *_) = t.stride(), t.shape
            return cls(regions, 1, tokens, 1, (image, region, 0, token, 0, head, channel))
        _, rows, columns, token_rows, token_columns, *_ = t.shape
        return cls(rows * columns, columns, token_rows * token_columns, token_columns, t.stride())


class Tile(NamedTuple):
    """The tile of a program, and the tiles of the other side that the program goes through.

    See `triton_kernels`.
    """
    block: int
    slots: int
    tokens: int
    num_warps: int

    @classmethod
    def of(cls, own: int, other: int, regions: int, dtype: torch.dtype, width: int, *,
           forward: bool) -> 'Tile':
        """The tile for `own` tokens, and `other` tokens in each of about `regions` regions.

        `width` is the larger head dim. The sizes are the largest sizes whose sums stay in registers
        by the compiler's report (docs/notes/performance.md). The sizes were not chosen by timing.
        """
        narrow = width <= 64
        if dtype == torch.float32:
            most, walked = (32, 32) if narrow else (16, 16)
        else:
            most = 128 if forward and narrow else 64
            walked = 64 if forward or narrow else 32
        # tl.dot needs at least 16 rows and columns.
        block = min(most, max(16, _power_of_two(own)))
        tokens = min(walked, _power_of_two(other))
        slots = min(walked // tokens, _power_of_two(regions))
        # The matrix product of a warp has 16 rows, and the softmax of a row stays in one warp.
        # Products of float32 do not use the matrix units.
        warps = 4 if dtype == torch.float32 else min(4, block // 16)
        return cls(block, slots, max(tokens, 16 // slots), warps)


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def transpose_routing(index: Tensor) -> tuple[Tensor, Tensor]:
    """The query regions that attend to each key region, computed without a wait for the device.

    Rows count the regions of all images: image · R + region.

    Args:
        index: (B, R, K).

    Returns:
        pairs: (B·R·K,), positions in index.flatten(). Positions with the same key row form a group,
            in rising order. position // K is the query row.
        offsets: (B·R + 1,), where the group of each key row starts in `pairs`, and the end.
    """
    first = torch.arange(index.shape[0], device=index.device) * index.shape[1]
    rows, pairs = (index + first[:, None, None]).flatten().sort(stable=True)
    ends = torch.arange(index.shape[0] * index.shape[1] + 1, device=index.device)
    return pairs, torch.searchsorted(rows, ends)


def _launch_options(tile: Tile, q: Tensor, v: Tensor, weight: Tensor | None) -> dict:
    return dict(D=q.shape[-1], E=v.shape[-1], BLOCK_D=max(16, _power_of_two(q.shape[-1])),
                BLOCK_E=max(16, _power_of_two(v.shape[-1])), WEIGHTED=weight is not None,
                PRECISION='ieee', BLOCK=tile.block, SLOTS=tile.slots, TOKENS=tile.tokens,
                num_warps=tile.num_warps, num_stages=2, enable_fp_fusion=True)


def _laid_out(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the layout that the kernels read. Narrow heads: unchanged. Wide heads: cut.

    In an uncut map the address of a token needs two steps. With wide heads these steps take
    registers that the sums need (ptxas reports a spill of up to 0.8 KB), so the regions are cut.
    """
    if max(t.shape[-1] for t in tensors) <= 32:
        return tensors
    return tuple(flat_regions(t) for t in tensors)


def _grid(q: Tensor, regions: int, tokens: int, tile: Tile) -> tuple[int]:
    return (q.shape[0] * regions * q.shape[-2] * -(-tokens // tile.block),)


def _on(tensor: Tensor):
    """A context with the device of `tensor` as current device, where Triton launches kernels."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@torch.library.custom_op('visattn::routed_attention_triton', mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, index: Tensor, weight: Tensor | None,
             scale: float) -> tuple[Tensor, Tensor]:
    from .triton_kernels import forward_kernel
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    q, k, v = _laid_out(q, k, v)
    of_q, of_k, of_v = (_Regions.of(t) for t in (q, k, v))
    regions, n, m = of_q.regions, of_q.tokens, of_k.tokens
    heads, slots = q.shape[-2], index.shape[2]
    lse = q.new_empty(len(q), regions, heads, n, dtype=torch.float32)
    tile = Tile.of(n, m, slots, q.dtype, max(q.shape[-1], v.shape[-1]),
                   forward=True)
    with _on(q):
        forward_kernel[_grid(q, regions, n, tile)](
            q, k, v, index.contiguous(), weight.contiguous() if weight is not None else None,
            out, lse, scale, n, m, slots, regions, heads, of_q.region_columns, of_q.token_columns,
            of_k.token_columns, *of_q.strides, *of_k.strides, *of_v.strides,
            **_launch_options(tile, q, v, weight))
    return out, lse


@_forward.register_fake
def _(q, k, v, index, weight, scale):
    of_q = _Regions.of(q)
    return (q.new_empty(*q.shape[:-1], v.shape[-1]),
            q.new_empty(len(q), of_q.regions, q.shape[-2], of_q.tokens, dtype=torch.float32))


@torch.library.custom_op('visattn::routed_attention_triton_backward', mutates_args=())
def _backward_op(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor,
                 weight: Tensor | None, out: Tensor, lse: Tensor,
                 scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and weight. Without weight, the last gradient is an empty tensor."""
    from .triton_kernels import key_gradient_kernel, query_gradient_kernel
    grad_q, grad_k, grad_v = (q.new_empty(t.shape) for t in (q, k, v))
    q, k, v, grad = _laid_out(q, k, v, grad)
    of_q, of_k, of_v, of_grad = (_Regions.of(t) for t in (q, k, v, grad))
    regions, n, m = of_q.regions, of_q.tokens, of_k.tokens
    *_, heads, d = q.shape
    slots = index.shape[2]
    index = index.contiguous()
    weight = weight.contiguous() if weight is not None else None
    delta = torch.empty_like(lse)
    geometry = (of_q.region_columns, of_q.token_columns, of_k.token_columns, *of_q.strides,
                *of_k.strides, *of_v.strides, *of_grad.strides)
    width = max(d, v.shape[-1])

    pairs, offsets = transpose_routing(index)
    askers = pairs // slots
    key_tile = Tile.of(m, n, slots, q.dtype, width, forward=False)
    ordered, shares = None, None
    if weight is not None:
        ordered = weight.flatten()[pairs]
        shares = lse.new_empty(len(pairs), heads, -(-m // key_tile.block), -(-n // key_tile.tokens))

    tile = Tile.of(n, m, slots, q.dtype, width, forward=False)
    with _on(q):
        query_gradient_kernel[_grid(q, regions, n, tile)](
            q, k, v, index, weight, out, lse, grad, delta, grad_q, scale, n, m, slots, regions,
            heads, *geometry, **_launch_options(tile, q, v, weight))
        key_gradient_kernel[_grid(q, regions, m, key_tile)](
            q, k, v, ordered, lse, grad, delta, grad_k, grad_v, shares, askers, offsets, scale,
            n, m, regions, heads, *geometry, **_launch_options(key_tile, q, v, weight))
    if weight is None:
        return grad_q, grad_k, grad_v, q.new_empty(0)
    grad_w = torch.empty_like(weight)
    grad_w.view(-1)[pairs] = shares.sum((1, 2, 3)).to(weight.dtype)
    return grad_q, grad_k, grad_v, grad_w


@_backward_op.register_fake
def _(grad, q, k, v, index, weight, out, lse, scale):
    return (*(t.new_empty(t.shape) for t in (q, k, v)),
            q.new_empty(0) if weight is None else weight.new_empty(weight.shape))


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, index, weight, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, index, weight, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad: Tensor, _):
    q, k, v, index, weight, out, lse = ctx.saved_tensors
    *grads, grad_weight = torch.ops.visattn.routed_attention_triton_backward(
        grad, q, k, v, index, weight, out, lse, ctx.scale)
    return *grads, None, None if weight is None else grad_weight, None


_forward.register_autograd(_backward, setup_context=_setup_context)
