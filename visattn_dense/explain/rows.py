"""What a query of an attention looks at: rows of its attention matrix, exact, a few at a time.

    rows = attention_rows(attention, x, [(y, x)])       # the query at row y, column x of the map

A function for each class of attention takes the module's own input, computes q, k and v with the
module's own parameters, and weighs all keys for the asked queries alone. So the memory grows with
the number of keys, never with its square. The weights are those of the equations in `ops`:

    softmax attention   softmax(q kᵀ · scale)
    linear attention    φ(q)·φ(k) / (Σ φ(q)·φ(k) + ε): the weights that the linear form implies

A new attention gets its function by `@attention_rows.register`.

Shapes: Q queries, h heads, H×W map of the attention, N keys, d channels of a head.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial, singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visattn_dense.attention import (
    BiLevelRoutingAttention,
    FocusedStripeAttention,
    LiteMLA,
    SelfAttention,
    StripeAttention,
    TokenPerformer,
    WideSelfAttention,
)
from visattn_dense.attention.cswin import CrossShapedAttention, StripeBranch
from visattn_dense.attention.focused import EPS
from visattn_dense.attention.ghost import GhostSelfAttention
from visattn_dense.errors import UserError, few
from visattn_dense.layers import SoftSplit, pad_to_multiple, resize_position_grid
from visattn_dense.ops.group_attention import reference as softmax
from visattn_dense.ops.linear_attention import reference as linear
from visattn_dense.ops.precision import without_autocast
from visattn_dense.ops.routing import region_means
from visattn_dense.ops.windows import regions_of

Position = tuple[int, int]
"""(row, column) on the map of an attention."""
Weigh = Callable[[Tensor, Tensor], Tensor]
"""From q (h, n, d) and k (h, N, d) to the weights (h, n, N)."""


@dataclass(frozen=True)
class Routing:
    """Which regions of a map look at which.

    Attributes:
        n_win: regions along each side.
        region: (height, width) of a region, in positions of the map.
        index: (R, K), the regions that each of the R = n_win² regions looks at.
        weight: (R, K), their softmax over the K logits of the routing.
    """

    n_win: int
    region: tuple[int, int]
    index: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Rows:
    """The rows of an attention matrix for some queries.

    For each query and head, `weights` and the weights of `elsewhere` sum to 1.

    Attributes:
        weights: (Q, h, H, W), the weight of each position of the map.
        elsewhere: name -> (Q, h), the weight of what is not on the map: 'padding' around the map,
            'other tokens' (the class token), 'epsilon' (the ε in the divisor of linear attention).
        output: (Q, h, e), all weights times all values: the attention's own output, before local
            convolutions and the last projection.
        groups: for each head the part of the attention that it belongs to; '' if there is one part.
        routing: the regions that bi-level routing has chosen, else None.
    """

    weights: Tensor
    elsewhere: dict[str, Tensor]
    output: Tensor
    groups: tuple[str, ...]
    routing: Routing | None = field(default=None, repr=False)


@singledispatch
def attention_rows(attention: nn.Module, x: Tensor, positions: Sequence[Position], *,
                   size: tuple[int, int] | None = None) -> Rows:
    """The rows of `attention` for the queries at `positions`.

    Args:
        attention: a module whose class, or base class, is registered.
        x: the input of the module, for one image (batch 1).
        positions: (row, column) of each query on the map of the attention.
        size: (H, W) of the map. Needed if `x` is a list of tokens (1, N, C): its last H·W tokens
            are the map, row by row.

    Returns:
        The rows, in float32 or wider, on the device of `x`.

    Raises:
        UserError: a class without a function, a position outside the map, more than one image, or
            a list of tokens without `size`.
    """
    raise UserError(f'{type(attention).__name__} has no function that gives its rows; these have '
                    f'one: {few(cls.__name__ for cls in known_attentions())}. A new attention gets '
                    'one by attention_rows.register')


@singledispatch
def map_size(attention: nn.Module, x: Tensor, size: tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) of the map of an attention with the input `x`, which is (1, H, W, ...).

    An attention with another layout registers a function here.

    Args:
        attention, x: see `attention_rows`.
        size: what it is if `x` is a list of tokens (1, N, C).

    Raises:
        UserError: a list of tokens without a size.
    """
    if x.ndim > 3:
        return tuple(x.shape[1:3])
    if size is None:
        raise UserError(f'{type(attention).__name__} takes a list of tokens, which has no height '
                        'and width: call attention_rows with size=(H, W) of its map')
    return size


@map_size.register
def _nchw(attention: LiteMLA, x: Tensor, size: tuple[int, int] | None) -> tuple[int, int]:
    return tuple(x.shape[2:])


