"""Attention from the tokens of each region to the tokens of its routed regions.

    out_r = softmax(q_r [k_i]ᵀ · scale) [v_i],   i in index_r

A gather of [k_i] and [v_i] for all regions at once makes K copies of k and v, and autograd keeps
the copies and the attention matrix. Two forms need less memory. Each form is one operator of torch,
so torch.compile and export see no loop:

- chunked: `visattn::routed_attention`, below, on any device. The pairs of a region and a head are
  computed in chunks. The gathered copies and matrices of a chunk take at most a fixed number of
  bytes, and backward computes them again. Only q, k, v, out and one chunk are in memory.
- triton: `visattn::group_attention` in `triton_form` beside this file. Nothing is gathered.

Inside torch.func's transforms, which know neither operator, torch gathers k and v: the form
'gathered'.

The Triton form takes CUDA tensors of float32, bfloat16 or float16 with at most 128 channels in a
head, if Triton is installed and the GPU has compute capability 8.0 or later. The chunked form takes
everything else. `use_implementation('chunked')`, `('triton')` or `('reference')` forces a form.

Shapes: B batch, R regions, N query tokens and M key tokens of a region, h heads, d channels of a
head in q and k, e channels of a head in v, K routed regions. R, N and M may each be two dimensions,
rows and columns. P = B·R·h pairs of a region and a head; a chunk has c pairs and n queries of each.
"""
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .. import choose
from ..choose import Form, Operator, reference_form
from ..registered import why_not_transformed
from . import reference, triton_form
from .fused import fused_attention

CHUNK_BYTES = 4 * 2**20
"""The approximate bytes of a chunk on a CPU: few enough for the caches. On other devices a chunk
has eight times as many. A chunk has at least one head of one region, and 16 queries."""


class _Chunk(NamedTuple):
    """Some pairs of a region and a head, and the tiles of their queries."""
    pairs: slice
    tiles: list[slice]


