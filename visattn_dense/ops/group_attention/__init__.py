"""Softmax attention of groups of queries over groups of keys that lie in a map.

    out = softmax(q kᵀ · scale) v   inside each group, for each head

full_attention    every token attends to every token of its image
window_attention  the tokens of a window or stripe attend to each other; LePE of v is added
region_attention  the tokens of a region of a map attend to the tokens of its routed regions
routed_attention  the same for regions that are already cut

The arguments are those of the functions in `reference`, and `mode` (see
`visattn_dense.ops.choose`).

reference       the equations
torch_form      torch's fused attention on windows that are cut, and on whole maps
fused           torch's fused attention, by a backend that builds no plan for each shape
routed          routed regions in chunks of bounded memory
triton_form     windows, routed regions and whole maps by Triton; triton_launch holds the launches,
                triton_kernels the kernels
compiled        the kernel in C++; rows holds the lists of tokens that it reads
"""
from .. import choose
from ..choose import Form, Operator, compiled_form, reference_form
from . import compiled, reference, torch_form, triton_form
from .routed import routed_attention

full_attention = Operator(
    'full_attention', compiled_form(compiled.full_attention, compiled.why_not_full),
    choose.triton_form(triton_form.full_attention, triton_form.why_not_full),
    Form('torch', torch_form.full_attention), reference_form(reference.full_attention))

window_attention = Operator(
    'window_attention', compiled_form(compiled.window_attention, compiled.why_not_windows),
    choose.triton_form(triton_form.window_attention, triton_form.why_not_windows),
    Form('torch', torch_form.window_attention), reference_form(reference.window_attention))

region_attention = Operator(
    'region_attention', compiled_form(compiled.region_attention, compiled.why_not_regions),
    choose.triton_form(triton_form.region_attention, triton_form.why_not_regions),
    Form('torch', torch_form.region_attention), reference_form(reference.region_attention))

__all__ = ['full_attention', 'region_attention', 'routed_attention', 'window_attention']
