"""Prepare a model for inference: folded norms, and on a CPU packed weights, fused layers and the
compiled kernels of its operators; on request, graphs that replay whole passes (`graphs`).

A linear layer and the activation after the layer become one call; so do a convolution and its
activation, a convolution and a 1×1 convolution (`FusedMBConv`), and all of a transformer block that
follows the attention. `visattn_dense.layers.packed` holds what takes their places.
"""
import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visattn_dense.ops import UsesOperators, native
from visattn_dense.ops.depthwise import ACTIVATIONS
from visattn_dense.ops.measured import fastest

from .activations import activation_name
from .block import Handover, TransformerBlock
from .graphs import Replayable, ReplayedForward
from .mbconv import (
    ConvNormAct,
    DepthwiseConv2d,
    EndsInProjection,
    FusedMBConv,
    GroupedPointwiseConv,
    MBConv,
    Residual,
    calls_in_order,
    fold_batch_norm,
)
from .mlp import Mlp
from .norm import LayerNorm2d, PreNorm
from .packed import (
    NativeConv2d,
    NativeFeedForward,
    NativeFusedMBConv,
    NativeGroupedConv,
    NativeLinear,
    NativeMBConv,
    NativeNorm,
    NativeProjection,
    NativeSplitLinear,
    NativeTransposedConv,
    Packed,
    PackedConv2d,
    PackedDepthwiseConv,
    PackedLinear,
    PackedPointwiseConv,
)
from .plain import is_called_plainly
from .split import ProjectsSplit, SoftSplit

# A layer is measured on _ROWS / channels² tokens: a pyramid halves its sides where it doubles its
# channels, and an image of 512x512 has this many at the four stages.
_ROWS = 2**26


