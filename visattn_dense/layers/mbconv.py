"""Convolution, BatchNorm and activation, and the blocks of mobile networks made of them. NCHW.

The inverted residual (MobileNetV2, arXiv 1801.04381) and its fused form (EfficientNetV2, arXiv
2104.00298), as in EfficientViT. Parameter names are the official ones (mit-han-lab/efficientvit,
efficientvit/models/nn/ops.py); timm uses the same names.

Shapes: B batch, C channels in, C' channels out, H×W map, s stride: every block here takes
(B, C, H, W) to (B, C', ⌈H/s⌉, ⌈W/s⌉).
"""
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from visattn_dense.ops import Mode, UsesOperators
from visattn_dense.ops.depthwise import ACTIVATIONS as DEPTHWISE_ACTIVATIONS
from visattn_dense.ops.depthwise import depthwise
from visattn_dense.ops.norm_act import ACTIVATIONS as NORM_ACTIVATIONS
from visattn_dense.ops.norm_act import Norm, TrainingNorm, norm_act
from visattn_dense.ops.pointwise import grouped_pointwise

from .activations import ACTIVATIONS, activation_name
from .drop import DropPath
from .plain import gains_by_operators, is_called_plainly


class DepthwiseConv2d(UsesOperators, nn.Conv2d):
    """A k×k convolution of each channel with itself, zero-padded by half of the kernel, NCHW.

    The parameters are those of nn.Conv2d: weight (C, 1, k, k), bias (C,).

    Args:
        dim: C, number of channels.
        kernel_size: k, odd.
        stride: of the convolution.
        bias: whether there is a bias.
    """

    def __init__(self, dim: int, kernel_size: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__(dim, dim, kernel_size, stride, kernel_size // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor, activation: str = 'none') -> Tensor:
        """(B, C, H, W) to (B, C, ⌈H/s⌉, ⌈W/s⌉). `activation`: see `reference.depthwise`."""
        return self._conv_forward(x, self.weight, self.bias, activation)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None,
                      activation: str = 'none') -> Tensor:
        return depthwise(x.permute(0, 2, 3, 1), weight, bias, activation=activation,
                         stride=self.stride[0], mode=self.mode).permute(0, 3, 1, 2)


class GroupedPointwiseConv(UsesOperators, nn.Conv2d):
    """A 1×1 convolution in groups of channels, without a bias, NCHW.

    The parameter is that of nn.Conv2d: weight (C', C/groups, 1, 1).

    Args:
        in_dim, dim: C and C', channels in and out.
        groups: of the channels.
    """

    def __init__(self, in_dim: int, dim: int, *, groups: int) -> None:
        super().__init__(in_dim, dim, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        return grouped_pointwise(x.permute(0, 2, 3, 1), self.weight, groups=self.groups,
                                 mode=self.mode).permute(0, 3, 1, 2)


class ConvNormAct(UsesOperators, nn.Module):
    """act(norm(conv(x))) with an odd kernel, zero-padded by half of the kernel size.

    Args:
        in_dim, dim: channels in and out.
        kernel_size, stride, groups: of the convolution.
        norm_eps: eps of the BatchNorm; None for no norm.
        bias: whether the convolution has a bias; by default only if no norm follows.
        act: the activation's name in `ACTIVATIONS`; None for no activation.
    """

    def __init__(self, in_dim: int, dim: int, kernel_size: int = 1, *, stride: int = 1,
                 groups: int = 1, norm_eps: float | None = 1e-5, bias: bool | None = None,
                 act: str | None = None) -> None:
        super().__init__()
        bias = norm_eps is None if bias is None else bias
        if kernel_size > 1 and groups == in_dim == dim:
            self.conv = DepthwiseConv2d(dim, kernel_size, stride=stride, bias=bias)
        else:
            self.conv = nn.Conv2d(in_dim, dim, kernel_size, stride, kernel_size // 2,
                                  groups=groups, bias=bias)
        self.norm = nn.Identity() if norm_eps is None else nn.BatchNorm2d(dim, eps=norm_eps)
        self.act = nn.Identity() if act is None else ACTIVATIONS[act]()

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'), plus `onto`, like the result, unless it is None."""
        return _conv_norm_act(x, self.conv, self.norm, self.act, onto, self.mode)


class ConvNorms(UsesOperators, nn.Sequential):
    """nn.Sequential of convolutions, norms and activations. NCHW.

    On a GPU, a convolution, the BatchNorm after it and the activation after the norm are computed
    as in `ConvNormAct`, and the maps are channels_last.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        if not gains_by_operators(x):
            return super().forward(x)
        layers, nothing = list(self), nn.Identity()
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, nn.Conv2d):
                norm = layers.pop(0) if layers and type(layers[0]) is nn.BatchNorm2d else nothing
                act = (layers.pop(0) if layers and activation_name(layers[0]) in NORM_ACTIVATIONS
                       else nothing)
                x = x.contiguous(memory_format=torch.channels_last)
                x = _conv_norm_act(x, layer, norm, act, None, self.mode)
            else:
                x = layer(x)
        return x


def _conv_norm_act(x: Tensor, conv: nn.Module, norm: nn.Module, act: nn.Module,
                   onto: Tensor | None, mode: Mode) -> Tensor:
    """act(norm(conv(x))), plus `onto` unless it is None; by the operators of a GPU if they suit."""
    # torch refuses maps without a batch.
    if gains_by_operators(x) and x.ndim == 4:
        statistics, activation = _statistics(norm), activation_name(act)
        if (activation in NORM_ACTIVATIONS and _suit_operators(conv, norm, statistics)
                and all(map(is_called_plainly, (conv, norm, act)))):
            return _by_operators(x, conv, norm, statistics, activation, onto, mode)
    x = act(norm(conv(x)))
    return x if onto is None else onto + x


def _by_operators(x: Tensor, conv: nn.Conv2d, norm: nn.Module,
                  statistics: Norm | TrainingNorm | None, activation: str, onto: Tensor | None,
                  mode: Mode) -> Tensor:
    """torch adds the bias of a convolution, normalises and activates in a kernel each, and asks for
    the square roots of the variances in another. For the gradient it keeps the normalised map too.
    """
    bias = conv.bias
    if (statistics is None and onto is None and type(conv) is DepthwiseConv2d
            and activation in DEPTHWISE_ACTIVATIONS):
        return conv(x, activation)
    if isinstance(statistics, TrainingNorm):
        x = conv._conv_forward(x, conv.weight, bias)
    else:
        x = conv._conv_forward(x, conv.weight, None)
        if statistics is None and bias is None and onto is None and activation == 'none':
            return x
        if statistics is not None and bias is not None:
            # The norm takes the bias of the convolution away from the mean.
            statistics = statistics._replace(mean=statistics.mean - bias)
    if statistics is not None:
        bias = norm._parameters['bias']
    return norm_act(x, bias, statistics, activation=activation, onto=onto, mode=mode)


def _suit_operators(conv: nn.Module, norm: nn.Module,
                    statistics: Norm | TrainingNorm | None) -> bool:
    """Whether `_by_operators` knows the modules, and gives the same with fewer kernels. A norm by
    running statistics has no gradient there."""
    trains = torch.is_grad_enabled()
    if statistics is not None:
        suits = norm.training == trains
    else:
        # The gradient of a depthwise kernel comes with that of the bias.
        suits = type(norm) is nn.Identity and not (trains and type(conv) is DepthwiseConv2d)
    return suits and type(conv) in (nn.Conv2d, DepthwiseConv2d)


def _statistics(norm: nn.Module) -> Norm | TrainingNorm | None:
    """torch's BatchNorm2d without its bias; None for another module, or without running statistics
    or weights."""
    if type(norm) is not nn.BatchNorm2d:
        return None
    # An attribute of a module takes half a microsecond; there are six.
    buffers, weight = norm._buffers, norm._parameters.get('weight')
    mean, variance = buffers.get('running_mean'), buffers.get('running_var')
    if mean is None or variance is None or weight is None:
        return None
    if not norm.training:
        return Norm(mean, variance, weight, norm.eps)
    batches = buffers.get('num_batches_tracked')
    if batches is None or not norm.track_running_stats:
        return None
    return TrainingNorm(mean, variance, weight, batches, norm.momentum, norm.eps)


class Branch(nn.Module):
    """A branch of a `Residual`: `ConvNormAct`s, one after another. The last can add the shortcut.

    Attributes:
        layers: their names, in order.
    """
    layers: tuple[str, ...]

    def forward(self, x: Tensor) -> Tensor:
        return self.added(x)

    def added(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """The result of x, plus `onto`, like the result, if given."""
        for name in self.layers[:-1]:
            x = getattr(self, name)(x)
        return self.last()(x) if onto is None else self.last()(x, onto)

    def last(self) -> ConvNormAct:
        """The layer whose result is that of the branch."""
        return getattr(self, self.layers[-1])


class DepthwiseSeparableConv(Branch):
    """Depthwise 3×3, then 1×1: an inverted residual that does not expand.

    Args:
        in_dim, dim, stride: channels in and out, and the stride of the depthwise convolution.
        act: activation between the two.
        norm_eps: eps of both BatchNorms.
    """
    layers = 'depth_conv', 'point_conv'

    def __init__(self, in_dim: int, dim: int, *, stride: int = 1, act: str = 'hardswish',
                 norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.depth_conv = ConvNormAct(in_dim, in_dim, 3, stride=stride, groups=in_dim, act=act,
                                      norm_eps=norm_eps)
        self.point_conv = ConvNormAct(in_dim, dim, norm_eps=norm_eps)


class MBConv(Branch):
    """1×1 expansion, depthwise 3×3, 1×1 projection.

    Args:
        in_dim, dim, stride: channels in and out, and the stride of the depthwise convolution.
        expand_ratio: hidden channels over `in_dim`.
        inner_norm: whether a norm follows each of the two hidden convolutions. Without a norm, a
            hidden convolution has a bias.
        act: activation after the two hidden convolutions.
        norm_eps: eps of the BatchNorms.
    """
    layers = 'inverted_conv', 'depth_conv', 'point_conv'

    def __init__(self, in_dim: int, dim: int, *, stride: int = 1, expand_ratio: float = 4.,
                 inner_norm: bool = True, act: str = 'hardswish', norm_eps: float = 1e-5) -> None:
        super().__init__()
        hidden, inner_eps = round(in_dim * expand_ratio), norm_eps if inner_norm else None
        self.inverted_conv = ConvNormAct(in_dim, hidden, act=act, norm_eps=inner_eps)
        self.depth_conv = ConvNormAct(hidden, hidden, 3, stride=stride, groups=hidden, act=act,
                                      norm_eps=inner_eps)
        self.point_conv = ConvNormAct(hidden, dim, norm_eps=norm_eps)


class FusedMBConv(Branch):
    """A full 3×3 convolution that expands, then a 1×1 projection.

    Args:
        in_dim, dim, stride: channels in and out, and the stride of the 3×3 convolution.
        expand_ratio: hidden channels over `in_dim`.
        inner_norm: whether a norm follows the 3×3 convolution. Without a norm, the convolution has
            a bias.
        act: activation after the 3×3 convolution.
        norm_eps: eps of the BatchNorms.
    """
    layers = 'spatial_conv', 'point_conv'

    def __init__(self, in_dim: int, dim: int, *, stride: int = 1, expand_ratio: float = 4.,
                 inner_norm: bool = True, act: str = 'gelu_tanh', norm_eps: float = 1e-7) -> None:
        super().__init__()
        hidden = round(in_dim * expand_ratio)
        self.spatial_conv = ConvNormAct(in_dim, hidden, 3, stride=stride, act=act,
                                        norm_eps=norm_eps if inner_norm else None)
        self.point_conv = ConvNormAct(hidden, dim, norm_eps=norm_eps)


class ConvPair(Branch):
    """Two 3×3 convolutions, each with a norm, and an activation between: ResNet's basic branch.

    Args:
        in_dim, dim, stride: channels in and out, and the stride of the first convolution.
        act: activation after the first.
        norm_eps: eps of both BatchNorms.
    """
    layers = 'conv1', 'conv2'

    def __init__(self, in_dim: int, dim: int, *, stride: int = 1, act: str = 'gelu_tanh',
                 norm_eps: float = 1e-7) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_dim, dim, 3, stride=stride, act=act, norm_eps=norm_eps)
        self.conv2 = ConvNormAct(dim, dim, 3, norm_eps=norm_eps)


class EndsInProjection(Branch):
    """A branch whose result is that of `proj`, with an `added` of its own.

    Attributes:
        proj: a ConvNormAct.
    """
    layers = 'proj',


class Residual(nn.Module):
    """x + DropPath(main(x)); main(x) if there is no shortcut.

    Args:
        main: the branch.
        shortcut: whether x is added. A branch that changes the shape has no shortcut.
        drop_path: probability that the branch is dropped.
    """

    def __init__(self, main: nn.Module, *, shortcut: bool = True, drop_path: float = 0.) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        main = self.main
        if not self.shortcut:
            return main(x)
        if gains_by_operators(x) and self.adds_inside(main):
            return main.added(x, x)
        return self.add(x, main(x))

    def adds_inside(self, main: nn.Module) -> bool:
        """Whether the last layer of the branch can add x: where nothing watches or drops the result
        of the branch."""
        if not isinstance(main, Branch):
            return False
        last, drop_path = main.last(), self.drop_path
        return (type(self).add is Residual.add and type(main).forward is Branch.forward
                and type(last) is ConvNormAct and type(drop_path) is DropPath
                and not (drop_path.training and drop_path.drop_prob)
                and all(map(is_called_plainly, (main, last, drop_path))))

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        """x + DropPath(update), (B, C, H, W) each."""
        return x + self.drop_path(update)


def calls_in_order(parent: nn.Module) -> bool:
    """Whether each child is known to take what the child before gives."""
    return isinstance(parent, ConvNormAct) or (
        type(parent).forward in (nn.Sequential.forward, ConvNorms.forward))


def _folds(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether `norm` normalises the result of `conv` by running statistics, and does nothing else.
    A hook may change what either gives, or its weights."""
    return (type(conv) in (nn.Conv2d, DepthwiseConv2d) and type(norm) is nn.BatchNorm2d
            and norm.running_mean is not None and not conv.training and not norm.training
            and is_called_plainly(conv) and is_called_plainly(norm))


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold every BatchNorm into the convolution before it, in place. For inference alone.

    Pairs are found where modules are called in their order (`calls_in_order`). The outputs stay the
    same up to rounding. The state dict changes, so load the checkpoint first.

    Args:
        model: in evaluation mode.

    Returns:
        The model.

    Raises:
        ValueError: the model is in training mode. Call model.eval() first.
    """
    if model.training:
        raise ValueError('fold_batch_norm needs running statistics: call model.eval() first')
    for parent in model.modules():
        if not calls_in_order(parent):
            continue
        # `named_children` leaves out a module that comes again.
        children = list(parent._modules.items())
        for (name, conv), (norm_name, norm) in zip(children, children[1:], strict=False):
            if _folds(conv, norm):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return model
