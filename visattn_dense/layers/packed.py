"""Layers for inference on a CPU, with their weights packed once and their activations built in.

Packed...   by oneDNN; torch's own compiler (inductor) uses the same operators for a frozen model
Native...   by the kernels of `visattn_dense.ops.native`, in float32. The results have the dtype of
            the weights: a bfloat16 layer computes in float32 and rounds once.

Each block of a matrix product gets bias and activation while the block is in the caches.
`visattn_dense.layers.optimize` puts these layers in the places of the plain ones.
"""
from typing import Any

import torch
from torch import Tensor, nn

from visattn_dense.ops import native
from visattn_dense.ops.depthwise import depthwise

from .block import Handover
from .norm import LayerNorm2d
from .split import SoftSplit

_ONEDNN = {'none': ('none', ''), 'relu': ('relu', ''), 'hardswish': ('hardswish', ''),
           'gelu': ('gelu', 'none'), 'gelu_tanh': ('gelu', 'tanh')}
"""For each activation, oneDNN's name, and oneDNN's name of the algorithm."""

_ERROR = ('optimize_for_inference has packed the weights of this model: packed weights can neither '
          'be saved nor loaded. Load the checkpoint before optimize_for_inference, and keep a copy '
          'of the model to save.')


class Packed(nn.Module):
    """The common part of the packed layers: weights outside the parameters, and an activation.

    The activation is a name, see `activations`.
    """

    def __init__(self, dtype: torch.dtype, activation: str) -> None:
        super().__init__()
        self.dtype = dtype
        self.activation = activation

    @property
    def form(self) -> str:
        """What the layer is, for people."""
        return type(self).__name__

    def __deepcopy__(self, memo: dict) -> 'Packed':
        """The layer itself: a packed layer never changes, and packed tensors cannot be copied."""
        return self

    def __getstate__(self) -> dict:
        raise RuntimeError(_ERROR)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(_ERROR)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(_ERROR)


class _OneDNN(Packed):
    """A layer by oneDNN: the bias stays as it is."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, activation: str) -> None:
        super().__init__(layer.weight.dtype, activation)
        self.bias = None if layer.bias is None else layer.bias.detach()


class PackedLinear(_OneDNN):
    """act(x Wᵀ + b), with W in oneDNN's own layout. For inference alone.

    Args:
        layer: the linear layer (or 1×1 convolution), on the CPU.
        activation: applied to the result.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d,
                 activation: str = 'none') -> None:
        super().__init__(layer, activation)
        weight = layer.weight.detach().flatten(1)
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), in the dtype of the weights."""
        x = x.to(self.dtype)
        if x.numel() == 0:
            return x.new_zeros(*x.shape[:-1], self.out_features)
        name, algorithm = _ONEDNN[self.activation]
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, name, [], algorithm)


class PackedPointwiseConv(PackedLinear):
    """act(conv(x)) of a 1×1 convolution, as a linear layer of the channels. For inference alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W), NHWC in memory, in the dtype of the weights."""
        return super().forward(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


class PackedConv2d(_OneDNN):
    """act(conv(x)) as one call. For inference alone.

    Args:
        layer: the convolution, zero-padded, on the CPU.
        activation: applied to the result.
    """

    def __init__(self, layer: nn.Conv2d, activation: str = 'none') -> None:
        super().__init__(layer, activation)
        self.kernel = layer.weight.detach().contiguous(memory_format=torch.channels_last)
        self.geometry = layer.padding, layer.stride, layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), in the dtype of the weights."""
        x = x.to(self.dtype)
        name, algorithm = _ONEDNN[self.activation]
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.kernel, self.bias, *self.geometry, name, [], algorithm)


