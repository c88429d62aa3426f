"""Triton kernels of group attention: forward, gradient of q, gradient of k and v.

    s_ij = scale · w_j (q_i · k_j),   p_ij = exp(s_ij − lse_i),   out_i = Σ_j p_ij w_j v_j

where i is a token of a group of queries, j runs over the tokens of the groups of keys that the
group attends to, and w_j is the weight of j's group, or 1. With Δ_i = dO_i · out_i and
dS_ij = p_ij (w_j dO_i · v_j − Δ_i):

    dq_i = scale Σ_j w_j dS_ij k_j,   dk_j = scale Σ_i w_j dS_ij q_i,   dv_j = Σ_i w_j p_ij dO_i,
    dw_r = Σ_i Σ_{j in r} ( scale · dS_ij (q_i · k_j) + p_ij (dO_i · v_j) )

The softmax runs over the key tiles with a running maximum (Milakov and Gimelshein,
arXiv 1805.02867; the tiling is FlashAttention-2's, arXiv 2307.08691). Sums are float32; the
operands of the products have the inputs' dtype.

The geometry is arithmetic on numbers that are known at run time. q, k and v are maps
(B, H, W, heads · channels) that the kernels read where the maps lie, by their strides. A map is a
grid of groups of h × w tokens, counted row by row. The geometries:

- stripes and windows: group r attends to group r. The groups cover the map and TOP rows and LEFT
  columns of padding before the map, and padding after the map. A group has only the tokens that lie
  on the map (CLIPPED). The padding is never computed: a key of the padding has logit 0 and value 0,
  so it adds 1 to the sum of the softmax, or nothing. There may be two KINDS of windows: the first
  HEADS heads have the first kind, and HEADS more have the second.
- routed regions: group r attends to the groups index[r] (LISTED). No padding.
- a whole map: one group.

A program owns one tile of one group and head. "Row" is the number of a group among all images:
image · GROUPS + group. Small groups share a tile of the other side: such a tile has SLOTS groups
with TOKENS tokens each; both numbers are powers of two.

With SIDE > 0, forward adds a depthwise SIDE × SIDE convolution of v (LePE), which sees zeros around
each group, and the kernel of dk and dv adds its gradient to dv.

HEADS heads; D channels of a head in q and k, E in v. KEYS: how many groups a group attends to. The
query map has H rows, W columns, and QC groups of QH × QW tokens in a row of groups; the key map has
KC groups of KH × KW. `q_b, q_y, q_x` are the strides of q by image, row and column, in units of
UNIT numbers: so the compiler knows by how much they divide, and loads several numbers at once.
`out`, `mixed` and the gradients are contiguous maps; the gradients may lie side by side, APART of
them. `lse` is (B · GROUPS, HEADS, QH · QW), and `pairs` (B · GROUPS, HEADS, QH · QW, 2) holds
lse · log2(e) and Δ.

With two kinds, SPLIT programs and the first STATISTICS numbers of `lse` belong to the first. The
second has GROUPS_2, COLUMNS_2, ... in the place of GROUPS, QC and KC, ..., and `taps_2`, `bias_2`.

No size is specialised (SIZES): one compilation serves every map.
"""
import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get('TRITON_INTERPRET') == '1')
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

SIZES = ['HEADS', 'GROUPS', 'KEYS', 'QC', 'QH', 'QW', 'KC', 'KH', 'KW', 'TOP', 'LEFT', 'H', 'W',
         'SPLIT', 'STATISTICS', 'GROUPS_2', 'COLUMNS_2', 'HEIGHT_2', 'WIDTH_2', 'TOP_2', 'LEFT_2',
         'padding_counts', 'rows_in_all',
         *(f'{tensor}_{axis}' for tensor in 'qkvg' for axis in 'byx')]
"""Arguments that change from map to map. Triton must not compile for their values."""


