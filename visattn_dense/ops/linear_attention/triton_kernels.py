"""Triton kernels of linear attention: sums over keys, outputs, and their gradients.

    S = Σ_j φ(k_j) v_jᵀ,   z = Σ_j φ(k_j),   out_i = φ(q_i)ᵀ S / (φ(q_i) · z + ε)

With g_i the gradient of out_i and d_i = φ(q_i) · z + ε:

    dS = Σ_i φ(q_i) g_iᵀ / d_i,   dz = −Σ_i φ(q_i) (g_i · out_i) / d_i,
    dφ(q_i) = (S g_i − z (g_i · out_i)) / d_i,   dφ(k_j) = dS v_j + dz,   dv_j = dSᵀ φ(k_j)

KIND says what φ is; each φ has its gradient beside it:

relu       φ(t) = relu(t)
performer  φ(t) = exp(W t − ‖t‖²/2) / √F
focused    φ(t) = u^p ‖t‖ / ‖u^p‖ with u = t/‖t‖ and t = (relu(x) + ε) c; the norms run over all
           heads, so `statistics_kernel` computes them first, and `focus_gradient_kernel` goes from
           dφ to dq and dk. The keys are k + position.

A group is a window of a map: N tokens in rows of w, and h rows; the first window begins at
(−top, −left). A token that is not on the map takes no part. A pair is a group and a head. A program
owns a pair, and either one tile of tokens, or the tiles c, c + C, c + 2C, ... of C chunks, of which
the caller adds the sums: no sum depends on the order in which programs run.

q, k and v have the strides x_b, x_y, x_x, x_h (by image, row, column and head, in units of UNIT
numbers) and x_d (by channel). Their gradients have g_b to g_d. `out`, `onto` and `grad` are
contiguous, (tokens, HEADS, D). D channels of a head, F features. S and z lie side by side, (F, D)
and (F, 1). All arithmetic is float32. EXACT is the precision of products of two numbers that were
read, PRECISION that of all other products.

There may be two sets of heads: the first OWN heads are read from q, k and v, the others from q_2,
k_2 and v_2, with the same strides; so are their gradients.
"""
import triton
import triton.language as tl

_SIZES = ['H', 'W', 'h', 'w', 'WY', 'WX', 'top', 'left', 'HEADS', 'OWN',
          'x_b', 'x_y', 'x_x', 'x_h', 'x_d', 'g_b', 'g_y', 'g_x', 'g_h', 'g_d']


@triton.jit
def _place(h, w, BLOCK: tl.constexpr):
    """This program's pair (or group), and the numbers of its tokens.

    Programs are counted along one axis: the others of a GPU end at 65535.
    """
    tiles = tl.cdiv(h * w, BLOCK)
    program = tl.program_id(0)
    return program // tiles, program % tiles * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _tokens(n, group, H, W, h, w, WY, WX, top, left):
    """Image, row, column and whether the token is on the map, of the nth tokens of a group."""
    y = group // WX % WY * h + n // w - top
    x = group % WX * w + n % w - left
    return group // (WX * WY), y, x, (n < h * w) & (y >= 0) & (y < H) & (x >= 0) & (x < W)


@triton.jit
def _offset(image, y, x, x_b, x_y, x_x, UNIT: tl.constexpr):
    # Offsets in a large batch are larger than 2³¹.
    return (image.to(tl.int64) * x_b + y.to(tl.int64) * x_y + x * x_x) * UNIT


@triton.jit
def _head(first, second, head, OWN, head_stride, UNIT: tl.constexpr):
    """The pointer to a head, in its set of heads."""
    if second is not None:
        first = tl.where(head < OWN, first, second)
        head %= OWN
    return first + head.to(tl.int64) * head_stride * UNIT


