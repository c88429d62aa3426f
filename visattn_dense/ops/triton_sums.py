"""The Triton kernel that adds the rows of matrices."""
import triton
import triton.language as tl


@triton.jit(do_not_specialize=['T', 'P'])
def sum_rows_kernel(x, out, T, P, C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr):
    """(groups, T, C) to (groups, P, C): row p is the sum of the tiles p, p + P, p + 2P, ...

    A tile has BLOCK rows and BLOCK_C columns. The sums are float32.
    """
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    column = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    real = column < C
    share = program // blocks % P
    group = (program // blocks // P).to(tl.int64)
    total = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for first in range(share * BLOCK, T, P * BLOCK):
        row = first + tl.arange(0, BLOCK)
        total += tl.load(x + (group * T + row)[:, None] * C + column[None, :],
                         mask=(row < T)[:, None] & real[None, :], other=0.).to(tl.float32)
    tl.store(out + (group * P + share) * C + column, tl.sum(total, 0).to(out.dtype.element_ty),
             mask=real)
