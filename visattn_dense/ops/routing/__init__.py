"""Routing between the regions of a map: what describes a region, and which regions are alike.

region_means  the mean of each region
top_regions   the regions whose keys fit the query of a region best

The arguments are those of the functions in `reference`, and `mode` (see
`visattn_dense.ops.choose`).

reference   the equations
torch_form  torch's means, product and topk
triton_form one kernel for product and choice; triton_kernels holds all kernels
compiled    the kernels in C++

`transposed` makes, by Triton, the lists that the backward pass of the attention needs.
"""
from .. import choose
from ..choose import Form, Operator, compiled_form, reference_form
from . import compiled, reference, torch_form, triton_form

region_means = Operator(
    'region_means', compiled_form(compiled.region_means, compiled.why_not),
    Form('torch', torch_form.region_means), reference_form(reference.region_means))

top_regions = Operator(
    'top_regions', compiled_form(compiled.top_regions, compiled.why_not_top),
    choose.triton_form(triton_form.top_regions, triton_form.why_not),
    Form('torch', torch_form.top_regions), reference_form(reference.top_regions))

__all__ = ['region_means', 'top_regions']
