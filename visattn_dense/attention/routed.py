"""Attention from the tokens of each region to those of the regions it is routed to.

    out_r = softmax(q_r [k_i]ᵀ · scale) [v_i],   i in index_r

Gathering [k_i] and [v_i] for all regions at once copies k and v top-k times, and autograd keeps the
copies and the attention matrix. There are two ways around that, each one operator to torch, so that
torch.compile and export see no loop:

- `visattn::routed_attention`, below, on any device: the regions are worked through in chunks whose
  gathered copies stay under a fixed number of bytes, and backward gathers them again. Memory is
  that of q, k, v, out and one chunk, whatever the size of the map.
- `visattn::routed_attention_triton`, see `visattn_dense.attention.routed_triton`: nothing is
  gathered.

CUDA tensors of float32, bfloat16 or float16 with at most 128 channels a head go to Triton if it is
installed and the GPU has compute capability 8.0 or more; everything else goes the first way.
`use_implementation` takes one of them instead.

Shapes: B batch, R regions, N query tokens and M key tokens of a region, h heads, d and e channels
of a head in q/k and v, K routed regions.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from . import routed_triton

CHUNK_BYTES = 32 * 2**20
"""About the bytes that one chunk of regions needs: gathered k and v; in backward also matrices."""

Implementation = Literal['auto', 'chunked', 'triton']

_implementation: Implementation = 'auto'


def _attend(q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None, scale: float) -> Tensor:
    """The equation for regions whose keys are gathered: q (c, N, h, d), k and v (c, K, M, h, ·)."""
    if weight is not None:
        # Autocast leaves the weights, a softmax, in float32.
        factor = weight.to(k.dtype)[..., None, None, None]
        k, v = k * factor, v * factor
    k, v = k.flatten(1, 2).transpose(1, 2), v.flatten(1, 2).transpose(1, 2)
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, scale=scale).transpose(1, 2)


def _attend_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None,
                     scale: float) -> list[Tensor]:
    """Gradients of `_attend` for q, k, v and weight, the attention matrix recomputed.

    With P = softmax(S), S = scale · q kᵀ:  dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P ∘ (dP − Σ P ∘ dP),
    dQ = scale · dS K,  dK = scale · dSᵀ Q.
    """
    kind = q.dtype
    if kind in (torch.float16, torch.bfloat16):
        grad, q, k, v = grad.float(), q.float(), k.float(), v.float()
        weight = weight.float() if weight is not None else None
    factor = None if weight is None else weight[..., None, None, None]
    heads_q, heads_grad = q.transpose(1, 2), grad.transpose(1, 2)
    heads_k, heads_v = ((t if factor is None else t * factor).flatten(1, 2).transpose(1, 2)
                        for t in (k, v))

    p = (heads_q @ heads_k.transpose(-1, -2)).mul_(scale).softmax(-1)      # (c, h, N, K·M)
    grad_v = (p.transpose(-1, -2) @ heads_grad).transpose(1, 2).unflatten(1, v.shape[1:3])
    grad_p = heads_grad @ heads_v.transpose(-1, -2)
    # In place: at any moment two matrices of this size exist, or three inside the softmax.
    grad_s = grad_p.sub_((p[..., None, :] @ grad_p[..., None])[..., 0]).mul_(p).mul_(scale)
    del p
    grad_q = (grad_s @ heads_k).transpose(1, 2)
    grad_k = (grad_s.transpose(-1, -2) @ heads_q).transpose(1, 2).unflatten(1, k.shape[1:3])
    grads = [grad_q, *((grad_k, grad_v) if factor is None else (grad_k * factor, grad_v * factor))]
    if weight is not None:
        grads.append((grad_k * k).sum((2, 3, 4)) + (grad_v * v).sum((2, 3, 4)))
    return [g.to(kind) for g in grads]


def _chunks(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, *, copies: int = 1,
            matrices: int = 0) -> list[slice]:
    """Slices over the regions of all images, so that what a chunk needs is about `CHUNK_BYTES`.

    Args:
        q, k, v, rows: regions of all images, and the rows that each is routed to.
        copies: of the gathered k and v that exist at a time.
        matrices: attention matrices that exist at a time.
    """
    gathered = rows.shape[1] * (k[0].numel() + v[0].numel())
    matrix = q.shape[1] * q.shape[2] * rows.shape[1] * k.shape[1]
    needed = (copies * gathered + matrices * matrix) * k.element_size()
    size = max(1, CHUNK_BYTES // max(1, needed))
    return [slice(start, start + size) for start in range(0, rows.shape[0], size)]


def _flat_rows(index: Tensor) -> Tensor:
    """(B, R, K) regions of an image to (B·R, K) rows of k.flatten(0, 1)."""
    first = torch.arange(index.shape[0], device=index.device) * index.shape[1]
    return (index + first[:, None, None]).flatten(0, 1)


@torch.library.custom_op('visattn::routed_attention', mutates_args=())
def _routed_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, weight: Tensor | None,
                      scale: float) -> Tensor:
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    rows, flat_out = _flat_rows(index), out.flatten(0, 1)
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    weight = weight.flatten(0, 1) if weight is not None else None
    for part in _chunks(q, k, v, rows):
        flat_out[part] = _attend(q[part], k[rows[part]], v[rows[part]],
                                 weight[part] if weight is not None else None, scale)
    return out


@_routed_attention.register_fake
def _(q, k, v, index, weight, scale):
    return q.new_empty(*q.shape[:-1], v.shape[-1])


@torch.library.custom_op('visattn::routed_attention_backward', mutates_args=())
def _routed_attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor,
                               weight: Tensor | None, scale: float) -> list[Tensor]:
    grads = [torch.empty_like(q, memory_format=torch.contiguous_format),
             torch.zeros_like(k, memory_format=torch.contiguous_format),
             torch.zeros_like(v, memory_format=torch.contiguous_format)]
    grads += [torch.empty_like(weight)] if weight is not None else []
    flat = [g.flatten(0, 1) for g in grads]
    rows, grad = _flat_rows(index), grad.flatten(0, 1)
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    weight = weight.flatten(0, 1) if weight is not None else None
    # Backward holds the gathered k and v, their gradients, and the matrix with its own.
    for part in _chunks(q, k, v, rows, copies=2, matrices=2):
        found = _attend_backward(grad[part], q[part], k[rows[part]], v[rows[part]],
                                 weight[part] if weight is not None else None, scale)
        flat[0][part] = found[0]
        for total, gathered in zip(flat[1:3], found[1:3], strict=True):
            total.index_add_(0, rows[part].flatten(), gathered.flatten(0, 1))
        if weight is not None:
            flat[3][part] = found[3]
        # Not beside the next chunk's.
        del found
    return grads


@_routed_attention_backward.register_fake
def _(grad, q, k, v, index, weight, scale):
    tensors = [q, k, v] + ([weight] if weight is not None else [])
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, index, weight, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, index, weight)


def _backward(ctx, grad: Tensor):
    q, k, v, index, weight = ctx.saved_tensors
    grads = torch.ops.visattn.routed_attention_backward(grad, q, k, v, index, weight, ctx.scale)
    return grads[0], grads[1], grads[2], None, grads[3] if weight is not None else None, None


_routed_attention.register_autograd(_backward, setup_context=_setup_context)


def routed_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, scale: float,
                     weight: Tensor | None = None) -> Tensor:
    """Attend from each region to the regions that `index` gives it.

    Args:
        q: (B, R, N, h, d).
        k: (B, R, M, h, d).
        v: (B, R, M, h, e).
        index: (B, R, K) integers in [0, R).
        scale: factor of the logits.
        weight: (B, R, K), multiplies k and v of each routed region (soft routing), or None.

    Returns:
        (B, R, N, h, e).

    Raises:
        ValueError: `use_implementation('triton')` holds and Triton cannot take these tensors.
    """
    reason = None if _implementation == 'chunked' else routed_triton.why_not(q, k, v)
    if _implementation == 'triton' and reason is not None:
        raise ValueError(f"Triton was asked for by use_implementation, but {reason}; use 'auto' or "
                         "'chunked'")
    if _implementation == 'triton' or _implementation == 'auto' and q.is_cuda and reason is None:
        return torch.ops.visattn.routed_attention_triton(q, k, v, index, weight, scale)[0]
    return torch.ops.visattn.routed_attention(q, k, v, index, weight, scale)


@contextmanager
def use_implementation(name: Implementation) -> Iterator[None]:
    """How `routed_attention` computes while the block runs, in the whole process.

    Backward is that of the forward it belongs to, in or out of the block. For comparing; 'auto' is
    the rule that this module's docstring gives.

    Raises:
        ValueError: an unknown name.
    """
    global _implementation
    if name not in get_args(Implementation):
        raise ValueError(f'implementation is one of {", ".join(get_args(Implementation))}; got '
                         f'{name!r}')
    before, _implementation = _implementation, name
    try:
        yield
    finally:
        _implementation = before
