"""Launch the Triton kernels of group attention on maps: tiles, geometry, routing by key region.

The kernels read q, k and v by their strides. For backward the caller keeps the output and the
logarithm of the softmax's sum, so nothing larger than the tensors is in memory. Every sum runs in a
fixed order without atomic additions, so every run gives the same gradients.

Products of float32 inputs are in float32 ('ieee'), never in TF32, whatever torch's own setting is.

Shapes: B images, H × W map, h heads, d channels of a head in q and k, e in v, R groups of an image,
K groups that a group attends to.
"""
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..launching import in_units, launch, map_strides, power_of_two

Kernel = Literal['forward', 'queries', 'keys']
"""Forward, the gradient of the queries, the gradient of keys and values."""


class Grid(NamedTuple):
    """The groups of a map: R = rows · columns groups of height × width tokens.

    The groups cover the map and its padding, which is centred: `top` rows and `left` columns lie
    before the map.
    """
    rows: int
    columns: int
    height: int
    width: int
    top: int = 0
    left: int = 0

    @classmethod
    def of(cls, height: int, width: int, window: tuple[int, int]) -> 'Grid':
        """The windows that cover a map."""
        rows, columns = -(-height // window[0]), -(-width // window[1])
        return cls(rows, columns, *window, (rows * window[0] - height) // 2,
                   (columns * window[1] - width) // 2)

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        return self.height * self.width


class Tile(NamedTuple):
    """The tile of a program, and the tiles of the other side that the program goes through.

    See `triton_kernels`. `is_full`: the program takes so many registers that a few less let a GPU
    run three programs of this kind at a time, not two.
    """
    block: int
    slots: int
    tokens: int
    num_warps: int
    is_full: bool = False

    @classmethod
    def of(cls, own: int, other: int, regions: int, dtype: torch.dtype, width: int,
           kernel: Kernel, weighted: bool = False) -> 'Tile':
        """The tile for `own` tokens, and `other` tokens in each of about `regions` regions.

        `width` is the larger head dim. The sizes are large, but their sums stay in registers by the
        compiler's report (`python -m benchmarks.registers`). They were not chosen by timing.
        """
        narrow = width <= 64
        if dtype == torch.float32:
            most, walked = (32, 32) if narrow else (16, 16)
        else:
            most = 128 if kernel == 'forward' and narrow else 64
            wide_walk = kernel == 'forward' and own > 32 or (
                width <= 32 and not weighted if kernel == 'keys' else narrow)
            walked = 64 if wide_walk else 32
        # tl.dot needs at least 16 rows and columns.
        block = min(most, max(16, power_of_two(own)))
        tokens = min(walked, power_of_two(other))
        slots = min(walked // tokens, power_of_two(regions))
        # The matrix product of a warp has 16 rows, and the softmax of a row stays in one warp.
        # Products of float32 do not use the matrix units.
        warps = 4 if dtype == torch.float32 else min(8 if width > 32 else 4, block // 16)
        is_full = dtype != torch.float32 and width <= 32 and warps == 4 and (
            kernel == 'forward' and block == 128 or kernel == 'keys' and walked == 64)
        return cls(block, slots, max(tokens, 16 // slots), warps, is_full)

    @classmethod
    def of_windows(cls, tokens: int, dtype: torch.dtype, width: int, kernel: Kernel) -> 'Tile':
        """The tile for windows of `tokens` tokens: one of two, so that few kernels are compiled."""
        size = 64 if tokens <= 64 else 128
        return cls.of(size, size, 1, dtype, width, kernel)


class Groups(NamedTuple):
    """Which queries attend to which keys.

    Attributes:
        heads: h.
        queries: the groups of q.
        keys: the groups of k and v, as many.
        clipped: whether the groups cover padding.
        parts: how many such attentions write beside each other: `out` and the gradients are parts
            of the channels of wider maps.
        index: (B, R, K), the groups that each group attends to; None: to itself.
        weight: (B, R, K), factor of k and v of these groups, or None.
    """
    heads: int
    queries: Grid
    keys: Grid
    clipped: bool = False
    parts: int = 1
    index: Tensor | None = None
    weight: Tensor | None = None

    @property
    def listed(self) -> int:
        """K."""
        return 1 if self.index is None else self.index.shape[2]

    def sizes(self, q: Tensor) -> tuple[int, ...]:
        """The sizes that every kernel takes, in the order of their arguments."""
        q_side, k_side = self.queries, self.keys
        return (self.heads, q_side.count, self.listed, q_side.columns, q_side.height, q_side.width,
                k_side.columns, k_side.height, k_side.width, q_side.top, q_side.left, *q.shape[1:3],
                self.parts)

    def tile(self, kernel: Kernel, q: Tensor, v: Tensor) -> Tile:
        own, other = self.queries, self.keys
        if kernel == 'keys':
            own, other = other, own
        width = max(self.widths(q, v))
        if self.index is None:
            return Tile.of_windows(own.tokens, q.dtype, width, kernel)
        return Tile.of(own.tokens, other.tokens, self.listed, q.dtype, width, kernel,
                       self.weight is not None)

    def widths(self, q: Tensor, v: Tensor) -> tuple[int, int]:
        """d and e."""
        return q.shape[-1] // self.heads, v.shape[-1] // self.heads

    def constants(self, tile: Tile, q: Tensor, v: Tensor, unit: int) -> dict:
        """What the kernels are compiled for."""
        d, e = self.widths(q, v)
        # 65536 registers, for three times four warps. AMD's compiler has no such option.
        limit = {'maxnreg': 168} if tile.is_full and torch.version.hip is None else {}
        return dict(D=d, E=e, BLOCK_D=max(16, power_of_two(d)), BLOCK_E=max(16, power_of_two(e)),
                    UNIT=unit, LISTED=self.index is not None, CLIPPED=self.clipped,
                    WEIGHTED=self.weight is not None, PRECISION='ieee', BLOCK=tile.block,
                    SLOTS=tile.slots, TOKENS=tile.tokens, num_warps=tile.num_warps, num_stages=2,
                    enable_fp_fusion=True, **limit)


def statistics(q: Tensor, groups: Groups) -> tuple[int, int, int, int]:
    """(B, R, h, N): the shape of a tensor with a number for each query and head."""
    return len(q), groups.queries.count, groups.heads, groups.queries.tokens


def attend(q: Tensor, k: Tensor, v: Tensor, groups: Groups, scale: float, out: Tensor, lse: Tensor,
           *, taps: Tensor | None = None, bias: Tensor | None = None, padding_counts: bool = True,
           mixed: Tensor | None = None) -> None:
    """Forward.

    Args:
        q, k, v: (B, H, W, h·d), (B, H', W', h·d), (B, H', W', h·e), `readable`.
        groups: the geometry.
        scale: positive factor of the logits.
        out: (B, H, W, h·e), written; one of `groups.parts` parts of the channels of a contiguous
            map.
        lse: `statistics`, float32, contiguous; written: the logarithm of the sum of the softmax.
        taps, bias: (h·e, 1, k, k) and (h·e,), of the depthwise convolution that is added, or None.
        padding_counts: whether the keys of the padding take part.
        mixed: like `out`, written: with taps, the attention without the convolution. Or None.
    """
    from .triton_kernels import forward_kernel
    tile = groups.tile('forward', q, v)
    strides, unit = in_units(map_strides(q, k, v), *groups.widths(q, v))
    launch(forward_kernel, (lse[..., 0].numel() * -(-lse.shape[-1] // tile.block),),
           q, k, v, groups.index, groups.weight, taps, bias, out, mixed, lse, scale,
           *groups.sizes(q), int(padding_counts), *strides,
           **groups.constants(tile, q, v, unit), SIDE=_side(taps))


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, lse: Tensor,
              groups: Groups, scale: float, into: tuple[Tensor, Tensor, Tensor], *,
              apart: int = 1, taps: Tensor | None = None) -> Tensor | None:
    """Backward.

    Args:
        grad: (B, H, W, h·e), `readable`.
        q, k, v, groups, scale, taps: as in `attend`.
        mixed, lse: the attention without the convolution, and the logarithms; as in `attend`.
        into: where the gradients of q, k and v are written: contiguous maps, or `apart` tensors
            side by side, each with `groups.parts` parts of its channels.

    Returns:
        The gradient of the weights of the routed groups, in float32, or None.
    """
    from .triton_kernels import key_gradient_kernel, part_sum_kernel, query_gradient_kernel
    pairs = lse.new_empty(*lse.shape, 2)
    rows = lse[..., 0, 0].numel()
    sizes = groups.sizes(q)
    strides, unit = in_units(map_strides(q, k, v, grad), *groups.widths(q, v))

    tile = groups.tile('queries', q, v)
    tiles = -(-groups.queries.tokens // tile.block)
    launch(query_gradient_kernel, (rows * groups.heads * tiles,),
           q, k, v, groups.index, groups.weight, mixed, lse, grad, pairs, into[0], scale, *sizes,
           *strides, **groups.constants(tile, q, v, unit), APART=apart)

    tile = groups.tile('keys', q, v)
    tiles = -(-groups.keys.tokens // tile.block)
    routing, ordered, weight_shares, parts = None, None, None, None
    if groups.index is not None:
        routing = transpose_routing(groups.index)
        parts = lse.new_empty(rows * groups.keys.tokens, q.shape[-1] + v.shape[-1])
    if groups.weight is not None:
        ordered = groups.weight.flatten()[routing.pairs]
        weight_shares = lse.new_empty(len(routing.pairs), groups.heads, tiles,
                                      -(-groups.queries.tokens // tile.tokens))
    segments = rows if routing is None else len(routing.rows)
    constants = groups.constants(tile, q, v, unit)
    tables = (None,) * 4 if routing is None else (routing.askers, *routing[2:])
    launch(key_gradient_kernel, (segments * groups.heads * tiles,),
           q, k, v, ordered, taps, grad, pairs, *into[1:], weight_shares, parts, *tables,
           scale, *sizes, rows, *strides, **constants, SIDE=_side(taps), APART=apart)
    if routing is not None:
        launch(part_sum_kernel, (rows * groups.heads * tiles,), parts, *into[1:], routing.offsets,
               routing.starts, groups.heads, groups.keys.count, groups.listed, *sizes[6:9],
               **{name: constants[name] for name in ('D', 'E', 'BLOCK_D', 'BLOCK_E', 'BLOCK',
                                                     'num_warps', 'enable_fp_fusion')})
    if groups.weight is not None:
        grad_weight = torch.empty_like(groups.weight, dtype=torch.float32)
        grad_weight.view(-1)[routing.pairs] = weight_shares.sum((1, 2, 3))
        return grad_weight
    return None


def _side(taps: Tensor | None) -> int:
    """The side of the kernel of the convolution, or 0."""
    return 0 if taps is None else taps.shape[-1]


class Routing(NamedTuple):
    """The transpose of a routing: for each key row, the list of the groups that attend to it.

    Rows count the groups of all images: image · R + group. All entries except `pairs` are int32.

    Attributes:
        pairs: (B·R·K,), positions in index.flatten(). Positions with the same key row form a list,
            in rising order.
        askers: (B·R·K,), the number in its image of the query group of each position.
        offsets: (B·R + 1,), where the list of each key row starts, and the end.
        rows: (segments,), the key row of each segment of a list; B·R where there is no segment.
        starts: (B·R + 1,), the first segment of each key row, and the number of segments.
    """
    pairs: Tensor
    askers: Tensor
    offsets: Tensor
    rows: Tensor
    starts: Tensor


def transpose_routing(index: Tensor) -> Routing:
    """The query groups that attend to each key group, computed without a wait for the device.

    A list longer than 2 K is cut into equal segments of more than K and at most 2 K groups, so that
    no program has to sum over a very long list. Other lists are one segment.

    Args:
        index: (B, R, K).
    """
    batch, groups, listed = index.shape
    first = torch.arange(0, batch * groups, groups, device=index.device)
    rows, pairs = (index + first[:, None, None]).flatten().sort(stable=True)
    every = torch.arange(batch * groups + batch * groups // 2 + 1, device=index.device)
    offsets = torch.searchsorted(rows, every[:batch * groups + 1], out_int32=True)
    counts = (offsets.diff() + 2 * listed - 1).div(2 * listed, rounding_mode='floor').clamp(min=1)
    starts = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    return Routing(pairs, (pairs // listed % groups).int(), offsets,
                   torch.searchsorted(starts[1:], every, right=True, out_int32=True), starts)
