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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import launching
from ..depthwise import triton_form as depthwise_form
from ..launching import in_units, launch, power_of_two
from ..registered import registered
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
        qkv.unflatten(-1, (num_heads, -1)), None, None, None, position[0], inverse_scale,
        local.unflatten(-1, (num_heads, -1)), cut, float(power), epsilon, 'focused')[0]
    return out.flatten(3)


def why_not_relu(*qkv: Tensor, **_: object) -> str | None:
    """Why the kernels cannot compute ReLU attention of these tensors, or None."""
    return launching.why_not(*qkv) or _why_not_sizes(qkv[0], qkv[0].shape[3])


@of_each_set
def relu_attention(qkv: Tensor, *, epsilon: float) -> Tensor:
    joint = qkv.permute(0, 4, 2, 1, 3)[:, None]                      # (B, 1, N, 3, h, d)
    out = _forward(
        joint, None, None, None, None, None, None, [1, qkv.shape[-1], 0, 0], 1., epsilon,
        'relu')[0]
    return out[:, 0].permute(0, 2, 3, 1)                             # (B, h, d, N)


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
        q, k, v, w, None, None, None, [1, q.shape[2], 0, 0], 1., epsilon, 'performer')[0]
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
    def of(cls, t: Tensor) -> '_Layout':
        *strides, channel = t.stride()
        last = channel == 1
        strides, unit = in_units(strides) if last else (strides, 1)
        return cls((*strides, channel), last, unit)