@triton.jit
def _mask(valid, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    return valid[:, None] & (tl.arange(0, BLOCK) < WIDTH)[None, :]


@triton.jit
def _places(offset, x_d, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    channel = tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        places = offset[:, None] + channel[None, :]
    else:
        places = offset[:, None] + channel[None, :].to(tl.int64) * x_d
    return places


@triton.jit
def _power(u, POWER: tl.constexpr):
    """u to the power of POWER, for positive u; 1 for POWER 0."""
    if POWER == 1:
        found = u
    elif POWER == 2:
        found = u * u
    elif POWER == 3:
        found = u * u * u
    elif POWER == 4:
        found = (u * u) * (u * u)
    else:
        found = tl.exp2(tl.log2(u) * POWER)
    return found


@triton.jit
def _feature(t, valid, head, matrix, scale, statistics, token, epsilon, KIND: tl.constexpr,
             POWER: tl.constexpr, D: tl.constexpr, F: tl.constexpr, BLOCK_D: tl.constexpr,
             BLOCK_F: tl.constexpr, PRECISION: tl.constexpr):
    """φ(t), (tokens, BLOCK_F); 0 for a token that is not on the map and a feature that is none."""
    if KIND == 'relu':
        phi = tl.maximum(t, 0.)
    elif KIND == 'performer':
        weights = _matrix(matrix, D, F, BLOCK_D, BLOCK_F)
        exponent = tl.dot(t, weights, input_precision=PRECISION) - (tl.sum(t * t, 1) / 2)[:, None]
        phi = tl.exp(exponent) / tl.sqrt(F * 1.)
    else:
        norm = tl.load(statistics + 2 * token, mask=valid, other=1.)
        powers = tl.load(statistics + 2 * token + 1, mask=valid, other=1.)
        channel = tl.arange(0, BLOCK_D)
        c = tl.load(scale + head * D + channel, mask=channel < D, other=0.)
        u = (tl.maximum(t, 0.) + epsilon) * c[None, :] / norm[:, None]
        phi = _power(u, POWER) * (norm / powers)[:, None]
    return tl.where(_mask(valid, F, BLOCK_F), phi, 0.)


@triton.jit
def _matrix(matrix, D: tl.constexpr, F: tl.constexpr, BLOCK_D: tl.constexpr,
            BLOCK_F: tl.constexpr):
    """Wᵀ, (BLOCK_D, BLOCK_F), of W (F, D)."""
    d, f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    return tl.load(matrix + f[None, :] * D + d[:, None],
                   mask=(f < F)[None, :] & (d < D)[:, None], other=0.).to(tl.float32)


@triton.jit
def _feature_gradient(t, phi, grad, matrix, KIND: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
                      BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr, PRECISION: tl.constexpr):
    """dt from dφ; dφ itself for 'focused'."""
    if KIND == 'relu':
        found = tl.where(t > 0, grad, 0.)
    elif KIND == 'performer':
        grad *= phi
        weights = _matrix(matrix, D, F, BLOCK_D, BLOCK_F)
        found = tl.dot(grad, tl.trans(weights), input_precision=PRECISION)
        found -= t * tl.sum(grad, 1)[:, None]
    else:
        found = grad
    return found


@triton.jit
def _sums(sums, pair, D: tl.constexpr, F: tl.constexpr, BLOCK_D: tl.constexpr,
          BLOCK_F: tl.constexpr):
    """S (BLOCK_F, BLOCK_D) and z (BLOCK_F,)."""
    d, f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    place = sums + pair.to(tl.int64) * F * (D + 1) + f * (D + 1)
    matrix = tl.load(place[:, None] + d[None, :], mask=(f < F)[:, None] & (d < D)[None, :],
                     other=0.)
    return matrix, tl.load(place + D, mask=f < F, other=0.)


@triton.jit
def _store_sums(sums, nth, matrix, vector, D: tl.constexpr, F: tl.constexpr,
                BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr):
    d, f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    place = sums + nth.to(tl.int64) * F * (D + 1) + f * (D + 1)
    tl.store(place[:, None] + d[None, :], matrix, mask=(f < F)[:, None] & (d < D)[None, :])
    tl.store(place + D, vector, mask=f < F)


@triton.jit
def _add_position(t, position, n, valid, head, HEADS, D: tl.constexpr, BLOCK_D: tl.constexpr):
    if position is not None:
        place = (n * HEADS + head).to(tl.int64)[:, None] * D + tl.arange(0, BLOCK_D)[None, :]
        t += tl.load(position + place, mask=_mask(valid, D, BLOCK_D), other=0.).to(tl.float32)
    return t


@triton.jit(do_not_specialize=_SIZES)
def summary_kernel(k, v, k_2, v_2, matrix, position, scale, statistics, shares, epsilon, H, W, h, w,
                   WY, WX, top, left, HEADS, OWN, x_b, x_y, x_x, x_h, x_d, KIND: tl.constexpr,
                   POWER: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr,
                   D: tl.constexpr, F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
                   BLOCK: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """The shares of a chunk of tokens in S and z."""
    pair, chunk, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    group, head = pair // HEADS, pair % HEADS
    k = _head(k, k_2, head, OWN, x_h, UNIT)
    v = _head(v, v_2, head, OWN, x_h, UNIT)
    total = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
    total_z = tl.zeros((BLOCK_F,), tl.float32)
    for tile in range(chunk, tl.cdiv(h * w, BLOCK), chunks):
        n = tile * BLOCK + tl.arange(0, BLOCK)
        image, y, x, valid = _tokens(n, group, H, W, h, w, WY, WX, top, left)
        places = _places(_offset(image, y, x, x_b, x_y, x_x, UNIT), x_d, CHANNELS_LAST, BLOCK_D)
        inside = _mask(valid, D, BLOCK_D)
        keys = tl.load(k + places, mask=inside, other=0.).to(tl.float32)
        values = tl.load(v + places, mask=inside, other=0.).to(tl.float32)
        keys = _add_position(keys, position, n, valid, head, HEADS, D, BLOCK_D)
        token = (image.to(tl.int64) * H + y) * W + x
        phi = _feature(keys, valid, head, matrix, scale, statistics, token, epsilon, KIND, POWER, D,
                       F, BLOCK_D, BLOCK_F, PRECISION)
        total = tl.dot(tl.trans(phi), values, total, input_precision=EXACT)
        total_z += tl.sum(phi, 0)
    _store_sums(shares, pair * chunks + chunk, total, total_z, D, F, BLOCK_D, BLOCK_F)


@triton.jit(do_not_specialize=_SIZES)
def output_kernel(q, q_2, matrix, scale, statistics, sums, onto, out, epsilon, H, W, h, w, WY, WX,
                  top, left, HEADS, OWN, x_b, x_y, x_x, x_h, x_d, KIND: tl.constexpr,
                  POWER: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr,
                  D: tl.constexpr, F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
                  BLOCK: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """out of one tile, added to `onto` unless it is None."""
    pair, n = _place(h, w, BLOCK)
    group, head = pair // HEADS, pair % HEADS
    image, y, x, valid = _tokens(n, group, H, W, h, w, WY, WX, top, left)
    token = (image.to(tl.int64) * H + y) * W + x
    inside = _mask(valid, D, BLOCK_D)
    places = _places(_offset(image, y, x, x_b, x_y, x_x, UNIT), x_d, CHANNELS_LAST, BLOCK_D)
    queries = tl.load(_head(q, q_2, head, OWN, x_h, UNIT) + places, mask=inside, other=0.)
    phi = _feature(queries.to(tl.float32), valid, head, matrix, scale, statistics, token, epsilon,
                   KIND, POWER, D, F, BLOCK_D, BLOCK_F, PRECISION)
    s, z = _sums(sums, pair, D, F, BLOCK_D, BLOCK_F)
    total = tl.dot(phi, s, input_precision=PRECISION)
    total /= (tl.sum(phi * z[None, :], 1) + epsilon)[:, None]
    target = (token * HEADS + head)[:, None] * D + tl.arange(0, BLOCK_D)[None, :]
    if onto is not None:
        total += tl.load(onto + target, mask=inside, other=0.).to(tl.float32)
    tl.store(out + target, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def query_gradient_kernel(q, q_2, matrix, scale, statistics, sums, grad, grad_q, grad_q_2, shares,
                          epsilon, H, W, h, w, WY, WX, top, left, HEADS, OWN,
                          x_b, x_y, x_x, x_h, x_d,
                          g_b, g_y, g_x, g_h, g_d, KIND: tl.constexpr, POWER: tl.constexpr,
                          CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr,
                          GRAD_LAST: tl.constexpr, GRAD_UNIT: tl.constexpr, D: tl.constexpr,
                          F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
                          BLOCK: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """grad_q of a chunk of tokens (dφ for 'focused'), and the chunk's shares in dS and dz."""
    pair, chunk, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    group, head = pair // HEADS, pair % HEADS
    q = _head(q, q_2, head, OWN, x_h, UNIT)
    grad_q = _head(grad_q, grad_q_2, head, OWN, g_h, GRAD_UNIT)
    s, z = _sums(sums, pair, D, F, BLOCK_D, BLOCK_F)
    total = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
    total_z = tl.zeros((BLOCK_F,), tl.float32)
    for tile in range(chunk, tl.cdiv(h * w, BLOCK), chunks):
        n = tile * BLOCK + tl.arange(0, BLOCK)
        image, y, x, valid = _tokens(n, group, H, W, h, w, WY, WX, top, left)
        token = (image.to(tl.int64) * H + y) * W + x
        inside = _mask(valid, D, BLOCK_D)
        places = _places(_offset(image, y, x, x_b, x_y, x_x, UNIT), x_d, CHANNELS_LAST, BLOCK_D)
        queries = tl.load(q + places, mask=inside, other=0.).to(tl.float32)
        target = (token * HEADS + head)[:, None] * D + tl.arange(0, BLOCK_D)[None, :]
        g = tl.load(grad + target, mask=inside, other=0.).to(tl.float32)
        phi = _feature(queries, valid, head, matrix, scale, statistics, token, epsilon, KIND, POWER,
                       D, F, BLOCK_D, BLOCK_F, PRECISION)
        below = tl.sum(phi * z[None, :], 1) + epsilon
        out = tl.dot(phi, s, input_precision=PRECISION) / below[:, None]
        g /= below[:, None]
        share = tl.sum(g * out, 1)
        total = tl.dot(tl.trans(phi), g, total, input_precision=PRECISION)
        total_z -= tl.sum(phi * share[:, None], 0)
        grad_phi = tl.dot(g, tl.trans(s), input_precision=PRECISION) - share[:, None] * z[None, :]
        found = _feature_gradient(queries, phi, grad_phi, matrix, KIND, D, F, BLOCK_D, BLOCK_F,
                                  PRECISION)
        places = _places(_offset(image, y, x, g_b, g_y, g_x, GRAD_UNIT), g_d, GRAD_LAST, BLOCK_D)
        tl.store(grad_q + places, found.to(grad_q.dtype.element_ty), mask=inside)
    _store_sums(shares, pair * chunks + chunk, total, total_z, D, F, BLOCK_D, BLOCK_F)


@triton.jit(do_not_specialize=[*_SIZES, 'v_b', 'v_y', 'v_x', 'v_h', 'v_d'])
def key_gradient_kernel(k, v, k_2, v_2, matrix, position, scale, statistics, grad_sums,
                        grad_k, grad_v, grad_k_2, grad_v_2, epsilon, H, W, h, w, WY, WX, top, left,
                        HEADS, OWN, x_b, x_y, x_x, x_h, x_d,
                        g_b, g_y, g_x, g_h, g_d, v_b, v_y, v_x, v_h, v_d, KIND: tl.constexpr,
                        POWER: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr,
                        GRAD_LAST: tl.constexpr, GRAD_UNIT: tl.constexpr,
                        VALUE_LAST: tl.constexpr, VALUE_UNIT: tl.constexpr, D: tl.constexpr,
                        F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
                        BLOCK: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """grad_k (dφ for 'focused') and grad_v of one tile. grad_v has the strides v_b to v_d."""
    pair, n = _place(h, w, BLOCK)
    group, head = pair // HEADS, pair % HEADS
    image, y, x, valid = _tokens(n, group, H, W, h, w, WY, WX, top, left)
    token = (image.to(tl.int64) * H + y) * W + x
    inside = _mask(valid, D, BLOCK_D)
    places = _places(_offset(image, y, x, x_b, x_y, x_x, UNIT), x_d, CHANNELS_LAST, BLOCK_D)
    k = _head(k, k_2, head, OWN, x_h, UNIT)
    v = _head(v, v_2, head, OWN, x_h, UNIT)
    keys = tl.load(k + places, mask=inside, other=0.).to(tl.float32)
    values = tl.load(v + places, mask=inside, other=0.).to(tl.float32)
    keys = _add_position(keys, position, n, valid, head, HEADS, D, BLOCK_D)
    phi = _feature(keys, valid, head, matrix, scale, statistics, token, epsilon, KIND, POWER, D, F,
                   BLOCK_D, BLOCK_F, PRECISION)
    s, z = _sums(grad_sums, pair, D, F, BLOCK_D, BLOCK_F)
    grad_phi = tl.dot(values, tl.trans(s), input_precision=PRECISION) + z[None, :]
    found = _feature_gradient(keys, phi, grad_phi, matrix, KIND, D, F, BLOCK_D, BLOCK_F, PRECISION)
    places = _places(_offset(image, y, x, g_b, g_y, g_x, GRAD_UNIT), g_d, GRAD_LAST, BLOCK_D)
    grad_k = _head(grad_k, grad_k_2, head, OWN, g_h, GRAD_UNIT)
    tl.store(grad_k + places, found.to(grad_k.dtype.element_ty), mask=inside)
    places = _places(_offset(image, y, x, v_b, v_y, v_x, VALUE_UNIT), v_d, VALUE_LAST, BLOCK_D)
    grad_v = _head(grad_v, grad_v_2, head, OWN, v_h, VALUE_UNIT)
    found = tl.dot(phi, s, input_precision=PRECISION)
    tl.store(grad_v + places, found.to(grad_v.dtype.element_ty), mask=inside)


@triton.jit
def _positive(t, c, valid, epsilon, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """(relu(t) + ε) c, and 0 beyond the map and the channels."""
    return tl.where(_mask(valid, C, BLOCK_C), (tl.maximum(t, 0.) + epsilon) * c[None, :], 0.)


@triton.jit
def _norm(t):
    return tl.sqrt(tl.sum(t * t, 1))


@triton.jit
def _safe(t):
    """1 where t is 0: the norm of a token that is not on the map."""
    return tl.where(t == 0, 1., t)


@triton.jit
def _row_power(u, POWER: tl.constexpr):
    """`_power` of numbers of which some are 0."""
    return tl.where(u > 0, _power(tl.where(u > 0, u, 1.), POWER), 0.)


@triton.jit(do_not_specialize=_SIZES)
def statistics_kernel(q, k, position, scale, statistics, epsilon, H, W, h, w, WY, WX, top, left,
                      x_b, x_y, x_x, POWER: tl.constexpr, UNIT: tl.constexpr, C: tl.constexpr,
                      BLOCK_C: tl.constexpr, BLOCK: tl.constexpr):
    """‖t‖ and ‖u^p‖ of each token of q, then of k: (2, tokens, 2). The channels are contiguous."""
    group, n = _place(h, w, BLOCK)
    image, y, x, valid = _tokens(n, group, H, W, h, w, WY, WX, top, left)
    channel = tl.arange(0, BLOCK_C)
    c = tl.load(scale + channel, mask=channel < C, other=0.)
    inside = _mask(valid, C, BLOCK_C)
    places = _offset(image, y, x, x_b, x_y, x_x, UNIT)[:, None] + channel[None, :]
    token = (image.to(tl.int64) * H + y) * W + x
    tokens = (tl.num_programs(0) // tl.cdiv(h * w, BLOCK) // (WY * WX)).to(tl.int64) * H * W
    added = tl.load(position + n.to(tl.int64)[:, None] * C + channel[None, :], mask=inside,
                    other=0.).to(tl.float32)
    t = _positive(tl.load(q + places, mask=inside, other=0.).to(tl.float32), c, valid, epsilon, C,
                  BLOCK_C)
    norm = _norm(t)
    tl.store(statistics + 2 * token, norm, mask=valid)
    tl.store(statistics + 2 * token + 1, _norm(_row_power(t / _safe(norm)[:, None], POWER)),
             mask=valid)
    t = _positive(tl.load(k + places, mask=inside, other=0.).to(tl.float32) + added, c, valid,
                  epsilon, C, BLOCK_C)
    norm = _norm(t)
    tl.store(statistics + 2 * (tokens + token), norm, mask=valid)
    tl.store(statistics + 2 * (tokens + token) + 1,
             _norm(_row_power(t / _safe(norm)[:, None], POWER)), mask=valid)


@triton.jit
def _focus_gradient(x, g, c, valid, epsilon, POWER: tl.constexpr, C: tl.constexpr,
                    BLOCK_C: tl.constexpr):
    """dx and the share of dc, from g = dφ.

    dt = p u^(p−1) g / P + (Σ g u^p) (u / P − p u^(2p−1) / P³),  P = ‖u^p‖
    """
    t = _positive(x, c, valid, epsilon, C, BLOCK_C)
    u = t / _safe(_norm(t))[:, None]
    power = _row_power(u, POWER)
    inverse = 1 / _safe(_norm(power))[:, None]
    slope = POWER * power / tl.where(u > 0, u, 1.) * inverse
    along = tl.sum(g * power, 1)[:, None] * inverse
    grad = slope * g + along * (u - slope * power * inverse)
    grad = tl.where(_mask(valid, C, BLOCK_C), grad, 0.)
    return tl.where(x > 0, grad * c[None, :], 0.), grad * (tl.maximum(x, 0.) + epsilon)


@triton.jit(do_not_specialize=[*_SIZES, 'GROUPS'])
def focus_gradient_kernel(q, k, position, scale, grad_phi, grad_q, grad_k, position_shares,
                          scale_shares, epsilon, GROUPS, H, W, h, w, WY, WX, top, left,
                          x_b, x_y, x_x, g_b, g_y, g_x, POWER: tl.constexpr, UNIT: tl.constexpr,
                          GRAD_UNIT: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr,
                          BLOCK: tl.constexpr):
    """grad_q and grad_k from dφ, (2, tokens, C); shares of the gradients of position and c.

    A program goes through the groups c, c + P, c + 2P, ... of P chunks, at the same tokens.
    """
    tile, chunk, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    n = tile * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, BLOCK_C)
    c = tl.load(scale + channel, mask=channel < C, other=0.)
    table = n.to(tl.int64)[:, None] * C + channel[None, :]
    of_table = _mask(n < h * w, C, BLOCK_C)
    added = tl.load(position + table, mask=of_table, other=0.).to(tl.float32)
    sum_position = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    sum_scale = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    tokens = (GROUPS // (WY * WX)).to(tl.int64) * H * W
    for group in range(chunk, GROUPS, chunks):
        image, y, x, valid = _tokens(n, n * 0 + group, H, W, h, w, WY, WX, top, left)
        inside = _mask(valid, C, BLOCK_C)
        places = _offset(image, y, x, x_b, x_y, x_x, UNIT)[:, None] + channel[None, :]
        targets = _offset(image, y, x, g_b, g_y, g_x, GRAD_UNIT)[:, None] + channel[None, :]
        token = ((image.to(tl.int64) * H + y) * W + x)[:, None] * C + channel[None, :]

        value = tl.load(q + places, mask=inside, other=0.).to(tl.float32)
        g = tl.load(grad_phi + token, mask=inside, other=0.)
        grad, share = _focus_gradient(value, g, c, valid, epsilon, POWER, C, BLOCK_C)
        tl.store(grad_q + targets, grad.to(grad_q.dtype.element_ty), mask=inside)
        sum_scale += share
        value = tl.load(k + places, mask=inside, other=0.).to(tl.float32) + added
        g = tl.load(grad_phi + tokens * C + token, mask=inside, other=0.)
        grad, share = _focus_gradient(value, g, c, valid, epsilon, POWER, C, BLOCK_C)
        tl.store(grad_k + targets, grad.to(grad_k.dtype.element_ty), mask=inside)
        sum_scale += share
        sum_position += grad
    tl.store(position_shares + chunk.to(tl.int64) * h * w * C + table, sum_position, mask=of_table)
    tl.store(scale_shares + (tile * chunks + chunk) * C + channel, tl.sum(sum_scale, 0),
             mask=channel < C)
