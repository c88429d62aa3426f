"""The operators that the attentions are made of, and the forms that compute them. torch only.

group_attention   softmax attention inside windows, between routed regions, of whole maps
linear_attention  focused (FLatten), ReLU (EfficientViT) and performer (T2T-ViT) attention
depthwise         depthwise convolution of an NHWC map
choose            which form of an operator computes, and `use_implementation`, which forces one
kept              what a form prepares from weights, kept from call to call
native            the kernels in C++ for inference on a CPU, compiled on the machine that runs them
padding           zero-padding of an NHWC map to multiples, and the crop that undoes it
windows           cutting an NHWC map in windows or stripes, and merging them
precision         full precision inside autocast

An operator's folder holds `reference`, its equation, slow and obvious, and one module for each
other form. A module of a network calls the operator and knows none of them.
"""
from .choose import Decision, Mode, UsesOperators, decisions, use_implementation

__all__ = ['Decision', 'Mode', 'UsesOperators', 'decisions', 'use_implementation']
