"""Linear layers in training: the sums over all tokens that the gradients of their biases are.

    linear:   y = x Wᵀ + b
    mlp:      y = gelu(x W₁ᵀ + b₁) W₂ᵀ + b₂

The products are torch's. Without gradients, torch's form is as fast. The arguments are those of the
functions in `reference`, and `mode` (see `visattn_dense.ops.choose`).

reference    the equations
torch_form   torch's linear layers and GELU
triton_form  torch's products; the gradient of a bias, and GELU's backward with it, by a kernel
"""
from .. import choose
from ..choose import Form, Operator, reference_form
from . import reference, torch_form, triton_form

linear = Operator(
    'linear', choose.triton_form(triton_form.linear, triton_form.why_not),
    Form('torch', torch_form.linear), reference_form(reference.linear))

mlp = Operator(
    'mlp', choose.triton_form(triton_form.mlp, triton_form.why_not),
    Form('torch', torch_form.mlp), reference_form(reference.mlp))

__all__ = ['linear', 'mlp']
