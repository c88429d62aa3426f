"""Prepare a model for inference: folded norms, and on a CPU packed weights, fused activations and
the compiled kernels of its operators; on a GPU, on request, CUDA graphs (`cuda_graphs`).

A linear layer and the activation after the layer become one call of oneDNN; so do a convolution and
its activation. Each block of the matrix product gets bias and activation while the block is in the
caches. The weights of linear layers are reordered once, into oneDNN's blocks. torch's own compiler
(inductor) uses the same operators for a frozen model.
"""
import functools
import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visattn_dense.ops import UsesOperators, native
from visattn_dense.ops.depthwise import depthwise
from visattn_dense.ops.measured import fastest

from .cuda_graphs import Replayable, ReplayedForward
from .mbconv import ConvNormAct, DepthwiseConv2d, GroupedPointwiseConv, fold_batch_norm
from .mlp import Mlp

Activation = tuple[str, str]
"""An activation: oneDNN's name, and oneDNN's name of the algorithm."""

_NONE: Activation = ('none', '')
# The activations that the operator `depthwise` applies.
_DEPTHWISE: tuple[Activation, ...] = (_NONE, ('relu', ''), ('hardswish', ''))
# A layer is measured on _ROWS / channels² tokens: a pyramid halves its sides where it doubles its
# channels, and an image of 512x512 has this many at the four stages.
_ROWS = 2**26
_ERROR = ('optimize_for_inference has packed the weights of this model: packed weights can neither '
          'be saved nor loaded. Load the checkpoint before optimize_for_inference, and keep a copy '
          'of the model to save.')


class _Packed(nn.Module):
    """The common part of the packed layers: an activation, and weights outside the parameters."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.dtype = layer.weight.dtype
        self.bias = None if layer.bias is None else layer.bias.detach()

    def __deepcopy__(self, memo: dict) -> '_Packed':
        """The layer itself: a packed layer never changes, and packed tensors cannot be copied."""
        return self

    def __getstate__(self) -> dict:
        raise RuntimeError(_ERROR)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(_ERROR)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(_ERROR)


class PackedLinear(_Packed):
    """act(x Wᵀ + b), with W in oneDNN's own layout. For inference alone.

    Args:
        layer: the linear layer (or 1×1 convolution), on the CPU.
        activation: applied to the result.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, activation: Activation = _NONE) -> None:
        super().__init__(layer, activation)
        weight = layer.weight.detach().flatten(1)
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), in the dtype of the weights."""
        x = x.to(self.dtype)
        if x.numel() == 0:
            return x.new_zeros(*x.shape[:-1], self.out_features)
        name, algorithm = self.activation
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, name, [], algorithm)


class PackedPointwiseConv(PackedLinear):
    """act(conv(x)) of a 1×1 convolution, as a linear layer of the channels. For inference alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W), NHWC in memory, in the dtype of the weights."""
        return super().forward(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


class PackedConv2d(_Packed):
    """act(conv(x)) as one call. For inference alone.

    Args:
        layer: the convolution, zero-padded, on the CPU.
        activation: applied to the result.
    """

    def __init__(self, layer: nn.Conv2d, activation: Activation = _NONE) -> None:
        super().__init__(layer, activation)
        self.kernel = layer.weight.detach().contiguous(memory_format=torch.channels_last)
        self.geometry = layer.padding, layer.stride, layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), in the dtype of the weights."""
        x = x.to(self.dtype)
        name, algorithm = self.activation
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.kernel, self.bias, *self.geometry, name, [], algorithm)


