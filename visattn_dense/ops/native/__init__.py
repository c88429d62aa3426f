"""Operators in C++ for inference on a CPU, compiled on the machine that runs them.

kernels.cpp  the code: softmax and focused linear attention between groups of tokens, depthwise
             convolution inside windows
build        compiles kernels.cpp once for each processor, if there is a compiler
operators    the kernels as operators of torch

The kernels are optional: without a compiler, or with `VISATTN_NATIVE=0`, torch computes every
operator. `visattn_dense.layers.optimize_for_inference` turns the kernels on. Training never uses
the kernels.
"""
from .build import available
from .operators import Groups, attend, depthwise, focused, why_not

__all__ = ['Groups', 'attend', 'available', 'depthwise', 'focused', 'why_not']
