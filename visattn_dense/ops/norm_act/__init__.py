"""What follows a convolution, in few passes: BatchNorm or a bias, activation, sum.

    out = act((x − μ) · w / √(σ² + eps) + b) + onto,   or   out = act(x + b) + onto

μ and σ² are the running statistics (`Norm`), or those of the batch (`TrainingNorm`). The arguments
are those of `reference.norm_act`, and `mode` (see `visattn_dense.ops.choose`).

reference    the equation
torch_form   torch's BatchNorm, sum and activation, one after the other
triton_form  one kernel, two more for the statistics of a batch, and kernels for the gradients;
             triton_kernels holds the kernels
"""
from .. import choose
from ..choose import Form, Operator, reference_form
from . import reference, torch_form, triton_form
from .torch_form import ACTIVATIONS, Norm, TrainingNorm

norm_act = Operator(
    'norm_act', choose.triton_form(triton_form.norm_act, triton_form.why_not),
    Form('torch', torch_form.norm_act), reference_form(reference.norm_act))

__all__ = ['ACTIVATIONS', 'Norm', 'TrainingNorm', 'norm_act']