class _Plan:
    """What the kernels of one call share: q, k and v, sizes, and constants."""

    def __init__(self, q: Tensor, k: Tensor | None, v: Tensor | None, matrix: Tensor | None,
                 window: list[int], power: float, epsilon: float, kind: str, *,
                 forward: bool) -> None:
        self.q, self.k, self.v = q.unbind(3) if k is None else (q, k, v)
        if len({t.stride() for t in (self.q, self.k, self.v)}) > 1:
            self.q, self.k, self.v = (t.contiguous() for t in (self.q, self.k, self.v))
        self.batch, self.height, self.width, self.heads, self.dim = self.q.shape
        self.features = self.dim if matrix is None else len(matrix)
        self.window, self.kind, self.power, self.epsilon = window, kind, power, epsilon
        self.cut = -(-self.height // window[0]), -(-self.width // window[1])
        self.groups = self.batch * math.prod(self.cut)
        self.pairs = self.groups * self.heads
        self.layout = _Layout.of(self.q)
        half = self.q.dtype != torch.float32
        width = max(self.features, self.dim)
        # The largest tiles whose sums stay in registers by the compiler's report. They were not
        # chosen by timing.
        narrow = width <= 32 and (half or forward)
        self.block = (32 if narrow else 16) * (2 if forward else 1)
        # The number of programs depends on the sizes alone: so the sums are the same everywhere.
        self.chunks = max(1, min(self.tiles(self.block), 1024 // self.pairs))
        # ReLU leaves an input as it is, so its products with the values are exact in TF32.
        exact = 'tf32' if kind == 'relu' else 'tf32x3'
        self.options = dict(
            KIND=kind, POWER=power, CHANNELS_LAST=self.layout.last, UNIT=self.layout.unit,
            D=self.dim, F=self.features, BLOCK_D=max(16, power_of_two(self.dim)),
            BLOCK_F=max(16, power_of_two(self.features)), BLOCK=self.block,
            EXACT=exact if half else 'ieee', PRECISION='tf32x3' if half else 'ieee', num_warps=4,
            num_stages=2, enable_fp_fusion=True)

    def tiles(self, block: int) -> int:
        return -(-self.window[0] * self.window[1] // block)

    @property
    def sizes(self) -> tuple[int, ...]:
        """From H to left."""
        h, w, top, left = self.window
        return self.height, self.width, h, w, *self.cut, top, left

    def shares(self) -> Tensor:
        """Empty shares of S and z."""
        return self.q.new_empty(self.pairs, self.chunks, self.features, self.dim + 1,
                                dtype=torch.float32)

    def rows(self) -> tuple[dict, int]:
        """Constants of the kernels that read all channels of a token, and their tile."""
        channels = self.heads * self.dim
        block_c = power_of_two(channels)
        block = max(1, 1024 // block_c)
        return dict(POWER=self.power, UNIT=self.layout.unit, C=channels, BLOCK_C=block_c,
                    BLOCK=block, num_warps=4, enable_fp_fusion=True), block


@registered(
    'visattn::linear_attention_triton',
    '(Tensor q, Tensor? k, Tensor? v, Tensor? matrix, Tensor? position, Tensor? scale, '
    'Tensor? onto, SymInt[] window, float power, float epsilon, str kind) '
    '-> (Tensor, Tensor, Tensor)')
def _forward(q, k, v, matrix, position, scale, onto, window, power, epsilon, kind):
    """out (B, H, W, h, d), the sums S and z of each window and head, and the norms of each token.

    q, k and v are (B, H, W, h, d) each, or q is all three, (B, H, W, 3, h, d).
    """
    from . import triton_kernels as kernels
    out, sums, statistics = _empty(q, k, v, matrix, position, scale, onto, window, power, epsilon,
                                   kind)
    plan = _Plan(q, k, v, matrix, window, power, epsilon, kind, forward=True)
    matrix, position, scale, onto = (None if t is None else t.contiguous()
                                     for t in (matrix, position, scale, onto))
    strides = plan.layout.strides
    if kind == 'focused':
        options, block = plan.rows()
        launch(kernels.statistics_kernel, (plan.groups * plan.tiles(block),), plan.q, plan.k,
               position, scale, statistics, epsilon, *plan.sizes, *strides[:3], **options)
    shares = plan.shares()
    of_q, of_k = statistics.unbind()
    launch(kernels.summary_kernel, (plan.pairs, plan.chunks), plan.k, plan.v, matrix, position,
           scale, of_k, shares, epsilon, *plan.sizes, plan.heads, *strides, **plan.options)
    torch.sum(shares, 1, out=sums)
    launch(kernels.output_kernel, (plan.pairs * plan.tiles(plan.block),), plan.q, matrix, scale,
           of_q, sums, onto, out, epsilon, *plan.sizes, plan.heads, *strides, **plan.options)
    return out, sums, statistics


@_forward.register_fake
def _empty(q, k, v, matrix, position, scale, onto, window, power, epsilon, kind):
    batch, height, width, *_, heads, dim = q.shape
    pairs = batch * -(-height // window[0]) * -(-width // window[1]) * heads
    features = dim if matrix is None else matrix.shape[0]
    tokens = batch * height * width if kind == 'focused' else 0
    return (q.new_empty(batch, height, width, heads, dim),
            q.new_empty(pairs, features, dim + 1, dtype=torch.float32),
            q.new_empty(2, tokens, 2, dtype=torch.float32))


@registered(
    'visattn::linear_attention_triton_backward',
    '(Tensor grad, Tensor q, Tensor? k, Tensor? v, Tensor? matrix, Tensor? position, '
    'Tensor? scale, Tensor sums, Tensor statistics, SymInt[] window, float power, '
    'float epsilon, str kind) -> Tensor[]')
def _backward_op(grad, q, k, v, matrix, position, scale, sums, statistics, window, power, epsilon,
                 kind):
    """Gradients of q, k and v (or of the tensor of all three), then of position and scale."""
    from . import triton_kernels as kernels
    grads = _empty_gradients(grad, q, k, v, matrix, position, scale, sums, statistics, window,
                             power, epsilon, kind)
    plan = _Plan(q, k, v, matrix, window, power, epsilon, kind, forward=False)
    matrix, position, scale = (None if t is None else t.contiguous()
                               for t in (matrix, position, scale))
    grad = grad.contiguous()
    grad_q, grad_k, grad_v = grads[0].unbind(3) if k is None else grads[:3]
    values = _Layout.of(grad_v)
    # The kernels of a pair write dφ, which the last kernel turns into the gradients of q and k.
    phi = None
    if kind == 'focused':
        phi = grad.new_empty(2, *grad.shape, dtype=torch.float32)
    to_q, to_k = (grad_q, grad_k) if phi is None else phi.unbind()
    layout = _Layout.of(to_q)
    strides = *plan.layout.strides, *layout.strides
    options = dict(plan.options, GRAD_LAST=layout.last, GRAD_UNIT=layout.unit)
    of_q, of_k = statistics.unbind()
    shares = plan.shares()
    launch(kernels.query_gradient_kernel, (plan.pairs, plan.chunks), plan.q, matrix, scale, of_q,
           sums, grad, to_q, shares, epsilon, *plan.sizes, plan.heads, *strides, **options)
    grad_sums = shares.sum(1)
    launch(kernels.key_gradient_kernel, (plan.pairs * plan.tiles(plan.block),), plan.k, plan.v,
           matrix, position, scale, of_k, grad_sums, to_k, grad_v, epsilon, *plan.sizes, plan.heads,
           *strides, *values.strides, VALUE_LAST=values.last, VALUE_UNIT=values.unit, **options)
    if phi is not None:
        grads[-2:] = _focus_gradient(plan, position, scale, phi, grad_q, grad_k)
    return grads


def _focus_gradient(plan: _Plan, position: Tensor, scale: Tensor, phi: Tensor, grad_q: Tensor,
                    grad_k: Tensor) -> list[Tensor]:
    """Write the gradients of q and k; return those of position and scale."""
    from .triton_kernels import focus_gradient_kernel
    options, block = plan.rows()
    tiles, layout = plan.tiles(block), _Layout.of(grad_q)
    chunks = max(1, min(plan.groups, 1024 // tiles))
    position_shares = phi.new_empty(chunks, *position.shape)
    scale_shares = phi.new_empty(tiles * chunks, scale.shape[0])
    launch(focus_gradient_kernel, (tiles, chunks), plan.q, plan.k, position, scale, phi, grad_q,
           grad_k, position_shares, scale_shares, plan.epsilon, plan.groups, *plan.sizes,
           *plan.layout.strides[:3], *layout.strides[:3], GRAD_UNIT=layout.unit, **options)
    return [position_shares.sum(0).to(position.dtype), scale_shares.sum(0)]


@_backward_op.register_fake
def _empty_gradients(grad, q, k, v, matrix, position, scale, sums, statistics, window, power,
                     epsilon, kind):
    # The gradient of q, k and v lies in memory as they do, so that nothing is copied.
    inputs = [torch.empty_like(q)] if k is None else [q.new_empty(q.shape) for _ in range(3)]
    return [*inputs, *(t.new_empty(t.shape) for t in (position, scale) if t is not None)]


def _setup_context(ctx, inputs, output) -> None:
    *tensors, onto, ctx.window, ctx.power, ctx.epsilon, ctx.kind = inputs
    _, sums, statistics = output
    ctx.onto_dtype = None if onto is None else onto.dtype
    ctx.save_for_backward(*tensors, sums, statistics)
    ctx.mark_non_differentiable(sums, statistics)


def _backward(ctx, grad, *_):
    q, k, v, matrix, position, scale, sums, statistics = ctx.saved_tensors
    grads = _backward_op(
        grad, q, k, v, matrix, position, scale, sums, statistics, ctx.window, ctx.power,
        ctx.epsilon, ctx.kind)
    of_inputs = [grads.pop(0), None, None] if k is None else [grads.pop(0) for _ in range(3)]
    of_rest = grads if grads else [None, None]
    grad_onto = None if ctx.onto_dtype is None else grad.to(ctx.onto_dtype)
    return *of_inputs, None, *of_rest, grad_onto, None, None, None, None


_forward.register_autograd(_backward, setup_context=_setup_context)
