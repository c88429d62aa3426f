"""Operators in C++ for inference on a CPU, compiled on the machine that runs them.

kernels.cpp  the code: softmax and focused linear attention between groups of tokens, depthwise
             convolution inside windows
build        compiles it, once for a processor, where there is a compiler
operators    the operators that torch sees

Nothing here is needed: where there is no compiler, or `VISATTN_NATIVE=0` is set, every operator
is computed by torch. `visattn_dense.layers.optimize_for_inference` is what turns
them on; in training they have no part.
"""
from .build import available
from .operators import Groups, attend, depthwise, focused, why_not

__all__ = ['Groups', 'attend', 'available', 'depthwise', 'focused', 'why_not']
