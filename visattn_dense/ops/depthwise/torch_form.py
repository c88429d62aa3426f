"""Depthwise convolution by torch's own convolution."""
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..padding import crop, pad_to_multiple
from ..precision import is_half
from ..windows import merge_windows, partition_windows

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    'none': lambda x: x, 'relu': F.relu, 'hardswish': F.hardswish}


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, plus_input: bool = False,
              onto: Tensor | None = None, activation: str = 'none', stride: int = 1,
              window: tuple[int, int] | None = None) -> Tensor:
    # x + conv(x) is one convolution with 1 added to the centre of the kernel. In half precision
    # the sum of 1 and a small weight would lose the weight's digits, so there x is added itself.
    added = plus_input and is_half(weight, x)
    if plus_input and not added:
        weight = weight + F.pad(weight.new_ones(1, 1, 1, 1), (weight.shape[-1] // 2,) * 4)
    if window is None:
        out = _convolve(x, weight, bias, stride)
    else:
        padded, pads = pad_to_multiple(x, window, centred=True)
        out = _convolve(partition_windows(padded, window), weight, bias, 1)
        out = crop(merge_windows(out, padded.shape[1:3]), pads)
    for term in (x if added else None, onto):
        out = out if term is None else term + out
    return ACTIVATIONS[activation](out)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    # A pair: torch.jit.trace of torch 2.6 loses a single padding that it has traced.
    pad = weight.shape[-1] // 2
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, (pad, pad),
                    groups=weight.shape[0]).permute(0, 2, 3, 1)
