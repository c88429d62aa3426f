"""The compiled kernels of attention between groups of rows, softmax or linear."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import build
from .build import Part
from .calls import DTYPES, operator, pointer, rows_of, run, side_of


class Groups(NamedTuple):
    """Which rows attend to which rows. Row numbers and starts are int32, on the CPU.

    Query group g has the queries in the rows `q_rows[q_starts[g]:q_starts[g + 1]]`.
    Key group g has the keys and values in the rows `k_rows[k_starts[g]:k_starts[g + 1]]`.
    Query group g attends to key group g; with `routed`, to the key groups `routed[g]`.

    Attributes:
        q_rows: (queries,), the rows of all query groups, group by group.
        q_starts: (G + 1,), where each query group starts in `q_rows`, and the end of the last one.
        k_rows: (keys,), the rows of all key groups, group by group.
        k_starts: (G + 1,), where each key group starts in `k_rows`, and the end of the last one.
        absent: (G,) float32, how many more keys each group has that are zero and have the value
            zero (padding); or None.
        places: (keys,), the position of each row of `k_rows` in its padded window; or None.
    """
    q_rows: Tensor
    q_starts: Tensor
    k_rows: Tensor
    k_starts: Tensor
    absent: Tensor | None = None
    places: Tensor | None = None


class Windows(NamedTuple):
    """Windows of one kind on a map, whose tokens attend to each other.

    Attributes:
        groups: the rows of each window.
        size: (h, w) of a window.
        corner: how many rows of the first window lie above the map, and how many columns left of
            the map.
        kernel: (k², C), of the depthwise convolution inside the windows; k is 3 or 5.
        bias: (C,) of the convolution, or None.
    """
    groups: Groups
    size: tuple[int, int]
    corner: tuple[int, int]
    kernel: Tensor
    bias: Tensor | None


def attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, groups: Groups, *, heads: int,
           scale: float | None, routed: Tensor | None = None) -> None:
    """out = softmax(q kᵀ · scale) v, for each head, inside groups of rows.

    A row of `out` that belongs to no query group stays unchanged.

    Args:
        q, k: (..., h·d) each, viewed as rows.
        v, out: (..., h·e) each, viewed as rows; `out` is written.
        groups: rows of q, k, v and out. Whether the tensors have these rows is not checked.
        heads: h.
        scale: factor of the logits; None for d^-½.
        routed: (G, K) integers, the key groups of each query group; None: group g attends to key
            group g.

    Raises:
        RuntimeError: a tensor cannot be viewed as rows.
    """
    scale = (q.shape[-1] // heads)**-.5 if scale is None else scale
    _attend(q, k, v, out, *groups[:5], None if routed is None else routed.long().contiguous(),
            heads, scale)


@operator('visattn::attend_groups', mutates_args={'out'})
def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, q_rows: Tensor, q_starts: Tensor,
            k_rows: Tensor, k_starts: Tensor, absent: Tensor | None, routed: Tensor | None,
            heads: int, scale: float) -> None:
    tensors = rows_of(q, k, v, out)
    groups = q_starts.shape[0] - 1
    run(
        'attention', *map(pointer, tensors), *(t.stride(0) for t in tensors),
        *map(pointer, (q_rows, q_starts, k_rows, k_starts, routed, absent)), groups,
        1 if routed is None else routed.shape[-1], heads, q.shape[-1] // heads,
        v.shape[-1] // heads, scale, DTYPES.index(q.dtype), build.tiles(), torch.get_num_threads())


@_attend.register_fake
def _(q, k, v, out, q_rows, q_starts, k_rows, k_starts, absent, routed, heads, scale):
    return None


def windows(qkv: Tensor, parts: Sequence[Windows], *, heads: int, scale: float | None) -> Tensor:
    """softmax(q kᵀ · scale) v + conv(v) inside windows, of another kind for each part of the heads.

    Args:
        qkv: (B, H, W, 3, C), each of the three viewed as rows. Heads and channels are cut in as
            many equal parts as there are kinds of windows.
        parts: the windows of each part. All kernels have the same side.
        heads: h of all parts.
        scale: factor of the logits; None for d^-½.

    Returns:
        (B, H, W, C).

    Raises:
        RuntimeError: a tensor cannot be viewed as rows, or k is neither 3 nor 5.
    """
    scale = (qkv.shape[-1] // heads)**-.5 if scale is None else scale
    return _windows(qkv, [part.groups.k_rows for part in parts],
                    [part.groups.k_starts for part in parts],
                    [part.groups.absent for part in parts], [part.kernel for part in parts],
                    [part.bias for part in parts],
                    [n for part in parts for n in (*part.size, *part.corner)], heads, scale)


@operator('visattn::attend_windows', mutates_args=(),
           schema='(Tensor qkv, Tensor[] rows, Tensor[] starts, Tensor?[] absent, '
                  'Tensor[] kernels, Tensor?[] biases, SymInt[] geometry, SymInt heads, '
                  'float scale) -> Tensor')
def _windows(qkv: Tensor, rows: Sequence[Tensor], starts: Sequence[Tensor],
             absent: Sequence[Tensor | None], kernels: Sequence[Tensor],
             biases: Sequence[Tensor | None], geometry: Sequence[int], heads: int,
             scale: float) -> Tensor:
    queries, = rows_of(qkv[:, :, :, 0])
    out = _fake_windows(qkv, rows, starts, absent, kernels, biases, geometry, heads, scale)
    # The lists keep what float() makes until the kernel has read it.
    kernels = [kernel.float().contiguous() for kernel in kernels]
    biases = [None if bias is None else bias.float().contiguous() for bias in biases]
    count = len(rows)
    parts = (Part * count)(*(
        Part(pointer(rows[i]), pointer(starts[i]), pointer(absent[i]), pointer(kernels[i]),
             pointer(biases[i]), starts[i].shape[0] - 1, *geometry[4 * i:4 * i + 4])
        for i in range(count)))
    run(
        'windows', pointer(queries), queries.stride(0), qkv.stride(3), pointer(out),
        *qkv.shape[:3], parts, count, heads // count, qkv.shape[-1] // heads, scale,
        side_of(kernels[0]), DTYPES.index(qkv.dtype), build.tiles(), torch.get_num_threads())
    return out


@_windows.register_fake
def _fake_windows(qkv, rows, starts, absent, kernels, biases, geometry, heads, scale):
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[-1])


def focused(q: Tensor, k: Tensor, v: Tensor, out: Tensor, groups: Groups, *, heads: int,
            position: Tensor, inverse_scale: Tensor, power: int, epsilon: float) -> None:
    """out += focused linear attention inside groups of rows; see
    `visattn_dense.ops.linear_attention`.

    Args:
        q, k, v, out: (..., C) each, viewed as rows.
        groups: rows of q, k, v and out, with `places`; only the key groups count, and the queries
            of a group are in the same rows as its keys.
        heads: h.
        position: (1, N, C), added to the keys: entry n to the keys with place n.
        inverse_scale: (C,), multiplies relu(t) + ε.
        power: p, a whole number of at least 1.
        epsilon: ε.

    Raises:
        RuntimeError: a tensor cannot be viewed as rows.
    """
    _focused(q, k, v, out, groups.k_rows, groups.k_starts, groups.places,
             position.float().contiguous(), inverse_scale.float(), heads, power, epsilon)


@operator('visattn::focused_attention', mutates_args={'out'})
def _focused(q: Tensor, k: Tensor, v: Tensor, out: Tensor, rows: Tensor, starts: Tensor,
             places: Tensor, position: Tensor, inverse_scale: Tensor, heads: int, power: int,
             epsilon: float) -> None:
    tensors = rows_of(q, k, v, out)
    run(
        'focused', *map(pointer, tensors), *(t.stride(0) for t in tensors),
        *map(pointer, (rows, starts, places, position, inverse_scale)), epsilon, power,
        starts.shape[0] - 1, heads, q.shape[-1] // heads, DTYPES.index(q.dtype),
        torch.get_num_threads())


@_focused.register_fake
def _(q, k, v, out, rows, starts, places, position, inverse_scale, heads, power, epsilon):
    return None


def relu_attention(*qkv: Tensor, epsilon: float) -> Tensor:
    """Linear attention of ReLU features; see `visattn_dense.ops.linear_attention`.

    Args:
        qkv: S sets of heads, (B, N, h, 3, d) each, viewed as rows: q, k and v of each token and
            head.
        epsilon: ε.

    Returns:
        (B, N, S·h, d).

    Raises:
        RuntimeError: a tensor cannot be viewed as rows.
    """
    return _relu_attention(qkv, epsilon)


@operator('visattn::relu_attention', mutates_args=())
def _relu_attention(qkv: Sequence[Tensor], epsilon: float) -> Tensor:
    rows = rows_of(*qkv)
    batch, tokens, heads, _, dim = qkv[0].shape
    out = _fake_relu_attention(qkv, epsilon)
    for i, own in enumerate(rows):
        run(
            'relu_attention', pointer(own), pointer(out[:, :, i * heads:]), own.stride(0),
            out.stride(1), batch, tokens, heads, dim, epsilon, DTYPES.index(own.dtype),
            torch.get_num_threads())
    return out


@_relu_attention.register_fake
def _fake_relu_attention(qkv, epsilon):
    batch, tokens, heads, _, dim = qkv[0].shape
    return qkv[0].new_empty(batch, tokens, len(qkv) * heads, dim)
