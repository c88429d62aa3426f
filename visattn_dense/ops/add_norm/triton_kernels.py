"""Triton kernels of a residual sum and its LayerNorm: forward, and backward.

    total = x + s · (update + c),   y = (total − μ) · r,   normed = y · w + b,   r = 1 / √(σ² + eps)

With g the gradient of normed, h that of total, and means over the C channels of a token:

    dtotal = h + r (w g − mean(w g) − y mean(w g y)),   dx = dtotal,   dupdate = s · dtotal
    dw = Σ g y,   db = Σ g,   dc = Σ dupdate   over all tokens

A token is a row. All arithmetic is float32. The tensors are contiguous. A program of `forward`
computes one tile of BLOCK tokens, a program of `backward` the tiles p, p + P, p + 2P, ... of P
programs; it keeps the sums of dw, db and dc, and writes them as row p of `shares`. The caller adds
the rows. No sum depends on the order in which programs run.

T tokens, N tokens of a sample, C channels.
"""
import triton
import triton.language as tl


@triton.jit(do_not_specialize=['T', 'N'])
def forward_kernel(x, update, update_bias, scale, weight, bias, total, normed, statistics, eps, T,
                   N, C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr):
    """total, normed, and for backward the mean of each token, then the r of each: (2, T)."""
    channel = tl.arange(0, BLOCK_C)
    real = channel < C
    # Offsets in a large batch are larger than 2³¹.
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (token < T)[:, None] & real[None, :]
    place = token[:, None] * C + channel[None, :]
    value = tl.load(x + place, mask=inside, other=0.).to(tl.float32)
    if update is not None:
        added = tl.load(update + place, mask=inside, other=0.).to(tl.float32)
        if update_bias is not None:
            added += tl.load(update_bias + channel, mask=real, other=0.).to(tl.float32)[None, :]
        if scale is not None:
            factor = tl.load(scale + token // N, mask=token < T, other=0.).to(tl.float32)
            added *= factor[:, None]
        # What is normalised is the sum as it is stored.
        value = (value + added).to(total.dtype.element_ty)
        tl.store(total + place, value, mask=inside)
        value = value.to(tl.float32)
    centre = tl.sum(value, 1) / C
    centred = tl.where(real[None, :], value - centre[:, None], 0.)
    r = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    w = tl.load(weight + channel, mask=real, other=0.).to(tl.float32)
    b = tl.load(bias + channel, mask=real, other=0.).to(tl.float32)
    out = centred * r[:, None] * w[None, :] + b[None, :]
    tl.store(normed + place, out.to(normed.dtype.element_ty), mask=inside)
    tl.store(statistics + token, centre, mask=token < T)
    tl.store(statistics + T + token, r, mask=token < T)


@triton.jit(do_not_specialize=['T', 'N'])
def backward_kernel(grad_total, grad_normed, total, scale, weight, statistics, grad_x, grad_update,
                    shares, T, N, BIASED: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr,
                    BLOCK: tl.constexpr):
    """grad_x, grad_update unless it is None, and this program's shares of dw, db and, if the update
    is BIASED, dc."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    channel = tl.arange(0, BLOCK_C)
    real = channel < C
    w = tl.load(weight + channel, mask=real, other=0.).to(tl.float32)
    sum_w = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    sum_b = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    sum_c = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for tile in range(program, tl.cdiv(T, BLOCK), programs):
        token = (tile * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        inside = (token < T)[:, None] & real[None, :]
        place = token[:, None] * C + channel[None, :]
        g = tl.load(grad_normed + place, mask=inside, other=0.).to(tl.float32)
        centre = tl.load(statistics + token, mask=token < T, other=0.)
        r = tl.load(statistics + T + token, mask=token < T, other=0.)
        y = (tl.load(total + place, mask=inside, other=0.).to(tl.float32) - centre[:, None])
        y = tl.where(inside, y * r[:, None], 0.)
        sum_w += g * y
        sum_b += g
        g *= w[None, :]
        along = tl.sum(g * y, 1) / C
        grad = (g - (tl.sum(g, 1) / C)[:, None] - y * along[:, None]) * r[:, None]
        if grad_total is not None:
            grad += tl.load(grad_total + place, mask=inside, other=0.).to(tl.float32)
        tl.store(grad_x + place, grad.to(grad_x.dtype.element_ty), mask=inside)
        if scale is not None:
            factor = tl.load(scale + token // N, mask=token < T, other=0.).to(tl.float32)
            grad *= factor[:, None]
        if BIASED:
            sum_c += grad
        if grad_update is not None:
            tl.store(grad_update + place, grad.to(grad_update.dtype.element_ty), mask=inside)
    place = program.to(tl.int64) * (3 if BIASED else 2) * C + channel
    tl.store(shares + place, tl.sum(sum_w, 0), mask=real)
    tl.store(shares + place + C, tl.sum(sum_b, 0), mask=real)
    if BIASED:
        tl.store(shares + place + 2 * C, tl.sum(sum_c, 0), mask=real)
