"""The operators that the attentions are made of, and the forms that compute them. torch only.

group_attention   softmax attention inside windows, between routed regions, of whole maps
linear_attention  focused (FLatten), ReLU (EfficientViT) and performer (T2T-ViT) attention
depthwise         depthwise convolution of an NHWC map
routing           which regions of a map attend to which (BiFormer)
pointwise         1×1 convolution in groups
add_norm          the residual sum and its LayerNorm
norm_act          BatchNorm or bias, and activation, after a convolution
choose            which form of an operator computes, and `use_implementation`, which forces one
kept              keeps what a form prepares from a weight from one call to the next
launching         whether Triton can compute here, and the launch of its kernels
registered        makes a form an operator of torch, which calls reach past torch's dispatcher
triton_activations
                  what several Triton kernels apply to their results
native            the kernels in C++ for inference on a CPU, compiled on the user's machine
padding           zero-padding of an NHWC map to multiples, and the crop that removes the padding
windows           cuts an NHWC map into windows or stripes, and merges windows
precision         full precision inside autocast, and the dtype of autocast's products

An operator's folder holds `reference`, the equation of the operator, slow and obvious, and one
module for each other form. A module of a network calls the operator and does not know the forms.
"""
from .choose import Decision, Mode, UsesOperators, decisions, use_implementation

__all__ = ['Decision', 'Mode', 'UsesOperators', 'decisions', 'use_implementation']
