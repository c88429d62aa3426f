"""Triton kernels of depthwise convolution: forward, gradient of the map, gradient of the kernel.

    out[p] = act(onto[p] + x[p] + b + Σ_t w_t x[s p + t])
    dx[q] = dout[q] + Σ_t w_t dout[(q − t) / s],   dw_t = Σ_p dout[p] x[s p + t]

p and q are positions (y, x), s the stride, and t the K × K taps, (0, 0) in the centre. A position
that does not exist counts 0: beyond the map, in another window, or not a whole number. All
arithmetic is float32.

The maps are NHWC with channels side by side. `x_b, x_y, x_x` are the strides of x by image, row and
column, in units of UNIT numbers: so the compiler knows by how much they divide, for every size.
All other tensors are contiguous, but `grad` has strides too. The windows have h × w positions, and
the first window begins at (−top, −left) of the map; without windows, h × w is the result.

A thread computes a strip: four neighbours of a row. So a number that is loaded serves all of them,
and so does a weight. Strips end where windows end: a row has SEGMENTS windows of STRIPS strips. The
strips are counted down bands of four rows: the strips of a program are near each other, and find
each other's rows in the cache.

`convolve_kernel` computes out, and dx if TRANSPOSED: then x is dout, and out is dx. A program owns
BLOCK strips and BLOCK_C channels. A program of `weight_gradient_kernel` owns a row of taps, and
sums the tiles p, p + P, p + 2P, ... of P programs into row p of `shares`. The caller adds the rows.
"""
import triton
import triton.language as tl

from ..triton_activations import activate

_SIZES = ['H', 'W', 'OH', 'OW', 'PLACES', 'SEGMENTS', 'STRIPS', 'h', 'w', 'top', 'left',
          'x_b', 'x_y', 'x_x', 'g_b', 'g_y', 'g_x']
_STRIP = tl.constexpr(4)
_BAND = tl.constexpr(4)


@triton.jit
def _strip(place, OH, SEGMENTS, STRIPS, w, left):
    """Of a strip: the image, the row, the first column of its window, its own first column."""
    band = _BAND * SEGMENTS * STRIPS
    bands = tl.cdiv(OH, _BAND)
    y = place // band % bands * _BAND + place % _BAND
    nth = place % band // _BAND
    begin = nth // STRIPS * w - left
    return place // (bands * band), y, begin, begin + nth % STRIPS * _STRIP


@triton.jit
def _row_source(y, row, H, h, top, K: tl.constexpr, STRIDE: tl.constexpr,
                TRANSPOSED: tl.constexpr, WINDOWED: tl.constexpr):
    """The row that a row of taps reads for row y of the result, and whether it exists."""
    if TRANSPOSED:
        scaled = y + K // 2 - row
        source = scaled // STRIDE
        exists = (scaled >= 0) & (scaled % STRIDE == 0) & (source < H)
    else:
        source = y * STRIDE + row - K // 2
        exists = (source >= 0) & (source < H)
    if WINDOWED:
        exists &= (source + top) // h == (y + top) // h
    return source, exists


@triton.jit
def _columns(begin, w, W, OW, WINDOWED: tl.constexpr):
    """First column, and first column beyond, that the strips of a window write; and that they read.
    """
    first = tl.maximum(begin, 0)
    last = tl.minimum(begin + w, OW)
    if WINDOWED:
        return first, last, first, last
    else:
        return first, last, 0, W


