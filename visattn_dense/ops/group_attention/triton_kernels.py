"""Triton kernels of routed attention: forward, gradient of q, gradient of k and v.

    s_ij = scale · w_j (q_i · k_j),   p_ij = exp(s_ij − lse_i),   out_i = Σ_j p_ij w_j v_j

where j runs over the tokens of the routed regions and w_j is the weight of j's region, or 1. With
Δ_i = dO_i · out_i and dS_ij = p_ij (w_j dO_i · v_j − Δ_i):

    dq_i = scale Σ_j w_j dS_ij k_j,   dk_j = scale Σ_i w_j dS_ij q_i,   dv_j = Σ_i w_j p_ij dO_i,
    dw_r = Σ_i Σ_{j in r} ( scale · dS_ij (q_i · k_j) + p_ij (dO_i · v_j) )

The softmax runs over the key tiles with a running maximum (Milakov and Gimelshein,
arXiv 1805.02867; the tiling is FlashAttention-2's, arXiv 2307.08691). Sums are float32; the
operands of the products have the inputs' dtype.

A program owns one tile of one region and head. "Row" is the number of a region among all images:
image · R + region. Small regions share a tile of the other side: such a tile has SLOTS regions with
TOKENS tokens each; both numbers are powers of two.

N query tokens and M key tokens of a region, K routed regions, R regions of an image, D channels of
a head in q and k, E in v. An uncut map has rows of RC regions; a region has rows of NC query tokens
or MC key tokens. `q_b, q_r, q_c, q_y, q_x, q_h, q_d` are the strides of q by image, row and column
of the region, row and column of the token, head and channel. `out`, `lse`, `delta` and the
gradients are contiguous.
"""
import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get('TRITON_INTERPRET') == '1')
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _place(length, HEADS, R, BLOCK: tl.constexpr):
    """Row, image, region, head and first token of this program's tile."""
    tiles = tl.cdiv(length, BLOCK)
    program = tl.program_id(0)
    # Offsets in a large batch are larger than 2³¹.
    row = (program // (tiles * HEADS)).to(tl.int64)
    return row, row // R, row % R, program // tiles % HEADS, program % tiles * BLOCK


@triton.jit
def _at(nth, columns, row_stride, column_stride):
    """Offset of the nth item of a grid, counted row by row."""
    return nth // columns * row_stride + nth % columns * column_stride


@triton.jit
def _load(base, token, valid, channel_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """(tokens, BLOCK) of a tensor; zero where a token or channel does not exist.

    `base` is a pointer, or a column with one pointer for each token. `token` has the offset of each
    token.
    """
    channel = tl.arange(0, BLOCK)
    return tl.load(base + token[:, None] + channel[None, :] * channel_stride,
                   mask=valid[:, None] & (channel < WIDTH)[None, :], other=0.)


@triton.jit
def _store(base, token, valid, token_stride, value, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    channel = tl.arange(0, BLOCK)
    tl.store(base + token[:, None] * token_stride + channel[None, :],
             value.to(base.dtype.element_ty),
             mask=valid[:, None] & (channel < WIDTH)[None, :])


@triton.jit
def _entry(table, first, last, SLOTS: tl.constexpr, TOKENS: tl.constexpr):
    """Entries first, first + 1, ... of `table`, each repeated for its TOKENS rows of the tile.

    If the whole tile has one entry, the result is a scalar: addresses then differ by token only.
    """
    if SLOTS == 1:
        found = tl.load(table + first)
    else:
        nth = first + tl.arange(0, SLOTS * TOKENS) // TOKENS
        found = tl.load(table + nth, mask=nth < last, other=0)
    return found


@triton.jit
def _column(value, SLOTS: tl.constexpr):
    """The result of `_entry` in a shape that can be added to (tokens, channels) of offsets."""
    return value if SLOTS == 1 else value[:, None]


@triton.jit
def _row(value, SLOTS: tl.constexpr):
    """The result of `_entry` in a shape that multiplies (tokens of the program, of the tile)."""
    return value if SLOTS == 1 else value[None, :]


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr):
    """a b + total in float32; a b if `total` is None."""
    if INTERPRETED:
        # The interpreter stores bfloat16 as integers and would multiply the integers.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def forward_kernel(q, k, v, index, weight, out, lse, scale, N, M, K, R, HEADS,
                   RC, NC, MC, q_b, q_r, q_c, q_y, q_x, q_h, q_d,
                   k_b, k_r, k_c, k_y, k_x, k_h, k_d, v_b, v_r, v_c, v_y, v_x, v_h, v_d,
                   D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
                   WEIGHTED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
                   SLOTS: tl.constexpr, TOKENS: tl.constexpr):
    """out and lse of one query tile."""
    row, image, region, head, start = _place(N, HEADS, R, BLOCK)
    n = start + tl.arange(0, BLOCK)
    token = tl.arange(0, SLOTS * TOKENS) % TOKENS
    slot = tl.arange(0, SLOTS * TOKENS) // TOKENS
    queries = _load(q + image * q_b + _at(region, RC, q_r, q_c) + head * q_h, _at(n, NC, q_y, q_x),
                    n < N, q_d, D, BLOCK_D)
    k += image * k_b + head * k_h
    v += image * v_b + head * v_h
    index += row * K
    if WEIGHTED:
        weight += row * K

    top = tl.full((BLOCK,), float('-inf'), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mix = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    tiles = tl.cdiv(M, TOKENS)
    for step in range(tl.cdiv(K, SLOTS) * tiles):
        first = step // tiles * SLOTS
        m = step % tiles * TOKENS + token
        valid = (first + slot < K) & (m < M)
        routed = _column(_entry(index, first, K, SLOTS, TOKENS).to(tl.int64), SLOTS)
        keys = _load(k + _at(routed, RC, k_r, k_c), _at(m, MC, k_y, k_x), valid, k_d, D, BLOCK_D)
        values = _load(v + _at(routed, RC, v_r, v_c), _at(m, MC, v_y, v_x), valid, v_d, E, BLOCK_E)

        logits = _product(queries, tl.trans(keys), None, PRECISION) * (scale * LOG2E)
        if WEIGHTED:
            factor = _row(_entry(weight, first, K, SLOTS, TOKENS).to(tl.float32), SLOTS)
            logits *= factor
        # Every tile has a valid key, so `top` is finite after the first tile.
        logits = tl.where(valid[None, :], logits, float('-inf'))
        new_top = tl.maximum(top, tl.max(logits, 1))
        p = tl.exp2(logits - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        if WEIGHTED:
            p *= factor
        mix = _product(p.to(values.dtype), values, mix * shrink[:, None], PRECISION)
        top = new_top

    _store(out + (row * N * HEADS + head) * E, n, n < N, HEADS * E, mix / total[:, None], E,
           BLOCK_E)
    tl.store(lse + (row * HEADS + head) * N + n, (top + tl.log2(total)) * LN2, mask=n < N)


@triton.jit
def query_gradient_kernel(
        q, k, v, index, weight, out, lse, grad, delta, grad_q, scale, N, M, K, R, HEADS,
        RC, NC, MC, q_b, q_r, q_c, q_y, q_x, q_h, q_d, k_b, k_r, k_c, k_y, k_x, k_h, k_d,
        v_b, v_r, v_c, v_y, v_x, v_h, v_d, g_b, g_r, g_c, g_y, g_x, g_h, g_d,
        D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
        WEIGHTED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
        SLOTS: tl.constexpr, TOKENS: tl.constexpr):
    """grad_q of one query tile, and its delta for `key_gradient_kernel`."""
    row, image, region, head, start = _place(N, HEADS, R, BLOCK)
    n = start + tl.arange(0, BLOCK)
    token = tl.arange(0, SLOTS * TOKENS) % TOKENS
    slot = tl.arange(0, SLOTS * TOKENS) // TOKENS
    queries = _load(q + image * q_b + _at(region, RC, q_r, q_c) + head * q_h, _at(n, NC, q_y, q_x),
                    n < N, q_d, D, BLOCK_D)
    grads = _load(grad + image * g_b + _at(region, RC, g_r, g_c) + head * g_h, _at(n, NC, g_y, g_x),
                  n < N, g_d, E, BLOCK_E)
    outs = _load(out + (row * N * HEADS + head) * E, n * (HEADS * E), n < N, 1, E, BLOCK_E)
    row_delta = tl.sum(outs.to(tl.float32) * grads.to(tl.float32), 1)
    statistics = (row * HEADS + head) * N
    tl.store(delta + statistics + n, row_delta, mask=n < N)
    row_lse = tl.load(lse + statistics + n, mask=n < N, other=0.) * LOG2E
    k += image * k_b + head * k_h
    v += image * v_b + head * v_h
    index += row * K
    if WEIGHTED:
        weight += row * K

    total = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    tiles = tl.cdiv(M, TOKENS)
    for step in range(tl.cdiv(K, SLOTS) * tiles):
        first = step // tiles * SLOTS
        m = step % tiles * TOKENS + token
        valid = (first + slot < K) & (m < M)
        routed = _column(_entry(index, first, K, SLOTS, TOKENS).to(tl.int64), SLOTS)
        keys = _load(k + _at(routed, RC, k_r, k_c), _at(m, MC, k_y, k_x), valid, k_d, D, BLOCK_D)
        values = _load(v + _at(routed, RC, v_r, v_c), _at(m, MC, v_y, v_x), valid, v_d, E, BLOCK_E)

        logits = _product(queries, tl.trans(keys), None, PRECISION) * (scale * LOG2E)
        grad_p = _product(grads, tl.trans(values), None, PRECISION)
        if WEIGHTED:
            factor = _row(_entry(weight, first, K, SLOTS, TOKENS).to(tl.float32), SLOTS)
            logits *= factor
            grad_p *= factor
        # Without the mask a padded key would have exp(0 − lse), which may be infinite.
        p = tl.where(valid[None, :], tl.exp2(logits - row_lse[:, None]), 0.)
        grad_s = p * (grad_p - row_delta[:, None])
        if WEIGHTED:
            grad_s *= factor
        total = _product(grad_s.to(keys.dtype), keys, total, PRECISION)

    _store(grad_q + (row * N * HEADS + head) * D, n, n < N, HEADS * D, total * scale, D, BLOCK_D)


@triton.jit
def key_gradient_kernel(
        q, k, v, weight, lse, grad, delta, grad_k, grad_v, grad_w, askers, offsets, scale,
        N, M, R, HEADS, RC, NC, MC,
        q_b, q_r, q_c, q_y, q_x, q_h, q_d, k_b, k_r, k_c, k_y, k_x, k_h, k_d,
        v_b, v_r, v_c, v_y, v_x, v_h, v_d, g_b, g_r, g_c, g_y, g_x, g_h, g_d,
        D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
        WEIGHTED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
        SLOTS: tl.constexpr, TOKENS: tl.constexpr):
    """grad_k and grad_v of one key tile: sums over the query regions routed to its key region.

    `askers[offsets[row]:offsets[row + 1]]` are the rows of the query regions that are routed to key
    region `row`. `weight` and `grad_w` have the order of `askers`. `grad_w` (askers, HEADS, key
    tiles, query tiles) takes the shares of the gradient of the weights. Each place is written by
    one program.
    """
    row, image, region, head, start = _place(M, HEADS, R, BLOCK)
    m = start + tl.arange(0, BLOCK)
    token = tl.arange(0, SLOTS * TOKENS) % TOKENS
    slot = tl.arange(0, SLOTS * TOKENS) // TOKENS
    keys = _load(k + image * k_b + _at(region, RC, k_r, k_c) + head * k_h, _at(m, MC, k_y, k_x),
                 m < M, k_d, D, BLOCK_D)
    values = _load(v + image * v_b + _at(region, RC, v_r, v_c) + head * v_h, _at(m, MC, v_y, v_x),
                   m < M, v_d, E, BLOCK_E)
    q += image * q_b + head * q_h
    grad += image * g_b + head * g_h

    begin = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    total_k = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    total_v = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    tiles = tl.cdiv(N, TOKENS)
    for step in range(tl.cdiv(end - begin, SLOTS) * tiles):
        first = begin + step // tiles * SLOTS
        n = step % tiles * TOKENS + token
        valid = (first + slot < end) & (n < N)
        asker = _entry(askers, first, end, SLOTS, TOKENS).to(tl.int64)
        asker_region = _column(asker - image * R, SLOTS)
        queries = _load(q + _at(asker_region, RC, q_r, q_c), _at(n, NC, q_y, q_x), valid, q_d, D,
                        BLOCK_D)
        grads = _load(grad + _at(asker_region, RC, g_r, g_c), _at(n, NC, g_y, g_x), valid, g_d, E,
                      BLOCK_E)
        statistics = (asker * HEADS + head) * N + n
        row_lse = tl.load(lse + statistics, mask=valid, other=0.) * LOG2E
        row_delta = tl.load(delta + statistics, mask=valid, other=0.)

        products = _product(keys, tl.trans(queries), None, PRECISION) * scale
        grad_p = _product(values, tl.trans(grads), None, PRECISION)
        both = (m < M)[:, None] & valid[None, :]
        if WEIGHTED:
            factor = _row(_entry(weight, first, end, SLOTS, TOKENS).to(tl.float32), SLOTS)
            p = tl.where(both, tl.exp2(products * factor * LOG2E - row_lse[None, :]), 0.)
            grad_s = p * (grad_p * factor - row_delta[None, :])
            share = tl.sum(grad_s * products + p * grad_p, 0)
            share = tl.sum(tl.reshape(share, (SLOTS, TOKENS)), 1)
            nth = first + tl.arange(0, SLOTS)
            place = (nth.to(tl.int64) * HEADS + head) * tl.cdiv(M, BLOCK) + start // BLOCK
            tl.store(grad_w + place * tiles + step % tiles, share, mask=nth < end)
            p *= factor
            grad_s *= factor
        else:
            p = tl.where(both, tl.exp2(products * LOG2E - row_lse[None, :]), 0.)
            grad_s = p * (grad_p - row_delta[None, :])
        total_v = _product(p.to(grads.dtype), grads, total_v, PRECISION)
        total_k = _product(grad_s.to(queries.dtype), queries, total_k, PRECISION)

    _store(grad_k + (row * M * HEADS + head) * D, m, m < M, HEADS * D, total_k * scale, D, BLOCK_D)
    _store(grad_v + (row * M * HEADS + head) * E, m, m < M, HEADS * E, total_v, E, BLOCK_E)
