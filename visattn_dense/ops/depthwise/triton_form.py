"""Depthwise convolution of an NHWC map by Triton, forward and backward.

One kernel computes the sum of the convolution, the bias, the input and `onto`; inside windows, the
map is neither padded nor cut. The gradient of the kernel is a sum in a fixed order, without atomic
additions. All arithmetic is float32, and the weights are read in their own dtype.
"""
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import launching
from ..choose import of_other_channels, of_other_shapes
from ..launching import Launch, empty, in_units, once_for_a_size, power_of_two, readable
from ..precision import product_dtype
from ..registered import registered
from ..sums import sum_rows
from ..windows import window_corner
from .torch_form import ACTIVATIONS

SIDES = (3, 5, 7)
_STRIP = 4
"""Neighbours of a row that a thread computes, and rows of a band; as in `triton_kernels`."""


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, onto: Tensor | None = None,
            stride: int = 1, **_: object) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    reason = launching.why_not(x, weight, bias, onto)
    if reason is None and weight.shape[-1] not in SIDES:
        reason = f'the kernel has none of the sides {", ".join(map(str, SIDES))}'
    if reason is None and _STRIP % stride:
        reason = f'the stride {stride} does not divide {_STRIP}'
    if reason is None and x.stride(-1) != 1:
        reason = 'the channels are not side by side in memory (channels_last)'
    if reason is None and onto is not None and stride == 1:
        reason = of_other_shapes(x, onto)
    return reason or of_other_channels(x.shape[-1], weight, bias)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, plus_input: bool = False,
              onto: Tensor | None = None, activation: str = 'none', stride: int = 1,
              window: tuple[int, int] | None = None) -> Tensor:
    dtype = product_dtype(x)
    for term in (x if plus_input else None, onto):
        dtype = dtype if term is None else torch.promote_types(dtype, term.dtype)
    cut = [] if window is None else [*window, *window_corner(x.shape[1:3], window)]
    # The gradient of an activation needs the sum, so there the activation is an operator of torch.
    trains = activation != 'none' and torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias, onto))
    out = _forward(x, weight, bias, onto, plus_input, stride, cut,
                   'none' if trains else activation, dtype)
    return ACTIVATIONS[activation](out) if trains else out