@triton.jit
def _divide(n, d):
    """n // d and n % d, for n up to 2²⁰.

    The quotient is at least 1 / 2d away from a whole number, and float32 errs less. A division of
    integers takes several times as many instructions.
    """
    quotient = ((n.to(tl.float32) + .5) * (1. / d)).to(tl.int32)
    return quotient, n - quotient * d


@triton.jit
def _kind(SPLIT, GROUPS, QC, QH, QW, KC, KH, KW, TOP, LEFT, GROUPS_2, COLUMNS_2, HEIGHT_2, WIDTH_2,
          TOP_2, LEFT_2, KINDS: tl.constexpr):
    """This program's number among those of its kind of windows, the kind, and its geometry."""
    program = tl.program_id(0)
    kind = 0
    if KINDS == 2:
        kind = (program >= SPLIT).to(tl.int32)
        program -= kind * SPLIT
        GROUPS = tl.where(kind == 1, GROUPS_2, GROUPS)
        QC = tl.where(kind == 1, COLUMNS_2, QC)
        QH = tl.where(kind == 1, HEIGHT_2, QH)
        QW = tl.where(kind == 1, WIDTH_2, QW)
        TOP = tl.where(kind == 1, TOP_2, TOP)
        LEFT = tl.where(kind == 1, LEFT_2, LEFT)
        KC = QC
        KH = QH
        KW = QW
    return program, kind, GROUPS, QC, QH, QW, KC, KH, KW, TOP, LEFT


@triton.jit
def _of_kind(kind, first, second, KINDS: tl.constexpr):
    """The pointer of the kind of windows."""
    if KINDS == 2:
        first = tl.where(kind == 1, second, first)
    return first


@triton.jit
def _program(program, length, HEADS, BLOCK: tl.constexpr):
    """Row, head, and number of a program's tile."""
    tiles = tl.cdiv(length, BLOCK)
    return program // (tiles * HEADS), program // tiles % HEADS, program % tiles


@triton.jit
def _statistics(kind, row, own, STATISTICS, HEADS, length):
    """Where `lse` has the numbers of a row and a head of its kind."""
    return kind * STATISTICS.to(tl.int64) + (row.to(tl.int64) * HEADS + own) * length