@map_size.register(TokenPerformer)
@map_size.register(WideSelfAttention)
def _split(attention: TokenPerformer | WideSelfAttention, x: Tensor,
           size: tuple[int, int] | None) -> tuple[int, int]:
    """With a soft split, or the layer that has its place for inference, `x` is (1, C, H, W)."""
    split = next((m for m in attention.modules() if isinstance(m, SoftSplit)), None)
    return map_size.dispatch(object)(attention, x, size) if split is None else split.map_size(x)


def known_attentions() -> list[type[nn.Module]]:
    """The classes that `attention_rows` has a function for; their subclasses have it too."""
    return [cls for cls in attention_rows.registry if cls is not object]


def find_attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The attentions in `model` by name, in order. Parts of an attention are not listed."""
    found: dict[str, nn.Module] = {}
    kinds = tuple(known_attentions())
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(f'{outer}.') for outer in found)
        if isinstance(module, kinds) and not inside:
            found[name] = module
    return found


@attention_rows.register
def _cross(attention: CrossShapedAttention, x: Tensor, positions: Sequence[Position],
           **_) -> Rows:
    """Both directions of the cross: the heads of the first branch, then those of the second."""
    qkv = attention.qkv(x).unflatten(-1, (3, len(attention.attns), -1))
    return _joined([attention_rows(branch, qkv[..., i, :], positions)
                    for i, branch in enumerate(attention.attns)])


@attention_rows.register
def _stripe(attention: StripeAttention, qkv: Tensor, positions: Sequence[Position], **_) -> Rows:
    """Softmax inside the query's stripe. By default the padding of the stripe takes part."""
    def weigh(q: Tensor, k: Tensor, real: Tensor) -> Tensor:
        q, k = _heads(q, attention.num_heads), _heads(k, attention.num_heads)
        return softmax.attention_weights(q, k, attention.scale,
                                         real if attention.mask_padding else None)
    return _rows_in_windows(attention, qkv, positions, weigh, kind='softmax')


@attention_rows.register
def _focused_stripe(attention: FocusedStripeAttention, qkv: Tensor,
                    positions: Sequence[Position], **_) -> Rows:
    """φ(q)·φ(k + position) inside the query's stripe, which may be the whole map."""
    window = attention.window_size(*qkv.shape[1:3])
    table = resize_position_grid(attention.positional_encoding, attention.native_window, window)
    feature = partial(linear.focused_feature, scale=_wide(attention.scale[0]),
                      power=attention.focusing_factor, epsilon=EPS)

    def weigh(q: Tensor, k: Tensor, real: Tensor) -> Tensor:
        q, k = (_heads(feature(t), attention.num_heads) for t in (q, k + _wide(table[0])))
        return linear.attention_weights(q, k, EPS, real)
    return _rows_in_windows(attention, qkv, positions, weigh, kind='linear')


@attention_rows.register
def _routed(attention: BiLevelRoutingAttention, x: Tensor, positions: Sequence[Position],
            **_) -> Rows:
    """Softmax over the tokens of the K regions that the query's region is routed to.

    A pooled key counts for all positions that it is pooled from, in equal parts.
    """
    size, n = _check(x.shape[:3], positions), attention.n_win
    x, _pads = pad_to_multiple(x, (n, n))
    q, k, v = attention.qkv['qkv'](x).split(
        [attention.qk_dim, attention.qk_dim, attention.dim], dim=-1)
    weight, index = attention.router(*(region_means(t, n) for t in (q, k)))
    keys, values = (regions_of(t, n)[0].flatten(0, 1) for t in (k, v))    # (R, r, r', C)
    height, width = region = keys.shape[1:3]
    rows = []
    for row, column in positions:
        home = row // height * n + column // width
        chosen = index[0, home]
        near = [t[chosen].permute(0, 3, 1, 2) for t in (keys, values)]    # (K, C, r, r')
        if attention.pool is not None:
            near = [attention.pool(t) for t in near]
        if attention.soft_routing:
            near = [t * weight[0, home, :, None, None, None] for t in near]
        cells = near[0].shape[2:]
        k_heads, v_heads = (_heads(_wide(t.permute(0, 2, 3, 1).flatten(0, 2)),
                                   attention.num_heads) for t in near)
        q_heads = _heads(_wide(q[0, row, column][None]), attention.num_heads)
        with without_autocast(x):
            weights = softmax.attention_weights(q_heads, k_heads, attention.scale)
            output = (weights @ v_heads)[:, 0]
            down, across = (_cells(attention.pool, *sides).to(weights)
                            for sides in zip(region, cells, strict=True))
            spread = down.mT @ weights[:, 0].unflatten(-1, (len(chosen), *cells)) @ across
        whole = spread.new_zeros(len(spread), n * n, height, width)
        whole[:, chosen] = spread
        whole = whole.unflatten(1, (n, n)).transpose(2, 3).flatten(3).flatten(1, 2)
        on_map = whole[:, :size[0], :size[1]]
        rows.append((on_map, dict(padding=_beyond(whole, on_map)), output))
    routing = Routing(n, tuple(region), index[0], _wide(weight[0]))
    return _stacked(rows, ('',) * attention.num_heads, routing)


