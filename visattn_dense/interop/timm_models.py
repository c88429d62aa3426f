"""The backbones as timm models: importing this module enters them in timm's registry.

    import timm
    import visattn_dense.interop.timm_models
    model = timm.create_model('visattn_cswin_tiny', pretrained=True, features_only=True)
    maps = model(image)          # model.feature_info.channels(), model.feature_info.reduction()

A model is called visattn_FAMILY_ARCH, in small letters; `timm.list_models('visattn_*')` lists them.
After a dot comes a released file of the model zoo, as timm has it:
'visattn_cswin_large.cswin_large_22k_224'.
"""
from collections.abc import Callable, Sequence
from typing import Any

from timm.models import register_model
from timm.models._features import FeatureInfo
from torch import Tensor, nn

from visattn_dense.backbones import DenseBackbone
from visattn_dense.checkpoints import load_pretrained
from visattn_dense.errors import UserError, did_you_mean
from visattn_dense.registry import BACKBONES
from visattn_dense.zoo.table import Release, find_release, releases

__all__: list[str] = []


class TimmFeatures(nn.Module):
    """A backbone that speaks timm's `features_only` dialect.

    Args:
        backbone: what computes the maps; a state dict of it has its names after 'backbone.'.

    Attributes:
        feature_info: timm's account of all four maps and of those that are returned.
        default_cfg: mean and standard deviation that the released weights expect, in [0, 1].
    """

    default_cfg = dict(mean=(.485, .456, .406), std=(.229, .224, .225), interpolation='bicubic')

    def __init__(self, backbone: DenseBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_info = FeatureInfo(
            [dict(num_chs=channels, reduction=stride, module=f'backbone.{index}')
             for index, channels, stride in sorted(zip(
                 backbone.out_indices, backbone.out_channels, backbone.strides, strict=True))],
            tuple(sorted(backbone.out_indices).index(i) for i in backbone.out_indices))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) to the list of maps (B, channels[i], H/reduction[i], W/reduction[i])."""
        return list(self.backbone(x))


def create(family: str, arch: str, *, pretrained: bool = False, pretrained_cfg: Any = None,
           features_only: bool = False, in_chans: int = 3,
           out_indices: Sequence[int] = (0, 1, 2, 3), output_stride: int = 32,
           **options: Any) -> TimmFeatures:
    """What `timm.create_model` calls.

    Args:
        family, arch: which backbone.
        pretrained: load released weights: those that the name gives after a dot, else the first of
            the model zoo that fit.
        pretrained_cfg: that part of the name, from timm.
        features_only: has to be True: the backbones have no classifier.
        in_chans: channels of the image.
        out_indices: which of the maps at strides 4, 8, 16, 32 to return; −1 is the last.
        output_stride: 32, as everywhere here.
        options: arguments of the backbone's class. timm's for classifiers are not among them.

    Raises:
        UserError: classification was asked for, or there are no released weights.
    """
    if not features_only:
        raise UserError(f'visattn_{family}_{arch} has no classifier: create it with '
                        'features_only=True')
    if options.pop('num_classes', 0):
        raise UserError('num_classes has no meaning without a classifier; leave it out')
    if output_stride != 32:
        raise UserError(f'the strides here are 4, 8, 16 and 32; output_stride={output_stride} '
                        'cannot be had')
    for timms_own in ('pretrained_cfg_overlay', 'cache_dir'):
        options.pop(timms_own, None)
    release = _release(family, arch, pretrained_cfg) if pretrained else None
    backbone = BACKBONES.build(dict(type=family, arch=arch, in_channels=in_chans, **options),
                               out_indices=[i % 4 for i in out_indices])
    if release is not None:
        load_pretrained(backbone, release.fetch())
    return TimmFeatures(backbone)


def _release(family: str, arch: str, tag: Any) -> Release:
    """The zoo's entry for a tag, or the first that fits the model."""
    fitting = [release for release in releases().values()
               if release.family == family and release.arch == arch]
    if isinstance(tag, str) and tag:
        release = find_release(tag)
        if release not in fitting:
            raise UserError(f'{tag} is {release.family} {release.arch}, not {family} {arch}. '
                            f'{did_you_mean(tag, [fits.name for fits in fitting])}')
        return release
    if not fitting:
        raise UserError(f'no weights of {family} {arch} were released; see docs/zoo.md')
    return min(fitting, key=lambda release: (release.kind != 'classifier', release.url is None))


def _entrypoint(family: str, arch: str) -> Callable[..., TimmFeatures]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> TimmFeatures:
        return create(family, arch, pretrained=pretrained, **kwargs)

    entrypoint.__name__ = f'visattn_{family}_{arch}'.lower()
    entrypoint.__doc__ = f'{family} {arch}; see `create`.'
    return entrypoint


for _family, _class in BACKBONES.module_dict.items():
    for _arch in getattr(_class, 'archs', ()):
        register_model(_entrypoint(_family, _arch))
