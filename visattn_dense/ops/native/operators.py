"""The compiled kernels as operators of torch: float32 or bfloat16, on the CPU, without a gradient.

The kernels see a map of shape (B, H, W, C) as a matrix of B·H·W rows. The channels of a row lie
side by side in memory. The distance from one row to the next is constant, but may be larger than C.
So q, k and v may be parts of one tensor, and the result may be a part of another tensor's channels.

Maps are float32 or bfloat16, all maps of a call in one dtype. Everything else (weights, position,
sums) is float32. Layers (`linear`, `transposed`, `chain`, `mobile`, `grouped`) take float32 alone.
"""
from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..registered import is_traced
from .build import Part, Source, library, tiles
from .build import why_not as why_no_kernels
from .recording import Recording

ACTIVATIONS = 'none', 'relu', 'hardswish', 'gelu', 'gelu_tanh'
"""The activations of linear layers. `depthwise` applies the first three."""

_DTYPES = torch.float32, torch.bfloat16     # by their numbers in vectors.h
# A layer of fewer weights than this is faster as vectors: it gives too few products for each number
# that is split.
_LEAST_IN_TILES = 12_000
# Two of the widest vectors: a multiple of what the kernel of `grouped` takes at a time.
_LINE = 32


class Groups(NamedTuple):
    """Which rows attend to which rows. Row numbers and starts are int32, on the CPU.

    Query group g has the queries in the rows `q_rows[q_starts[g]:q_starts[g + 1]]`.
    Key group g has the keys and values in the rows `k_rows[k_starts[g]:k_starts[g + 1]]`.
    Query group g attends to key group g; with `routed`, to the key groups `routed[g]`.

    Attributes:
        q_rows: (queries,), the rows of all query groups, group by group.
        q_starts: (G + 1,), where each query group starts in `q_rows`, and the end of the last one.
        k_rows: (keys,), the rows of all key groups, group by group.
        k_starts: (G + 1,), where each key group starts in `k_rows`, and the end of the last one.
        absent: (G,) float32, how many more keys each group has that are zero and have the value
            zero (padding); or None.
        places: (keys,), the position of each row of `k_rows` in its padded window; or None.
    """
    q_rows: Tensor
    q_starts: Tensor
    k_rows: Tensor
    k_starts: Tensor
    absent: Tensor | None = None
    places: Tensor | None = None


class Windows(NamedTuple):
    """Windows of one kind on a map, whose tokens attend to each other.

    Attributes:
        groups: the rows of each window.
        size: (h, w) of a window.
        corner: how many rows of the first window lie above the map, and how many columns left of
            the map.
        kernel: (k², C), of the depthwise convolution inside the windows; k is 3 or 5.
        bias: (C,) of the convolution, or None.
    """
    groups: Groups
    size: tuple[int, int]
    corner: tuple[int, int]
    kernel: Tensor
    bias: Tensor | None


class Layer(NamedTuple):
    """A linear layer, with its weights in the order in which the kernels take them.

    Attributes:
        packed: the weights and the bias, float32; in tiles (see tiles.h), their bits as bfloat16.
        inputs, outputs: numbers of a row, before and after the layer.
    """
    packed: Tensor
    inputs: int
    outputs: int

    @property
    def in_tiles(self) -> bool:
        """Whether the products are computed in the tile registers of the processor."""
        return _in_tiles(self.packed)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, *, in_tiles: bool = True) -> Layer:
        """The layer of a weight (outputs, inputs) and a bias (outputs,). Needs the kernels.

        `in_tiles`: in tiles where the processor has tile registers and the layer suits them.
        """
        outputs, inputs = weight.shape
        weight, bias = (None if t is None else t.detach().float().contiguous()
                        for t in (weight, bias))
        in_tiles = in_tiles and suits_tiles(inputs * outputs)
        packed = torch.empty(library().visattn_reordered(inputs, outputs, in_tiles))
        library().visattn_reorder(_pointer(weight), _pointer(bias), inputs, outputs, in_tiles,
                                  _pointer(packed))
        return cls(packed.view(torch.bfloat16) if in_tiles else packed, inputs, outputs)