@attention_rows.register(SelfAttention)
@attention_rows.register(WideSelfAttention)
def _full(attention: SelfAttention | WideSelfAttention, x: Tensor, positions: Sequence[Position], *,
          size: tuple[int, int] | None = None) -> Rows:
    """Softmax over all positions, and over the tokens before the map (the class token)."""
    q, k, v = attention.qkv(x).flatten(1, -2).chunk(3, dim=-1)
    return _softmax_of_tokens(attention, q, k, v, map_size(attention, x, size), positions)


@attention_rows.register
def _ghost(attention: GhostSelfAttention, x: Tensor, positions: Sequence[Position], *,
           size: tuple[int, int] | None = None) -> Rows:
    """Softmax over all positions and the class token; half of q, k and v are ghosts."""
    q, k, v = attention.project(x.flatten(1, -2))
    return _softmax_of_tokens(attention, q, k, v, map_size(attention, x, size), positions)


def _softmax_of_tokens(attention: SelfAttention | GhostSelfAttention | WideSelfAttention, q: Tensor,
                       k: Tensor, v: Tensor, size: tuple[int, int],
                       positions: Sequence[Position]) -> Rows:
    weigh = partial(softmax.attention_weights, scale=attention.scale)
    # T2T-ViT's wide attention has one head and does not count it.
    return _rows_of_tokens(q, k, v, getattr(attention, 'num_heads', 1), size, positions, weigh)


@attention_rows.register
def _performer(attention: TokenPerformer, x: Tensor, positions: Sequence[Position], *,
               size: tuple[int, int] | None = None) -> Rows:
    """φ(q)·φ(k) with the performer's random features, over all positions, one head."""
    k, q, v = (t.flatten(1, -2) for t in attention.project(x))

    def weigh(q: Tensor, k: Tensor) -> Tensor:
        q, k = (linear.performer_feature(t, attention.w.to(t)) for t in (q, k))
        return linear.attention_weights(q, k, attention.eps)
    return _rows_of_tokens(q, k, v, 1, map_size(attention, x, size), positions, weigh,
                           kind='linear')


@attention_rows.register
def _multi_scale(attention: LiteMLA, x: Tensor, positions: Sequence[Position], **_) -> Rows:
    """relu(q)·relu(k) over all positions: the heads of scale 0 (the tokens themselves), then those
    of each further scale (tokens made from their neighbours). `x` is (1, C, H, W)."""
    size = map_size(attention, x, None)
    qkv = attention.qkv(x)

    def weigh(q: Tensor, k: Tensor) -> Tensor:
        return linear.attention_weights(q.relu(), k.relu(), attention.eps)
    scales = []
    for number, tokens in enumerate((qkv, *(scale(qkv) for scale in attention.aggreg))):
        tokens = tokens.flatten(2).unflatten(1, (attention.num_heads, 3, attention.head_dim))
        q, k, v = (t.flatten(1, 2).mT for t in tokens.unbind(2))          # each (1, N, h·d)
        scales.append(_rows_of_tokens(q, k, v, attention.num_heads, size, positions, weigh,
                                      kind='linear',
                                      group=f'scale {number}' if attention.aggreg else ''))
    return _joined(scales)


def _rows_of_tokens(q: Tensor, k: Tensor, v: Tensor, num_heads: int, size: tuple[int, int],
                    positions: Sequence[Position], weigh: Weigh, *, kind: str = 'softmax',
                    group: str = '') -> Rows:
    """The rows of an attention over all tokens (1, N, h·d). The last H·W tokens are the map."""
    _check((len(q), *size), positions)
    before = q.shape[1] - size[0] * size[1]
    if before < 0:
        raise UserError(f'a map of {size[0]}x{size[1]} has more positions than the '
                        f'{q.shape[1]} tokens of the attention')
    asked = [before + row * size[1] + column for row, column in positions]
    with without_autocast(q):
        q, k, v = (_heads(_wide(t), num_heads) for t in (q[0, asked], k[0], v[0]))
        weights = weigh(q, k).transpose(0, 1)                             # (Q, h, N)
        output = torch.einsum('q h n, h n e -> q h e', weights, v)
    elsewhere = {}
    if before:
        elsewhere['other tokens'] = weights[..., :before].sum(-1)
    if kind == 'linear':
        elsewhere['epsilon'] = 1 - weights.sum(-1)
    return Rows(weights[..., before:].unflatten(-1, tuple(size)), elsewhere, output,
                (group,) * num_heads)


