"""Triton kernels of a 1×1 convolution in groups: a batch of products, and the gradient of weights.

    out_g = x_g W_gᵀ,   dx_g = dout_g W_g,   dW_g = dout_gᵀ x_g   for each group g

M positions, x (M, G · IN), weight (G, OUT, IN). The sums are float32. The operands are rounded to
the dtype of the product, and read by the matrix units as TF32, which holds every bfloat16 and
float16; PRECISION is 'ieee' for float32.

A program of `product_kernel` owns one tile of positions of a group; with TRANSPOSED it computes dx
from dout, IN and OUT exchanged. A program of `weight_gradient_kernel` owns a group, and sums the
tiles p, p + P, p + 2P, ... of P programs into row p of `shares`. The caller adds the rows.
"""
import triton
import triton.language as tl


@triton.jit
def _rows(base, m, M, group, GROUPS, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
          KIND: tl.constexpr):
    """The channels of a group at some positions, rounded to KIND."""
    channel = tl.arange(0, BLOCK)
    place = (m.to(tl.int64) * GROUPS + group)[:, None] * WIDTH + channel[None, :]
    value = tl.load(base + place, mask=(m < M)[:, None] & (channel < WIDTH)[None, :], other=0.)
    return value.to(KIND).to(tl.float32)


@triton.jit(do_not_specialize=['M', 'GROUPS'])
def product_kernel(x, weight, out, M, GROUPS, IN: tl.constexpr, OUT: tl.constexpr,
                   TRANSPOSED: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
                   BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, PRECISION: tl.constexpr):
    group = tl.program_id(1)
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i, o = tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_O)
    if TRANSPOSED:
        place = i[:, None] * OUT + o[None, :]
    else:
        place = o[None, :] * IN + i[:, None]
    matrix = tl.load(weight + group * (OUT * IN) + place,
                     mask=(i < IN)[:, None] & (o < OUT)[None, :], other=0.)
    matrix = matrix.to(KIND).to(tl.float32)
    rows = _rows(x, m, M, group, GROUPS, IN, BLOCK_I, KIND)
    total = tl.dot(rows, matrix, input_precision=PRECISION)
    target = (m.to(tl.int64) * GROUPS + group)[:, None] * OUT + o[None, :]
    tl.store(out + target, total.to(out.dtype.element_ty),
             mask=(m < M)[:, None] & (o < OUT)[None, :])


@triton.jit(do_not_specialize=['M', 'GROUPS'])
def weight_gradient_kernel(x, grad, shares, M, GROUPS, IN: tl.constexpr, OUT: tl.constexpr,
                           KIND: tl.constexpr, BLOCK: tl.constexpr, BLOCK_I: tl.constexpr,
                           BLOCK_O: tl.constexpr, PRECISION: tl.constexpr):
    program, programs, group = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    total = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for tile in range(program, tl.cdiv(M, BLOCK), programs):
        m = tile * BLOCK + tl.arange(0, BLOCK)
        rows = _rows(x, m, M, group, GROUPS, IN, BLOCK_I, KIND)
        grads = _rows(grad, m, M, group, GROUPS, OUT, BLOCK_O, KIND)
        total = tl.dot(tl.trans(grads), rows, total, input_precision=PRECISION)
    i, o = tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_O)
    place = (program * GROUPS + group).to(tl.int64) * (OUT * IN) + o[:, None] * IN + i[None, :]
    tl.store(shares + place, total, mask=(o < OUT)[:, None] & (i < IN)[None, :])