def _chunks(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, *, copies: int,
            matrices: int) -> Iterator[_Chunk]:
    """Cut the work into chunks of about `CHUNK_BYTES`.

    Args:
        q, k, v, rows: of all pairs; see `_pairs` and `_pair_rows`.
        copies: how many copies of the gathered k and v exist at the same time.
        matrices: how many attention matrices exist at the same time.
    """
    budget = CHUNK_BYTES * (1 if q.device.type == 'cpu' else 8)
    keys = rows.shape[1] * k.shape[1]
    gathered = copies * keys * (k.shape[2] + v.shape[2]) * q.element_size()
    a_query = matrices * keys * q.element_size()
    size = max(1, budget // max(1, gathered + q.shape[1] * a_query))
    tile = min(q.shape[1], max(16, (budget - gathered) // max(1, a_query)))
    tiles = [slice(start, start + tile) for start in range(0, q.shape[1], tile)]
    for start in range(0, q.shape[0], size):
        yield _Chunk(slice(start, start + size), tiles)


def _pairs(t: Tensor) -> Tensor:
    """(B, R, N, h, d) to (P, N, d), P = B·R·h: the tokens of a region and head side by side."""
    sides = _sides(t)
    return t.movedim(-2, 1 + sides).flatten(0, 1 + sides).flatten(1, sides).contiguous()


def _sides(t: Tensor) -> int:
    """The number of dimensions of the regions, which is also that of their tokens: 1 or 2."""
    return (t.ndim - 3) // 2


def _from_pairs(t: Tensor, like: Tensor) -> Tensor:
    """Undo `_pairs`: view (P, N, d) as (B, R, N, h, d). All sizes except d are those of `like`."""
    batch, *where, heads, _ = like.shape
    sides = _sides(like)
    t = t.view(batch, *where[:sides], heads, *where[sides:], t.shape[-1])
    return t.movedim(1 + sides, -2)


def _pair_rows(index: Tensor, heads: int) -> Tensor:
    """(B, R, K) regions of an image to (P, K) rows of `_pairs(k)`."""
    batch, regions, _ = index.shape
    image = torch.arange(batch, device=index.device)[:, None, None, None]
    head = torch.arange(heads, device=index.device)[:, None]
    return ((image * regions + index[:, :, None]) * heads + head).flatten(0, 2)


def _gather(t: Tensor, rows: Tensor) -> Tensor:
    """(P, M, d) and (c, K) to the tokens of the routed regions (c, K·M, d)."""
    return t.index_select(0, rows.flatten()).view(rows.shape[0], -1, t.shape[-1])


def _token_factor(weight: Tensor, heads: int, pairs: slice, tokens: int) -> Tensor:
    """(B, R, K) weights to (c, K·M, 1), the factor of the gathered k and v of a chunk."""
    weight = weight.flatten(0, 1).repeat_interleave(heads, 0)[pairs]
    return weight.repeat_interleave(tokens, 1)[..., None]


def _probabilities(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """softmax(q kᵀ · scale): (c, n, d) and (c, K·M, d) to (c, n, K·M)."""
    logits = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=scale)
    return torch.softmax(logits, -1, out=logits)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """(c, n, d), (c, K·M, d) and (c, K·M, e) to (c, n, e), written to `out`."""
    if _fused(q):
        out[:] = fused_attention(q[:, None], k[:, None], v[:, None], scale=scale).squeeze(1)
    else:
        torch.bmm(_probabilities(q, k, scale), v, out=out)


def _fused(q: Tensor) -> bool:
    """Whether torch's fused attention is the faster way to compute a chunk.

    On a CPU in full precision, two batched products and a softmax take less time: a chunk has few
    queries, and its matrix stays in the caches (docs/notes/performance.md).
    """
    return q.device.type != 'cpu' or q.dtype in (torch.float16, torch.bfloat16)


@torch.library.custom_op('visattn::routed_attention', mutates_args=())
def _routed_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, weight: Tensor | None,
                      scale: float) -> Tensor:
    like, heads, rows = q, q.shape[-2], _pair_rows(index, q.shape[-2])
    q, k, v = _pairs(q), _pairs(k), _pairs(v)
    out = q.new_empty(*q.shape[:2], v.shape[2])
    for pairs, tiles in _chunks(q, k, v, rows, copies=1, matrices=0 if _fused(q) else 1):
        keys, values = _gather(k, rows[pairs]), _gather(v, rows[pairs])
        if weight is not None:
            # The weights come from a softmax, which autocast computes in float32.
            factor = _token_factor(weight, heads, pairs, k.shape[1]).to(keys.dtype)
            keys, values = keys * factor, values * factor
        for tile in tiles:
            _attend(q[pairs, tile], keys, values, scale, out[pairs, tile])
        # Free these before the next chunk gathers its own.
        del keys, values
    return _from_pairs(out, like)


@_routed_attention.register_fake
def _(q, k, v, index, weight, scale):
    return _pair_layout(q, v.shape[-1])


def _pair_layout(like: Tensor, width: int) -> Tensor:
    """An empty (B, R, N, h, width) with the strides that `_from_pairs` leaves."""
    batch, *where, heads, _ = like.shape
    sides = _sides(like)
    return like.new_empty(batch, *where[:sides], heads, *where[sides:], width).movedim(
        1 + sides, -2)


@torch.library.custom_op('visattn::routed_attention_backward', mutates_args=())
def _routed_attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor,
                               weight: Tensor | None,
                               scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and weight, with keys, values and probabilities computed again.

    Without weight, the last gradient is an empty tensor.

    With P = softmax(S), S = scale · q kᵀ:  dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P ∘ (dP − Σ P ∘ dP),
    dQ = scale · dS K,  dK = scale · dSᵀ Q.
    """
    likes, heads, rows = (q, k, v), q.shape[-2], _pair_rows(index, q.shape[-2])
    kind = torch.promote_types(q.dtype, torch.float32)
    grad, q, k, v = _pairs(grad), _pairs(q), _pairs(k), _pairs(v)
    grad_q, grad_k, grad_v = (torch.zeros_like(t, dtype=kind) for t in (q, k, v))
    grad_weight = rows.new_zeros(rows.shape, dtype=kind) if weight is not None else None
    # At the same time exist: gathered k and v and their gradients (2 copies); P, dP and dS.
    for pairs, tiles in _chunks(q.to(kind), k, v, rows, copies=2, matrices=3):
        picked = rows[pairs]
        keys, values = _gather(k, picked).to(kind), _gather(v, picked).to(kind)
        factor = (_token_factor(weight, heads, pairs, k.shape[1]).to(kind)
                  if weight is not None else 1)
        found_k, found_v = torch.zeros_like(keys), torch.zeros_like(values)
        for tile in tiles:
            _accumulate(grad[pairs, tile].to(kind), q[pairs, tile].to(kind), keys * factor,
                        values * factor, scale, grad_q[pairs, tile], found_k, found_v)
        if grad_weight is not None:
            both = (found_k * keys).sum(-1) + (found_v * values).sum(-1)         # (c, K·M)
            grad_weight[pairs] = both.unflatten(1, (rows.shape[1], -1)).sum(-1)
        for total, found in ((grad_k, found_k * factor), (grad_v, found_v * factor)):
            total.index_add_(0, picked.flatten(), found.view(-1, *total.shape[1:]))
        del keys, values, found_k, found_v, found
    if weight is None:
        grad_weight = q.new_empty(0)
    else:
        grad_weight = grad_weight.unflatten(0, (*weight.shape[:2], heads)).sum(2).to(weight.dtype)
    return *(_from_pairs(t.to(q.dtype), like) for t, like in
             zip((grad_q, grad_k, grad_v), likes, strict=True)), grad_weight


def _accumulate(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, grad_q: Tensor,
                grad_k: Tensor, grad_v: Tensor) -> None:
    """The gradients of `_attend`: written to `grad_q`, added to `grad_k` and `grad_v`."""
    p = _probabilities(q, k, scale)
    grad_v.baddbmm_(p.transpose(1, 2), grad)
    grad_s = torch.ops.aten._softmax_backward_data(grad @ v.transpose(1, 2), p, -1, p.dtype)
    del p
    grad_q.baddbmm_(grad_s, k, beta=0, alpha=scale)
    grad_k.baddbmm_(grad_s.transpose(1, 2), q, alpha=scale)


@_routed_attention_backward.register_fake
def _(grad, q, k, v, index, weight, scale):
    return (*(_pair_layout(t, t.shape[-1]) for t in (q, k, v)),
            q.new_empty(0) if weight is None else torch.empty_like(weight))


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, index, weight, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, index, weight)


def _backward(ctx, grad: Tensor):
    q, k, v, index, weight = ctx.saved_tensors
    *grads, grad_weight = torch.ops.visattn.routed_attention_backward(grad, q, k, v, index, weight,
                                                                      ctx.scale)
    return *grads, None, None if weight is None else grad_weight, None


_routed_attention.register_autograd(_backward, setup_context=_setup_context)


def _chunked(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, scale: float,
             weight: Tensor | None = None) -> Tensor:
    return torch.ops.visattn.routed_attention(q, k, v, index, weight, scale)


def _why_not_chunked(*_: object, **__: object) -> str | None:
    return why_not_transformed()


routed_attention = Operator(
    'routed_attention',
    choose.triton_form(triton_form.routed_attention, triton_form.why_not_routed),
    Form('chunked', _chunked, _why_not_chunked), Form('gathered', reference.routed_attention),
    reference_form(reference.routed_attention))

use_implementation = partial(choose.use_implementation, operator='routed_attention')
"""`visattn_dense.ops.choose.use_implementation` of this operator."""
