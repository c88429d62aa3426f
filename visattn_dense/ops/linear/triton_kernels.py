"""The Triton kernel of GELU's backward pass, with the gradient of the bias before it.

    dh = g · (Φ(h) + h φ(h)),   a = h Φ(h),   db = Σ dh   over all tokens

Φ is the normal distribution, φ its density. 1 − Φ(|h|) is a polynomial of 1 / (1 + c |h|) times the
exponential of φ, to within 8e-8 (Abramowitz and Stegun, 7.1.26). A program computes the tiles p,
p + P, p + 2P, ... of BLOCK tokens and BLOCK_C channels; it writes its share of db to row p of
`shares`. The caller adds the rows, so no sum depends on the order in which programs run. All
arithmetic is float32.
"""
import triton
import triton.language as tl


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
        bell = tl.exp(-0.5 * h * h)
        t = 1 / (1 + 0.2316418883 * tl.abs(h))
        tail = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (
            -0.7265760135 + t * 0.5307027145)))) * bell
        below = tl.where(h < 0, tail, 1 - tail)
        g *= below + 0.3989422804014327 * h * bell
        total += g
        tl.store(grad + place, g.to(grad.dtype.element_ty), mask=inside)
        tl.store(activated + place, (h * below).to(activated.dtype.element_ty), mask=inside)
    tl.store(shares + share.to(tl.int64) * C + channel, tl.sum(total, 0), mask=real)
