"""Triton kernels of a BatchNorm, or a bias, and an activation: forward, backward, statistics.

    out = act(v) + onto,   v = x̂ · w + b,   x̂ = (x − μ) · r,   r = 1 / √(σ² + eps)

With g the gradient of out, h = g · act'(v), and sums over the P positions, for the μ and σ² of x:

    dw = Σ h x̂,   db = Σ h,   dx = w r (h − (db + x̂ dw) / P),   donto = g

Without μ there is no norm: v = x + b and dx = h. Backward computes x̂ and v again from x. Without
σ², `mean` is (2, C): μ, then σ².

The maps are channels_last, without gaps: P positions of C channels. b and `onto` may be None. All
arithmetic is float32. A tile has BLOCK positions and BLOCK_C channels. Of N programs for the same
channels, program p computes the tiles p, p + N, p + 2N, ... and writes its sums as row p of
`shares`. The rows are added in their order, so no sum depends on the order in which programs run.
"""
import triton
import triton.language as tl

from ..triton_activations import activate, activation_slope


@triton.jit
def _place(tile, P, C: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of a tile: where its numbers are, and which exist."""
    # Offsets in a large batch are larger than 2³¹.
    position = (tile * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (position < P)[:, None] & (channel < C)[None, :]
    return position[:, None] * C + channel[None, :], inside


@triton.jit
def _row(numbers, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The numbers of this program's channels, (1, BLOCK_C)."""
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    return tl.load(numbers + channel, mask=channel < C, other=0.).to(tl.float32)[None, :]


@triton.jit
def _parameters(mean, variance, weight, bias, eps, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """μ, r, w and b of this program's channels, as rows; 0 or 1 for what is None."""
    centre = tl.zeros((1, BLOCK_C), tl.float32)
    r = centre + 1
    w = r
    b = centre
    if mean is not None:
        centre = _row(mean, C, BLOCK_C)
        spread = mean + C if variance is None else variance
        r = 1 / tl.sqrt(_row(spread, C, BLOCK_C) + eps)
        w = _row(weight, C, BLOCK_C)
    if bias is not None:
        b = _row(bias, C, BLOCK_C)
    return centre, r, w, b


@triton.jit(do_not_specialize=['P'])
def norm_act_kernel(x, mean, variance, weight, bias, onto, out, eps, P, C: tl.constexpr,
                    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr):
    """out; a program computes one tile."""
    centre, r, w, b = _parameters(mean, variance, weight, bias, eps, C, BLOCK_C)
    place, inside = _place(tl.program_id(0), P, C, BLOCK, BLOCK_C)
    value = tl.load(x + place, mask=inside, other=0.).to(tl.float32)
    value = activate((value - centre) * (r * w) + b, ACTIVATION)
    if onto is not None:
        value += tl.load(onto + place, mask=inside, other=0.).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _hidden_gradient(grad, x, place, inside, centre, r, w, b, ACTIVATION: tl.constexpr):
    """h and x̂ of a tile."""
    h = tl.load(grad + place, mask=inside, other=0.).to(tl.float32)
    normed = (tl.load(x + place, mask=inside, other=0.).to(tl.float32) - centre) * r
    return h * activation_slope(normed * w + b, ACTIVATION), normed


@triton.jit(do_not_specialize=['P'])
def norm_act_sums_kernel(grad, x, mean, variance, weight, bias, grad_x, shares, eps, P,
                         C: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
                         BLOCK_C: tl.constexpr):
    """Shares of db, and with a norm of dw: (N, 1 or 2, C). Without a norm: dx too."""
    centre, r, w, b = _parameters(mean, variance, weight, bias, eps, C, BLOCK_C)
    sum_b = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    sum_w = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(P, BLOCK), tl.num_programs(0)):
        place, inside = _place(tile, P, C, BLOCK, BLOCK_C)
        h, normed = _hidden_gradient(grad, x, place, inside, centre, r, w, b, ACTIVATION)
        sum_b += h
        if mean is not None:
            sum_w += h * normed
        else:
            tl.store(grad_x + place, h.to(grad_x.dtype.element_ty), mask=inside)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if mean is not None:
        shares += tl.program_id(0) * 2 * C + channel
        tl.store(shares + C, tl.sum(sum_w, 0), mask=channel < C)
    else:
        shares += tl.program_id(0) * C + channel
    tl.store(shares, tl.sum(sum_b, 0), mask=channel < C)


@triton.jit(do_not_specialize=['P'])
def norm_act_gradient_kernel(grad, x, mean, variance, weight, bias, sums, grad_x, eps, P,
                             C: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
                             BLOCK_C: tl.constexpr):
    """dx from db and dw, the rows of `sums`; a program computes one tile."""
    centre, r, w, b = _parameters(mean, variance, weight, bias, eps, C, BLOCK_C)
    place, inside = _place(tl.program_id(0), P, C, BLOCK, BLOCK_C)
    h, normed = _hidden_gradient(grad, x, place, inside, centre, r, w, b, ACTIVATION)
    share = 1 / P.to(tl.float32)
    of_b = _row(sums, C, BLOCK_C) * share
    of_w = _row(sums + C, C, BLOCK_C) * share
    h = (h - of_b - normed * of_w) * (w * r)
    tl.store(grad_x + place, h.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=['P'])
def batch_statistics_kernel(x, shares, batches, P, C: tl.constexpr, BLOCK: tl.constexpr,
                            BLOCK_C: tl.constexpr):
    """Shares (N, 3, C): how many positions, their mean, and Σ (x − mean)². Counts the batch.

    Each number of a tile has a mean and a sum of its own, by Welford's rule: the difference of two
    large sums of squares would round the variance away. At the end they are merged by Chan's rule.
    """
    mean = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    many = tl.zeros((BLOCK,), tl.float32)
    tiles = 0.
    for tile in range(tl.program_id(0), tl.cdiv(P, BLOCK), tl.num_programs(0)):
        place, inside = _place(tile, P, C, BLOCK, BLOCK_C)
        value = tl.load(x + place, mask=inside, other=0.).to(tl.float32)
        tiles += 1
        # All rows but those beyond the map have counted as many: these are in the last tile.
        many += tl.where(tile * BLOCK + tl.arange(0, BLOCK) < P, 1., 0.)
        change = tl.where(inside, value - mean, 0.)
        mean += change * (1 / tiles)
        squares += change * (value - mean)
    count = tl.sum(many, 0)
    centre = tl.sum(many[:, None] * mean, 0) / count
    apart = mean - centre[None, :]
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    shares += tl.program_id(0) * 3 * C + channel
    tl.store(shares, tl.zeros((BLOCK_C,), tl.float32) + count, mask=channel < C)
    tl.store(shares + C, centre, mask=channel < C)
    tl.store(shares + 2 * C, tl.sum(squares + many[:, None] * apart * apart, 0),
             mask=channel < C)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(batches, tl.load(batches) + 1)


@triton.jit(do_not_specialize=['N'])
def merge_statistics_kernel(shares, batches, mean, running_mean, running_variance, momentum, N,
                            C: tl.constexpr, CUMULATIVE: tl.constexpr, BLOCK: tl.constexpr,
                            BLOCK_C: tl.constexpr):
    """μ and σ² from N rows of shares, by Chan's rule; moves the running statistics towards them.

    CUMULATIVE: the running statistics are means over all batches.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    counts = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for first in range(0, N, BLOCK):
        row = first + tl.arange(0, BLOCK)
        inside = (row < N)[:, None] & real[None, :]
        count = tl.load(shares + row * 3 * C, mask=row < N, other=0.)
        counts += count
        place = shares + row[:, None] * 3 * C + channel[None, :]
        total += count[:, None] * tl.load(place + C, mask=inside, other=0.)
    many = tl.sum(counts, 0)
    centre = tl.sum(total, 0) / many
    squares = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for first in range(0, N, BLOCK):
        row = first + tl.arange(0, BLOCK)
        inside = (row < N)[:, None] & real[None, :]
        count = tl.load(shares + row * 3 * C, mask=row < N, other=0.)
        place = shares + row[:, None] * 3 * C + channel[None, :]
        apart = tl.load(place + C, mask=inside, other=0.) - centre[None, :]
        squares += (tl.load(place + 2 * C, mask=inside, other=0.)
                    + count[:, None] * apart * apart)
    all_squares = tl.sum(squares, 0)
    tl.store(mean + channel, centre, mask=real)
    tl.store(mean + C + channel, all_squares / many, mask=real)
    factor = momentum
    if CUMULATIVE:
        factor = 1 / tl.load(batches).to(tl.float32)
    before = tl.load(running_mean + channel, mask=real, other=0.)
    tl.store(running_mean + channel, (1 - factor) * before + factor * centre, mask=real)
    before = tl.load(running_variance + channel, mask=real, other=0.)
    # The running variance is without bias.
    unbiased = all_squares / (many - 1)
    tl.store(running_variance + channel, (1 - factor) * before + factor * unbiased, mask=real)
