"""Operators in C++ for inference on a CPU, compiled on the machine that runs them.

attention.cpp         softmax attention between groups of tokens: in attention_vectors.h, or in
                      attention_tiles.h; attention.h is what both share
linear_attention.cpp  linear attention, focused or of ReLU features
routing.cpp           means of regions, and the regions that a region is routed to
convolution.cpp       depthwise convolution in windows, 1×1 convolution in groups
linear.cpp            linear layers of rows, or of the patches of a convolution
chain.cpp             two linear layers in a chain, or with a depthwise convolution between
add_norm.cpp          LayerNorm, with a residual sum and an activation
replay.cpp            the loop of a replay
vectors.h             what all share
shares.h              how threads share a loop
activations.h         the activations of linear layers
products.h            products of rows and packed layers
depthwise.h           the inner loop of depthwise convolutions
replay.h              the kernels for that loop
tiles.h               products in the tile registers of a processor with AMX
build                 compiles the sources once for each processor, if there is a compiler
calls                 how a kernel becomes an operator of torch
attention, routing, maps, layers
                      the operators, with what they take
recording             makes the calls of a pass again, without the Python between them

The kernels are optional: without a compiler, or with `VISATTN_NATIVE=0`, torch computes every
operator. With `VISATTN_AMX=0` the kernels use no tile registers.
`visattn_dense.layers.optimize_for_inference` turns the kernels on. Training never uses the kernels.
"""
from .attention import Groups, Windows, attend, focused, relu_attention, windows
from .build import available, tiles
from .calls import is_watched, why_not
from .layers import (
    Layer,
    Patches,
    chain,
    grouped,
    in_groups,
    linear,
    mobile,
    suits_tiles,
    transposed,
    transposed_layers,
)
from .maps import add_norm, depthwise
from .recording import record
from .routing import region_means, top_regions

__all__ = ['Groups', 'Layer', 'Patches', 'Windows', 'add_norm', 'attend', 'available', 'chain',
           'depthwise', 'focused', 'grouped', 'in_groups', 'is_watched', 'linear', 'mobile',
           'record', 'region_means', 'relu_attention', 'suits_tiles', 'tiles', 'top_regions',
           'transposed', 'transposed_layers', 'why_not', 'windows']
