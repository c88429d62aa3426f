"""Depthwise convolution of an NHWC map: for LePE, positional convolutions and mobile blocks.

    out = act(onto + x + conv(x)),   onto and x are optional

conv is a convolution of each channel alone, with stride 1 or more, on the whole map or inside
windows. The map, or each window, is zero-padded, so that stride 1 keeps the size. The arguments are
those of `reference.depthwise`, and `mode` (see `visattn_dense.ops.choose`).

reference    the equation: a sum over the places of the kernel
torch_form   torch's convolution
triton_form  one kernel forward and two backward; triton_kernels holds the kernels
compiled     the kernel in C++
"""
from .. import choose
from ..choose import Form, Operator, compiled_form, reference_form
from . import compiled, reference, torch_form, triton_form

depthwise = Operator(
    'depthwise', compiled_form(compiled.depthwise, compiled.why_not),
    choose.triton_form(triton_form.depthwise, triton_form.why_not),
    Form('torch', torch_form.depthwise), reference_form(reference.depthwise))

__all__ = ['depthwise']
