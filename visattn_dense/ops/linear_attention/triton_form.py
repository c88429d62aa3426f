"""Linear attention by Triton: one pass over the keys, one over the queries, forward and backward.

Nothing is padded, cut or merged: the kernels read q, k and v where they lie in the map. For
backward the operator keeps its inputs, the sums over the keys, and for focused attention four
numbers for each token. The sums run in a fixed order, without atomic additions.

All sums are float32. Products of float32 inputs are float32 ('ieee'). For bfloat16 and float16, a
product of two inputs is exact; a product with a float32 number takes three products of TF32 on the
matrix units ('tf32x3'), with a relative error of about 2⁻²¹.

Shapes: B images, H×W map, h heads, d channels of a head, F features, N tokens of a window.
"""
import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import launching
from ..depthwise import triton_form as depthwise_form
from ..launching import Launch, empty, in_units, once_for_a_size, power_of_two
from ..registered import registered
from ..sums import sum_rows
from ..windows import window_corner
from .torch_form import of_each_set

MAX_HEAD_DIM = 64
MAX_CHANNELS = 2048


def why_not_focused(qkv: Tensor, window: tuple[int, int], *, num_heads: int, position: Tensor,
                    scale: Tensor, power: float, kernel: Tensor, bias: Tensor | None,
                    **_: object) -> str | None:
    """Why the kernels cannot compute focused attention of these tensors, or None."""
    reason = (launching.why_not(qkv, position, scale)
              or depthwise_form.why_not(qkv[..., 2, :], kernel, bias))
    if reason is None and power < 1:
        reason = 'the focusing factor is less than 1'
    if reason is None and qkv.shape[-1] > MAX_CHANNELS:
        reason = f'there are more than {MAX_CHANNELS} channels'
    return reason or _why_not_sizes(qkv, qkv.shape[-1] // num_heads)


def focused_attention(qkv: Tensor, window: tuple[int, int], *, num_heads: int, position: Tensor,
                      scale: Tensor, power: float, epsilon: float, kernel: Tensor,
                      bias: Tensor | None) -> Tensor:
    local = depthwise_form.depthwise(qkv[..., 2, :], kernel, bias, window=window)
    inverse_scale = 1 / F.softplus(scale.flatten().float())
    cut = [*window, *window_corner(qkv.shape[1:3], window)]
    out = _forward(
        qkv.unflatten(-1, (num_heads, -1)), None, None, None, None, position[0], inverse_scale,
        local.unflatten(-1, (num_heads, -1)), cut, float(power), epsilon, 'focused')[0]
    return out.flatten(3)


def why_not_relu(*qkv: Tensor, **_: object) -> str | None:
    """Why the kernels cannot compute ReLU attention of these tensors, or None."""
    return launching.why_not(*qkv) or _why_not_sizes(qkv[0], qkv[0].shape[3])


def relu_attention(*qkv: Tensor, epsilon: float) -> Tensor:
    first, *others = qkv
    if len(others) == 1 and (first.shape, first.stride(), first.dtype) == (
            others[0].shape, others[0].stride(), others[0].dtype):
        return _relu_attention(first, others[0], epsilon=epsilon)
    return of_each_set(_relu_attention)(*qkv, epsilon=epsilon)


def _relu_attention(qkv: Tensor, second: Tensor | None = None, *, epsilon: float) -> Tensor:
    """The heads of one set, or of two, (B, h, 3, d, N) each."""
    first, second = (None if t is None else t.permute(0, 4, 2, 1, 3)[:, None]
                     for t in (qkv, second))                         # (B, 1, N, 3, h, d)
    out = _forward(
        first, None, None, second, None, None, None, None, [1, qkv.shape[-1], 0, 0], 1., epsilon,
        'relu')[0]
    return out[:, 0].permute(0, 2, 3, 1)                             # (B, S·h, d, N)


def why_not_performer(q: Tensor, k: Tensor, v: Tensor, w: Tensor, **_: object) -> str | None:
    """Why the kernels cannot compute the performer's attention of these tensors, or None."""
    reason = launching.why_not(q, k, v, w)
    if reason is None and not q.dtype == k.dtype == v.dtype:
        reason = 'q, k and v have several dtypes'
    if reason is None and w.requires_grad:
        reason = 'the random features need a gradient'
    return reason or _why_not_sizes(q, max(w.shape))


def performer_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor, *, epsilon: float) -> Tensor:
    q, k, v = (t[:, None, :, None] for t in (q, k, v))               # (B, 1, N, 1, d)
    out = _forward(
        q, k, v, None, w, None, None, None, [1, q.shape[2], 0, 0], 1., epsilon, 'performer')[0]
    return out[:, 0, :, 0]


