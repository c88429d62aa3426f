"""The operators that the attentions are made of, each with the forms that compute it. torch only.

group_attention  softmax attention inside windows and between routed regions
native           the kernels in C++ for inference on a CPU, compiled on the machine that runs them
padding          zero-padding of an NHWC map to multiples, and the crop that undoes it
windows          cutting an NHWC map in windows or stripes, and merging them
precision        full precision inside autocast
"""