def optimize_for_inference(model: nn.Module, *, graphs: int = 0) -> nn.Module:
    """Make a model fast for inference, in place.

    On every device, each BatchNorm is folded into the convolution before it (`fold_batch_norm`).
    On a CPU, linear layers and convolutions get packed weights (`visattn_dense.layers.packed`), and
    each activation becomes a part of the layer before it; layers that follow each other become one,
    where a kernel computes both. A layer changes only where this is faster on this machine: each
    distinct layer is measured once, and the result is kept for later processes
    (`visattn_dense.ops.measured`; `VISATTN_MEASURE=0` packs every layer unmeasured). On a CPU with
    a C++ compiler, kernels that are compiled for the processor compute the operators in float32 and
    bfloat16 (mode 'inference' of `visattn_dense.ops.choose`). The first call on a machine compiles
    and measures, which takes seconds. The logger `visattn_dense` says which forms the layers have.
    `graphs` lets a backbone replay a whole pass where a shape of its input comes again: on a GPU
    with one launch, on a CPU without the Python between the kernels
    (`visattn_dense.layers.graphs`).

    A layer with a hook stays as it is, and so does a layer that is pruned by torch. The outputs
    stay the same up to rounding. Afterwards you can no longer train or save the model, load a
    checkpoint into the model, or move the model to another device. So load the checkpoint first,
    and keep a copy if you need one. Packed layers compute in the dtype of their weights, also
    inside autocast.

    Args:
        model: any module in evaluation mode: a backbone, or a whole segmentor or detector.
        graphs: for how many shapes of its input each backbone keeps a graph. A shape is recorded
            when it comes the second time. Each graph keeps the memory of its activations.

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
        if graphs and isinstance(module, Replayable):
            module.forward = ReplayedForward(module, graphs)
    _pack(model)
    taken = Counter(module.form if isinstance(module, Packed) else type(module).__name__
                    for module in model.modules()
                    if isinstance(module, (Packed, nn.Linear, nn.Conv2d, nn.ConvTranspose2d)))
    if any(isinstance(module, Packed) for module in model.modules()):
        logging.getLogger('visattn_dense').info(
            'optimize_for_inference: the fastest forms of the layers on this processor are %s',
            ', '.join(f'{count} {name}' for name, count in taken.most_common()))
    return model


def _pack(parent: nn.Module) -> None:
    """Pack the layers below `parent`; then, where this is faster, several of them as one."""
    if isinstance(parent, nn.TransformerEncoderLayer):
        return                                   # its forward reads the weights of its layers
    fused = _fused(parent)                       # finds the plain layers
    # `named_children` leaves out a module that comes again.
    children = [(name, child) for name, child in parent._modules.items()
                if child is not None and not isinstance(child, nn.Identity)]
    in_order = calls_in_order(parent) or type(parent) is Mlp
    for i, (name, layer) in enumerate(children):
        following = children[i + 1] if in_order and i + 1 < len(children) else ('', None)
        activation = _known_activation(following[1]) or 'none'
        forms = _packed_forms(layer, activation)
        if not forms:
            _pack(layer)
            continue
        if isinstance(layer, nn.LayerNorm):
            # The memory decides the time of a norm. The kernel applies the activation meanwhile,
            # and a graph lets the kernel write to its place.
            packed = forms[0].make()
        else:
            packed = _fastest_form(layer, following[1] if activation != 'none' else None,
                                   activation, forms)
        if packed is None:
            continue
        setattr(parent, name, packed)
        if activation != 'none':
            setattr(parent, following[0], nn.Identity())
    if fused and (packed := _fastest(fused.what, fused.forms, fused.call, ('apart', fused.apart),
                                     fused.usual)):
        fused.install(packed)


def _known_activation(module: nn.Module | None) -> str | None:
    """The name of an activation that a layer can take in; None for another module."""
    return None if module is None or not is_called_plainly(module) else activation_name(module)


class _Form(NamedTuple):
    """A form that a layer can have.

    Attributes:
        name: for `fastest`.
        make: packs the weights.
    """
    name: str
    make: Callable[[], Packed]


def _native_forms(form: type[Packed], weights: int, *args: Any, **kwargs: Any) -> list[_Form]:
    """The forms of a layer of so many weights by the kernels.

    In tiles comes second, so it has to be clearly faster: on a shared machine, the rate of the tile
    registers varies more than that of the vectors.
    """
    forms = [_Form(form.__name__, lambda: form(*args, in_tiles=False, **kwargs))]
    if native.suits_tiles(weights):
        forms.append(_Form(f'{form.__name__} in tiles', lambda: form(*args, **kwargs)))
    return forms


def _fastest(what: str, forms: Sequence[_Form], call: Callable[[Packed], Any],
             plain: tuple[str, Callable[[], Any]], usual: bool = True) -> Packed | None:
    """The form that is the fastest on this machine; None if the plain layers are.

    Weights are packed only for a form that is measured or taken. `usual`: the first form is usually
    the fastest; else the plain layers are.
    """
    makers = {form.name: functools.cache(form.make) for form in forms}
    calls = {name: lambda make=make: call(make()) for name, make in makers.items()}
    calls = calls | dict([plain]) if usual else dict([plain]) | calls
    name = fastest(what, list(calls), list(calls.values()))
    return None if name == plain[0] else makers[name]()


class _Fused(NamedTuple):
    """One layer that can take the place of several.

    Attributes:
        what: the layers, for `fastest`.
        forms: of the one layer.
        call: computes a sample with the one layer.
        apart: computes the sample with the layers of the model, as they are then.
        install: puts the layer in their place.
        usual: whether the one layer is usually the faster.
    """
    what: str
    forms: list[_Form]
    call: Callable[[Packed], Any]
    apart: Callable[[], Any]
    install: Callable[[Packed], None]
    usual: bool


def _fused(parent: nn.Module) -> _Fused | None:
    """What can take the place of several layers of `parent`, or None."""
    weights = list(parent.parameters())
    if not (isinstance(parent, (TransformerBlock, Residual, ProjectsSplit)) and weights
            and all(w.device.type == 'cpu' and w.dtype == weights[0].dtype and w.numel()
                    for w in weights)):
        return None
    dtype = weights[0].dtype
    if not _is_for_kernels(dtype):
        return None
    usual = dtype == torch.float32
    if isinstance(parent, ProjectsSplit):
        return _fused_split(parent, dtype, usual)
    if isinstance(parent, TransformerBlock):
        mlp, norm = parent.mlp, parent.norm2
        if (type(parent).finish is not TransformerBlock.finish or type(norm) is not PreNorm
                or type(mlp) is not Mlp or not _are_called_plainly(norm, mlp)
                or (activation := activation_name(mlp.act)) in (None, 'none')):
            return None
        forms = _native_forms(NativeFeedForward, mlp.fc1.weight.numel(), norm, mlp.fc1, mlp.fc2,
                              activation)
        channels = norm.weight.numel()
        tokens = torch.full((1, _rows(channels), channels), .5, dtype=dtype)

        def install(packed: Packed) -> None:
            parent.norm2, parent.mlp = nn.Identity(), packed
            parent.finish = packed.forward

        return _Fused(f'{norm}, {mlp}, {dtype}', forms, lambda packed: packed(tokens, tokens),
                      lambda: parent.finish(tokens, tokens, Handover()), install, usual)
    if (type(parent).forward is not Residual.forward or not parent.adds_inside(parent.main)
            or not _are_called_plainly(parent.main)):
        return None
    if isinstance(parent.main, EndsInProjection):
        return _fused_projection(parent, dtype, usual) if parent.shortcut else None
    main, forms = parent.main, _fused_branch(parent.main, parent.shortcut)
    if not forms:
        return None
    image = _image(next(layer for layer in main.modules() if isinstance(layer, nn.Conv2d)),
                   max(layer.stride[0] for layer in main.modules() if isinstance(layer, nn.Conv2d)))

    def install(packed: Packed) -> None:
        parent.main, parent.shortcut = packed, False

    what = f'{main}, {parent.shortcut}, {dtype}'
    return _Fused(what, forms, lambda packed: packed(image), lambda: parent(image), install, usual)


def _are_called_plainly(*modules: nn.Module) -> bool:
    """Whether one layer may take the place of the modules: nothing watches them or their parts."""
    return all(is_called_plainly(part) for module in modules for part in module.modules())


def _fused_split(parent: nn.Module, dtype: torch.dtype, usual: bool) -> _Fused | None:
    """One layer in place of a soft split, its norm and its linear layer."""
    split, names = parent.split, parent.projection
    norm = parent.get_submodule(names[0]) if names[0] else None
    linear = parent.get_submodule(names[1])
    if (type(split) is not SoftSplit or type(norm) not in (PreNorm, type(None))
            or type(linear) is not nn.Linear
            or not _are_called_plainly(split, linear, *(() if norm is None else (norm,)))):
        return None
    channels = linear.in_features // split.kernel_size**2
    side = math.isqrt(_rows(linear.out_features)) * split.stride
    image = torch.full((1, side, side, channels), .5, dtype=dtype).permute(0, 3, 1, 2)

    def apart() -> Tensor:
        tokens = split(image)
        return parent.get_submodule(names[1])(tokens if norm is None else norm(tokens))

    def install(packed: Packed) -> None:
        parent.split = nn.Identity()
        if norm is not None:
            parent.set_submodule(names[0], nn.Identity())
        parent.set_submodule(names[1], packed)

    return _Fused(f'{split}, {norm}, {linear}, {dtype}',
                  _native_forms(NativeSplitLinear, linear.weight.numel(), split, norm, linear),
                  lambda packed: packed(image), apart, install, usual)


def _fused_projection(parent: Residual, dtype: torch.dtype, usual: bool) -> _Fused | None:
    """One layer in place of a branch's last convolution and the sum after it."""
    proj = parent.main.proj
    conv = proj.conv
    if (type(proj) is not ConvNormAct or type(proj.norm) is not nn.Identity
            or type(proj.act) is not nn.Identity or not _is_pointwise(conv)):
        return None
    update = _image(conv, 1)
    x = torch.full((1, conv.out_channels, *update.shape[2:]), .5, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)

    def install(packed: Packed) -> None:
        parent.main.proj, parent.add = nn.Identity(), packed.forward

    return _Fused(f'{conv}, added, {dtype}',
                  _native_forms(NativeProjection, conv.weight.numel(), conv),
                  lambda packed: packed(x, update),
                  lambda: parent.add(x, parent.main.proj(update)), install, usual)


