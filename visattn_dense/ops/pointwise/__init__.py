"""1×1 convolution in groups of channels: a batch of small matrix products.

The arguments are those of `reference.grouped_pointwise`, and `mode` (see
`visattn_dense.ops.choose`).

reference    the equation
torch_form   torch's convolution, which launches a kernel for each group on a GPU
triton_form  one kernel forward and two backward; triton_kernels holds the kernels

For inference on a CPU, `visattn_dense.layers.optimize` puts a packed layer in the place of the
operator.
"""
from .. import choose
from ..choose import Form, Operator, reference_form
from . import reference, torch_form, triton_form

grouped_pointwise = Operator(
    'grouped_pointwise',
    choose.triton_form(triton_form.grouped_pointwise, triton_form.why_not),
    Form('torch', torch_form.grouped_pointwise), reference_form(reference.grouped_pointwise))

__all__ = ['grouped_pointwise']