class PackedDepthwiseConv(_Packed):
    """act(conv(x)) of a depthwise convolution, by the operator `depthwise`. For inference alone.

    Args:
        layer: the convolution, of stride 1, zero-padded to keep the size.
        activation: applied to the result.
    """

    def __init__(self, layer: nn.Conv2d, activation: Activation = _NONE) -> None:
        super().__init__(layer, activation)
        self.kernel = layer.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, in the dtype of the weights."""
        out = depthwise(x.to(self.dtype).permute(0, 2, 3, 1), self.kernel, self.bias,
                        activation=self.activation[0], mode='inference')
        return out.permute(0, 3, 1, 2)


def _suits_the_operator(layer: nn.Conv2d, activation: Activation) -> bool:
    """Whether the compiled kernel of depthwise convolution can compute the layer."""
    side = layer.kernel_size[0]
    return (layer.groups == layer.in_channels == layer.out_channels and side in (3, 5)
            and layer.kernel_size == (side, side) and layer.padding == (side // 2,) * 2
            and layer.stride == layer.dilation == (1, 1) and activation in _DEPTHWISE
            and layer.weight.dtype in (torch.float32, torch.bfloat16) and native.available())


def optimize_for_inference(model: nn.Module, *, cuda_graphs: int = 0) -> nn.Module:
    """Make a model fast for inference, in place.

    On every device, each BatchNorm is folded into the convolution before it (`fold_batch_norm`).
    On a CPU with oneDNN, linear layers and 1×1 convolutions get packed weights, and each activation
    becomes a part of the linear layer or convolution before it, where this is faster on this
    machine: each distinct layer is measured once, and the result is kept for later processes
    (`visattn_dense.ops.measured`; `VISATTN_MEASURE=0` packs every layer unmeasured). On a CPU with
    a C++ compiler, kernels that are compiled for the processor compute the operators in float32 and
    bfloat16 (mode 'inference' of `visattn_dense.ops.choose`). The first call on a machine compiles
    and measures, which takes seconds. The logger `visattn_dense` says which forms the layers have.
    On a GPU, `cuda_graphs` lets one launch start a whole pass of a backbone
    (`visattn_dense.layers.cuda_graphs`).

    The outputs stay the same up to rounding. Afterwards you can no longer train or save the model,
    load a checkpoint into the model, or move the model to another device. So load the checkpoint
    first, and keep a copy if you need one. Packed layers compute in the dtype of their weights,
    also inside autocast.

    Args:
        model: any module in evaluation mode: a backbone, or a whole segmentor or detector.
        cuda_graphs: for how many shapes of its input each backbone keeps a CUDA graph. A shape is
            recorded when it comes the second time. Each graph keeps the memory of its activations.

    Returns:
        The model.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError('optimize_for_inference needs running statistics: call model.eval() first')
    # Packed layers have no gradient. Gradients of the other layers alone would be wrong in silence.
    fold_batch_norm(model).requires_grad_(False)
    if any(parameter.device.type == 'cpu' for parameter in model.parameters()):
        native.available()                       # compiles now, not during the first image
    for module in list(model.modules()):
        if isinstance(module, UsesOperators) and module.mode == 'auto':
            module.mode = 'inference'
        if cuda_graphs and isinstance(module, Replayable):
            module.forward = ReplayedForward(module, cuda_graphs)
    if not _has_onednn():
        return model
    taken: Counter[str] = Counter()
    for parent in list(model.modules()):
        children = [(name, child) for name, child in parent.named_children()
                    if not isinstance(child, nn.Identity)]
        # Only in these parents is the next child known to take the output of the layer.
        in_order = isinstance(parent, (ConvNormAct, Mlp, nn.Sequential))
        for i, (name, layer) in enumerate(children):
            following = children[i + 1] if in_order and i + 1 < len(children) else ('', None)
            activation = _activation(following[1])
            forms = _packed_forms(layer, activation)
            if not forms:
                continue
            packed = _fastest(layer, following[1] if activation != _NONE else None, forms)
            taken[type(packed or layer).__name__] += 1
            if packed is None:
                continue
            setattr(parent, name, packed)
            if activation != _NONE:
                setattr(parent, following[0], nn.Identity())
    if taken:
        logging.getLogger('visattn_dense').info(
            'optimize_for_inference: the fastest forms of the layers on this processor are %s',
            ', '.join(f'{count} {name}' for name, count in taken.most_common()))
    return model


def _fastest(layer: nn.Module, activation: nn.Module | None, forms: Sequence[_Packed]
             ) -> _Packed | None:
    """The packed form that is the fastest on this machine; None if the plain layer is."""
    def plain(x: Tensor) -> Tensor:
        return layer(x) if activation is None else activation(layer(x))

    linear = isinstance(layer, nn.Linear)
    channels = ((layer.in_features, layer.out_features) if linear else
                (layer.in_channels, layer.out_channels))
    rows = min(max(_ROWS // min(channels)**2, 64), 4096)

    @functools.cache                              # made only where something is measured
    def sample() -> Tensor:
        # Constant: random numbers would move the generator of the user.
        if linear:
            return torch.full((rows, channels[0]), .5, dtype=layer.weight.dtype)
        side = math.isqrt(rows) * max(layer.stride)
        image = torch.full((1, channels[0], side, side), .5, dtype=layer.weight.dtype)
        return image.contiguous(memory_format=torch.channels_last)

    # The text of a layer names everything that its time depends on, but activation and dtype.
    what = f'{layer}, {"".join(forms[0].activation)}, {layer.weight.dtype}'
    name = fastest(what, [*(type(form).__name__ for form in forms), 'plain'],
                   [lambda call=call: call(sample()) for call in (*forms, plain)])
    return next((form for form in forms if type(form).__name__ == name), None)


def _has_onednn() -> bool:
    return (torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, '_linear_pointwise')
            and hasattr(torch.ops.mkldnn, '_convolution_pointwise'))


def _activation(module: nn.Module | None) -> Activation:
    if isinstance(module, nn.GELU):
        return 'gelu', module.approximate
    return {nn.ReLU: ('relu', ''), nn.Hardswish: ('hardswish', '')}.get(type(module), _NONE)


def _packed_forms(layer: nn.Module, activation: Activation) -> list[_Packed]:
    """The packed forms that the layer and its activation can have, most likely first."""
    # A subclass may compute something else, or other code may read its weights.
    if type(layer) not in (nn.Linear, nn.Conv2d, DepthwiseConv2d, GroupedPointwiseConv):
        return []
    weight = layer.weight
    if weight.device.type != 'cpu' or weight.dtype not in (torch.float32, torch.bfloat16):
        return []
    if math.prod(weight.shape) == 0:
        return []
    if type(layer) is nn.Linear:
        return [PackedLinear(layer, activation)]
    if layer.padding_mode != 'zeros' or isinstance(layer.padding, str):
        return []
    plain = layer.stride, layer.padding, layer.groups
    if layer.kernel_size == (1, 1) and plain == ((1, 1), (0, 0), 1):
        return [PackedPointwiseConv(layer, activation), PackedConv2d(layer, activation)]
    if _suits_the_operator(layer, activation):
        forms = [PackedDepthwiseConv(layer, activation), PackedConv2d(layer, activation)]
        return forms if weight.dtype == torch.float32 else forms[::-1]
    return [PackedConv2d(layer, activation)]