def _fused_branch(branch: nn.Module, shortcut: bool) -> list[_Form]:
    """The forms of one layer in place of a mobile block."""
    if type(branch) not in (FusedMBConv, MBConv):
        return []
    parts = [getattr(branch, name) for name in branch.layers]
    convs = [part.conv for part in parts]
    activations = {activation_name(part.act) for part in parts[:-1]}
    if (any(type(part.norm) is not nn.Identity for part in parts) or len(activations) > 1
            or None in activations or type(parts[-1].act) is not nn.Identity
            or not _is_matrix_product(convs[0]) or not _is_pointwise(convs[-1])):
        return []
    most = max(convs[0].weight.numel(), convs[-1].weight.numel())
    if type(branch) is FusedMBConv:
        return _native_forms(NativeFusedMBConv, most, *convs, *activations, shortcut=shortcut)
    expand, depth, project = convs
    if not (_is_pointwise(expand) and type(depth) is DepthwiseConv2d
            and depth.kernel_size == (3, 3) and depth.padding == depth.dilation == (1, 1)
            and depth.stride in ((1, 1), (2, 2)) and depth.padding_mode == 'zeros'):
        return []
    return _native_forms(NativeMBConv, most, *convs, *activations, shortcut=shortcut)


def _fastest_form(layer: nn.Module, following: nn.Module | None, activation: str,
                  forms: Sequence[_Form]) -> Packed | None:
    """The packed form that is the fastest on this machine; None if the plain layer is."""
    def plain(x: Tensor) -> Tensor:
        return layer(x) if following is None else following(layer(x))

    @functools.cache                              # made only where something is measured
    def sample() -> Tensor:
        if isinstance(layer, nn.Linear):
            rows = _rows(min(layer.in_features, layer.out_features))
            return torch.full((rows, layer.in_features), .5, dtype=layer.weight.dtype)
        return _image(layer, 1 if isinstance(layer, nn.ConvTranspose2d) else max(layer.stride))

    # The text of a layer names everything that its time depends on, but activation and dtype.
    what = f'{layer}, {activation}, {layer.weight.dtype}'
    return _fastest(what, forms, lambda packed: packed(sample()),
                    ('plain', lambda: plain(sample())))


