"""Triton kernels of depthwise convolution: forward, gradient of the map, gradient of the kernel.

    out[p] = act(onto[p] + x[p] + b + Σ_t w_t x[s p + t])
    dx[q] = dout[q] + Σ_t w_t dout[(q − t) / s],   dw_t = Σ_p dout[p] x[s p + t]

p and q are positions (y, x), s the stride, and t the K × K taps, (0, 0) in the centre. A position
that does not exist counts 0: beyond the map, in another window, or not a whole number. All
arithmetic is float32.

The maps are NHWC with channels side by side. `x_b, x_y, x_x` are the strides of x by image, row and
column, in units of ALIGN numbers: so the compiler knows by how much they divide, for every size.
All other tensors are contiguous. The windows have h × w positions, and the first window begins at
(−top, −left) of the map.

`convolve_kernel` computes out, and dx if TRANSPOSED: then x is dout, and out is dx. A program owns
a tile of BLOCK positions and BLOCK_C channels. A program of `weight_gradient_kernel` owns a row of
taps, and sums the tiles p, p + P, p + 2P, ... of P programs into row p of `shares`. The caller adds
the rows.
"""
import triton
import triton.language as tl

_SIZES = ['H', 'W', 'OH', 'OW', 'POSITIONS', 'x_b', 'x_y', 'h', 'w', 'top', 'left']


@triton.jit
def _position(place, OH, OW):
    """Image, row and column of a position of the result."""
    return place // (OH * OW), place // OW % OH, place % OW


@triton.jit
def _source(y, first, tap, H, h, top, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr,
            WINDOWED: tl.constexpr):
    """Along one axis: the place that a tap reads for place y, and whether the place exists.

    `first` is half of the kernel.
    """
    if TRANSPOSED:
        scaled = y + first - tap
        source = scaled // STRIDE
        exists = (scaled >= 0) & (scaled % STRIDE == 0) & (source < H)
    else:
        source = y * STRIDE + tap - first
        exists = (source >= 0) & (source < H)
    if WINDOWED:
        exists &= (source + top) // h == (y + top) // h
    return source, exists


@triton.jit(do_not_specialize=_SIZES)
def convolve_kernel(x, weight, bias, onto, out, H, W, OH, OW, POSITIONS, x_b, x_y, x_x,
                    h, w, top, left, C: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr,
                    TRANSPOSED: tl.constexpr, WINDOWED: tl.constexpr, PLUS_INPUT: tl.constexpr,
                    ACTIVATION: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
                    BLOCK_C: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    on_map = place < POSITIONS
    image, oy, ox = _position(place, OH, OW)
    # Offsets in a large batch are larger than 2³¹.
    image_start = x + image.to(tl.int64) * x_b * ALIGN
    total = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    # A loop over the rows that is not unrolled: else the loads of all taps would be in flight, and
    # the compiler would spill registers.
    for row in range(K):
        sy, y_exists = _source(oy, K // 2, row, H, h, top, STRIDE, TRANSPOSED, WINDOWED)
        for column in tl.static_range(K):
            sx, x_exists = _source(ox, K // 2, column, W, w, left, STRIDE, TRANSPOSED, WINDOWED)
            source = (sy * x_y + sx * x_x).to(tl.int64) * ALIGN
            value = tl.load(image_start[:, None] + source[:, None] + channel[None, :],
                            mask=(on_map & y_exists & x_exists)[:, None] & real[None, :], other=0.)
            factor = tl.load(weight + channel * (K * K) + row * K + column, mask=real, other=0.)
            factor = factor.to(tl.float32)
            if PLUS_INPUT and column == K // 2:
                factor += tl.where(row == K // 2, 1., 0.)
            total += value.to(tl.float32) * factor[None, :]
    if bias is not None:
        total += tl.load(bias + channel, mask=real, other=0.).to(tl.float32)[None, :]
    inside = on_map[:, None] & real[None, :]
    target = place.to(tl.int64)[:, None] * C + channel[None, :]
    if onto is not None:
        total += tl.load(onto + target, mask=inside, other=0.).to(tl.float32)
    if ACTIVATION == 'relu':
        total = tl.maximum(total, 0.)
    if ACTIVATION == 'hardswish':
        total *= tl.minimum(tl.maximum(total + 3, 0.), 6.) / 6
    tl.store(out + target, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def weight_gradient_kernel(x, grad, shares, H, W, OH, OW, POSITIONS, x_b, x_y, x_x, h, w, top, left,
                           C: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr,
                           WINDOWED: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
                           BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """Shares of dw, and of Σ dout as the last row: (P, K² + 1, C)."""
    program, programs, row = tl.program_id(0), tl.num_programs(0), tl.program_id(2)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    column = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_K, BLOCK, BLOCK_C), tl.float32)
    sum_grad = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for tile in range(program, tl.cdiv(POSITIONS, BLOCK), programs):
        place = tile * BLOCK + tl.arange(0, BLOCK)
        on_map = place < POSITIONS
        image, oy, ox = _position(place, OH, OW)
        g = tl.load(grad + place.to(tl.int64)[:, None] * C + channel[None, :],
                    mask=on_map[:, None] & real[None, :], other=0.).to(tl.float32)
        sy, y_exists = _source(oy, K // 2, row, H, h, top, STRIDE, False, WINDOWED)
        sx, x_exists = _source(ox[None, :], K // 2, column[:, None], W, w, left, STRIDE, False,
                               WINDOWED)
        exists = (on_map & y_exists)[None, :] & x_exists & (column < K)[:, None]
        source = ((sy * x_y)[None, :] + sx * x_x).to(tl.int64)
        source = (source + (image.to(tl.int64) * x_b)[None, :]) * ALIGN
        value = tl.load(x + source[:, :, None] + channel[None, None, :],
                        mask=exists[:, :, None] & real[None, None, :], other=0.)
        total += value.to(tl.float32) * g[None, :, :]
        sum_grad += g
    shares += program.to(tl.int64) * (K * K + 1) * C
    target = (row * K + column)[:, None] * C + channel[None, :]
    tl.store(shares + target, tl.sum(total, 1), mask=(column < K)[:, None] & real[None, :])
    if row == 0:
        tl.store(shares + K * K * C + channel, tl.sum(sum_grad, 0), mask=real)
