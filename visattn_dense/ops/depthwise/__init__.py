"""Depthwise convolution of an NHWC map: for LePE, positional convolutions and mobile blocks.

    out = act(onto + x + conv(x)),   onto and x are optional

conv is a convolution of each channel alone, with stride 1 or more, on the whole map or inside
windows. The map, or each window, is zero-padded, so that stride 1 keeps the size. The arguments are
those of `reference.depthwise`, and `mode` (see `visattn_dense.ops.choose`).

`depthwise_norm` is (y, LayerNorm(y)) with y = x + conv(x): one pass over the map where the kernel
in C++ computes, else two operators.

reference    the equation: a sum over the places of the kernel
torch_form   torch's convolution
triton_form  one kernel forward and two backward; triton_kernels holds the kernels
compiled     the kernel in C++
"""
from functools import partial

import torch
from torch import Tensor

from .. import choose
from ..add_norm import add_norm
from ..choose import Form, Operator, compiled_form, reference_form
from . import compiled, reference, torch_form, triton_form
from .torch_form import ACTIVATIONS

depthwise = Operator(
    'depthwise', compiled_form(compiled.depthwise, compiled.why_not),
    choose.triton_form(triton_form.depthwise, triton_form.why_not),
    Form('torch', torch_form.depthwise), reference_form(reference.depthwise))


def _norm_apart(x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor,
                norm_bias: Tensor, *, eps: float, dtype: torch.dtype | None,
                mode: choose.Mode = 'auto') -> tuple[Tensor, Tensor]:
    """y = x + conv(x), and its norm, as two operators.

    Args:
        x, weight, bias: see `reference.depthwise`.
        norm_weight, norm_bias: (C,).
        eps: of the norm.
        dtype: of the norm; None for the dtype of LayerNorm.
        mode: of the two operators.

    Returns:
        Two maps like x.
    """
    total = depthwise(x, weight, bias, plus_input=True, mode=mode)
    return add_norm(total, None, norm_weight, norm_bias, eps=eps, dtype=dtype, mode=mode)


depthwise_norm = Operator(
    'depthwise_norm', compiled_form(compiled.depthwise_norm, compiled.why_not_norm),
    Form('apart', _norm_apart), reference_form(partial(_norm_apart, mode='reference')))

__all__ = ['ACTIVATIONS', 'depthwise', 'depthwise_norm']