def _rows(channels: int) -> int:
    """How many tokens of so many channels a sample has."""
    return min(max(_ROWS // channels**2, 64), 4096)


def _image(layer: nn.Conv2d | nn.ConvTranspose2d, stride: int) -> Tensor:
    """A map for `layer`. Constant: random numbers would move the generator of the user."""
    side = math.isqrt(_rows(min(layer.in_channels, layer.out_channels))) * stride
    image = torch.full((1, layer.in_channels, side, side), .5, dtype=layer.weight.dtype)
    return image.contiguous(memory_format=torch.channels_last)


def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs layers of this dtype, float32 or bfloat16, for this processor."""
    return (torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, '_linear_pointwise')
            and hasattr(torch.ops.mkldnn, '_convolution_pointwise')
            and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def _is_for_kernels(dtype: torch.dtype) -> bool:
    """Whether the kernels can be the fastest for layers of this dtype.

    The kernels compute a bfloat16 layer in float32. Tile registers have products of bfloat16.
    """
    return native.available() and (dtype == torch.float32
                                   or dtype == torch.bfloat16 and not native.tiles())


def _packed_forms(layer: nn.Module, activation: str) -> list[_Form]:
    """The packed forms that the layer and its activation can have, most likely first."""
    # A subclass may compute something else, or other code may read its weights.
    if type(layer) not in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, DepthwiseConv2d,
                           GroupedPointwiseConv, nn.LayerNorm, LayerNorm2d):
        return []
    # A hook may change what the layer gives, or its weights, as pruning does.
    if not is_called_plainly(layer):
        return []
    weight = layer.weight
    if (weight is None or weight.device.type != 'cpu'
            or weight.dtype not in (torch.float32, torch.bfloat16)):
        return []
    if math.prod(weight.shape) == 0:
        return []

    def form(kind: type[Packed]) -> _Form:
        return _Form(kind.__name__, lambda: kind(layer, activation))

    def own(kind: type[Packed]) -> list[_Form]:
        if not _is_for_kernels(weight.dtype):
            return []
        return _native_forms(kind, weight.numel(), layer, activation)

    theirs: list[_Form] = []
    if isinstance(layer, nn.LayerNorm):
        is_ours = weight.ndim == 1 and layer.bias is not None and native.available()
        return [form(NativeNorm)] if is_ours else []
    if type(layer) is nn.Linear:
        ours = own(NativeLinear)
        if _has_onednn(weight.dtype):
            theirs = [form(PackedLinear)]
    elif type(layer) is nn.ConvTranspose2d:
        ours = own(NativeTransposedConv) if _is_without_overlap(layer) else []
    elif layer.padding_mode != 'zeros' or isinstance(layer.padding, str):
        return []
    else:
        ours = own(NativeConv2d) if _is_matrix_product(layer) else []
        if (type(layer) is GroupedPointwiseConv and activation == 'none'
                and weight.dtype == torch.float32 and native.available()):
            ours.append(_Form(NativeGroupedConv.__name__, lambda: NativeGroupedConv(layer)))
        if _suits_the_operator(layer, activation):
            ours.append(form(PackedDepthwiseConv))
        if _has_onednn(weight.dtype):
            theirs = [*([form(PackedPointwiseConv)] if _is_pointwise(layer) else []),
                      form(PackedConv2d)]
    return ours + theirs if weight.dtype == torch.float32 else theirs + ours


def _is_without_overlap(layer: nn.ConvTranspose2d) -> bool:
    """Whether the compiled linear layers can compute the transposed convolution."""
    side = layer.kernel_size[0]
    return (layer.kernel_size == layer.stride == (side, side) and layer.groups == 1
            and layer.padding == layer.output_padding == (0, 0) and layer.dilation == (1, 1))


def _is_matrix_product(layer: nn.Module) -> bool:
    """Whether the layer is a convolution that the compiled linear layers can compute."""
    return (type(layer) is nn.Conv2d and layer.groups == 1 and layer.dilation == (1, 1)
            and layer.padding_mode == 'zeros' and not isinstance(layer.padding, str)
            and all(len(set(pair)) == 1
                    for pair in (layer.kernel_size, layer.stride, layer.padding)))


def _is_pointwise(layer: nn.Module) -> bool:
    """Whether the layer is a linear layer of the channels."""
    return (_is_matrix_product(layer) and layer.kernel_size == layer.stride == (1, 1)
            and layer.padding == (0, 0))


def _suits_the_operator(layer: nn.Conv2d, activation: str) -> bool:
    """Whether the compiled kernel of depthwise convolution can compute the layer."""
    side = layer.kernel_size[0]
    return (layer.groups == layer.in_channels == layer.out_channels and side in (3, 5)
            and layer.kernel_size == (side, side) and layer.padding == (side // 2,) * 2
            and layer.stride == layer.dilation == (1, 1) and activation in ACTIVATIONS
            and layer.weight.dtype in (torch.float32, torch.bfloat16) and native.available())
