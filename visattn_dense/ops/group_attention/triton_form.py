"""Group attention by Triton: the forms, and the two operators of torch that they call.

`visattn::window_attention` is for windows and stripes with LePE, `visattn::group_attention` for
routed regions and whole maps. Both read the maps where they lie, so nothing is padded, cut,
gathered or merged. Both have a backward pass and fake implementations, so torch.compile sees no
loop and no kernel.

Why a Triton form cannot compute: `why_not_full`, `why_not_windows`, `why_not_regions` and
`why_not_routed`, with the arguments of the forms.
"""
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .. import launching
from ..choose import of_other_channels
from ..depthwise import triton_form as depthwise_form
from ..launching import empty, once_for_a_size, readable
from ..precision import autocast_dtype
from ..registered import registered
from ..windows import Window, pool_regions
from .triton_launch import Grid, Groups, attend, gradients

MAX_HEAD_DIM = 128
MAX_TOKENS = 2**20
"""Of a group; and how many groups an image may have. See `triton_kernels._divide`."""


def _why_not(num_heads: int, scale: float | None, counts: Iterable[int], *maps: Tensor,
             elements: int, cast: bool = False) -> str | None:
    """Why the kernels cannot take these maps (..., channels), or None.

    Args:
        counts: the tokens of groups, and the groups of images.
        elements: of q, k and v of an image.
        cast: whether the form casts the maps as autocast does.
    """
    widest = max([t.shape[-1] for t in maps]) // num_heads
    if widest > MAX_HEAD_DIM:
        return f'a head has {widest} channels, more than {MAX_HEAD_DIM}'
    if scale is not None and scale <= 0:
        return 'the scale is not positive'
    if elements >= 2**31:
        return 'an image has so many elements that 32 bits cannot count them'
    for count in counts:
        if count > MAX_TOKENS:
            return f'a group has more than {MAX_TOKENS} tokens, or an image has more groups'
    return launching.why_not(*maps, alike=not cast or autocast_dtype(maps[0]) is None)


# Windows and stripes.

