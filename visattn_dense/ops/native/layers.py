"""The compiled kernels of linear layers, of convolutions that become such, and of their chains.

All tensors are float32.
"""
from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import build
from .build import Source
from .calls import ACTIVATIONS, is_rows, norm_of, operator, pointer, run

# A layer of fewer weights than this is faster as vectors: it gives too few products for each number
# that is split.
_LEAST_IN_TILES = 12_000
# Two of the widest vectors: a multiple of what the kernel of `grouped` takes at a time.
_LINE = 32


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
        packed = torch.empty(build.library().visattn_reordered(inputs, outputs, in_tiles),
                             dtype=torch.float32, device='cpu')
        build.library().visattn_reorder(pointer(weight), pointer(bias), inputs, outputs, in_tiles,
                                  pointer(packed))
        return cls(packed.view(torch.bfloat16) if in_tiles else packed, inputs, outputs)


class Patches(NamedTuple):
    """The geometry of a convolution, whose weights see each patch (y, x, channel) as a row."""
    kernel: int
    stride: int = 1
    padding: int = 0


def suits_tiles(weights: int) -> bool:
    """Whether a layer of so many weights can be in tiles on this processor."""
    return weights >= _LEAST_IN_TILES and build.tiles()


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


@operator('visattn::linear', mutates_args=())
def _linear(x: Tensor, epsilon: float | None, packed: Tensor, outputs: int, addend: Tensor | None,
            kernel: int, stride: int, padding: int, activation: int) -> Tensor:
    x, addend, _ = _float_rows(x, addend, None)
    out = _fake_linear(x, epsilon, packed, outputs, addend, kernel, stride, padding, activation)
    if out.numel():
        rows = out.numel() // outputs
        run(
            'linear', ctypes.byref(_source(x, out, kernel, stride, padding, epsilon)),
            pointer(packed), outputs, _in_tiles(packed), *_addend(addend), pointer(out), outputs,
            rows, 0, rows, activation, torch.get_num_threads())
    return out


@_linear.register_fake
def _fake_linear(x, epsilon, packed, outputs, addend, kernel, stride, padding, activation):
    if not kernel:
        return x.new_empty(*x.shape[:-1], outputs)
    sides = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[1:3])
    return x.new_empty(x.shape[0], *sides, outputs)


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


@operator('visattn::transposed', mutates_args=())
def _transposed(x: Tensor, packed: Sequence[Tensor], outputs: int, activation: int) -> Tensor:
    x, = _float_rows(x)
    out, side = _fake_transposed(x, packed, outputs, activation), len(packed)
    if out.numel():
        for i, weights in enumerate(packed):
            run(
                'linear', ctypes.byref(_source(x, out, 0, 1, 0)), pointer(weights),
                side * outputs, _in_tiles(weights), None, 0, pointer(out[:, i:]), side * outputs,
                x.shape[2], side * out.stride(1), x.numel() // x.shape[-1], activation,
                torch.get_num_threads())
    return out


@_transposed.register_fake
def _fake_transposed(x, packed, outputs, activation):
    side = len(packed)
    return x.new_empty(x.shape[0], side * x.shape[1], side * x.shape[2], outputs)


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


@operator('visattn::chain', mutates_args=())
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
        run(
            'chain', ctypes.byref(source), pointer(first), hidden, pointer(second), outputs,
            _in_tiles(first), _in_tiles(second), *_addend(addend), pointer(out), outputs,
            out.numel() // outputs, activation, None if weight is None else pointer(normed),
            pointer(weight), pointer(bias), eps, torch.get_num_threads())
    return out, normed


@_chain.register_fake
def _fake_chain(x, update, epsilon, first, hidden, second, outputs, addend, kernel, stride, padding,
                activation, weight, bias, eps):
    out = _fake_linear(x, epsilon, second, outputs, addend, kernel, stride, padding, activation)
    return out, norm_of(out, weight)


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


@operator('visattn::mobile', mutates_args=())
def _mobile(x: Tensor, expand: Tensor, hidden: int, kernel: Tensor, project: Tensor, outputs: int,
            stride: int, addend: Tensor | None, activation: int) -> Tensor:
    x, addend, kernel = _float_rows(x, addend, kernel)
    out = _fake_linear(x, None, project, outputs, addend, 3, stride, 1, activation)
    if out.numel():
        run(
            'mobile', ctypes.byref(_source(x, out, 3, stride, 1)), pointer(expand), hidden,
            pointer(kernel), pointer(project), outputs, _in_tiles(expand), _in_tiles(project),
            *_addend(addend), pointer(out), outputs, x.shape[0], activation,
            torch.get_num_threads())
    return out


@_mobile.register_fake
def _(x, expand, hidden, kernel, project, outputs, stride, addend, activation):
    return _fake_linear(x, None, project, outputs, addend, 3, stride, 1, activation)


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


@operator('visattn::grouped', mutates_args=())
def _grouped(x: Tensor, weight: Tensor, outputs: int) -> Tensor:
    x, = _float_rows(x)
    out = _fake_grouped(x, weight, outputs)
    groups, inputs, line = weight.shape
    if out.numel():
        run(
            'grouped', pointer(x), _distance(x), x.numel() // (groups * inputs), pointer(weight),
            pointer(out), groups, inputs, outputs, line, torch.get_num_threads())
    return out


@_grouped.register_fake
def _fake_grouped(x, weight, outputs):
    return x.new_empty(*x.shape[:-1], weight.shape[0] * outputs)


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
    return [x if x is None or is_rows(x) else x.contiguous() for x in maps]


def _addend(x: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if x is None else (x.data_ptr(), _distance(x))


def _distance(x: Tensor) -> int:
    """From one row to the next."""
    if x.is_contiguous():
        return x.shape[-1]
    return next((stride for size, stride in zip(x.shape[-2::-1], x.stride()[-2::-1], strict=True)
                 if size != 1), x.shape[-1])
