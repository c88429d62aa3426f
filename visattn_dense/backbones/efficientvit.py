"""EfficientViT of MIT (arXiv 2205.14756): mobile convolutions, then multi-scale linear attention.

    local block:      x += DropPath(conv(x)),  conv an inverted residual or its fused form
    attention block:  x += DropPath(LiteMLA(x));  x += DropPath(MBConv(x))

The stem halves the image. Each of the four stages begins with a strided block, which has no
shortcut. Only the last two stages (B), or the last stage (L), have attention. The backbone returns
the maps of the stages without a norm.

Shapes: (B, C, H, W) throughout; stage maps of ⌈H/s⌉×⌈W/s⌉ at the strides s = 4, 8, 16, 32.

Official code: mit-han-lab/efficientvit, efficientvit/models/efficientvit/backbone.py, with L's eps
from efficientvit/cls_model_zoo.py. Deviations: one class builds B and L, and a table has their
differences; stochastic depth is in the blocks (the official training code adds stochastic depth
from outside); the maps are always channels_last in memory.

Microsoft's EfficientViT (M0–M5) is another model.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visattn_dense.attention import LiteMLA
from visattn_dense.checkpoints import rename
from visattn_dense.checkpoints.matching import StateDict
from visattn_dense.errors import UserError
from visattn_dense.layers import (
    ConvNormAct,
    ConvPair,
    DepthwiseSeparableConv,
    FusedMBConv,
    MBConv,
    Residual,
    drop_path_rates,
)
from visattn_dense.ops.registered import is_batched
from visattn_dense.registry import BACKBONES

from .base import DenseBackbone, check_image

# The official *_backbone_b0 … l3. Depths count the blocks after the strided block in every stage.
# The published depths of B (2,2,2,2 for B0) also count the strided block in the first two stages.
_B0 = dict(stem_dim=8, dims=(16, 32, 64, 128), depths=(1, 1, 2, 2), head_dim=16,
           stem='separable', stages=('mbconv', 'mbconv', 'attention', 'attention'),
           strided_ratios=(4, 4, 4, 4), expand_ratios=(4, 4, 4, 4), act='hardswish', norm_eps=1e-5)
_B2 = dict(_B0, stem_dim=24, dims=(48, 96, 192, 384), depths=(2, 3, 4, 6), head_dim=32)
_L0 = dict(stem_dim=32, dims=(64, 128, 256, 512), depths=(1, 1, 4, 4), head_dim=32,
           stem='pair', stages=('fused', 'fused', 'mbconv', 'attention'),
           strided_ratios=(16, 16, 16, 24), expand_ratios=(4, 4, 4, 6), act='gelu_tanh',
           norm_eps=1e-7)
_L2 = dict(_L0, depths=(2, 2, 8, 8))

_STEMS = {'separable': DepthwiseSeparableConv, 'pair': ConvPair}
_LOCAL = {'mbconv': MBConv, 'fused': FusedMBConv}


def official_layout(state: StateDict) -> StateDict:
    """The official names: B has an `input_stem`, in L the stem is the first of five stages."""
    if any(name.startswith('input_stem.') for name in state):
        return rename((r'^input_stem\.op_list\.', 'stem.'), (r'^(stages\.\d)\.op_list\.', r'\1.'))(
            state)
    return rename((r'^stages\.0\.op_list\.', 'stem.'),
                  *((rf'^stages\.{i + 1}\.op_list\.', f'stages.{i}.') for i in range(4)))(state)


class EfficientViTBlock(nn.Sequential):
    """LiteMLA, then an inverted residual, both residual. (B, C, H, W) in and out.

    Args:
        dim: C.
        head_dim: channels of a head; ⌊C/head_dim⌋ heads for each scale.
        expand_ratio: hidden channels of the inverted residual over C.
        scales: kernel sizes of the attention's depthwise convolutions; see `LiteMLA`.
        act, norm_eps: activation, and eps of the BatchNorms.
        drop_path: probability that a branch is dropped.
    """

    def __init__(self, dim: int, *, head_dim: int, expand_ratio: float, scales: Sequence[int],
                 act: str, norm_eps: float, drop_path: float = 0.) -> None:
        super().__init__()
        self.context_module = Residual(
            LiteMLA(dim, dim // head_dim, head_dim=head_dim, scales=scales, norm_eps=norm_eps),
            drop_path=drop_path)
        self.local_module = Residual(
            MBConv(dim, dim, expand_ratio=expand_ratio, inner_norm=False, act=act,
                   norm_eps=norm_eps), drop_path=drop_path)


@BACKBONES.register_module()
class EfficientViT(DenseBackbone):
    """EfficientViT as a dense backbone.

    Args:
        arch: 'b0' … 'b3', 'l0' … 'l3', or a dict with stem_dim, dims and depths of the stages
            (depths: blocks after the strided block), head_dim, stem ('separable' or 'pair'), stages
            (for each stage 'mbconv', 'fused' or 'attention'), strided_ratios (expansion of the
            strided blocks), expand_ratios (expansion of the other blocks), act ('hardswish' or
            'gelu_tanh'), norm_eps.
        in_channels: channels of the image.
        scales: kernel sizes of the attention's depthwise convolutions; the released models have
            (5,).
        norm_eps: eps of every BatchNorm; None for the arch's eps, which released weights need.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see `DenseBackbone`.

    Raises:
        UserError: an unknown arch or option value.
    """

    archs = {
        'b0': _B0,
        'b1': dict(_B0, stem_dim=16, dims=(32, 64, 128, 256), depths=(1, 2, 3, 4)),
        'b2': _B2,
        'b3': dict(_B2, stem_dim=32, dims=(64, 128, 256, 512), depths=(3, 5, 6, 9)),
        'l0': _L0,
        'l1': dict(_L0, depths=(1, 1, 6, 6)),
        'l2': _L2,
        'l3': dict(_L2, stem_dim=64, dims=(128, 256, 512, 1024)),
    }
    layouts = {
        'official': official_layout,
        'timm': rename((r'^stem\.in_conv\.', 'stem.0.'),
                       (r'^stem\.res(\d+)\.', lambda match: f'stem.{int(match[1]) + 1}.'),
                       (r'^(stages\.\d+)\.blocks\.', r'\1.')),
    }

    def __init__(self, arch: str | Mapping[str, Any] = 'b1', *, in_channels: int = 3,
                 scales: Sequence[int] = (5,), norm_eps: float | None = None,
                 drop_path_rate: float = 0., out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1, norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        dims = self.resolve_arch(arch)
        super().__init__(out_indices=out_indices, out_channels=dims['dims'],
                         frozen_stages=frozen_stages, norm_eval=norm_eval, with_cp=with_cp,
                         init_cfg=init_cfg)
        common = dict(act=dims['act'], norm_eps=dims['norm_eps'] if norm_eps is None else norm_eps)
        width = dims['stem_dim']
        self.stem = nn.ModuleList([
            _FirstConv(in_channels, width, 3, stride=2, **common),
            Residual(_STEMS[dims['stem']](width, width, **common))])
        self.stages = nn.ModuleList()
        rates = drop_path_rates(drop_path_rate, [1 + depth for depth in dims['depths']])
        for i, kind in enumerate(dims['stages'][:max(self.out_indices) + 1]):
            dim = dims['dims'][i]
            if kind == 'attention' and not 0 < dims['head_dim'] <= dim:
                raise UserError(f'head_dim is at most the channels of a stage with attention, '
                                f'{dim} in stage {i}; got {dims["head_dim"]}')
            # Official `fewer_norm`: in the last two stages the hidden convolutions have biases.
            local = dict(common, inner_norm=i < 2)
            ratio = dims['expand_ratios'][i]
            strided = _LOCAL.get(kind, MBConv)(
                width, dim, stride=2, expand_ratio=dims['strided_ratios'][i], **local)
            blocks = [Residual(strided, shortcut=False)]
            for rate in rates[i][1:]:
                if kind == 'attention':
                    blocks.append(EfficientViTBlock(
                        dim, head_dim=dims['head_dim'], expand_ratio=ratio, scales=scales,
                        drop_path=rate, **common))
                else:
                    blocks.append(Residual(_LOCAL[kind](dim, dim, expand_ratio=ratio, **local),
                                           drop_path=rate))
            self.stages.append(nn.ModuleList(blocks))
            width = dim
        self.freeze_stages()

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.stem], *([stage] for stage in self.stages)]

    def layer_groups(self) -> list[list[nn.Module | nn.Parameter]]:
        # The strided block is an ordinary block here, the first of its stage.
        return [[self.stem], *([block] for stage in self.stages for block in stage)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to one (B, out_channels[i], ⌈H/s⌉, ⌈W/s⌉) for each of `out_indices`."""
        check_image(x)
        x = self.run_blocks(self.stem, x)
        outs = {}
        for i, stage in enumerate(self.stages):
            x = outs[i] = self.run_blocks(stage, x)
            if x.requires_grad and not torch.compiler.is_compiling():
                # A head may give a gradient in another layout. The shortcuts would hand this layout
                # on to every norm of the backbone.
                x.register_hook(_channels_last)
        return tuple(outs[i] for i in self.out_indices)


class _FirstConv(ConvNormAct):
    """Puts the image in channels_last, and so all maps after it.

    On a CPU, oneDNN copies less with channels_last (docs/attention/efficientvit.md has the gain).
    On a GPU, the depthwise convolutions and linear attention read channels_last. `with_cp` keeps
    what a block is given, so this copy is made inside a block.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_channels_last(x))


def _channels_last(x: Tensor) -> Tensor:
    # Under vmap a tensor has no layout of its own. The compiler cannot follow the question.
    if not torch.compiler.is_compiling() and is_batched(x):
        return x
    return x.contiguous(memory_format=torch.channels_last)
