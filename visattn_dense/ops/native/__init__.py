"""Operators in C++ for inference on a CPU, compiled on the machine that runs them.

kernels.cpp  the code: softmax and focused linear attention between groups of tokens, depthwise
             convolution inside windows
build        compiles it, once for a processor, where there is a compiler
operators    the operators that torch sees

Nothing here is needed: where there is no compiler, or `VISATTN_NATIVE=0` is set, every module
computes with torch's own operators. `visattn_dense.layers.optimize_for_inference` is what turns
them on; in training they have no part.
"""
from .build import available, why_not
from .operators import Groups, attend, depthwise, focused, takes

__all__ = ['Groups', 'attend', 'available', 'depthwise', 'focused', 'takes', 'why_not']
