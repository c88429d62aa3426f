"""Launch the Triton kernels of group attention on maps: tiles, geometry, routing by key region.

The kernels read q, k and v by their strides. For backward the caller keeps the output and the
logarithm of the softmax's sum, so nothing larger than the tensors is in memory. Every sum runs in a
fixed order without atomic additions, so every run gives the same gradients.

Products of float32 inputs are in float32 ('ieee'), never in TF32, whatever torch's own setting is.

Shapes: B images, H × W map, h heads, d channels of a head in q and k, e in v, R groups of an image,
K groups that a group attends to.
"""
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..launching import Launch, empty, in_units, once_for_a_size, power_of_two
from ..routing.transposed import most_segments, transpose_routing

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
        """The tile for windows of at most `tokens` tokens: one of two, so that few kernels are
        compiled."""
        size = 64 if tokens <= 64 else 128
        return cls.of(size, size, 1, dtype, width, kernel)


class Groups(NamedTuple):
    """Which queries attend to which keys.

    Attributes:
        heads: h.
        queries: the groups of q.
        keys: the groups of k and v, as many.
        clipped: whether the groups cover padding. Then `queries` and `keys` are the same.
        second: the groups of the second half of the heads, if not those of the first; clipped.
        listed: K, if each group attends to the groups of a list; None: to itself.
        weighted: whether the groups of the list have factors of k and v.
    """
    heads: int
    queries: Grid
    keys: Grid
    clipped: bool = False
    second: Grid | None = None
    listed: int | None = None
    weighted: bool = False

    @classmethod
    def of_windows(cls, heads: int, grids: Sequence[Grid]) -> 'Groups':
        """Windows of one kind for all heads, or of another kind for each half of the heads."""
        first, *second = grids
        return cls(heads, first, first, clipped=True, second=second[0] if second else None)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The groups of q of each kind."""
        return (self.queries,) if self.second is None else (self.queries, self.second)

    @property
    def kinds(self) -> int:
        return len(self.grids)

    def statistics(self, batch: int) -> list[int]:
        """For each kind, how many queries there are, counted once for each head."""
        return [batch * self.heads // self.kinds * grid.count * grid.tokens for grid in self.grids]


class Maps(NamedTuple):
    """How q, k, v (and for backward the gradient of the result) lie in memory.

    Attributes:
        shapes: (B, H, W, C) of q, k and v.
        strides: of each, (image, row, column, 1).
        dtype: of all.
    """
    shapes: tuple[torch.Size, ...]
    strides: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> 'Maps':
        return cls((q.shape, k.shape, v.shape),
                   (q.stride(), k.stride(), v.stride(), *[t.stride() for t in more]), q.dtype)


class _Call:
    """What the kernels of one call have in common."""

    def __init__(self, groups: Groups, maps: Maps) -> None:
        self.groups, self.dtype = groups, maps.dtype
        q, k, v = maps.shapes
        self._shape = q
        self.heads = groups.heads // groups.kinds
        self.widths = q[-1] // groups.heads, v[-1] // groups.heads
        self.rows = q[0] * groups.queries.count
        strides, self._unit = in_units(
            [stride for each in maps.strides for stride in each[:3]], *self.widths)
        self.strides = tuple(strides)

    def programs(self, tile: Tile, kernel: Kernel, rows: int) -> list[int]:
        """How many programs each kind of groups has. `rows`: of the first kind, or segments."""
        own = self.groups.keys if kernel == 'keys' else self.groups.queries
        found = [(rows, own)]
        if self.groups.second is not None:
            found.append((self._shape[0] * self.groups.second.count, self.groups.second))
        return [many * self.heads * -(-grid.tokens // tile.block) for many, grid in found]

    def sizes(self, split: int) -> tuple[int, ...]:
        """The arguments from HEADS to LEFT_2. `split`: how many programs the first kind has."""
        groups = self.groups
        own, other = groups.queries, groups.keys
        second = groups.second or own
        return (self.heads, own.count, groups.listed or 1, own.columns, own.height, own.width,
                other.columns, other.height, other.width, own.top, own.left, *self._shape[1:3],
                split, groups.statistics(self._shape[0])[0], second.count, second.columns,
                second.height, second.width, second.top, second.left)

    def tile(self, kernel: Kernel) -> Tile:
        own, other = self.groups.queries, self.groups.keys
        if kernel == 'keys':
            own, other = other, own
        width = max(self.widths)
        if self.groups.listed is None:
            tokens = max(own.tokens, *[grid.tokens for grid in self.groups.grids])
            return Tile.of_windows(tokens, self.dtype, width, kernel)
        return Tile.of(own.tokens, other.tokens, self.groups.listed, self.dtype, width, kernel,
                       self.groups.weighted)

    def constants(self, tile: Tile) -> dict:
        """What the kernels are compiled for."""
        d, e = self.widths
        # 65536 registers, for three times four warps.
        limit = {'maxnreg': 168} if tile.is_full and _takes_limits() else {}
        return dict(D=d, E=e, BLOCK_D=max(16, power_of_two(d)), BLOCK_E=max(16, power_of_two(e)),
                    UNIT=self._unit, LISTED=self.groups.listed is not None,
                    CLIPPED=self.groups.clipped, KINDS=self.groups.kinds,
                    WEIGHTED=self.groups.weighted, PRECISION='ieee', BLOCK=tile.block,
                    SLOTS=tile.slots, TOKENS=tile.tokens, num_warps=tile.num_warps, num_stages=2,
                    **limit)


def _takes_limits() -> bool:
    """Whether a limit of registers helps: AMD's compiler has none, and with compute capability 10.x
    a thread holds a whole row of a product and spills hundreds of bytes."""
    return torch.version.hip is None and not (
        torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 10)


def attend(q: Tensor, k: Tensor, v: Tensor, groups: Groups, scale: float, out: Tensor, lse: Tensor,
           *, index: Tensor | None = None, weight: Tensor | None = None,
           taps: Sequence[Tensor] = (), biases: Sequence[Tensor] = (),
           padding_counts: bool = True, mixed: Tensor | None = None) -> None:
    """Forward.

    Args:
        q, k, v: (B, H, W, h·d), (B, H', W', h·d), (B, H', W', h·e), `readable`.
        groups: the geometry.
        scale: positive factor of the logits.
        out: (B, H, W, h·e), contiguous; written.
        lse: as many numbers as `groups.statistics` says, float32, contiguous; written: the
            logarithm of the sum of the softmax.
        index: (B, R, K), the groups that each group attends to, or None.
        weight: (B, R, K), factor of k and v of these groups, or None.
        taps, biases: of the depthwise convolution that is added, or nothing: (h·e, 1, k, k) and
            (h·e,); with two kinds of groups, two of half the channels.
        padding_counts: whether the keys of the padding take part.
        mixed: like `out`, written: with taps, the attention without the convolution. Or None.
    """
    _forward_launch(groups, Maps.of(q, k, v), scale, _side(taps), padding_counts)(
        q, k, v, index, weight, *_two(taps), *_two(biases), out, mixed, lse)


@once_for_a_size
def _forward_launch(groups: Groups, maps: Maps, scale: float, side: int, padding_counts: bool
                    ) -> Launch:
    from .triton_kernels import forward_kernel
    call = _Call(groups, maps)
    tile = call.tile('forward')
    programs = call.programs(tile, 'forward', call.rows)
    return Launch(forward_kernel, (sum(programs),), float(scale), *call.sizes(programs[0]),
                  int(padding_counts), *call.strides, **call.constants(tile), SIDE=side)


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, lse: Tensor,
              groups: Groups, scale: float, into: Sequence[Tensor], *,
              index: Tensor | None = None, weight: Tensor | None = None, apart: int = 1,
              taps: Sequence[Tensor] = ()) -> Tensor | None:
    """Backward.

    Args:
        grad: (B, H, W, h·e), `readable`.
        q, k, v, groups, scale, index, weight, taps: as in `attend`.
        mixed, lse: the attention without the convolution, and the logarithms; as in `attend`.
        into: where the gradients of q, k and v are written: contiguous maps, or `apart` maps side
            by side.

    Returns:
        The gradient of the weights of the routed groups, in float32, or None.
    """
    maps = Maps.of(q, k, v, grad)
    pairs = empty((lse.numel(), 2), lse)
    _query_launch(groups, maps, scale, apart)(q, k, v, index, weight, mixed, lse, grad, pairs,
                                              into[0])
    of_keys = _key_launch(groups, maps, scale, apart, _side(taps))
    if index is None:
        of_keys(q, k, v, None, *_two(taps), grad, pairs, *into[1:], *(None,) * 6)
        return None
    routing = transpose_routing(index)
    parts = empty((len(k) * groups.keys.count * groups.keys.tokens, q.shape[-1] + v.shape[-1]), lse)
    shares = None
    if weight is not None:
        shares = empty((weight.numel(), groups.heads,
                        -(-groups.keys.tokens // of_keys.constants['BLOCK']),
                        -(-groups.queries.tokens // of_keys.constants['TOKENS'])), lse)
    of_keys(q, k, v, weight, *_two(taps), grad, pairs, *into[1:], shares, parts, *routing)
    _part_sum_launch(groups, maps)(parts, *into[1:], routing.lists)
    return None if weight is None else shares.sum((1, 2, 3)).view(weight.shape)


@once_for_a_size
def _query_launch(groups: Groups, maps: Maps, scale: float, apart: int) -> Launch:
    from .triton_kernels import query_gradient_kernel
    call = _Call(groups, maps)
    tile = call.tile('queries')
    programs = call.programs(tile, 'queries', call.rows)
    return Launch(query_gradient_kernel, (sum(programs),), float(scale), *call.sizes(programs[0]),
                  *call.strides, **call.constants(tile), APART=apart)


@once_for_a_size
def _key_launch(groups: Groups, maps: Maps, scale: float, apart: int, side: int) -> Launch:
    from .triton_kernels import key_gradient_kernel
    call = _Call(groups, maps)
    tile = call.tile('keys')
    rows = call.rows if groups.listed is None else most_segments(call.rows, groups.keys.count)
    programs = call.programs(tile, 'keys', rows)
    return Launch(key_gradient_kernel, (sum(programs),), float(scale), *call.sizes(programs[0]),
                  call.rows, *call.strides, **call.constants(tile), SIDE=side, APART=apart)


@once_for_a_size
def _part_sum_launch(groups: Groups, maps: Maps) -> Launch:
    from .triton_kernels import part_sum_kernel
    call = _Call(groups, maps)
    tile, keys = call.tile('keys'), groups.keys
    constants = call.constants(tile)
    return Launch(part_sum_kernel, (call.rows * groups.heads * -(-keys.tokens // tile.block),),
                  groups.heads, keys.count, groups.listed, keys.columns, keys.height, keys.width,
                  **{name: constants[name] for name in ('D', 'E', 'BLOCK_D', 'BLOCK_E', 'BLOCK',
                                                        'num_warps')})


def _side(taps: Sequence[Tensor]) -> int:
    """The side of the kernel of the convolution, or 0."""
    return taps[0].shape[-1] if taps else 0


def _two(tensors: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """The tensors of the first and the second kind of groups, if any."""
    return (*tensors, None, None)[:2]