def why_not_windows(qkv: Tensor, windows: Sequence[Window], *, num_heads: int,
                    kernels: Sequence[Tensor], biases: Sequence[Tensor | None] = (),
                    scale: float | None = None, **_: object) -> str | None:
    if len(windows) > 2:
        return 'there are more than two kinds of windows'
    if len({bias.dtype for bias in biases if bias is not None}) > 1:
        return 'the biases differ in their dtypes'
    if (kernels[0].shape[-1], kernels[0].dtype) != (kernels[-1].shape[-1], kernels[-1].dtype):
        return 'the convolutions differ in their sides or dtypes'
    if kernels[0].shape[-1] not in depthwise_form.SIDES:
        return f'the side of the convolution is not one of {depthwise_form.SIDES}'
    batch, height, width, _, channels = qkv.shape
    counts = [n for h, w in windows for n in (h * w, -(-height // h) * -(-width // w))]
    return (_why_not(num_heads, scale, counts, qkv, elements=3 * height * width * channels,
                     cast=True)
            or of_other_channels(channels // len(windows), *kernels, *biases))


def window_attention(qkv: Tensor, windows: Sequence[Window], *, num_heads: int,
                     kernels: Sequence[Tensor], biases: Sequence[Tensor | None],
                     scale: float | None = None, padding_counts: bool = True) -> Tensor:
    qkv, = _cast(qkv)
    scale = (qkv.shape[-1] // num_heads)**-.5 if scale is None else scale
    if all([bias is None for bias in biases]):
        biases = []
    else:
        dtype = next(bias.dtype for bias in biases if bias is not None)
        biases = [kernel.new_zeros(len(kernel), dtype=dtype) if bias is None else bias
                  for kernel, bias in zip(kernels, biases, strict=True)]
    keep = torch.is_grad_enabled() and any([t.requires_grad for t in (qkv, *kernels, *biases)])
    sides = [side for window in windows for side in window]
    return _windows(qkv, list(kernels), biases, num_heads, sides, scale, padding_counts, keep)[0]


def _cast(*tensors: Tensor) -> list[Tensor]:
    """The tensors as autocast would pass them to torch's fused attention."""
    kind = autocast_dtype(tensors[0])
    return [t if kind is None or t.dtype == torch.float64 else t.to(kind) for t in tensors]


def _window_groups(shape: Sequence[int], num_heads: int, windows: Sequence[int]) -> Groups:
    """`shape`: (B, H, W, 3, C) of qkv. `windows`: h and w of each kind in turn."""
    kinds = zip(windows[::2], windows[1::2], strict=True)
    return Groups.of_windows(num_heads, [Grid.of(*shape[1:3], kind) for kind in kinds])


_known_window_groups = once_for_a_size(_window_groups)


def _window_results(qkv: Tensor, groups: Groups, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, height, width, _, channels = qkv.shape
    out = empty((batch, height, width, channels), qkv)
    return (out, torch.empty_like(out) if keep else out.new_empty(0),
            empty((sum(groups.statistics(batch)),), qkv, torch.float32))


@registered(
    'visattn::window_attention',
    '(Tensor qkv, Tensor[] kernels, Tensor[] biases, SymInt num_heads, SymInt[] windows, '
    'float scale, bool padding_counts, bool keep) -> (Tensor, Tensor, Tensor)')
def _windows(qkv, kernels, biases, num_heads, windows, scale, padding_counts, keep):
    """out (B, H, W, C), the attention without the convolution or nothing, and the logarithms.

    `windows`: h and w of each kind. `biases`: one for each kind, or none.
    """
    groups = _known_window_groups(qkv.shape, num_heads, tuple(windows))
    out, mixed, lse = _window_results(qkv, groups, keep)
    attend(*readable(qkv).unbind(3), groups, scale, out, lse, taps=_contiguous(kernels),
           biases=_contiguous(biases), padding_counts=padding_counts,
           mixed=mixed if keep else None)
    return out, mixed, lse


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


@_windows.register_fake
def _(qkv, kernels, biases, num_heads, windows, scale, padding_counts, keep):
    return _window_results(qkv, _window_groups(qkv.shape, num_heads, windows), keep)


@registered(
    'visattn::window_attention_backward',
    '(Tensor grad, Tensor qkv, Tensor[] kernels, Tensor mixed, Tensor lse, SymInt num_heads, '
    'SymInt[] windows, float scale) -> (Tensor, Tensor)')
def _windows_backward(grad, qkv, kernels, mixed, lse, num_heads, windows, scale):
    """The gradient of qkv, and of the kernels and biases: see `depthwise_form.weight_gradients`."""
    grad_qkv = empty(qkv.shape, qkv)
    grad, (q, k, v) = readable(grad), readable(qkv).unbind(3)
    groups = _known_window_groups(qkv.shape, num_heads, tuple(windows))
    gradients(grad, q, k, v, mixed, lse, groups, scale, grad_qkv.unbind(3), apart=3,
              taps=_contiguous(kernels))
    learned = depthwise_form.weight_gradients(
        grad.chunk(groups.kinds, -1), v.chunk(groups.kinds, -1), kernels[0].shape[-1], 1,
        [(grid.height, grid.width, grid.top, grid.left) for grid in groups.grids])
    return grad_qkv, learned


@_windows_backward.register_fake
def _(grad, qkv, kernels, *_):
    numbers = kernels[0].numel() + len(kernels[0])
    return (empty(qkv.shape, qkv),
            kernels[0].new_empty((len(kernels), numbers), dtype=torch.float32))


def _windows_context(ctx, inputs, output) -> None:
    qkv, kernels, biases, *ctx.options, _, ctx.kept = inputs
    _, mixed, lse = output
    ctx.mark_non_differentiable(mixed, lse)
    ctx.has_biases = len(biases) > 0
    ctx.save_for_backward(qkv, mixed, lse, *kernels)


def _windows_gradient(ctx, grad: Tensor, *_):
    if not ctx.kept:
        raise RuntimeError('visattn::window_attention was called with keep=False, so it has no '
                           'gradient')
    qkv, mixed, lse, *kernels = ctx.saved_tensors
    grad_qkv, found = _windows_backward(grad, qkv, kernels, mixed, lse, *ctx.options)
    learned = [depthwise_form.kernel_and_bias(*pair) for pair in zip(found, kernels, strict=True)]
    return (grad_qkv, [kernel for kernel, _ in learned],
            [bias for _, bias in learned] if ctx.has_biases else [], *(None,) * 5)


_windows.register_autograd(_windows_gradient, setup_context=_windows_context)


# Routed regions and whole maps.

def why_not_full(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int,
                 scale: float | None = None) -> str | None:
    if not q.shape[0] == k.shape[0] == v.shape[0] or k.shape[1] != v.shape[1]:
        return 'the batches, or keys and values, have different lengths'
    elements = 3 * max(t.shape[1] * t.shape[2] for t in (q, k, v))
    return _why_not(num_heads, scale, (q.shape[1], k.shape[1]), q, k, v, elements=elements,
                    cast=True)


def full_attention(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int,
                   scale: float | None = None) -> Tensor:
    scale = (q.shape[-1] // num_heads)**-.5 if scale is None else scale
    q, k, v = (t[:, None] for t in _cast(q, k, v))              # (B, 1, N, C): a map of one row
    return _call(q, k, v, None, None, num_heads, q.shape[1:3], k.shape[1:3], scale)[:, 0]


def why_not_regions(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, num_heads: int, n_win: int,
                    scale: float, **_: object) -> str | None:
    tokens = q.shape[1] * q.shape[2]
    return _why_not(num_heads, scale, (tokens // n_win**2, n_win**2), q, k, v,
                    elements=3 * tokens * max(q.shape[-1], v.shape[-1]))


def region_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, num_heads: int,
                     n_win: int, scale: float, weight: Tensor | None = None,
                     pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    region = q.shape[1] // n_win, q.shape[2] // n_win
    of_keys = region
    if pool is not None:
        k, v = pool_regions(k, v, n_win, pool)
        k, v = (t.flatten(3, 4).flatten(1, 2) for t in (k, v))   # (B, R, M, C): region by region
        of_keys = 1, k.shape[2]
    return _call(q, k, v, index, weight, num_heads, region, of_keys, scale)


def why_not_routed(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, scale: float,
                   weight: Tensor | None = None) -> str | None:
    split = 2 if q.ndim == 5 else 3
    counts = q.shape[1:split].numel(), *(t.shape[split:-2].numel() for t in (q, k))
    return _why_not(1, scale, counts, q, k, v,
                    elements=3 * max(t.shape[1:].numel() for t in (q, k, v)))


def routed_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, scale: float,
                     weight: Tensor | None = None) -> Tensor:
    if q.ndim == 5:
        maps = [t.flatten(-2) for t in (q, k, v)]               # regions are the rows of a map
        windows = [(1, t.shape[2]) for t in maps]
    else:
        # Undo `visattn_dense.ops.windows.regions_of`; a view where the regions lie in a map.
        maps = [t.flatten(-2).transpose(2, 3).flatten(3, 4).flatten(1, 2) for t in (q, k, v)]
        windows = [t.shape[3:5] for t in (q, k)]
    out = _call(*maps, index, weight, q.shape[-2], windows[0], windows[1], scale)
    if q.ndim == 5:
        return out.unflatten(-1, (q.shape[-2], -1))
    rows, columns = q.shape[1:3]
    out = out.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).transpose(2, 3)
    return out.unflatten(-1, (q.shape[-2], -1))


def _call(q: Tensor, k: Tensor, v: Tensor, index: Tensor | None, weight: Tensor | None,
          num_heads: int, of_queries: tuple[int, int], of_keys: tuple[int, int],
          scale: float) -> Tensor:
    return _forward(q, k, v, index, weight, num_heads, *of_queries, *of_keys, scale)[0]


def _groups(q: torch.Size, k: torch.Size, num_heads: int, q_height: int, q_width: int,
            k_height: int, k_width: int, listed: int | None = None, weighted: bool = False
            ) -> Groups:
    """The groups of maps of these shapes."""
    return Groups(num_heads, Grid.of(*q[1:3], (q_height, q_width)),
                  Grid.of(*k[1:3], (k_height, k_width)), listed=listed, weighted=weighted)


_known_groups = once_for_a_size(_groups)


@registered('visattn::group_attention')
def _forward(q: Tensor, k: Tensor, v: Tensor, index: Tensor | None, weight: Tensor | None,
             num_heads: int, q_height: int, q_width: int, k_height: int, k_width: int,
             scale: float) -> tuple[Tensor, Tensor]:
    groups = _known_groups(q.shape, k.shape, num_heads, q_height, q_width, k_height, k_width,
                           None if index is None else index.shape[2], weight is not None)
    out, lse = _results(q, v, groups)
    index, weight = (None if t is None else t.contiguous() for t in (index, weight))
    attend(readable(q), readable(k), readable(v), groups, scale, out, lse, index=index,
           weight=weight)
    return out, lse


def _results(q: Tensor, v: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    return (empty((*q.shape[:3], v.shape[-1]), q),
            empty(groups.statistics(q.shape[0]), q, torch.float32))


@_forward.register_fake
def _(q, k, v, index, weight, *sizes_and_scale):
    return _results(q, v, _groups(q.shape, k.shape, *sizes_and_scale[:-1]))


@registered('visattn::group_attention_backward')
def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor | None,
              weight: Tensor | None, out: Tensor, lse: Tensor, num_heads: int, q_height: int,
              q_width: int, k_height: int, k_width: int, scale: float
              ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    groups = _known_groups(q.shape, k.shape, num_heads, q_height, q_width, k_height, k_width,
                           None if index is None else index.shape[2], weight is not None)
    into = [empty(t.shape, t) for t in (q, k, v)]
    of_index, of_weight = (None if t is None else t.contiguous() for t in (index, weight))
    found = gradients(readable(grad), readable(q), readable(k), readable(v), out, lse, groups,
                      scale, into, index=of_index, weight=of_weight)
    return *into, q.new_empty(0) if weight is None else found.to(weight.dtype)


@_backward.register_fake
def _(grad, q, k, v, index, weight, out, lse, *_):
    return (*(t.new_empty(t.shape) for t in (q, k, v)),
            q.new_empty(0) if weight is None else weight.new_empty(weight.shape))


def _context(ctx, inputs, output) -> None:
    q, k, v, index, weight, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, index, weight, *output)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx, grad: Tensor, _):
    # Read once: activation checkpointing computes them again.
    saved = ctx.saved_tensors
    found = _backward(grad, *saved, *ctx.options)
    return *found[:3], None, None if saved[4] is None else found[3], *(None,) * 6


_forward.register_autograd(_gradient, setup_context=_context)