def _why_not_sizes(tokens: Tensor, width: int) -> str | None:
    if width > MAX_HEAD_DIM:
        return f'a head has more than {MAX_HEAD_DIM} channels'
    return 'there are no tokens' if tokens.numel() == 0 else None


class _Layout(NamedTuple):
    """The strides of (B, H, W, h, d) as the kernels take them: x_b to x_d; CHANNELS_LAST; UNIT."""
    strides: tuple[int, ...]
    last: bool
    unit: int

    @classmethod
    def of(cls, strides: Sequence[int]) -> '_Layout':
        *others, channel = strides
        last = channel == 1
        others, unit = in_units(others) if last else (others, 1)
        return cls((*others, channel), last, unit)


def _sets(q: Tensor, k: Tensor | None, v: Tensor | None, second: Tensor | None
          ) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """q, k and v with the same strides, then those of `second`. Without k and v, q holds all three.
    """
    if k is None:
        return q.unbind(3), (None,) * 3 if second is None else second.unbind(3)
    if not q.stride() == k.stride() == v.stride():
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return (q, k, v), (None,) * 3


class _Plan:
    """What the kernels of one geometry share: sizes, constants, and the launches.

    Args:
        shape, strides, dtype: of q, of k and of v, in each set of heads.
        sets: how many sets of heads there are, 1 or 2.
        features: F.
        window: h, w and the corner of the first window.
        power, epsilon: numbers of the equation.
        kind: 'focused', 'relu' or 'performer'.
        forward: whether for forward or for backward.
    """

    def __init__(self, shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype, sets: int,
                 features: int, window: tuple[int, ...], power: float, epsilon: float, kind: str,
                 forward: bool) -> None:
        batch, height, width, own, self.dim = shape
        self.heads = sets * own
        self.features, self.kind, self.power, self.epsilon = features, kind, power, float(epsilon)
        self.tokens = window[0] * window[1]
        cut = -(-height // window[0]), -(-width // window[1])
        self.groups = batch * math.prod(cut)
        self.pairs = self.groups * self.heads
        # From H to left, from H to OWN, and from H to x_d.
        self.places = height, width, *window[:2], *cut, *window[2:]
        self.sizes = *self.places, self.heads, own
        self.layout = _Layout.of(strides)
        half = dtype != torch.float32
        # The largest tiles whose sums stay in registers by the compiler's report. They were not
        # chosen by timing.
        narrow = max(features, self.dim) <= 32 and (half or forward)
        self.block = (32 if narrow else 16) * (2 if forward else 1)
        # The number of programs depends on the sizes alone: so the sums are the same everywhere.
        self.chunks = max(1, min(self.tiles(self.block), 1024 // self.pairs))
        # ReLU leaves an input as it is, so its products with the values are exact in TF32.
        exact = 'tf32' if kind == 'relu' else 'tf32x3'
        self.options = dict(
            KIND=kind, POWER=power, CHANNELS_LAST=self.layout.last, UNIT=self.layout.unit,
            D=self.dim, F=features, BLOCK_D=max(16, power_of_two(self.dim)),
            BLOCK_F=max(16, power_of_two(features)), BLOCK=self.block,
            EXACT=exact if half else 'ieee', PRECISION='tf32x3' if half else 'ieee', num_warps=4,
            num_stages=2)

    def tiles(self, block: int) -> int:
        return -(-self.tokens // block)

    def shares(self, like: Tensor) -> Tensor:
        """Empty shares of S and z."""
        return empty((self.pairs, self.chunks, self.features, self.dim + 1), like, torch.float32)

    def rows(self) -> tuple[dict, int]:
        """Constants of the kernels that read all channels of a token, and their tile."""
        channels = self.heads * self.dim
        block_c = power_of_two(channels)
        block = max(1, 1024 // block_c)
        return dict(POWER=self.power, UNIT=self.layout.unit, C=channels, BLOCK_C=block_c,
                    BLOCK=block, num_warps=4), block

    @cached_property
    def statistics(self) -> Launch:
        from .triton_kernels import statistics_kernel
        options, block = self.rows()
        return Launch(statistics_kernel, (self.groups * self.tiles(block),), self.epsilon,
                      *self.places, *self.layout.strides[:3], **options)

    @cached_property
    def summary(self) -> Launch:
        from .triton_kernels import summary_kernel
        return Launch(summary_kernel, (self.pairs, self.chunks), self.epsilon, *self.sizes,
                      *self.layout.strides, **self.options)

    @cached_property
    def output(self) -> Launch:
        from .triton_kernels import output_kernel
        return Launch(output_kernel, (self.pairs * self.tiles(self.block),), self.epsilon,
                      *self.sizes, *self.layout.strides, **self.options)


_plan = once_for_a_size(_Plan)


@registered(
    'visattn::linear_attention_triton',
    '(Tensor q, Tensor? k, Tensor? v, Tensor? second, Tensor? matrix, Tensor? position, '
    'Tensor? scale, Tensor? onto, SymInt[] window, float power, float epsilon, str kind) '
    '-> (Tensor, Tensor, Tensor)')
def _forward(q, k, v, second, matrix, position, scale, onto, window, power, epsilon, kind):
    """out (B, H, W, S·h, d), the sums S and z of each window and head, and the norms of each token.

    q, k and v are (B, H, W, h, d) each, or q is all three, (B, H, W, 3, h, d). `second` holds all
    three of as many heads more, and has the strides of q.
    """
    out, sums, statistics = _empty(q, k, v, second, matrix, position, scale, onto, window, power,
                                   epsilon, kind)
    (q, k, v), (q_2, k_2, v_2) = _sets(q, k, v, second)
    plan = _plan(q.shape, q.stride(), q.dtype, 1 if second is None else 2,
                 q.shape[-1] if matrix is None else len(matrix), tuple(window), power, epsilon,
                 kind, True)
    matrix, position, scale, onto = (None if t is None else t.contiguous()
                                     for t in (matrix, position, scale, onto))
    if kind == 'focused':
        plan.statistics(q, k, position, scale, statistics)
    shares = sums if plan.chunks == 1 else plan.shares(q)
    of_q, of_k = statistics.unbind()
    plan.summary(k, v, k_2, v_2, matrix, position, scale, of_k, shares)
    if plan.chunks > 1:
        sum_rows(shares, 1, out=sums)
    plan.output(q, q_2, matrix, scale, of_q, sums, onto, out)
    return out, sums, statistics


@_forward.register_fake
def _empty(q, k, v, second, matrix, position, scale, onto, window, power, epsilon, kind):
    batch, height, width, *_, heads, dim = q.shape
    heads *= 1 if second is None else 2
    pairs = batch * -(-height // window[0]) * -(-width // window[1]) * heads
    features = dim if matrix is None else matrix.shape[0]
    tokens = batch * height * width if kind == 'focused' else 0
    return (empty((batch, height, width, heads, dim), q),
            empty((pairs, features, dim + 1), q, torch.float32),
            empty((2, tokens, 2), q, torch.float32))


@registered(
    'visattn::linear_attention_triton_backward',
    '(Tensor grad, Tensor q, Tensor? k, Tensor? v, Tensor? second, Tensor? matrix, '
    'Tensor? position, Tensor? scale, Tensor sums, Tensor statistics, SymInt[] window, '
    'float power, float epsilon, str kind) -> Tensor[]')
def _backward_op(grad, q, k, v, second, matrix, position, scale, sums, statistics, window, power,
                 epsilon, kind):
    """Gradients of q, k and v (or of the tensors of all three), then of position and scale."""
    grads = _empty_gradients(grad, q, k, v, second, matrix, position, scale, sums, statistics,
                             window, power, epsilon, kind)
    grad_q, grad_k, grad_v = grads[0].unbind(3) if k is None else grads[:3]
    to_q_2, to_k_2, grad_v_2 = (None,) * 3 if second is None else grads[1].unbind(3)
    (q, k, v), (q_2, k_2, v_2) = _sets(q, k, v, second)
    plan = _plan(q.shape, q.stride(), q.dtype, 1 if second is None else 2,
                 q.shape[-1] if matrix is None else len(matrix), tuple(window), power, epsilon,
                 kind, False)
    matrix, position, scale = (None if t is None else t.contiguous()
                               for t in (matrix, position, scale))
    grad = grad.contiguous()
    # The kernels of a pair write dφ, which the last kernel turns into the gradients of q and k.
    phi = None
    if kind == 'focused':
        phi = empty((2, *grad.shape), grad, torch.float32)
    to_q, to_k = (grad_q, grad_k) if phi is None else phi.unbind()
    of_q, of_k = statistics.unbind()
    shares = plan.shares(q)
    _query_gradient_launch(plan, to_q.stride())(q, q_2, matrix, scale, of_q, sums, grad, to_q,
                                                to_q_2, shares)
    _key_gradient_launch(plan, to_k.stride(), grad_v.stride())(
        k, v, k_2, v_2, matrix, position, scale, of_k,
        shares if plan.chunks == 1 else sum_rows(shares, 1), to_k, grad_v, to_k_2, grad_v_2)
    if phi is not None:
        launch = _focus_gradient_launch(plan, grad_q.stride())
        tiles, chunks = launch.grid
        position_shares = empty((chunks, *position.shape), phi)
        scale_shares = empty((tiles * chunks, len(scale)), phi)
        launch(q, k, position, scale, phi, grad_q, grad_k, position_shares, scale_shares)
        # `sum_rows` would compile a kernel for each size of the tables.
        grads[-2:] = (position_shares.sum(0).to(position.dtype),
                      sum_rows(scale_shares, 0, many=True))
    return grads


@once_for_a_size
def _query_gradient_launch(plan: _Plan, grad_strides: tuple[int, ...]) -> Launch:
    from .triton_kernels import query_gradient_kernel
    layout = _Layout.of(grad_strides)
    return Launch(query_gradient_kernel, (plan.pairs, plan.chunks), plan.epsilon, *plan.sizes,
                  *plan.layout.strides, *layout.strides, GRAD_LAST=layout.last,
                  GRAD_UNIT=layout.unit, **plan.options)


@once_for_a_size
def _key_gradient_launch(plan: _Plan, grad_strides: tuple[int, ...],
                         value_strides: tuple[int, ...]) -> Launch:
    from .triton_kernels import key_gradient_kernel
    layout, values = _Layout.of(grad_strides), _Layout.of(value_strides)
    return Launch(key_gradient_kernel, (plan.pairs * plan.tiles(plan.block),), plan.epsilon,
                  *plan.sizes, *plan.layout.strides, *layout.strides, *values.strides,
                  GRAD_LAST=layout.last, GRAD_UNIT=layout.unit, VALUE_LAST=values.last,
                  VALUE_UNIT=values.unit, **plan.options)


@once_for_a_size
def _focus_gradient_launch(plan: _Plan, grad_strides: tuple[int, ...]) -> Launch:
    from .triton_kernels import focus_gradient_kernel
    options, block = plan.rows()
    tiles, layout = plan.tiles(block), _Layout.of(grad_strides)
    chunks = max(1, min(plan.groups, 1024 // tiles))
    return Launch(focus_gradient_kernel, (tiles, chunks), plan.epsilon, plan.groups, *plan.places,
                  *plan.layout.strides[:3], *layout.strides[:3], GRAD_UNIT=layout.unit, **options)


@_backward_op.register_fake
def _empty_gradients(grad, q, k, v, second, matrix, position, scale, sums, statistics, window,
                     power, epsilon, kind):
    # The gradient of q, k and v lies in memory as they do, so that nothing is copied.
    inputs = [torch.empty_like(q)] if k is None else [q.new_empty(q.shape) for _ in range(3)]
    if second is not None:
        inputs.append(torch.empty_like(second))
    return [*inputs, *(t.new_empty(t.shape) for t in (position, scale) if t is not None)]


def _setup_context(ctx, inputs, output) -> None:
    *tensors, onto, ctx.window, ctx.power, ctx.epsilon, ctx.kind = inputs
    _, sums, statistics = output
    ctx.onto_dtype = None if onto is None else onto.dtype
    ctx.save_for_backward(*tensors, sums, statistics)
    ctx.mark_non_differentiable(sums, statistics)


def _backward(ctx, grad, *_):
    q, k, v, second, matrix, position, scale, sums, statistics = ctx.saved_tensors
    grads = _backward_op(
        grad, q, k, v, second, matrix, position, scale, sums, statistics, ctx.window, ctx.power,
        ctx.epsilon, ctx.kind)
    of_inputs = [None if t is None else grads.pop(0) for t in (q, k, v, second)]
    of_rest = grads if grads else [None, None]
    grad_onto = None if ctx.onto_dtype is None else grad.to(ctx.onto_dtype)
    return *of_inputs, None, *of_rest, grad_onto, None, None, None, None


_forward.register_autograd(_backward, setup_context=_setup_context)
