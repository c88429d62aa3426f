"""Triton kernels of routing between regions: the choice of regions, and its transpose.

    logits_rs = q_r · k_s · scale

A program of `top_regions_kernel` computes the logits of BLOCK regions r to all R regions s in
registers, and takes COUNT times the largest that is left in each row. Of equal logits, the first
comes first. In the choice, a logit that is no number counts as the smallest, so the COUNT regions
of a row are always different.

The strides `q_b` to `k_r` count in units of UNIT numbers. Sums are float32. TF32 holds every
bfloat16 and float16, so products of these are exact on the matrix units.

`asker_count_kernel` and `asker_list_kernel` turn the chosen regions into the list of the askers of
each region, in a fixed order: see `transposed.Routing`. R regions of an image, K chosen for each.
"""
import triton
import triton.language as tl

_SMALLEST = tl.constexpr(-3.4e38)


@triton.jit(do_not_specialize=['R', 'q_b', 'q_r', 'k_b', 'k_r'])
def top_regions_kernel(q, k, logits, index, scale, R, q_b, q_r, k_b, k_r, Q: tl.constexpr,
                       COUNT: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
                       BLOCK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    other, channel = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_Q)
    of_q = q + (image * q_b + row[:, None] * q_r) * UNIT + channel[None, :]
    of_k = k + (image * k_b + other[None, :] * k_r) * UNIT + channel[:, None]
    total = tl.zeros((BLOCK, BLOCK_R), tl.float32)
    for start in range(0, Q, BLOCK_Q):
        real = start + channel < Q
        a = tl.load(of_q + start, mask=(row < R)[:, None] & real[None, :],
                    other=0.).to(tl.float32)
        b = tl.load(of_k + start, mask=(other < R)[None, :] & real[:, None],
                    other=0.).to(tl.float32)
        total += tl.dot(a, b, input_precision=PRECISION)
    total *= scale
    left = tl.where((other < R)[None, :], tl.where(total > _SMALLEST, total, _SMALLEST),
                    float('-inf'))
    place = (image * R + row) * COUNT
    for nth in range(COUNT):
        _, at = tl.max(left, 1, return_indices=True)
        chosen = other[None, :] == at[:, None]
        largest = tl.sum(tl.where(chosen, total, 0.), 1)
        tl.store(logits + place + nth, largest.to(logits.dtype.element_ty), mask=row < R)
        tl.store(index + place + nth, at.to(tl.int64), mask=row < R)
        left = tl.where(chosen, float('-inf'), left)


@triton.jit(do_not_specialize=['R', 'K'])
def asker_count_kernel(index, counts, R, K, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr):
    """How often `index` (B, R, K) names each region: (B, R)."""
    image = tl.program_id(0)
    region = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    index += image * R * K
    total = tl.zeros((BLOCK_R,), tl.int32)
    for start in range(0, R * K, BLOCK):
        nth = start + tl.arange(0, BLOCK)
        named = tl.load(index + nth, mask=nth < R * K, other=-1)
        # The interpreter of Triton 3.2 gives sums of integers 64 bits, and would store as many.
        total += tl.sum((named[:, None] == region[None, :]).to(tl.float32), 0).to(tl.int32)
    tl.store(counts + image * R + region, total, mask=region < R)


@triton.jit(do_not_specialize=['R', 'K', 'ROWS'])
def asker_list_kernel(index, counts, positions, askers, segments, lists, R, K, ROWS,
                      BLOCK: tl.constexpr):
    """The list of one row, and its segments: see `transposed.Routing`."""
    row = tl.program_id(0)
    image, region = row // R, row % R
    before = 0
    segments_before = 0
    for start in range(0, region, BLOCK):
        other = start + tl.arange(0, BLOCK)
        lengths = tl.load(counts + image * R + other, mask=other < region, other=0)
        before += tl.sum(lengths, 0)
        segments_before += tl.sum(tl.where(other < region, _segments(lengths, K), 0), 0)
    length = tl.load(counts + row)
    many = _segments(length, K)
    place = image * R * K + before
    of_image = R + R // 2
    first = image * of_image + segments_before
    tl.store(lists + 4 * row, place)
    tl.store(lists + 4 * row + 1, length)
    tl.store(lists + 4 * row + 2, first)
    tl.store(lists + 4 * row + 3, many)
    # The last row of an image also writes the places that no segment takes.
    end = first + many
    if region == R - 1:
        end = (image + 1) * of_image
    for start in range(first, end, BLOCK):
        nth = start + tl.arange(0, BLOCK)
        tl.store(segments + nth, tl.where(nth < first + many, row, ROWS), mask=nth < end)
    for start in range(0, R * K, BLOCK):
        nth = start + tl.arange(0, BLOCK)
        position = image * R * K + nth
        is_own = (tl.load(index + position, mask=nth < R * K, other=-1) == region).to(tl.int32)
        target = place + tl.cumsum(is_own, 0) - 1
        tl.store(positions + target, position.to(tl.int64), mask=is_own > 0)
        tl.store(askers + target, nth // K, mask=is_own > 0)
        place += tl.sum(is_own, 0)


@triton.jit
def _segments(length, K):
    """How many segments a list of this length has."""
    return tl.maximum((length + 2 * K - 1) // (2 * K), 1)
