"""Add a branch to the residual stream, and normalise the sum: one pass over the tokens.

    total = x + scale · (update + update_bias),   normed = LayerNorm(total)

The arguments are those of `reference.add_norm`, and `mode` (see `visattn_dense.ops.choose`).

reference       the equation
torch_form      torch's sum and torch's LayerNorm
triton_form     one kernel forward and one backward; triton_kernels holds the kernels
compiled        the kernel in C++
"""
from .. import choose
from ..choose import Form, Operator, compiled_form, reference_form
from . import compiled, reference, torch_form, triton_form

add_norm = Operator(
    'add_norm', compiled_form(compiled.add_norm, compiled.why_not),
    choose.triton_form(triton_form.add_norm, triton_form.why_not),
    Form('torch', torch_form.add_norm), reference_form(reference.add_norm))

__all__ = ['add_norm']