@triton.jit
def _add_tap(total, value, weight, row, channel, real, NTH: tl.constexpr, COLUMN: tl.constexpr,
             K: tl.constexpr, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr,
             PLUS_INPUT: tl.constexpr):
    """Add w value to the nth sum of a strip, if the sum has a tap at this column of the strip."""
    if TRANSPOSED:
        tap: tl.constexpr = K // 2 + NTH - STRIDE * (COLUMN - K // 2 // STRIDE)
    else:
        tap: tl.constexpr = COLUMN - STRIDE * NTH
    if tap >= 0 and tap < K:
        factor = tl.load(weight + channel * (K * K) + row * K + tap, mask=real, other=0.)
        factor = factor.to(tl.float32)
        if PLUS_INPUT and tap == K // 2:
            factor += tl.where(row == K // 2, 1., 0.)
        total += value * factor[None, :]
    return total


@triton.jit
def _finish(total, out, bias, onto, line, column, there, first, last, channel, real,
            C: tl.constexpr, ACTIVATION: tl.constexpr):
    """Add what belongs to a position of each strip, and store it. `line`: where its row begins."""
    if bias is not None:
        total += tl.load(bias + channel, mask=real, other=0.).to(tl.float32)[None, :]
    place = (line + column * C)[:, None] + channel[None, :]
    inside = (there & (column >= first) & (column < last))[:, None] & real[None, :]
    if onto is not None:
        total += tl.load(onto + place, mask=inside, other=0.).to(tl.float32)
    total = activate(total, ACTIVATION)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def convolve_kernel(x, weight, bias, onto, out, H, W, OH, OW, PLACES, SEGMENTS, STRIPS, h, w, top,
                    left, x_b, x_y, x_x, C: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr,
                    TRANSPOSED: tl.constexpr, WINDOWED: tl.constexpr, PLUS_INPUT: tl.constexpr,
                    ACTIVATION: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
                    BLOCK_C: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    image, oy, begin, ox = _strip(place, OH, SEGMENTS, STRIPS, w, left)
    on_map = (place < PLACES) & (oy < OH)
    first, last, source, beyond = _columns(begin, w, W, OW, WINDOWED)
    # The first column that the strip reads, and how many it reads.
    if TRANSPOSED:
        start = ox // STRIDE - K // 2 // STRIDE
        columns: tl.constexpr = K // 2 // STRIDE + (_STRIP - 1 + K // 2) // STRIDE + 1
    else:
        start = ox * STRIDE - K // 2
        columns: tl.constexpr = STRIDE * (_STRIP - 1) + K
    # Offsets in a large batch are larger than 2³¹.
    x += image.to(tl.int64)[:, None] * x_b * UNIT + channel[None, :]
    out_0 = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    out_1 = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    out_2 = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    out_3 = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    # The sums have names, since Triton 3.2 has no tuples. The loop over the rows is not unrolled:
    # else the loads of all taps would be in flight, and the compiler would spill registers.
    for row in range(K):
        sy, there = _row_source(oy, row, H, h, top, K, STRIDE, TRANSPOSED, WINDOWED)
        there &= on_map
        line = x + (sy.to(tl.int64) * x_y + start * x_x)[:, None] * UNIT
        for column in tl.static_range(columns):
            exists = there & (start + column >= source) & (start + column < beyond)
            value = tl.load(line + column * x_x * UNIT, mask=exists[:, None] & real[None, :],
                            other=0.).to(tl.float32)
            out_0 = _add_tap(out_0, value, weight, row, channel, real, 0, column, K, STRIDE,
                             TRANSPOSED, PLUS_INPUT)
            out_1 = _add_tap(out_1, value, weight, row, channel, real, 1, column, K, STRIDE,
                             TRANSPOSED, PLUS_INPUT)
            out_2 = _add_tap(out_2, value, weight, row, channel, real, 2, column, K, STRIDE,
                             TRANSPOSED, PLUS_INPUT)
            out_3 = _add_tap(out_3, value, weight, row, channel, real, 3, column, K, STRIDE,
                             TRANSPOSED, PLUS_INPUT)
    line = (image.to(tl.int64) * OH + oy) * OW * C
    _finish(out_0, out, bias, onto, line, ox, on_map, first, last, channel, real, C, ACTIVATION)
    _finish(out_1, out, bias, onto, line, ox + 1, on_map, first, last, channel, real, C, ACTIVATION)
    _finish(out_2, out, bias, onto, line, ox + 2, on_map, first, last, channel, real, C, ACTIVATION)
    _finish(out_3, out, bias, onto, line, ox + 3, on_map, first, last, channel, real, C, ACTIVATION)


@triton.jit
def _gradient(line, column, g_x, there, first, last, real, UNIT: tl.constexpr):
    """The gradient at a position of each strip, or 0."""
    exists = there & (column >= first) & (column < last)
    return tl.load(line + column.to(tl.int64)[:, None] * g_x * UNIT,
                   mask=exists[:, None] & real[None, :], other=0.).to(tl.float32)


@triton.jit
def _add_pair(total, value, g_0, g_1, g_2, g_3, APART: tl.constexpr, STRIDE: tl.constexpr):
    """total + the product of a number with the gradient of the position whose tap it is."""
    if APART == 0:
        total += value * g_0
    if APART == STRIDE:
        total += value * g_1
    if APART == 2 * STRIDE:
        total += value * g_2
    if APART == 3 * STRIDE:
        total += value * g_3
    return total


@triton.jit(do_not_specialize=_SIZES)
def weight_gradient_kernel(x, grad, shares, H, W, OH, OW, PLACES, SEGMENTS, STRIPS, h, w, top, left,
                           x_b, x_y, x_x, g_b, g_y, g_x, C: tl.constexpr, K: tl.constexpr,
                           STRIDE: tl.constexpr, WINDOWED: tl.constexpr, UNIT: tl.constexpr,
                           SWAPPED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr):
    """Shares of dw (C, K, K), then of Σ dout (C,): (P, (K² + 1) C). SWAPPED: the maps are
    transposed, so dw is (C, columns of taps, rows of taps) of these maps."""
    program, programs, row = tl.program_id(0), tl.num_programs(0), tl.program_id(2)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    sum_grad = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    tap_0 = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    tap_1 = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    tap_2 = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    tap_3 = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    tap_4 = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    tap_5 = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    tap_6 = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for tile in range(program, tl.cdiv(PLACES, BLOCK), programs):
        place = tile * BLOCK + tl.arange(0, BLOCK)
        image, oy, begin, ox = _strip(place, OH, SEGMENTS, STRIPS, w, left)
        on_map = (place < PLACES) & (oy < OH)
        first, last, source, beyond = _columns(begin, w, W, OW, WINDOWED)
        image = image.to(tl.int64)[:, None]
        line = grad + (image * g_b + (oy.to(tl.int64) * g_y)[:, None]) * UNIT + channel[None, :]
        g_0 = _gradient(line, ox, g_x, on_map, first, last, real, UNIT)
        g_1 = _gradient(line, ox + 1, g_x, on_map, first, last, real, UNIT)
        g_2 = _gradient(line, ox + 2, g_x, on_map, first, last, real, UNIT)
        g_3 = _gradient(line, ox + 3, g_x, on_map, first, last, real, UNIT)
        sum_grad += g_0 + g_1 + g_2 + g_3

        sy, there = _row_source(oy, row, H, h, top, K, STRIDE, False, WINDOWED)
        there &= on_map
        start = ox * STRIDE - K // 2
        line = sy.to(tl.int64) * x_y + start * x_x
        line = x + (image * x_b + line[:, None]) * UNIT + channel[None, :]
        for column in tl.static_range(STRIDE * (_STRIP - 1) + K):
            exists = there & (start + column >= source) & (start + column < beyond)
            value = tl.load(line + column * x_x * UNIT, mask=exists[:, None] & real[None, :],
                            other=0.).to(tl.float32)
            tap_0 = _add_pair(tap_0, value, g_0, g_1, g_2, g_3, column, STRIDE)
            tap_1 = _add_pair(tap_1, value, g_0, g_1, g_2, g_3, column - 1, STRIDE)
            tap_2 = _add_pair(tap_2, value, g_0, g_1, g_2, g_3, column - 2, STRIDE)
            if K > 3:
                tap_3 = _add_pair(tap_3, value, g_0, g_1, g_2, g_3, column - 3, STRIDE)
                tap_4 = _add_pair(tap_4, value, g_0, g_1, g_2, g_3, column - 4, STRIDE)
            if K > 5:
                tap_5 = _add_pair(tap_5, value, g_0, g_1, g_2, g_3, column - 5, STRIDE)
                tap_6 = _add_pair(tap_6, value, g_0, g_1, g_2, g_3, column - 6, STRIDE)
    shares += program.to(tl.int64) * (K * K + 1) * C
    step: tl.constexpr = K if SWAPPED else 1
    target = shares + channel * K * K + row * (1 if SWAPPED else K)
    tl.store(target, tl.sum(tap_0, 0), mask=real)
    tl.store(target + step, tl.sum(tap_1, 0), mask=real)
    tl.store(target + 2 * step, tl.sum(tap_2, 0), mask=real)
    if K > 3:
        tl.store(target + 3 * step, tl.sum(tap_3, 0), mask=real)
        tl.store(target + 4 * step, tl.sum(tap_4, 0), mask=real)
    if K > 5:
        tl.store(target + 5 * step, tl.sum(tap_5, 0), mask=real)
        tl.store(target + 6 * step, tl.sum(tap_6, 0), mask=real)
    if row == 0:
        tl.store(shares + K * K * C + channel, tl.sum(sum_grad, 0), mask=real)
