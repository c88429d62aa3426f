"""What is measured: operators at the sizes they have inside a backbone, backbones, models."""
from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from visattn_dense.attention import (
    BiLevelRoutingAttention,
    CrossShapedWindowAttention,
    FocusedLinearAttention,
    LiteMLA,
    SelfAttention,
    TokenPerformer,
    TokenTransformer,
)
from visattn_dense.attention.naive import as_naive
from visattn_dense.errors import UserError, did_you_mean
from visattn_dense.registry import BACKBONES

FAMILIES = ('cswin', 'flatten', 'biformer', 'efficientvit', 't2t')
_FAMILY_OF = {'CSWin': 'cswin', 'FLattenCSWin': 'flatten', 'BiFormer': 'biformer',
              'EfficientViT': 'efficientvit', 'T2TViT': 't2t'}


@dataclass(frozen=True)
class Subject:
    """An operator, a backbone or a whole model.

    Attributes:
        family: one of `FAMILIES`, or 'config' where a config says what it is.
        name: in tables.
        kind: 'operator', 'backbone' or 'model'.
        make: builds it.
        channels: channels of the input.
        stride: pixels of the image for each position of the input.
        layout: layout of the input.
    """

    family: str
    name: str
    kind: Literal['operator', 'backbone', 'model']
    make: Callable[[], nn.Module]
    channels: int = 3
    stride: int = 1
    layout: Literal['NCHW', 'NHWC'] = 'NCHW'

    def pair(self, device: torch.device) -> tuple[nn.Module, nn.Module]:
        """Ours and its naive form with the same random weights, in evaluation mode."""
        ours = self.ours(device)
        return ours, as_naive(copy.deepcopy(ours))

    def ours(self, device: torch.device) -> nn.Module:
        torch.manual_seed(0)
        return self.make().eval().to(device)

    def naive(self, device: torch.device) -> nn.Module:
        return as_naive(self.ours(device))

    def input(self, batch: int, height: int, width: int, device: torch.device,
              seed: int = 1) -> Tensor:
        """Noise as a network gets from an image of that size: float32."""
        size = (-(-height // self.stride), -(-width // self.stride))
        shape = ((batch, self.channels, *size) if self.layout == 'NCHW'
                 else (batch, *size, self.channels))
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _operator(family: str, name: str, make: Callable[[], nn.Module], channels: int, stride: int,
              layout: Literal['NCHW', 'NHWC'] = 'NHWC') -> Subject:
    return Subject(family, name, 'operator', make, channels, stride, layout)


# Each as in the stage of the named variant that has it most often, or first.
OPERATORS = (
    _operator('cswin', 'cross-shaped windows, CSWin-T stage 3',
              partial(CrossShapedWindowAttention, 256, 8, stripe_width=7), 256, 16),
    _operator('flatten', 'focused linear, FLatten-CSWin-T stage 2',
              partial(FocusedLinearAttention, 128, 4, stripe_width=None, native_size=(28, 28)),
              128, 8),
    _operator('biformer', 'bi-level routing, BiFormer-S stage 3',
              partial(BiLevelRoutingAttention, 256, 8, n_win=8, topk=16), 256, 16),
    _operator('efficientvit', 'multi-scale ReLU linear, EfficientViT-B2 stage 3',
              partial(LiteMLA, 192, 6, head_dim=32), 192, 16, 'NCHW'),
    _operator('t2t', 'performer, T2T-ViT-14 second attention',
              partial(TokenPerformer, 576, 64, dropout=0.), 576, 8),
    _operator('t2t', 'token transformer, T2T-ViT-t-14 second attention',
              partial(TokenTransformer, 576, 64), 576, 8),
    _operator('t2t', 'self-attention, T2T-ViT-14 block', partial(SelfAttention, 384, 6), 384, 16),
)

QUICK_BACKBONES = ('CSWin:tiny', 'FLattenCSWin:tiny', 'BiFormer:small', 'EfficientViT:b2',
                   'T2TViT:14')
CPU_BACKBONES = ('CSWin:tiny', 'FLattenCSWin:tiny', 'BiFormer:small', 'EfficientViT:b2',
                 'EfficientViT:l1', 'EfficientViT:l2', 'T2TViT:14', 'T2TViT:t_14')
GPU_BACKBONES = ('CSWin:small', 'FLattenCSWin:tiny', 'BiFormer:small', 'EfficientViT:b2',
                 'EfficientViT:l2', 'T2TViT:14')


def backbone(name: str) -> Subject:
    """The subject 'FAMILY:ARCH'.

    Raises:
        UserError: no such backbone or arch; the nearest names are given.
    """
    family, _, arch = name.partition(':')
    if family not in _FAMILY_OF:
        raise UserError(f'{name!r} is no BACKBONE:ARCH such as CSWin:tiny. '
                        f'{did_you_mean(family, _FAMILY_OF)}')
    cls = BACKBONES.get(family)
    if arch not in cls.archs:
        raise UserError(f'{family} has no arch {arch!r}. {did_you_mean(arch, cls.archs)}')
    return Subject(_FAMILY_OF[family], f'{family} {arch}', 'backbone', partial(cls, arch))
