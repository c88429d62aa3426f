"""Sums of many rows on a GPU: of a layer's gradient over all tokens, of the shares of programs.

torch's own sum of a tall matrix takes several times as long as its memory needs, and clears
counters first, which is one launch more.
"""
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .launching import Launch, empty, once_for_a_size, power_of_two

MAX_ROWS = 1024
"""The largest number of shares that a kernel should leave to `sum_rows`."""


def sum_rows(x: Tensor, dim: int, dtype: torch.dtype | None = None, *, many: bool = False,
             out: Tensor | None = None) -> Tensor:
    """`x.sum(dim)` with float32 sums, on the device of x.

    The order of the sums depends on the shape alone, so every run gives the same numbers. A kernel
    is compiled for the dimensions after `dim`, which should not depend on the size of the image.

    Args:
        x: contiguous, float32, bfloat16 or float16.
        dim: at least 0.
        dtype: of the result; that of x if None.
        many: the number of rows grows with the image. Then there are two launches, one to at most
            `MAX_ROWS` rows. At every size: a new size must not compile a kernel.
        out: the result, contiguous, of any dtype; None: a new tensor.
    """
    plan = _plan(x.shape, dim, many)
    if out is None:
        out = torch.empty(*plan.result, dtype=dtype or x.dtype, device=x.device)
    if plan.first is not None:
        shares = empty(plan.shares, x, torch.float32)
        plan.first(x, shares)
        x = shares
    if plan.last is not None:
        plan.last(x, out)
    return out


class _Plan(NamedTuple):
    """The shape of the result; with `many`, the shape of the shares and the launch that gives them;
    the last launch."""
    result: tuple[int, ...]
    shares: tuple[int, ...]
    first: Launch | None
    last: Launch | None


@once_for_a_size
def _plan(shape: torch.Size, dim: int, many: bool) -> _Plan:
    before, rows, after = tuple(shape[:dim]), shape[dim], tuple(shape[dim + 1:])
    groups, columns = math.prod(before), math.prod(after)
    if groups * columns == 0:
        return _Plan(before + after, (), None, None)
    first, shares = None, ()
    if many:
        # 128 bytes of a row of 16-bit numbers.
        programs = shares_of(rows, columns, block=64, block_c=64)
        first = _launch(groups, rows, columns, programs, block=64, block_c=64, num_warps=4)
        shares, rows = (*before, programs, *after), programs
    # Tall tiles: there are few programs.
    last = _launch(groups, rows, columns, 1, block=128, block_c=32, num_warps=8)
    return _Plan(before + after, shares, first, last)


def shares_of(rows: int, columns: int, *, block: int, block_c: int) -> int:
    """How many programs should share the rows of a tall matrix in tiles of block × block_c.

    The number depends on the sizes alone, so that the sums are the same on every GPU.
    """
    return max(1, min(-(-rows // block), MAX_ROWS, 2048 // -(-columns // block_c)))


def _launch(groups: int, rows: int, columns: int, programs: int, block: int, block_c: int,
            num_warps: int) -> Launch:
    from .triton_sums import sum_rows_kernel
    block_c = min(block_c, power_of_two(columns))
    return Launch(sum_rows_kernel, (-(-columns // block_c) * groups * programs,), rows, programs,
                  C=columns, BLOCK_C=block_c, BLOCK=block, num_warps=num_warps)