class Patches(NamedTuple):
    """The geometry of a convolution, whose weights see each patch (y, x, channel) as a row."""
    kernel: int
    stride: int = 1
    padding: int = 0


def suits_tiles(weights: int) -> bool:
    """Whether a layer of so many weights can be in tiles on this processor."""
    return weights >= _LEAST_IN_TILES and tiles()


def why_not(x: Tensor | None = None) -> str | None:
    """Why the kernels cannot compute with x, or None. Without x: why there are no kernels, or None.

    The kernels take float32 or bfloat16 on a CPU, in rows at a constant distance (see above), and
    give no gradient.
    """
    if x is None:
        return why_no_kernels()
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return 'the tensors are traced, or of a class of their own'
    if x.device.type != 'cpu' or x.dtype not in _DTYPES:
        return f'the tensors are {x.dtype} on {x.device.type!r}, not float32 or bfloat16 on a CPU'
    if x.requires_grad and torch.is_grad_enabled():
        return 'a gradient is needed'
    if x.numel() == 0 or not _is_rows(x):
        return 'the tensors are empty, or not in rows at one distance'
    return why_no_kernels()


def attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, groups: Groups, *, heads: int,
           scale: float | None, routed: Tensor | None = None) -> None:
    """out = softmax(q kᵀ · scale) v, for each head, inside groups of rows.

    A row of `out` that belongs to no query group stays unchanged.

    Args:
        q, k: (..., h·d) each, viewed as rows.
        v, out: (..., h·e) each, viewed as rows; `out` is written.
        groups: rows of q, k, v and out. Whether the tensors have these rows is not checked.
        heads: h.
        scale: factor of the logits; None for d^-½.
        routed: (G, K) integers, the key groups of each query group; None: group g attends to key
            group g.

    Raises:
        RuntimeError: a tensor cannot be viewed as rows.
    """
    scale = (q.shape[-1] // heads)**-.5 if scale is None else scale
    _attend(q, k, v, out, *groups[:5], None if routed is None else routed.long().contiguous(),
            heads, scale)


def windows(qkv: Tensor, parts: Sequence[Windows], *, heads: int, scale: float | None) -> Tensor:
    """softmax(q kᵀ · scale) v + conv(v) inside windows, of another kind for each part of the heads.

    Args:
        qkv: (B, H, W, 3, C), each of the three viewed as rows. Heads and channels are cut in as
            many equal parts as there are kinds of windows.
        parts: the windows of each part. All kernels have the same side.
        heads: h of all parts.
        scale: factor of the logits; None for d^-½.

    Returns:
        (B, H, W, C).

    Raises:
        RuntimeError: a tensor cannot be viewed as rows, or k is neither 3 nor 5.
    """
    scale = (qkv.shape[-1] // heads)**-.5 if scale is None else scale
    return _windows(qkv, [part.groups.k_rows for part in parts],
                    [part.groups.k_starts for part in parts],
                    [part.groups.absent for part in parts], [part.kernel for part in parts],
                    [part.bias for part in parts],
                    [n for part in parts for n in (*part.size, *part.corner)], heads, scale)


def focused(q: Tensor, k: Tensor, v: Tensor, out: Tensor, groups: Groups, *, heads: int,
            position: Tensor, inverse_scale: Tensor, power: int, epsilon: float) -> None:
    """out += focused linear attention inside groups of rows; see
    `visattn_dense.ops.linear_attention`.

    Args:
        q, k, v, out: (..., C) each, viewed as rows.
        groups: rows of q, k, v and out, with `places`; only the key groups count, and the queries
            of a group are in the same rows as its keys.
        heads: h.
        position: (1, N, C), added to the keys: entry n to the keys with place n.
        inverse_scale: (C,), multiplies relu(t) + ε.
        power: p, a whole number of at least 1.
        epsilon: ε.

    Raises:
        RuntimeError: a tensor cannot be viewed as rows.
    """
    _focused(q, k, v, out, groups.k_rows, groups.k_starts, groups.places,
             position.float().contiguous(), inverse_scale.float(), heads, power, epsilon)


def relu_attention(*qkv: Tensor, epsilon: float) -> Tensor:
    """Linear attention of ReLU features; see `visattn_dense.ops.linear_attention`.

    Args:
        qkv: S sets of heads, (B, N, h, 3, d) each, viewed as rows: q, k and v of each token and
            head.
        epsilon: ε.

    Returns:
        (B, N, S·h, d).

    Raises:
        RuntimeError: a tensor cannot be viewed as rows.
    """
    return _relu_attention(qkv, epsilon)


def region_means(x: Tensor, n_win: int) -> Tensor:
    """The mean of each region of a map; see `visattn_dense.ops.routing`.

    Args:
        x: (B, H, W, C), viewed as rows; `n_win` divides H and W.
        n_win: regions along each side.

    Returns:
        (B, n_win², C).

    Raises:
        RuntimeError: `x` cannot be viewed as rows.
    """
    return _region_means(x, n_win)


def top_regions(q: Tensor, k: Tensor, *, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """The largest of the logits q kᵀ · scale, and their regions; see `visattn_dense.ops.routing`.

    Of equal logits, the first regions are taken. NaN is larger than all numbers.

    Args:
        q, k: (B, R, Q), viewed as rows.
        count: K, at most R.
        scale: factor of the logits.

    Returns:
        logits: (B, R, K), the largest first.
        index: (B, R, K) int64.

    Raises:
        RuntimeError: q or k cannot be viewed as rows.
    """
    return _top_regions(q, k, count, scale)


def depthwise(x: Tensor, out: Tensor, weight: Tensor, bias: Tensor | None, *,
              window: tuple[int, int] | None = None, corner: tuple[int, int] = (0, 0),
              accumulate: bool = False, activation: str = 'none',
              norm: tuple[Tensor, Tensor, float] | None = None) -> Tensor | None:
    """out = act(conv(x)), or act(out + conv(x)), channel by channel and window by window.

    Each window is zero-padded.

    Args:
        x, out: (B, H, W, C), viewed as rows; `out` is written.
        weight: (k², C), the kernel of each channel; k is 3 or 5.
        bias: (C,) or None.
        window: (h, w) of a window, the whole map by default.
        corner: how many rows of the first window lie above the map, and how many columns left of
            the map.
        accumulate: act(out + conv(x)), else act(conv(x)).
        activation: one of the first three of `ACTIVATIONS`.
        norm: weight and bias (C,), and eps of the LayerNorm that takes the result; or None.

    Returns:
        The norm of `out`, like `out`; None without `norm`.

    Raises:
        RuntimeError: a tensor cannot be viewed as rows, or k is neither 3 nor 5.
    """
    weight, bias, *factors = (None if t is None else t.float()
                              for t in (weight, bias, *(norm[:2] if norm else (None, None))))
    normed = _depthwise(x, out, weight, bias, *(window or x.shape[1:3]), *corner, accumulate,
                        ACTIVATIONS.index(activation), *factors, norm[2] if norm else 0.)
    return normed if norm else None


def add_norm(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float,
             activation: str = 'none') -> tuple[Tensor, Tensor]:
    """The sum of x and an update, and act(LayerNorm(sum)).

    Args:
        x: (..., C), viewed as rows.
        update: like x; None adds nothing.
        weight, bias: (C,).
        eps: added to the variance.
        activation: one of `ACTIVATIONS`.

    Returns:
        The sum (x itself without an update) and its norm, like x.

    Raises:
        RuntimeError: x or update cannot be viewed as rows.
    """
    total, normed = _add_norm(x, update, weight.float(), bias.float(), eps,
                              ACTIVATIONS.index(activation))
    return x if update is None else total, normed


def linear(x: Tensor, layer: Layer, *, activation: str = 'none', addend: Tensor | None = None,
           patches: Patches | None = None, epsilon: float | None = None) -> Tensor:
    """act(x Wᵀ + b + addend). With `epsilon`: of norm(x), LayerNorm without its weight and bias.

    Args:
        x: (..., inputs). With `patches`, (B, H, W, C), and the inputs are those of a patch.
        layer: W and b.
        activation: one of `ACTIVATIONS`.
        addend: like the result, or None.
        patches: the layer is a convolution with this geometry, zero-padded.
        epsilon: of the norm, which is that of a whole patch; None for no norm.

    Returns:
        (..., outputs). With `patches`, (B, H', W', outputs).

    Raises:
        RuntimeError: a tensor is not float32.
    """
    return _linear(x, epsilon, layer.packed, layer.outputs, addend, *(patches or (0, 1, 0)),
                   ACTIVATIONS.index(activation))


def transposed(x: Tensor, layers: Sequence[Layer], *, activation: str) -> Tensor:
    """act(conv(x)), with a transposed convolution of k×k whose stride is k: no pixels overlap.

    Args:
        x: (B, H, W, C).
        layers: from `transposed_layers`, one for each of the k lines that a line of x becomes.
        activation: one of `ACTIVATIONS`.

    Returns:
        (B, kH, kW, C').

    Raises:
        RuntimeError: `x` is not float32.
    """
    return _transposed(x, [layer.packed for layer in layers], layers[0].outputs // len(layers),
                       ACTIVATIONS.index(activation))


def transposed_layers(weight: Tensor, bias: Tensor | None, *, in_tiles: bool = True) -> list[Layer]:
    """The layers of a weight (C, C', k, k) and a bias (C',). Needs the kernels."""
    side = weight.shape[-1]
    bias = None if bias is None else bias.repeat(side)
    return [Layer.of(line.permute(2, 1, 0).flatten(0, 1), bias, in_tiles=in_tiles)
            for line in weight.unbind(2)]


def chain(x: Tensor, first: Layer, second: Layer, *, activation: str, addend: Tensor | None = None,
          update: Tensor | None = None, epsilon: float | None = None,
          patches: Patches | None = None,
          following: tuple[Tensor, Tensor, float] | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """addend + second(act(first(x))); what lies between the two layers never leaves the cache.

    With `epsilon`: s + second(act(first(norm(s)))), where s = x + update, and `norm` is LayerNorm
    without its weight and bias. The first layer takes in the weight and the bias.

    Args:
        x: (..., C). With `patches`, (B, H, W, C), and the first layer is a convolution.
        first, second: the layers.
        activation: one of `ACTIVATIONS`.
        addend: like the result, or None. Not beside `epsilon`.
        update: like x, or None. Only beside `epsilon`.
        epsilon: of the norm; None for no norm.
        patches: the geometry of the convolution. Not beside `epsilon`.
        following: weight and bias (outputs,) float32, and eps of the LayerNorm that takes the
            result; or None.

    Returns:
        (..., outputs). With `patches`, (B, H', W', outputs). With `following`, this and its norm.

    Raises:
        RuntimeError: a tensor is not float32.
    """
    out, normed = _chain(
        x, update, epsilon, first.packed, first.outputs, second.packed, second.outputs, addend,
        *(patches or (0, 1, 0)), ACTIVATIONS.index(activation), *(following or (None, None, 0.)))
    return out if following is None else (out, normed)


def mobile(x: Tensor, expand: Layer, kernel: Tensor, project: Layer, *, stride: int,
           activation: str, addend: Tensor | None = None) -> Tensor:
    """addend + project(act(conv(act(expand(x))))); what lies between never leaves the cache.

    Args:
        x: (B, H, W, C).
        expand: from C to M channels.
        kernel: (10, M): the 9 weights of a 3×3 depthwise convolution, zero-padded by 1, and its
            bias.
        project: from M channels.
        stride: of the depthwise convolution, 1 or 2.
        activation: one of `ACTIVATIONS`.
        addend: like the result, or None.

    Returns:
        (B, H', W', outputs).

    Raises:
        RuntimeError: a tensor is not float32.
    """
    return _mobile(x, expand.packed, expand.outputs, kernel, project.packed, project.outputs,
                   stride, addend, ACTIVATIONS.index(activation))


def in_groups(weight: Tensor) -> Tensor:
    """The weight (G, O, I) of G linear layers beside each other, as `grouped` takes the weight."""
    return F.pad(weight.detach().float().mT, (0, -weight.shape[1] % _LINE)).contiguous()


def grouped(x: Tensor, weight: Tensor, *, outputs: int) -> Tensor:
    """A linear layer of each group of channels.

    Args:
        x: (..., G · I).
        weight: from `in_groups`.
        outputs: O, of each group.

    Returns:
        (..., G · O).

    Raises:
        RuntimeError: `x` is not float32.
    """
    return _grouped(x, weight, outputs)


def _operator(name: str, *, mutates_args: Iterable[str],
              schema: str | None = None) -> Callable[[Callable], Callable]:
    """The function as an operator of torch, `torch.ops.visattn...`, for the CPU.

    A call goes past torch's dispatcher where nothing watches: this takes ten microseconds less.
    """
    def wrap(function: Callable) -> Callable:
        registered = torch.library.custom_op(name, mutates_args=mutates_args, device_types='cpu',
                                             schema=schema)(function)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            if not is_watched():
                return function(*args)
            recording = _recording()
            if recording is None:
                return registered(*args)
            recording.keep(args)
            return function(*args)

        call.register_fake = registered.register_fake
        return call
    return wrap


def is_watched() -> bool:
    """Whether autograd, a tracer, a profiler or a mode of torch has to know of each operator."""
    return torch.is_grad_enabled() or is_traced()


def _run(kernel: str, *arguments: Any) -> None:
    """Call a kernel of the library; a recording notes the call."""
    function = getattr(library(), f'visattn_{kernel}')
    function(*arguments)
    recording = _recording()
    if recording is not None:
        recording.note(function, arguments)


def _recording() -> Recording | None:
    """The recording that is being made, or None."""
    if torch.compiler.is_compiling():
        return None
    mode = _get_current_dispatch_mode()
    return mode if isinstance(mode, Recording) else None


@_operator('visattn::attend_groups', mutates_args={'out'})
def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, q_rows: Tensor, q_starts: Tensor,
            k_rows: Tensor, k_starts: Tensor, absent: Tensor | None, routed: Tensor | None,
            heads: int, scale: float) -> None:
    tensors = _rows(q, k, v, out)
    groups = q_starts.shape[0] - 1
    _run(
        'attention', *map(_pointer, tensors), *(t.stride(0) for t in tensors),
        *map(_pointer, (q_rows, q_starts, k_rows, k_starts, routed, absent)), groups,
        1 if routed is None else routed.shape[-1], heads, q.shape[-1] // heads,
        v.shape[-1] // heads, scale, _DTYPES.index(q.dtype), tiles(), torch.get_num_threads())


@_operator('visattn::attend_windows', mutates_args=(),
           schema='(Tensor qkv, Tensor[] rows, Tensor[] starts, Tensor?[] absent, '
                  'Tensor[] kernels, Tensor?[] biases, SymInt[] geometry, SymInt heads, '
                  'float scale) -> Tensor')
def _windows(qkv: Tensor, rows: Sequence[Tensor], starts: Sequence[Tensor],
             absent: Sequence[Tensor | None], kernels: Sequence[Tensor],
             biases: Sequence[Tensor | None], geometry: Sequence[int], heads: int,
             scale: float) -> Tensor:
    queries, = _rows(qkv[:, :, :, 0])
    out = _fake_windows(qkv, rows, starts, absent, kernels, biases, geometry, heads, scale)
    # The lists keep what float() makes until the kernel has read it.
    kernels = [kernel.float().contiguous() for kernel in kernels]
    biases = [None if bias is None else bias.float().contiguous() for bias in biases]
    count = len(rows)
    parts = (Part * count)(*(
        Part(_pointer(rows[i]), _pointer(starts[i]), _pointer(absent[i]), _pointer(kernels[i]),
             _pointer(biases[i]), starts[i].shape[0] - 1, *geometry[4 * i:4 * i + 4])
        for i in range(count)))
    _run(
        'windows', _pointer(queries), queries.stride(0), qkv.stride(3), _pointer(out),
        *qkv.shape[:3], parts, count, heads // count, qkv.shape[-1] // heads, scale,
        _side(kernels[0]), _DTYPES.index(qkv.dtype), tiles(), torch.get_num_threads())
    return out


@_windows.register_fake
def _fake_windows(qkv, rows, starts, absent, kernels, biases, geometry, heads, scale):
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[-1])


@_operator('visattn::focused_attention', mutates_args={'out'})
def _focused(q: Tensor, k: Tensor, v: Tensor, out: Tensor, rows: Tensor, starts: Tensor,
             places: Tensor, position: Tensor, inverse_scale: Tensor, heads: int, power: int,
             epsilon: float) -> None:
    tensors = _rows(q, k, v, out)
    _run(
        'focused', *map(_pointer, tensors), *(t.stride(0) for t in tensors),
        *map(_pointer, (rows, starts, places, position, inverse_scale)), epsilon, power,
        starts.shape[0] - 1, heads, q.shape[-1] // heads, _DTYPES.index(q.dtype),
        torch.get_num_threads())


@_operator('visattn::region_means', mutates_args=())
def _region_means(x: Tensor, n_win: int) -> Tensor:
    rows, = _rows(x)
    out = _fake_region_means(x, n_win)
    _run(
        'region_means', _pointer(rows), rows.stride(0), *x.shape, n_win, _pointer(out),
        _DTYPES.index(x.dtype), torch.get_num_threads())
    return out


@_region_means.register_fake
def _fake_region_means(x, n_win):
    return x.new_empty(x.shape[0], n_win**2, x.shape[-1])


@_operator('visattn::top_regions', mutates_args=())
def _top_regions(q: Tensor, k: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    tensors = _rows(q, k)
    logits, index = _fake_top_regions(q, k, count, scale)
    _run(
        'route', *map(_pointer, tensors), *(t.stride(0) for t in tensors), *q.shape, count, scale,
        _pointer(logits), _pointer(index), _DTYPES.index(q.dtype), torch.get_num_threads())
    return logits, index


@_top_regions.register_fake
def _fake_top_regions(q, k, count, scale):
    shape = *q.shape[:2], count
    return q.new_empty(shape), q.new_empty(shape, dtype=torch.int64)


@_operator('visattn::relu_attention', mutates_args=())
def _relu_attention(qkv: Sequence[Tensor], epsilon: float) -> Tensor:
    rows = _rows(*qkv)
    batch, tokens, heads, _, dim = qkv[0].shape
    out = _fake_relu_attention(qkv, epsilon)
    for i, own in enumerate(rows):
        _run(
            'relu_attention', _pointer(own), _pointer(out[:, :, i * heads:]), own.stride(0),
            out.stride(1), batch, tokens, heads, dim, epsilon, _DTYPES.index(own.dtype),
            torch.get_num_threads())
    return out


@_operator('visattn::depthwise', mutates_args={'out'})
def _depthwise(x: Tensor, out: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int,
               above: int, left: int, accumulate: bool, activation: int,
               norm_weight: Tensor | None, norm_bias: Tensor | None, epsilon: float) -> Tensor:
    inputs, outputs = _rows(x, out)
    normed = _norm_of(out, norm_weight)
    _run(
        'depthwise', _pointer(inputs), _pointer(outputs), inputs.stride(0), outputs.stride(0),
        *x.shape, height, width, above, left, _side(weight), _pointer(weight), _pointer(bias),
        accumulate, activation, *map(_pointer, (None if norm_weight is None else normed,
                                                norm_weight, norm_bias)), epsilon,
        _DTYPES.index(x.dtype), torch.get_num_threads())
    return normed


@_operator('visattn::add_norm', mutates_args=())
def _add_norm(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float,
              activation: int) -> tuple[Tensor, Tensor]:
    rows, *more = _rows(x) if update is None else _rows(x, update)
    total, normed = _fake_add_norm(x, update, weight, bias, eps, activation)
    _run(
        'add_norm', _pointer(rows), rows.stride(0),
        *((_pointer(more[0]), more[0].stride(0)) if more else (None, 0)), *rows.shape,
        _pointer(weight), _pointer(bias), eps, activation, _pointer(total), _pointer(normed),
        _DTYPES.index(x.dtype), torch.get_num_threads())
    return total, normed


@_add_norm.register_fake
def _fake_add_norm(x, update, weight, bias, eps, activation):
    return x.new_empty(0 if update is None else x.shape), x.new_empty(x.shape)


@_operator('visattn::linear', mutates_args=())
def _linear(x: Tensor, epsilon: float | None, packed: Tensor, outputs: int, addend: Tensor | None,
            kernel: int, stride: int, padding: int, activation: int) -> Tensor:
    x, addend, _ = _float_rows(x, addend, None)
    out = _fake_linear(x, epsilon, packed, outputs, addend, kernel, stride, padding, activation)
    if out.numel():
        rows = out.numel() // outputs
        _run(
            'linear', ctypes.byref(_source(x, out, kernel, stride, padding, epsilon)),
            _pointer(packed), outputs, _in_tiles(packed), *_addend(addend), _pointer(out), outputs,
            rows, 0, rows, activation, torch.get_num_threads())
    return out


@_operator('visattn::transposed', mutates_args=())
def _transposed(x: Tensor, packed: Sequence[Tensor], outputs: int, activation: int) -> Tensor:
    x, = _float_rows(x)
    out, side = _fake_transposed(x, packed, outputs, activation), len(packed)
    if out.numel():
        for i, weights in enumerate(packed):
            _run(
                'linear', ctypes.byref(_source(x, out, 0, 1, 0)), _pointer(weights),
                side * outputs, _in_tiles(weights), None, 0, _pointer(out[:, i:]), side * outputs,
                x.shape[2], side * out.stride(1), x.numel() // x.shape[-1], activation,
                torch.get_num_threads())
    return out


@_transposed.register_fake
def _fake_transposed(x, packed, outputs, activation):
    side = len(packed)
    return x.new_empty(x.shape[0], side * x.shape[1], side * x.shape[2], outputs)


@_operator('visattn::chain', mutates_args=())
def _chain(x: Tensor, update: Tensor | None, epsilon: float | None, first: Tensor, hidden: int,
           second: Tensor, outputs: int, addend: Tensor | None, kernel: int, stride: int,
           padding: int, activation: int, weight: Tensor | None, bias: Tensor | None,
           eps: float) -> tuple[Tensor, Tensor]:
    x, addend, update = _float_rows(x, addend, update)
    out, normed = _fake_chain(x, update, epsilon, first, hidden, second, outputs, addend, kernel,
                              stride, padding, activation, weight, bias, eps)
    if out.numel():
        source = _source(x, out, kernel, stride, padding, epsilon)
        if epsilon is not None:
            source.update, source.update_stride = _addend(update)
        _run(
            'chain', ctypes.byref(source), _pointer(first), hidden, _pointer(second), outputs,
            _in_tiles(first), _in_tiles(second), *_addend(addend), _pointer(out), outputs,
            out.numel() // outputs, activation, None if weight is None else _pointer(normed),
            _pointer(weight), _pointer(bias), eps, torch.get_num_threads())
    return out, normed


@_operator('visattn::mobile', mutates_args=())
def _mobile(x: Tensor, expand: Tensor, hidden: int, kernel: Tensor, project: Tensor, outputs: int,
            stride: int, addend: Tensor | None, activation: int) -> Tensor:
    x, addend, kernel = _float_rows(x, addend, kernel)
    out = _fake_linear(x, None, project, outputs, addend, 3, stride, 1, activation)
    if out.numel():
        _run(
            'mobile', ctypes.byref(_source(x, out, 3, stride, 1)), _pointer(expand), hidden,
            _pointer(kernel), _pointer(project), outputs, _in_tiles(expand), _in_tiles(project),
            *_addend(addend), _pointer(out), outputs, x.shape[0], activation,
            torch.get_num_threads())
    return out


@_operator('visattn::grouped', mutates_args=())
def _grouped(x: Tensor, weight: Tensor, outputs: int) -> Tensor:
    x, = _float_rows(x)
    out = _fake_grouped(x, weight, outputs)
    groups, inputs, line = weight.shape
    if out.numel():
        _run(
            'grouped', _pointer(x), _distance(x), x.numel() // (groups * inputs), _pointer(weight),
            _pointer(out), groups, inputs, outputs, line, torch.get_num_threads())
    return out


@_grouped.register_fake
def _fake_grouped(x, weight, outputs):
    return x.new_empty(*x.shape[:-1], weight.shape[0] * outputs)


@_mobile.register_fake
def _(x, expand, hidden, kernel, project, outputs, stride, addend, activation):
    return _fake_linear(x, None, project, outputs, addend, 3, stride, 1, activation)


@_linear.register_fake
def _fake_linear(x, epsilon, packed, outputs, addend, kernel, stride, padding, activation):
    if not kernel:
        return x.new_empty(*x.shape[:-1], outputs)
    sides = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[1:3])
    return x.new_empty(x.shape[0], *sides, outputs)


@_chain.register_fake
def _fake_chain(x, update, epsilon, first, hidden, second, outputs, addend, kernel, stride, padding,
                activation, weight, bias, eps):
    out = _fake_linear(x, epsilon, second, outputs, addend, kernel, stride, padding, activation)
    return out, _norm_of(out, weight)


def _norm_of(x: Tensor, weight: Tensor | None) -> Tensor:
    """Memory for the norm of x, contiguous; for nothing without a weight."""
    return x.new_empty(0) if weight is None else x.new_empty(x.shape)


def _source(x: Tensor, out: Tensor, kernel: int, stride: int, padding: int,
            epsilon: float | None = None) -> Source:
    source = Source(x=x.data_ptr(), stride=_distance(x), channels=x.shape[-1], kernel=kernel)
    if epsilon is not None:
        source.norm, source.epsilon = 1, epsilon
    if kernel:
        source.step, source.padding = stride, padding
        source.height, source.width = x.shape[1:3]
        source.out_height, source.out_width = out.shape[1:3]
    return source


def _in_tiles(packed: Tensor) -> bool:
    """Whether a layer is in tiles."""
    return packed.dtype == torch.bfloat16


def _float_rows(*maps: Tensor | None) -> list[Tensor | None]:
    """The maps in rows at one distance: copies where necessary."""
    for x in maps:
        if x is not None and x.dtype != torch.float32:
            raise RuntimeError(f'a linear layer of the kernels takes float32, got {x.dtype}')
    return [x if x is None or _is_rows(x) else x.contiguous() for x in maps]


def _addend(x: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if x is None else (x.data_ptr(), _distance(x))


def _distance(x: Tensor) -> int:
    """From one row to the next."""
    if x.is_contiguous():
        return x.shape[-1]
    return next((stride for size, stride in zip(x.shape[-2::-1], x.stride()[-2::-1], strict=True)
                 if size != 1), x.shape[-1])


@_attend.register_fake
def _(q, k, v, out, q_rows, q_starts, k_rows, k_starts, absent, routed, heads, scale):
    return None


@_focused.register_fake
def _(q, k, v, out, rows, starts, places, position, inverse_scale, heads, power, epsilon):
    return None


@_relu_attention.register_fake
def _fake_relu_attention(qkv, epsilon):
    batch, tokens, heads, _, dim = qkv[0].shape
    return qkv[0].new_empty(batch, tokens, len(qkv) * heads, dim)


@_depthwise.register_fake
def _(x, out, weight, bias, height, width, above, left, accumulate, activation, norm_weight,
      norm_bias, epsilon):
    return _norm_of(out, norm_weight)


def _is_rows(x: Tensor) -> bool:
    """Whether (..., C) can be viewed as (rows, C) with the channels side by side."""
    return x.is_contiguous() or _are_rows(x.shape, x.stride())


@functools.lru_cache(maxsize=1024)
def _are_rows(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    if shape[-1] > 1 and strides[-1] != 1:
        return False
    outer = [(size, stride) for size, stride in zip(shape[:-1], strides[:-1], strict=True)
             if size != 1]
    return all(a[1] == b[0] * b[1] for a, b in zip(outer, outer[1:], strict=False))


def _rows(*maps: Tensor) -> list[Tensor]:
    """View each (..., C) as (rows, C), without a copy."""
    for x in maps:
        if x.dtype not in _DTYPES or x.dtype != maps[0].dtype or not _is_rows(x):
            raise RuntimeError('float32 or bfloat16 (one of the two in all maps) in rows at one '
                               'distance with the channels side by side is needed, got '
                               f'{x.dtype} of {tuple(x.shape)} with strides {x.stride()}')
    return [x.view(-1, x.shape[-1]) for x in maps]


def _side(kernel: Tensor) -> int:
    """The side of the kernel (k², C) of a depthwise convolution."""
    side = round(kernel.shape[0]**.5)
    if side not in (3, 5):
        raise RuntimeError(f'a kernel of 3x3 or 5x5 is needed, got {side}x{side}')
    return side


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