def _rows_in_windows(branch: StripeBranch, qkv: Tensor, positions: Sequence[Position],
                     weigh: Callable[[Tensor, Tensor, Tensor], Tensor], *, kind: str) -> Rows:
    """The rows of an attention inside the windows of a map, which is padded on all sides.

    Args:
        branch: the attention.
        qkv: (1, H, W, 3, C').
        positions: the queries.
        weigh: a function of the query (1, C'), the keys (N, C') and (N,) bool, False for padding.
            It returns the weights (h, 1, N).
        kind: 'softmax' or 'linear'.
    """
    height, width = size = _check(qkv.shape[:3], positions)
    h, w = window = branch.window_size(*size)
    top, left = -height % h // 2, -width % w // 2
    rows = []
    for row, column in positions:
        # The window's first row and column; they may lie before the map.
        y, x = (row + top) // h * h - top, (column + left) // w * w - left
        inside = slice(max(y, 0), y + h), slice(max(x, 0), x + w)
        held = qkv[(0, *inside)]
        pads = (max(-x, 0), max(x + w - width, 0), max(-y, 0), max(y + h - height, 0))
        k, v = (F.pad(_wide(held[:, :, i]), (0, 0, *pads)).flatten(0, 1) for i in (1, 2))
        real = F.pad(held.new_ones(held.shape[:2], dtype=torch.bool), pads)
        with without_autocast(qkv):
            weights = weigh(_wide(qkv[0, row, column, 0][None]), k, real.flatten())
            output = (weights @ _heads(v, branch.num_heads))[:, 0]
        weights = weights[:, 0].unflatten(-1, window)
        on_map = weights.new_zeros(len(weights), *size)
        on_map[(slice(None), *inside)] = weights[:, real].view(-1, *held.shape[:2])
        elsewhere = dict(padding=_beyond(weights, on_map))
        if kind == 'linear':
            elsewhere['epsilon'] = 1 - weights.sum((1, 2))
        rows.append((on_map, elsewhere, output))
    group = '' if branch.direction == 'full' else branch.direction
    return _stacked(rows, (group,) * branch.num_heads)


def _stacked(rows: Iterable[tuple[Tensor, dict[str, Tensor], Tensor]], groups: tuple[str, ...],
             routing: Routing | None = None) -> Rows:
    """One `Rows` from the weights, the weights elsewhere and the output of each query."""
    weights, elsewhere, outputs = zip(*rows, strict=True)
    return Rows(torch.stack(weights),
                {name: torch.stack([each[name] for each in elsewhere]) for name in elsewhere[0]},
                torch.stack(outputs), groups, routing)


def _joined(parts: Sequence[Rows]) -> Rows:
    """The heads of several parts of one attention, one part after the other."""
    return Rows(torch.cat([part.weights for part in parts], 1),
                {name: torch.cat([part.elsewhere[name] for part in parts], 1)
                 for name in parts[0].elsewhere},
                torch.cat([part.output for part in parts], 1),
                tuple(group for part in parts for group in part.groups))


def _check(shape: Sequence[int], positions: Sequence[Position]) -> tuple[int, int]:
    """(H, W) of `shape` (B, H, W).

    Raises:
        UserError: more than one image, no position, or a position outside the map.
    """
    batch, height, width = shape
    if batch != 1:
        raise UserError(f'rows are computed for one image at a time, got a batch of {batch}')
    outside = [p for p in positions if not (0 <= p[0] < height and 0 <= p[1] < width)]
    if outside or not positions:
        raise UserError(f'positions are (row, column) on the map of {height}x{width}, got '
                        f'{few(outside) or "none"}')
    return height, width


def _cells(pool: nn.Module | None, side: int, cells: int) -> Tensor:
    """(cells, side): the part of each position of a region's side in each pooled cell."""
    unit = torch.eye(side)[None]
    if pool is None:
        return unit[0]
    if isinstance(pool, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return F.adaptive_avg_pool1d(unit, cells)[0].mT
    return F.avg_pool1d(unit, pool.kernel_size)[0].mT


def _beyond(whole: Tensor, on_map: Tensor) -> Tensor:
    """(h,): the weight of the padding."""
    return (whole.sum((1, 2)) - on_map.sum((1, 2))).clamp(min=0)


def _heads(t: Tensor, num_heads: int) -> Tensor:
    """(N, h·d) to (h, N, d)."""
    return t.unflatten(-1, (num_heads, -1)).transpose(0, 1)


def _wide(t: Tensor) -> Tensor:
    """In float32 or wider."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
