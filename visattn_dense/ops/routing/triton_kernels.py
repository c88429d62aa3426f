"""The Triton kernel of routing between regions: logits, and the largest of each row.

    logits_rs = q_r · k_s · scale

A program computes the logits of BLOCK regions r to all R regions s in registers, and takes COUNT
times the largest that is left in each row. Of equal logits, the first comes first. In the choice, a
logit that is no number counts as the smallest, so the COUNT regions of a row are always different.

The strides `q_b` to `k_r` count in units of UNIT numbers. Sums are float32. TF32 holds every
bfloat16 and float16, so products of these are exact on the matrix units.
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
    left = tl.where((other < R)[None, :], tl.maximum(total, _SMALLEST), float('-inf'))
    place = (image * R + row) * COUNT
    for nth in range(COUNT):
        _, at = tl.max(left, 1, return_indices=True)
        chosen = other[None, :] == at[:, None]
        largest = tl.sum(tl.where(chosen, total, 0.), 1)
        tl.store(logits + place + nth, largest.to(logits.dtype.element_ty), mask=row < R)
        tl.store(index + place + nth, at.to(tl.int64), mask=row < R)
        left = tl.where(chosen, float('-inf'), left)
