"""The activations that Triton kernels apply to their results."""
import triton
import triton.language as tl


@triton.jit
def activate(value, ACTIVATION: tl.constexpr):
    """The activation of that name, of float32 numbers: 'none', 'relu', 'hardswish', 'gelu_tanh'."""
    if ACTIVATION == 'relu':
        value = tl.maximum(value, 0.)
    if ACTIVATION == 'hardswish':
        value *= tl.minimum(tl.maximum(value + 3, 0.), 6.) / 6
    if ACTIVATION == 'gelu_tanh':
        # x (1 + tanh u) / 2 is x · sigmoid(2u).
        u = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value /= 1 + tl.exp(-2 * u)
    return value
