"""Linear attention: products of features replace the softmax. Sums over keys serve all queries.

    out_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i) · Σ_j φ(k_j) + ε),   for each head

focused_attention    φ by powers of a token's channels (FLatten), inside windows, with LePE of v
relu_attention       φ = relu (EfficientViT)
performer_attention  φ by random features of the exponential function (T2T-ViT)

The arguments are those of the functions in `reference`, and `mode` (see
`visattn_dense.ops.choose`). All sums and divisions are float32 or wider, also inside autocast.

reference   the equations, with the matrices of weights in memory
torch_form  torch's products, linear in the number of tokens
triton_form kernels for all three, forward and backward; triton_kernels holds the kernels
compiled    kernels in C++ for focused and relu attention, of NHWC maps
"""
from .. import choose
from ..choose import Form, Operator, compiled_form, reference_form
from . import compiled, reference, torch_form, triton_form

focused_attention = Operator(
    'focused_attention', compiled_form(compiled.focused_attention, compiled.why_not),
    compiled_form(compiled.convolution_alone, compiled.why_not_convolution,
                  name='compiled convolution'),
    choose.triton_form(triton_form.focused_attention, triton_form.why_not_focused),
    Form('torch', torch_form.focused_attention), reference_form(reference.focused_attention))

relu_attention = Operator(
    'relu_attention', compiled_form(compiled.relu_attention, compiled.why_not_relu),
    choose.triton_form(triton_form.relu_attention, triton_form.why_not_relu),
    Form('torch', torch_form.relu_attention),
    reference_form(reference.relu_attention))

performer_attention = Operator(
    'performer_attention',
    choose.triton_form(triton_form.performer_attention, triton_form.why_not_performer),
    Form('torch', torch_form.performer_attention),
    reference_form(reference.performer_attention))

__all__ = ['focused_attention', 'performer_attention', 'relu_attention']
