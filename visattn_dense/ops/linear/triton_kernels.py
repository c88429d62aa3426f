"""The Triton kernel of GELU's backward pass, with the gradient of the bias before it.

    dh = g · (Φ(h) + h φ(h)),   a = h Φ(h),   db = Σ dh   over all tokens

Φ is the normal distribution, φ its density. A program computes the tiles p, p + P, p + 2P, ... of
BLOCK tokens and BLOCK_C channels; it writes its share of db to row p of `shares`. The caller adds
the rows, so no sum depends on the order in which programs run. All arithmetic is float32.
"""
import triton
import triton.language as tl

from ..triton_activations import normal


@triton.jit(do_not_specialize=['T', 'P'])
def gelu_backward_kernel(hidden, grad, activated, shares, T, P, C: tl.constexpr,
                         BLOCK_C: tl.constexpr, BLOCK: tl.constexpr):
    """grad becomes dh, activated a; hidden, grad and activated are (T, C), shares (P, C)."""
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    channel = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    share = program // blocks
    total = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for first in range(share * BLOCK, T, P * BLOCK):
        token = (first + tl.arange(0, BLOCK)).to(tl.int64)
        inside = (token < T)[:, None] & real[None, :]
        place = token[:, None] * C + channel[None, :]
        h = tl.load(hidden + place, mask=inside, other=0.).to(tl.float32)
        g = tl.load(grad + place, mask=inside, other=0.).to(tl.float32)
        below, density = normal(h)
        g *= below + h * density
        total += g
        tl.store(grad + place, g.to(grad.dtype.element_ty), mask=inside)
        tl.store(activated + place, (h * below).to(activated.dtype.element_ty), mask=inside)
    tl.store(shares + share.to(tl.int64) * C + channel, tl.sum(total, 0), mask=real)
