"""Sums of many rows on a GPU: of a layer's gradient over all tokens, of the shares of programs.

torch's own sum of a tall matrix takes several times as long as its memory needs, and clears
counters first, which is one launch more.
"""
import math

import torch
from torch import Tensor

from .launching import Launch, empty, once_for_a_size, power_of_two

_ROWS = 1024
"""The rows that one program adds at most. More rows are added in two steps."""


def sum_rows(x: Tensor, dim: int, dtype: torch.dtype | None = None,
             out: Tensor | None = None) -> Tensor:
    """`x.sum(dim)` with float32 sums, by one launch or two, on the device of x.

    The order of the sums depends on the shape alone, so every run gives the same numbers.

    Args:
        x: contiguous, float32, bfloat16 or float16.
        dim: at least 0.
        dtype: of the result; that of x if None.
        out: the result, contiguous, of any dtype; None: a new tensor.
    """
    shape = x.shape
    if out is None:
        out = torch.empty(shape[:dim] + shape[dim + 1:], dtype=dtype or x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    programs = 1
    if shape[dim] > _ROWS:
        first, programs = _launch(shape, dim, many=True)
        shares = empty((*shape[:dim], programs, *shape[dim + 1:]), x, torch.float32)
        first(x, shares)
        x = shares
    _launch(x.shape, dim, many=False)[0](x, out)
    return out


@once_for_a_size
def _launch(shape: torch.Size, dim: int, many: bool) -> tuple[Launch, int]:
    """Rows to one row, or to `many`, and the number of resulting rows."""
    from .triton_sums import sum_rows_kernel
    groups, rows, columns = math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1:])
    # 128 bytes of a row; tall tiles where there are few programs.
    block, block_c = (64, 64) if many else (128, 32)
    block_c = min(block_c, power_of_two(columns))
    blocks = -(-columns // block_c)
    programs = min(-(-rows // block), max(1, min(_ROWS, 2048 // blocks))) if many else 1
    return Launch(sum_rows_kernel, (blocks * groups * programs,), rows, programs, C=columns,
                  BLOCK_C=block_c, BLOCK=block, num_warps=4 if many else 8,
                  enable_fp_fusion=True), programs