class PackedDepthwiseConv(_OneDNN):
    """act(conv(x)) of a depthwise convolution, by the operator `depthwise`. For inference alone.

    Args:
        layer: the convolution, of stride 1, zero-padded to keep the size.
        activation: applied to the result.
    """

    def __init__(self, layer: nn.Conv2d, activation: str = 'none') -> None:
        super().__init__(layer, activation)
        self.kernel = layer.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, in the dtype of the weights."""
        out = depthwise(x.to(self.dtype).permute(0, 2, 3, 1), self.kernel, self.bias,
                        activation=self.activation, mode='inference')
        return out.permute(0, 3, 1, 2)


class Native(Packed):
    """A layer by the kernels, in float32.

    Args:
        layers: the matrix products that the layer consists of.
        dtype: of the result.
        activation: see the layer.
        kernel_size: if the first product is one of k×k patches, k.
    """

    def __init__(self, layers: list[native.Layer], dtype: torch.dtype, activation: str, *,
                 kernel_size: int = 1) -> None:
        super().__init__(dtype, activation)
        self.layers = layers
        self.channels = layers[0].inputs // kernel_size**2

    def rows(self, x: Tensor) -> Tensor:
        """(..., C) in float32.

        Raises:
            RuntimeError: x has other channels than the layer. The kernels would read beside it.
        """
        _check_channels(self, x, self.channels)
        return x.float()

    @property
    def form(self) -> str:
        in_tiles = any(layer.in_tiles for layer in self.layers)
        return super().form + (' in tiles' if in_tiles else '')


class NativeLinear(Native):
    """act(x Wᵀ + b), in float32. For inference alone.

    Args:
        layer: the linear layer (or 1×1 convolution), on the CPU.
        activation: applied to the result.
        in_tiles: see `native.Layer.of`.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, activation: str = 'none', *,
                 in_tiles: bool = True) -> None:
        super().__init__([native.Layer.of(layer.weight.flatten(1), layer.bias, in_tiles=in_tiles)],
                         layer.weight.dtype, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        out = native.linear(self.rows(x), *self.layers, activation=self.activation)
        return out.to(self.dtype)


class NativeConv2d(Native):
    """act(conv(x)), in float32: a linear layer of the patches. For inference alone.

    Args:
        layer: the convolution, with a square kernel, zero-padded, neither grouped nor dilated, on
            the CPU.
        activation: applied to the result.
        in_tiles: see `native.Layer.of`.
    """

    def __init__(self, layer: nn.Conv2d, activation: str = 'none', *,
                 in_tiles: bool = True) -> None:
        super().__init__([_convolution(layer, in_tiles)], layer.weight.dtype, activation,
                         kernel_size=layer.kernel_size[0])
        self.patches = _patches(layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), NHWC in memory."""
        out = native.linear(self.rows(x.permute(0, 2, 3, 1)), *self.layers, patches=self.patches,
                            activation=self.activation)
        return out.to(self.dtype).permute(0, 3, 1, 2)


class NativeSplitLinear(Native):
    """linear(norm(split(x))) with a soft split, in float32; the patches stay in the cache.

    For inference alone.

    Args:
        split: makes tokens from the patches of a map.
        norm: the norm of a token, or None.
        linear: the linear layer, on the CPU.
        in_tiles: see `native.Layer.of`.
    """

    def __init__(self, split: SoftSplit, norm: nn.LayerNorm | None, linear: nn.Linear, *,
                 in_tiles: bool = True) -> None:
        weight, bias = (linear.weight, linear.bias) if norm is None else _with_norm(norm, linear)
        # From channel by channel to position by position.
        kernel = weight.unflatten(1, (-1, split.kernel_size**2)).transpose(1, 2).flatten(1)
        super().__init__([native.Layer.of(kernel, bias, in_tiles=in_tiles)], linear.weight.dtype,
                         'none', kernel_size=split.kernel_size)
        self.split = split                       # for who asks for the geometry
        self.patches = native.Patches(split.kernel_size, split.stride, split.padding)
        self.eps = None if norm is None else norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H', W', outputs)."""
        out = native.linear(self.rows(x.permute(0, 2, 3, 1)), *self.layers, patches=self.patches,
                            epsilon=self.eps)
        return out.to(self.dtype)


class NativeTransposedConv(Native):
    """act(conv(x)) of a transposed convolution without overlap, in float32. For inference alone.

    Args:
        layer: the transposed convolution, k×k with stride k, without padding, neither grouped nor
            dilated, on the CPU.
        activation: applied to the result.
        in_tiles: see `native.Layer.of`.
    """

    def __init__(self, layer: nn.ConvTranspose2d, activation: str = 'none', *,
                 in_tiles: bool = True) -> None:
        super().__init__(native.transposed_layers(layer.weight, layer.bias, in_tiles=in_tiles),
                         layer.weight.dtype, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', kH, kW), NHWC in memory."""
        out = native.transposed(self.rows(x.permute(0, 2, 3, 1)), self.layers,
                                activation=self.activation)
        return out.to(self.dtype).permute(0, 3, 1, 2)


class NativeNorm(Packed):
    """act(norm(x)), a LayerNorm over the channels. For inference alone.

    Args:
        layer: the norm, with weight and bias, on the CPU.
        activation: applied to the result.
    """

    def __init__(self, layer: nn.LayerNorm, activation: str = 'none') -> None:
        super().__init__(layer.weight.dtype, activation)
        self.factors = layer.weight.detach(), layer.bias.detach()
        self.eps, self.is_nchw = layer.eps, isinstance(layer, LayerNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C), of a LayerNorm2d (B, C, H, W), to the same shape, in the dtype of the weights.
        """
        x = x.to(self.dtype)
        x = x.permute(0, 2, 3, 1) if self.is_nchw else x
        _check_channels(self, x, self.factors[0].numel())
        rows = x if native.why_not(x) is None else x.contiguous()
        if rows.numel():
            rows = native.add_norm(rows, None, *self.factors, eps=self.eps,
                                   activation=self.activation)[1]
        return rows.permute(0, 3, 1, 2) if self.is_nchw else rows


class NativeProjection(Native):
    """x + conv(update) of a 1×1 convolution, in float32. For inference alone.

    Args:
        layer: the convolution, on the CPU.
        in_tiles: see `native.Layer.of`.
    """

    def __init__(self, layer: nn.Conv2d, *, in_tiles: bool = True) -> None:
        super().__init__([_convolution(layer, in_tiles)], layer.weight.dtype, 'none')

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        """(B, C', H, W) and (B, C, H, W) to (B, C', H, W), NHWC in memory."""
        x, update = (t.permute(0, 2, 3, 1) for t in (x, update))
        out = native.linear(self.rows(update), *self.layers, addend=x.float())
        return out.to(self.dtype).permute(0, 3, 1, 2)


class NativeGroupedConv(Packed):
    """A 1×1 convolution in groups of channels by the kernels, in float32. For inference alone.

    Args:
        layer: the convolution, without a bias, on the CPU.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(torch.float32, 'none')
        weight = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
        self.channels = layer.in_channels
        self.outputs, self.packed = weight.shape[1], native.in_groups(weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W) float32, NHWC in memory."""
        x = x.permute(0, 2, 3, 1)
        _check_channels(self, x, self.channels)
        out = native.grouped(x.float(), self.packed, outputs=self.outputs)
        return out.permute(0, 3, 1, 2)


class NativeFeedForward(Native):
    """The second half of a transformer block, s + mlp(norm(s)) with s = x + update, in float32.

    For inference alone.

    Args:
        norm: the norm, on the CPU.
        fc1, fc2: the linear layers of the MLP.
        activation: that of the MLP.
        in_tiles: see `native.Layer.of`.
    """

    def __init__(self, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear, activation: str,
                 *, in_tiles: bool = True) -> None:
        super().__init__([
            native.Layer.of(*_with_norm(norm, fc1), in_tiles=in_tiles),
            native.Layer.of(fc2.weight, fc2.bias, in_tiles=in_tiles)], fc1.weight.dtype, activation)
        self.eps = norm.eps

    def forward(self, x: Tensor, update: Tensor, handover: Handover | None = None,
                bias: None = None) -> Tensor:
        """Two (..., C) to (..., C); see `TransformerBlock.finish`. No bias is apart on a CPU."""
        following = handover.following if handover else None
        out = native.chain(self.rows(x), *self.layers, update=update.float().expand_as(x),
                           epsilon=self.eps, activation=self.activation,
                           following=None if following is None else
                           (following.weight.float().contiguous(),
                            following.bias.float().contiguous(), following.eps))
        if following is None:
            return out.to(self.dtype)
        out, normed = out
        handover.normed = normed.to(self.dtype)
        return out.to(self.dtype)


class NativeFusedMBConv(Native):
    """A convolution, its activation and a 1×1 convolution, in float32; with a shortcut, plus x.

    For inference alone.

    Args:
        spatial, point: the convolutions; see `NativeConv2d`.
        activation: between the two.
        shortcut: whether x is added to the result.
        in_tiles: see `native.Layer.of`.
    """

    def __init__(self, spatial: nn.Conv2d, point: nn.Conv2d, activation: str, *,
                 shortcut: bool, in_tiles: bool = True) -> None:
        super().__init__([_convolution(conv, in_tiles) for conv in (spatial, point)],
                         point.weight.dtype, activation, kernel_size=spatial.kernel_size[0])
        self.patches, self.shortcut = _patches(spatial), shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), NHWC in memory."""
        x = self.rows(x.permute(0, 2, 3, 1))
        out = native.chain(x, *self.layers, patches=self.patches,
                           addend=x if self.shortcut else None,
                           activation=self.activation)
        return out.to(self.dtype).permute(0, 3, 1, 2)


class NativeMBConv(Native):
    """1×1 expansion, depthwise 3×3, 1×1 projection, in float32; with a shortcut, plus x.

    For inference alone.

    Args:
        expand, depth, project: the convolutions, the second of stride 1 or 2, on the CPU.
        activation: after the first and after the second.
        shortcut: whether x is added to the result.
        in_tiles: see `native.Layer.of`.
    """

    def __init__(self, expand: nn.Conv2d, depth: nn.Conv2d, project: nn.Conv2d,
                 activation: str, *, shortcut: bool, in_tiles: bool = True) -> None:
        super().__init__([_convolution(conv, in_tiles) for conv in (expand, project)],
                         depth.weight.dtype, activation)
        weight = depth.weight.detach().float().flatten(1).T
        bias = (weight.new_zeros(weight.shape[1]) if depth.bias is None else
                depth.bias.detach().float())
        self.kernel = torch.cat([weight, bias[None]])
        self.stride, self.shortcut = depth.stride[0], shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), NHWC in memory."""
        x = self.rows(x.permute(0, 2, 3, 1))
        expand, project = self.layers
        out = native.mobile(x, expand, self.kernel, project, stride=self.stride,
                            addend=x if self.shortcut else None,
                            activation=self.activation)
        return out.to(self.dtype).permute(0, 3, 1, 2)


def _check_channels(layer: Packed, x: Tensor, channels: int) -> None:
    if x.shape[-1] != channels:
        raise RuntimeError(f'{layer.form} takes {channels} channels, got {x.shape[-1]}')


def _with_norm(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer after a norm without weight and bias."""
    weight = linear.weight.double()
    bias = weight @ norm.bias.double()
    return weight * norm.weight.double(), bias if linear.bias is None else bias + linear.bias


def _convolution(layer: nn.Conv2d, in_tiles: bool) -> native.Layer:
    kernel = layer.weight.permute(0, 2, 3, 1).flatten(1)
    return native.Layer.of(kernel, layer.bias, in_tiles=in_tiles)


def _patches(layer: nn.Conv2d) -> native.Patches:
    return native.Patches(layer.kernel_size[0], layer.stride[0], layer.padding[0])
