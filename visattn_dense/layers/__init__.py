"""Pieces that several families share, each written once. torch only.

padding    zero-padding of an NHWC map to multiples, and the crop that removes the padding
windows    cuts an NHWC map into windows or stripes, and merges windows
position   position tables, resized to other maps
precision  full precision inside autocast
lepe       locally-enhanced positional encoding: a depthwise convolution on the values
activations  the activations by name
mbconv     convolution + BatchNorm + activation, mobile blocks, folding of BatchNorm
mlp        the two-layer perceptron of a transformer block
drop       stochastic depth
block      the pre-norm transformer block, and what it hands to the next block
linear     a linear layer, in training with the bias gradient of this project
norm       LayerNorm of tokens, alone or with the residual sum, and of an NCHW map
plain      whether an operator may take the place of a call of a module
init       the initialisation that the families share
split      patches of a map as tokens
half_weights  inside autocast: casts all weights of a block in one launch
packed     layers for inference: packed weights, built-in activations, several layers in one
optimize   prepares a model for inference: puts packed layers in place of the plain ones
graphs     replays the passes of a module, one recording for each shape: a CUDA graph on a GPU
training_graphs  replays training passes: a CUDA graph forward, and one backward
"""
from visattn_dense.ops.padding import crop, is_padded, pad_to_multiple
from visattn_dense.ops.precision import without_autocast
from visattn_dense.ops.windows import merge_windows, partition_windows

from .block import Handover, TransformerBlock
from .drop import DropPath, drop_path_rates
from .init import init_vit_weights
from .lepe import DepthwiseConv
from .mbconv import (
    ConvNormAct,
    ConvNorms,
    ConvPair,
    DepthwiseConv2d,
    DepthwiseSeparableConv,
    EndsInProjection,
    FusedMBConv,
    GroupedPointwiseConv,
    MBConv,
    Residual,
    fold_batch_norm,
)
from .mlp import Mlp
from .norm import LayerNorm2d, PreNorm
from .optimize import optimize_for_inference
from .packed import PackedConv2d, PackedLinear
from .plain import is_called_plainly
from .position import resize_position_grid, sinusoid_table
from .split import ProjectsSplit, SoftSplit

__all__ = [
    'ConvNormAct', 'ConvNorms', 'ConvPair', 'DepthwiseConv', 'DepthwiseConv2d',
    'DepthwiseSeparableConv', 'DropPath', 'EndsInProjection', 'FusedMBConv', 'GroupedPointwiseConv',
    'Handover', 'LayerNorm2d', 'MBConv', 'Mlp', 'PackedConv2d', 'PackedLinear', 'PreNorm',
    'ProjectsSplit', 'Residual', 'SoftSplit', 'TransformerBlock',
    'crop', 'drop_path_rates', 'fold_batch_norm', 'init_vit_weights', 'is_called_plainly',
    'is_padded', 'merge_windows', 'optimize_for_inference', 'pad_to_multiple',
    'partition_windows', 'resize_position_grid', 'sinusoid_table', 'without_autocast',
]
