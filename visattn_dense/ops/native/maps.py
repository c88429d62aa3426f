"""The compiled kernels of depthwise convolutions and of LayerNorm."""
from __future__ import annotations

import torch
from torch import Tensor

from .calls import ACTIVATIONS, DTYPES, norm_of, operator, pointer, rows_of, run, side_of


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
    weight, bias, *factors = (None if t is None else t.float().contiguous()
                              for t in (weight, bias, *(norm[:2] if norm else (None, None))))
    normed = _depthwise(x, out, weight, bias, *(window or x.shape[1:3]), *corner, accumulate,
                        ACTIVATIONS.index(activation), *factors, norm[2] if norm else 0.)
    return normed if norm else None


@operator('visattn::depthwise', mutates_args={'out'})
def _depthwise(x: Tensor, out: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int,
               above: int, left: int, accumulate: bool, activation: int,
               norm_weight: Tensor | None, norm_bias: Tensor | None, epsilon: float) -> Tensor:
    inputs, outputs = rows_of(x, out)
    normed = norm_of(out, norm_weight)
    run(
        'depthwise', pointer(inputs), pointer(outputs), inputs.stride(0), outputs.stride(0),
        *x.shape, height, width, above, left, side_of(weight), pointer(weight), pointer(bias),
        accumulate, activation, *map(pointer, (None if norm_weight is None else normed,
                                                norm_weight, norm_bias)), epsilon,
        DTYPES.index(x.dtype), torch.get_num_threads())
    return normed


@_depthwise.register_fake
def _(x, out, weight, bias, height, width, above, left, accumulate, activation, norm_weight,
      norm_bias, epsilon):
    return norm_of(out, norm_weight)


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
    total, normed = _add_norm(x, update, weight.float().contiguous(), bias.float().contiguous(),
                              eps, ACTIVATIONS.index(activation))
    return x if update is None else total, normed


@operator('visattn::add_norm', mutates_args=())
def _add_norm(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float,
              activation: int) -> tuple[Tensor, Tensor]:
    rows, *more = rows_of(x) if update is None else rows_of(x, update)
    total, normed = _fake_add_norm(x, update, weight, bias, eps, activation)
    run(
        'add_norm', pointer(rows), rows.stride(0),
        *((pointer(more[0]), more[0].stride(0)) if more else (None, 0)), *rows.shape,
        pointer(weight), pointer(bias), eps, activation, pointer(total), pointer(normed),
        DTYPES.index(x.dtype), torch.get_num_threads())
    return total, normed


@_add_norm.register_fake
def _fake_add_norm(x, update, weight, bias, eps, activation):
    return x.new_empty(0 if update is None else x.shape), x.new_empty(x.shape)