class _Strips(NamedTuple):
    """What the launches of both kernels have in common.

    Attributes:
        places: how many strips there are.
        sizes: the arguments from H to left.
        block, block_c: the strips and the channels of a program.
    """
    places: int
    sizes: tuple[int, ...]
    block: int
    block_c: int

    @classmethod
    def of(cls, x: Sequence[int], size: Sequence[int], window: Sequence[int]) -> '_Strips':
        """`x`: (B, H, W, C). `size`: H and W of the result."""
        h, w, top, left = window or (*size, 0, 0)
        segments, strips = -(-(left + size[1]) // w), -(-w // _STRIP)
        places = x[0] * -(-size[0] // _STRIP) * _STRIP * segments * strips
        block_c = min(32, max(8, power_of_two(x[3])))
        # Eight channels of a strip for each of 128 threads.
        return cls(places, (*x[1:3], *size, places, segments, strips, h, w, top, left),
                   1024 // block_c, block_c)

    @property
    def tiles(self) -> int:
        return -(-self.places // self.block)


def _cutting(window: Sequence[int], x: Tensor) -> tuple[int, ...]:
    """The windows; nothing if one window holds the whole map."""
    cuts = window and (window[0] < x.shape[1] or window[1] < x.shape[2])
    return tuple(window) if cuts else ()


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, out: Tensor,
              window: Sequence[int], *, stride: int, transposed: bool = False,
              plus_input: bool = False, activation: str = 'none') -> Tensor:
    if out.numel() > 0:
        _convolve_launch(x.shape, x.stride(), out.shape[1:3], weight.shape[-1], _cutting(window, x),
                         stride, transposed, plus_input, activation)(
            x, weight.contiguous(), bias, onto, out)
    return out


@once_for_a_size
def _convolve_launch(shape: torch.Size, strides: tuple[int, ...], size: torch.Size, side: int,
                     window: tuple[int, ...], stride: int, transposed: bool, plus_input: bool,
                     activation: str) -> Launch:
    from .triton_kernels import convolve_kernel
    found = _Strips.of(shape, size, window)
    strides, unit = in_units(strides[:3])
    # The other axes of a GPU's grid end at 65535.
    return Launch(convolve_kernel, (found.tiles, -(-shape[3] // found.block_c)), *found.sizes,
                  *strides, C=shape[3], K=side, WINDOWED=bool(window), UNIT=unit,
                  BLOCK=found.block, BLOCK_C=found.block_c, num_warps=4,
                  STRIDE=stride, TRANSPOSED=transposed, PLUS_INPUT=plus_input,
                  ACTIVATION=activation)


def weight_gradients(grads: Sequence[Tensor], inputs: Sequence[Tensor], side: int, stride: int,
                     windows: Sequence[Sequence[int]]) -> Tensor:
    """For each of some convolutions: the gradient of the kernel (C, 1, k, k), then of the bias.

    See `kernel_and_bias`.

    Args:
        grads, inputs: (B, H, W, C) by any strides, channels side by side, of equal shapes.
        side: k.
        windows: h, w of the windows and the corner of the first, or nothing.

    Returns:
        (convolutions, (k² + 1) C), float32.
    """
    x, numbers = inputs[0], (side**2 + 1) * inputs[0].shape[-1]
    if grads[0].numel() == 0:
        return x.new_zeros((len(inputs), numbers), dtype=torch.float32)
    windows = tuple([_cutting(window, x) for window in windows])
    launches = _weight_launches(x.shape, x.stride(), grads[0].shape, grads[0].stride(), side,
                                stride, windows)
    shares = empty((len(inputs), launches[0].launch.grid[0], numbers), x, torch.float32)
    for each, x, grad, own in zip(launches, inputs, grads, shares.unbind(), strict=True):
        if each.swapped:
            x, grad = x.transpose(1, 2), grad.transpose(1, 2)
        each.launch(x, grad, own)
    return sum_rows(shares, 1)


def kernel_and_bias(gradients: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of a row of `weight_gradients`, in the dtype of the kernel (C, 1, k, k)."""
    gradients = gradients.to(kernel.dtype)
    return gradients[:-len(kernel)].view(kernel.shape), gradients[-len(kernel):]


class _WeightLaunch(NamedTuple):
    """`swapped`: the kernel reads transposed maps, since the strips go down narrow windows."""
    launch: Launch
    swapped: bool


@once_for_a_size
def _weight_launches(shape: torch.Size, strides: tuple[int, ...], size: torch.Size,
                     grad_strides: tuple[int, ...], side: int, stride: int,
                     windows: tuple[tuple[int, ...], ...]) -> list[_WeightLaunch]:
    from .triton_kernels import weight_gradient_kernel
    prepared = []
    for window in windows:
        swapped = bool(window) and window[1] < _STRIP <= window[0]
        maps = shape, strides, size, grad_strides
        if swapped:
            maps = [(each[0], each[2], each[1], each[3]) for each in maps]
            h, w, top, left = window
            window = w, h, left, top
        prepared.append((swapped, maps, window, _Strips.of(maps[0], maps[2][1:3], window)))
    strips = [found for *_, found in prepared]
    blocks = -(-shape[3] // strips[0].block_c)
    # The number of programs depends on the sizes alone, so that the sums are the same everywhere.
    programs = min(max(found.tiles for found in strips), max(16, 2048 // (blocks * side)))
    launches = []
    for swapped, (_, of_x, _, of_grad), window, found in prepared:
        of_maps, unit = in_units([*of_x[:3], *of_grad[:3]])
        launches.append(_WeightLaunch(Launch(
            weight_gradient_kernel, (programs, blocks, side), *found.sizes, *of_maps, C=shape[3],
            K=side, STRIDE=stride, WINDOWED=bool(window), UNIT=unit, SWAPPED=swapped,
            BLOCK=found.block, BLOCK_C=found.block_c, num_warps=4), swapped))
    return launches


@registered(
    'visattn::depthwise_triton',
    '(Tensor x, Tensor weight, Tensor? bias, Tensor? onto, bool plus_input, int stride, '
    'SymInt[] window, str activation, ScalarType dtype) -> Tensor')
def _forward(x, weight, bias, onto, plus_input, stride, window, activation, dtype):
    out = _empty(x, weight, bias, onto, plus_input, stride, window, activation, dtype)
    bias, onto = (None if t is None else t.contiguous() for t in (bias, onto))
    return _convolve(x, weight, bias, onto, out, window, stride=stride, plus_input=plus_input,
                     activation=activation)


@_forward.register_fake
def _empty(x, weight, bias, onto, plus_input, stride, window, activation, dtype):
    batch, height, width, channels = x.shape
    return empty((batch, (height - 1) // stride + 1, (width - 1) // stride + 1, channels), x, dtype)


@registered(
    'visattn::depthwise_triton_input_gradient',
    '(Tensor grad, Tensor x, Tensor weight, bool plus_input, int stride, SymInt[] window) '
    '-> Tensor')
def _input_gradient(grad, x, weight, plus_input, stride, window):
    return _convolve(readable(grad), weight, None, None, empty(x.shape, x), window, stride=stride,
                     transposed=True, plus_input=plus_input)


@_input_gradient.register_fake
def _(grad, x, weight, plus_input, stride, window):
    return x.new_empty(x.shape)


@registered(
    'visattn::depthwise_triton_weight_gradient',
    '(Tensor grad, Tensor x, Tensor weight, int stride, SymInt[] window) -> Tensor')
def _weight_gradient(grad, x, weight, stride, window):
    return weight_gradients([readable(grad)], [x], weight.shape[-1], stride, [window])[0]


@_weight_gradient.register_fake
def _(grad, x, weight, stride, window):
    return x.new_empty(weight.numel() + len(weight), dtype=torch.float32)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, onto, ctx.plus_input, ctx.stride, ctx.window, *_ = inputs
    ctx.dtypes = [None if t is None else t.dtype for t in (bias, onto)]
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _input_gradient(
            grad, x, weight, ctx.plus_input, ctx.stride, ctx.window)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        grads = _weight_gradient(
            grad, x, weight, ctx.stride, ctx.window)
        grad_weight, grad_bias = kernel_and_bias(grads, weight)
        grad_bias = None if ctx.dtypes[0] is None else grad_bias.to(ctx.dtypes[0])
    grad_onto = None if ctx.dtypes[1] is None else grad.to(ctx.dtypes[1])
    return grad_x, grad_weight, grad_bias, grad_onto, None, None, None, None, None


_forward.register_autograd(_backward, setup_context=_setup_context)