@triton.jit
def _image(row, GROUPS):
    """Image and group of a row. Offsets in a large batch are larger than 2³¹."""
    return (row // GROUPS).to(tl.int64), row % GROUPS


@triton.jit
def _group(nth, columns, height, width, TOP, LEFT, H, W, CLIPPED: tl.constexpr):
    """First row and column of a group on the map, and its numbers of rows and columns there."""
    y, x = _divide(nth, columns)
    y *= height
    x *= width
    if CLIPPED:
        y -= TOP
        x -= LEFT
        height = tl.minimum(y + height, H) - tl.maximum(y, 0)
        width = tl.minimum(x + width, W) - tl.maximum(x, 0)
        y = tl.maximum(y, 0)
        x = tl.maximum(x, 0)
    return y, x, height, width


@triton.jit
def _at(y, x, y_stride, x_stride, UNIT: tl.constexpr):
    """Offset of a place of a map, from strides in units."""
    return (y * y_stride + x * x_stride) * UNIT


@triton.jit
def _first(image, head, image_stride, WIDTH: tl.constexpr, UNIT: tl.constexpr):
    """Offset of a head of an image, from the stride in units."""
    return image * image_stride * UNIT + head * WIDTH


@triton.jit
def _token(n, columns, y_stride, x_stride, UNIT: tl.constexpr):
    """Offset of the nth token of a group, counted row by row."""
    y, x = _divide(n, columns)
    return _at(y, x, y_stride, x_stride, UNIT)


@triton.jit
def _load(base, token, valid, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """(tokens, BLOCK) of a tensor; zero where a token or channel does not exist.

    `base` is a pointer, or a column with one pointer for each token. `token` has the offset of each
    token.
    """
    channel = tl.arange(0, BLOCK)
    return tl.load(base + token[:, None] + channel[None, :],
                   mask=valid[:, None] & (channel < WIDTH)[None, :], other=0.)


@triton.jit
def _store(base, token, valid, value, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    channel = tl.arange(0, BLOCK)
    tl.store(base + token[:, None] + channel[None, :], value.to(base.dtype.element_ty),
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
def _other(first, tile, own, table, end, LISTED: tl.constexpr, SLOTS: tl.constexpr,
           TOKENS: tl.constexpr):
    """A tile of the other side: of the groups table[first : first + SLOTS], or of the group `own`.

    Returns:
        The groups, as `_entry` gives them; the number of each token in its group; whether each
        token's group exists.
    """
    row = tl.arange(0, SLOTS * TOKENS)
    token = tile * TOKENS + row % TOKENS
    if LISTED:
        group = _entry(table, first, end, SLOTS, TOKENS).to(tl.int32)
        exists = first + row // TOKENS < end
    else:
        group = own
        exists = row >= 0
    return group, token, exists


@triton.jit
def _next(first, tile, tiles, LISTED: tl.constexpr, SLOTS: tl.constexpr):
    """First entry and number of the tile that follows: the next of these groups, or the first of
    the next groups."""
    tile += 1
    if LISTED:
        is_last = tile == tiles
        first += tl.where(is_last, SLOTS, 0)
        tile = tl.where(is_last, 0, tile)
    return first, tile


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr):
    """a b + total in float32; a b if `total` is None."""
    if INTERPRETED:
        # The interpreter stores bfloat16 as integers and would multiply the integers.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    if total is None:                                   # Triton 3.3 takes no None for a sum
        product = tl.dot(a, b, input_precision=PRECISION)
    else:
        product = tl.dot(a, b, total, input_precision=PRECISION)
    return product


@triton.jit
def _convolve(base, n, exists, rows, columns, y_stride, x_stride, taps, SIGN: tl.constexpr,
              SIDE: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, BLOCK_E: tl.constexpr,
              UNIT: tl.constexpr):
    """The depthwise convolution of tokens n inside their group; with SIGN −1 its transpose.

    `taps` points to the (E, SIDE, SIDE) weights of the head. The sum begins at 0, not at a result
    of the matrix units, whose places in the registers the neighbours would have to take.
    """
    channel = tl.arange(0, BLOCK_E)
    y, x = _divide(n, columns)
    token = _at(y, x, y_stride, x_stride, UNIT)
    total = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    for row in tl.range(SIDE, num_stages=1):
        dy = SIGN * (row - SIDE // 2)
        there = exists & (y + dy >= 0) & (y + dy < rows)
        for column in tl.static_range(SIDE):
            dx = SIGN * (column - SIDE // 2)
            near = _load(base + _at(dy, dx, y_stride, x_stride, UNIT), token,
                         there & (x + dx >= 0) & (x + dx < columns), E, BLOCK_E)
            factor = tl.load(taps + channel * (SIDE * SIDE) + row * SIDE + column,
                             mask=channel < E, other=0.)
            total += factor.to(tl.float32)[None, :] * near.to(tl.float32)
    return total


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(q, k, v, index, weight, taps, taps_2, bias, bias_2, out, mixed, lse, scale,
                   HEADS, GROUPS, KEYS, QC, QH, QW, KC, KH, KW, TOP, LEFT, H, W, SPLIT, STATISTICS,
                   GROUPS_2, COLUMNS_2, HEIGHT_2, WIDTH_2, TOP_2, LEFT_2, padding_counts,
                   q_b, q_y, q_x, k_b, k_y, k_x, v_b, v_y, v_x, D: tl.constexpr, E: tl.constexpr,
                   BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, UNIT: tl.constexpr,
                   LISTED: tl.constexpr, CLIPPED: tl.constexpr, KINDS: tl.constexpr,
                   WEIGHTED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
                   SLOTS: tl.constexpr, TOKENS: tl.constexpr, SIDE: tl.constexpr):
    """out and lse of one query tile; with SIDE, `mixed` is the attention without the convolution.

    `mixed` may be None. `padding_counts` is 1 if the keys of the padding take part, else 0.
    """
    program, kind, GROUPS, QC, QH, QW, KC, KH, KW, TOP, LEFT = _kind(
        SPLIT, GROUPS, QC, QH, QW, KC, KH, KW, TOP, LEFT, GROUPS_2, COLUMNS_2, HEIGHT_2, WIDTH_2,
        TOP_2, LEFT_2, KINDS)
    row, own, tile = _program(program, QH * QW, HEADS, BLOCK)
    head = kind * HEADS + own
    image, group = _image(row, GROUPS)
    y, x, rows, columns = _group(group, QC, QH, QW, TOP, LEFT, H, W, CLIPPED)
    n = tile * BLOCK + tl.arange(0, BLOCK)
    exists = n < rows * columns
    queries = _load(q + _first(image, head, q_b, D, UNIT) + _at(y, x, q_y, q_x, UNIT),
                    _token(n, columns, q_y, q_x, UNIT), exists, D, BLOCK_D)
    k += _first(image, head, k_b, D, UNIT)
    v += _first(image, head, v_b, E, UNIT)

    # The logits are multiplied by the (positive) scale where the exponential is taken.
    rate = scale * LOG2E
    top = tl.full((BLOCK,), float('-inf'), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    if CLIPPED:
        absent = (QH * QW - rows * columns) * padding_counts
        total += absent
        top = tl.where(total > 0, 0., top)
    mix = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    tiles = tl.cdiv(KH * KW, TOKENS)
    first = row.to(tl.int64) * KEYS
    end = first + KEYS
    nth = 0
    for _ in range(tl.cdiv(KEYS, SLOTS) * tiles):
        keys_of, m, valid = _other(first, nth, group, index, end, LISTED, SLOTS, TOKENS)
        k_top, k_left, k_rows, k_columns = _group(keys_of, KC, KH, KW, TOP, LEFT, H, W, CLIPPED)
        valid &= m < k_rows * k_columns
        keys = _load(k + _column(_at(k_top, k_left, k_y, k_x, UNIT), SLOTS),
                     _token(m, k_columns, k_y, k_x, UNIT), valid, D, BLOCK_D)
        values = _load(v + _column(_at(k_top, k_left, v_y, v_x, UNIT), SLOTS),
                       _token(m, k_columns, v_y, v_x, UNIT), valid, E, BLOCK_E)

        logits = _product(queries, tl.trans(keys), None, PRECISION)
        if WEIGHTED:
            factor = _row(_entry(weight, first, end, SLOTS, TOKENS).to(tl.float32), SLOTS)
            logits *= factor
        logits = tl.where(valid[None, :], logits, float('-inf'))
        new_top = tl.maximum(top, tl.max(logits, 1))
        # A clipped group may have no key in its last tile, but every first tile has one, so `top`
        # is finite after the first tile.
        p = tl.exp2(logits * rate - (new_top * rate)[:, None])
        shrink = tl.exp2((top - new_top) * rate)
        total = total * shrink + tl.sum(p, 1)
        if WEIGHTED:
            p *= factor
        mix = _product(p.to(values.dtype), values, mix * shrink[:, None], PRECISION)
        top = new_top
        first, nth = _next(first, nth, tiles, LISTED, SLOTS)

    mix /= total[:, None]
    x_stride = KINDS * HEADS
    place = _first(image, head, H * W * x_stride, E, E) + _at(y, x, W * x_stride, x_stride, E)
    token = _token(n, columns, W * x_stride, x_stride, E)
    if SIDE > 0:
        if mixed is not None:
            _store(mixed + place, token, exists, mix, E, BLOCK_E)
        channel = tl.arange(0, BLOCK_E)
        if bias is not None:
            mix += tl.load(_of_kind(kind, bias, bias_2, KINDS) + own * E + channel,
                           mask=channel < E, other=0.).to(tl.float32)[None, :]
        mix += _convolve(v + _at(y, x, v_y, v_x, UNIT), n, exists, rows, columns, v_y, v_x,
                         _of_kind(kind, taps, taps_2, KINDS) + own * (E * SIDE * SIDE), 1, SIDE, E,
                         BLOCK, BLOCK_E, UNIT)
    _store(out + place, token, exists, mix, E, BLOCK_E)
    statistics = _statistics(kind, row, own, STATISTICS, HEADS, QH * QW)
    # A place without a token gets 0, so that `lse` is the same at every run.
    tl.store(lse + statistics + n, tl.where(exists, top * scale + tl.log2(total) * LN2, 0.),
             mask=n < QH * QW)


@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(
        q, k, v, index, weight, mixed, lse, grad, pairs, grad_q, scale,
        HEADS, GROUPS, KEYS, QC, QH, QW, KC, KH, KW, TOP, LEFT, H, W, SPLIT, STATISTICS,
        GROUPS_2, COLUMNS_2, HEIGHT_2, WIDTH_2, TOP_2, LEFT_2,
        q_b, q_y, q_x, k_b, k_y, k_x, v_b, v_y, v_x, g_b, g_y, g_x,
        D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
        UNIT: tl.constexpr, LISTED: tl.constexpr, CLIPPED: tl.constexpr, KINDS: tl.constexpr,
        WEIGHTED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
        TOKENS: tl.constexpr, APART: tl.constexpr):
    """grad_q of one query tile, and its pairs for `key_gradient_kernel`."""
    program, kind, GROUPS, QC, QH, QW, KC, KH, KW, TOP, LEFT = _kind(
        SPLIT, GROUPS, QC, QH, QW, KC, KH, KW, TOP, LEFT, GROUPS_2, COLUMNS_2, HEIGHT_2, WIDTH_2,
        TOP_2, LEFT_2, KINDS)
    row, own, tile = _program(program, QH * QW, HEADS, BLOCK)
    head = kind * HEADS + own
    image, group = _image(row, GROUPS)
    y, x, rows, columns = _group(group, QC, QH, QW, TOP, LEFT, H, W, CLIPPED)
    n = tile * BLOCK + tl.arange(0, BLOCK)
    exists = n < rows * columns
    queries = _load(q + _first(image, head, q_b, D, UNIT) + _at(y, x, q_y, q_x, UNIT),
                    _token(n, columns, q_y, q_x, UNIT), exists, D, BLOCK_D)
    grads = _load(grad + _first(image, head, g_b, E, UNIT) + _at(y, x, g_y, g_x, UNIT),
                  _token(n, columns, g_y, g_x, UNIT), exists, E, BLOCK_E)
    x_stride = KINDS * HEADS
    mixes = _load(mixed + _first(image, head, H * W * x_stride, E, E)
                  + _at(y, x, W * x_stride, x_stride, E),
                  _token(n, columns, W * x_stride, x_stride, E), exists, E, BLOCK_E)
    row_delta = tl.sum(mixes.to(tl.float32) * grads.to(tl.float32), 1)
    statistics = _statistics(kind, row, own, STATISTICS, HEADS, QH * QW)
    row_lse = tl.load(lse + statistics + n, mask=exists, other=0.) * LOG2E
    tl.store(pairs + 2 * (statistics + n), row_lse, mask=exists)
    tl.store(pairs + 2 * (statistics + n) + 1, row_delta, mask=exists)
    k += _first(image, head, k_b, D, UNIT)
    v += _first(image, head, v_b, E, UNIT)

    rate = scale * LOG2E
    total = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    tiles = tl.cdiv(KH * KW, TOKENS)
    first = row.to(tl.int64) * KEYS
    end = first + KEYS
    nth = 0
    for _ in range(tl.cdiv(KEYS, SLOTS) * tiles):
        keys_of, m, valid = _other(first, nth, group, index, end, LISTED, SLOTS, TOKENS)
        k_top, k_left, k_rows, k_columns = _group(keys_of, KC, KH, KW, TOP, LEFT, H, W, CLIPPED)
        valid &= m < k_rows * k_columns
        keys = _load(k + _column(_at(k_top, k_left, k_y, k_x, UNIT), SLOTS),
                     _token(m, k_columns, k_y, k_x, UNIT), valid, D, BLOCK_D)
        values = _load(v + _column(_at(k_top, k_left, v_y, v_x, UNIT), SLOTS),
                       _token(m, k_columns, v_y, v_x, UNIT), valid, E, BLOCK_E)

        logits = _product(queries, tl.trans(keys), None, PRECISION)
        grad_p = _product(grads, tl.trans(values), None, PRECISION)
        if WEIGHTED:
            factor = _row(_entry(weight, first, end, SLOTS, TOKENS).to(tl.float32), SLOTS)
            logits *= factor
            grad_p *= factor
        # Without the mask a padded key would have exp(0 − lse), which may be infinite.
        p = tl.where(valid[None, :], tl.exp2(logits * rate - row_lse[:, None]), 0.)
        grad_s = p * (grad_p - row_delta[:, None])
        if WEIGHTED:
            grad_s *= factor
        total = _product(grad_s.to(keys.dtype), keys, total, PRECISION)
        first, nth = _next(first, nth, tiles, LISTED, SLOTS)

    x_stride = APART * KINDS * HEADS
    _store(grad_q + _first(image, head, H * W * x_stride, D, D)
           + _at(y, x, W * x_stride, x_stride, D),
           _token(n, columns, W * x_stride, x_stride, D), exists, total * scale, D, BLOCK_D)


@triton.jit
def _list(row, lists):
    """Of the list of a row: the start, the length, the first segment, the number of segments."""
    lists += 4 * row
    return tl.load(lists), tl.load(lists + 1), tl.load(lists + 2), tl.load(lists + 3)


@triton.jit
def _segment(nth, rows_in_all, segment_rows, lists, LISTED: tl.constexpr):
    """Row of the nth segment; its begin and end in `askers`; how many segments the row has.

    The row is `rows_in_all` if there is no such segment. See ops/routing/transposed.py.
    """
    row = nth
    begin = 0
    end = 1
    part = 0
    parts = 1
    if LISTED:
        row = tl.load(segment_rows + nth)
        start, length, first, parts = _list(tl.minimum(row, rows_in_all - 1), lists)
        part = nth - first
        begin = start + part * length // parts
        end = start + (part + 1) * length // parts
    return row, begin, end, parts


@triton.jit(do_not_specialize=SIZES)
def key_gradient_kernel(
        q, k, v, weight, taps, taps_2, grad, pairs, grad_k, grad_v, grad_w, parts,
        positions, askers, segment_rows, lists, scale,
        HEADS, GROUPS, KEYS, QC, QH, QW, KC, KH, KW, TOP, LEFT, H, W, SPLIT, STATISTICS,
        GROUPS_2, COLUMNS_2, HEIGHT_2, WIDTH_2, TOP_2, LEFT_2, rows_in_all,
        q_b, q_y, q_x, k_b, k_y, k_x, v_b, v_y, v_x, g_b, g_y, g_x,
        D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
        UNIT: tl.constexpr, LISTED: tl.constexpr, CLIPPED: tl.constexpr, KINDS: tl.constexpr,
        WEIGHTED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
        TOKENS: tl.constexpr, SIDE: tl.constexpr, APART: tl.constexpr):
    """grad_k and grad_v of one key tile: sums over the query groups that attend to its key group.

    LISTED: a program sums over one segment of the list of these query groups. If the row has one
    segment, the sums are the gradients. Else they go to `parts` (rows, KH · KW, HEADS, D + E), and
    `part_sum_kernel` adds them. `positions` has for each of `askers` its place among the weights.
    `grad_w` (weights, HEADS, key tiles, query tiles) takes the shares of the gradient of the
    weights. Each place is written by one program.
    """
    program, kind, GROUPS, QC, QH, QW, KC, KH, KW, TOP, LEFT = _kind(
        SPLIT, GROUPS, QC, QH, QW, KC, KH, KW, TOP, LEFT, GROUPS_2, COLUMNS_2, HEIGHT_2, WIDTH_2,
        TOP_2, LEFT_2, KINDS)
    segment, own, tile = _program(program, KH * KW, HEADS, BLOCK)
    head = kind * HEADS + own
    row, begin, end, count = _segment(segment, rows_in_all, segment_rows, lists, LISTED)
    if LISTED:
        if row >= rows_in_all:
            return
    image, group = _image(row, GROUPS)
    y, x, rows, columns = _group(group, KC, KH, KW, TOP, LEFT, H, W, CLIPPED)
    m = tile * BLOCK + tl.arange(0, BLOCK)
    exists = m < rows * columns
    keys = _load(k + _first(image, head, k_b, D, UNIT) + _at(y, x, k_y, k_x, UNIT),
                 _token(m, columns, k_y, k_x, UNIT), exists, D, BLOCK_D)
    values = _load(v + _first(image, head, v_b, E, UNIT) + _at(y, x, v_y, v_x, UNIT),
                   _token(m, columns, v_y, v_x, UNIT), exists, E, BLOCK_E)
    q += _first(image, head, q_b, D, UNIT)
    grad += _first(image, head, g_b, E, UNIT)
    pairs += 2 * _statistics(kind, image * GROUPS, own, STATISTICS, HEADS, QH * QW)

    rate = scale * LOG2E
    total_k = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    total_v = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    tiles = tl.cdiv(QH * QW, TOKENS)
    first = begin
    nth = 0
    for _ in range(tl.cdiv(end - begin, SLOTS) * tiles):
        asker, n, valid = _other(first, nth, group, askers, end, LISTED, SLOTS, TOKENS)
        q_top, q_left, q_rows, q_columns = _group(asker, QC, QH, QW, TOP, LEFT, H, W, CLIPPED)
        valid &= n < q_rows * q_columns
        queries = _load(q + _column(_at(q_top, q_left, q_y, q_x, UNIT), SLOTS),
                        _token(n, q_columns, q_y, q_x, UNIT), valid, D, BLOCK_D)
        grads = _load(grad + _column(_at(q_top, q_left, g_y, g_x, UNIT), SLOTS),
                      _token(n, q_columns, g_y, g_x, UNIT), valid, E, BLOCK_E)
        place = asker * HEADS * (QH * QW) + n
        # In one tensor that has as many numbers as a program has threads: of less, each thread
        # would load all that its part of the products needs.
        both = tl.load(pairs + 2 * place.to(tl.int64)[:, None] + tl.arange(0, 2)[None, :],
                       mask=valid[:, None], other=0.)
        row_lse, row_delta = tl.split(both)

        products = _product(keys, tl.trans(queries), None, PRECISION)
        grad_p = _product(values, tl.trans(grads), None, PRECISION)
        # A query that does not exist adds nothing: all that was loaded for it is 0. A key that does
        # not exist has sums of its own, which are not stored, but a share in grad_w.
        if WEIGHTED:
            at = _entry(positions, first, end, SLOTS, TOKENS)
            factor = _row(tl.load(weight + at).to(tl.float32), SLOTS)
            p = tl.exp2(products * factor * rate - row_lse[None, :])
            p = tl.where(exists[:, None], p, 0.)
            grad_s = p * (grad_p * factor - row_delta[None, :])
            share = tl.sum(grad_s * products * scale + p * grad_p, 0)
            share = tl.sum(tl.reshape(share, (SLOTS, TOKENS)), 1)
            slot = first + tl.arange(0, SLOTS)
            at = tl.load(positions + slot, mask=slot < end, other=0)
            shares = (at * HEADS + head) * tl.cdiv(KH * KW, BLOCK) + tile
            tl.store(grad_w + shares * tiles + nth, share, mask=slot < end)
            p *= factor
            grad_s *= factor
        else:
            p = tl.exp2(products * rate - row_lse[None, :])
            grad_s = p * (grad_p - row_delta[None, :])
        total_v = _product(p.to(grads.dtype), grads, total_v, PRECISION)
        total_k = _product(grad_s.to(queries.dtype), queries, total_k, PRECISION)
        first, nth = _next(first, nth, tiles, LISTED, SLOTS)

    total_k *= scale
    if SIDE > 0:
        total_v += _convolve(grad + _at(y, x, g_y, g_x, UNIT), m, exists, rows, columns, g_y, g_x,
                             _of_kind(kind, taps, taps_2, KINDS) + own * (E * SIDE * SIDE), -1,
                             SIDE, E, BLOCK, BLOCK_E, UNIT)
    if LISTED:
        if count > 1:
            # Segments of rows with several segments begin at least KEYS entries apart.
            sums = parts + ((begin // KEYS).to(tl.int64) * (KH * KW) * HEADS + head) * (D + E)
            _store(sums, m * (HEADS * (D + E)), exists, total_k, D, BLOCK_D)
            _store(sums + D, m * (HEADS * (D + E)), exists, total_v, E, BLOCK_E)
            return
    _store_gradients(grad_k, grad_v, total_k, total_v, image, GROUPS, head, KINDS * HEADS, y, x, m,
                     columns, exists, KC, KH, KW, W, H, CLIPPED, APART, D, E, BLOCK_D, BLOCK_E)


@triton.jit
def _store_gradients(grad_k, grad_v, total_k, total_v, image, GROUPS, head, HEADS, y, x, m, columns,
                     exists, KC, KH, KW, W, H, CLIPPED: tl.constexpr, APART: tl.constexpr,
                     D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr,
                     BLOCK_E: tl.constexpr):
    """Store a tile of the gradients of k and v, maps like k and v."""
    width = KC * KW
    area = GROUPS * KH * KW
    if CLIPPED:
        width = W
        area = H * W
    x_stride = APART * HEADS
    y_stride = width * x_stride
    _store(grad_k + _first(image, head, area * x_stride, D, D) + _at(y, x, y_stride, x_stride, D),
           _token(m, columns, y_stride, x_stride, D), exists, total_k, D, BLOCK_D)
    _store(grad_v + _first(image, head, area * x_stride, E, E) + _at(y, x, y_stride, x_stride, E),
           _token(m, columns, y_stride, x_stride, E), exists, total_v, E, BLOCK_E)


@triton.jit(do_not_specialize=SIZES)
def part_sum_kernel(parts, grad_k, grad_v, lists, HEADS, GROUPS, KEYS, KC, KH, KW,
                    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
                    BLOCK: tl.constexpr):
    """Add the parts of `key_gradient_kernel`, in the order of the list, where a row has several."""
    row, head, tile = _program(tl.program_id(0), KH * KW, HEADS, BLOCK)
    start, length, _, count = _list(row, lists)
    if count == 1:
        return
    image, group = _image(row, GROUPS)
    y, x, rows, columns = _group(group, KC, KH, KW, 0, 0, 0, 0, False)
    m = tile * BLOCK + tl.arange(0, BLOCK)
    exists = m < rows * columns
    total_k = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    total_v = tl.zeros((BLOCK, BLOCK_E), tl.float32)
    for part in range(count):
        slot = ((start + part * length // count) // KEYS).to(tl.int64)
        found = parts + (slot * (KH * KW) * HEADS + head) * (D + E)
        total_k += _load(found, m * (HEADS * (D + E)), exists, D, BLOCK_D)
        total_v += _load(found + D, m * (HEADS * (D + E)), exists, E, BLOCK_E)
    _store_gradients(grad_k, grad_v, total_k, total_v, image, GROUPS, head, HEADS, y, x, m, columns,
                     exists, KC, KH, KW, 0, 0, False, 1, D, E, BLOCK_D, BLOCK_E)
