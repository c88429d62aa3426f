"""The backbones as timm models: importing this module enters them in timm's registry.

    import timm
    import visattn_dense.interop.timm_models
    model = timm.create_model('visattn_cswin_tiny', pretrained=True)     # image to logits
    model = timm.create_model('visattn_cswin_tiny', pretrained=True, features_only=True)
    maps = model(image)          # model.feature_info.channels(), model.feature_info.reduction()

A model is called visattn_FAMILY_ARCH, in small letters; `timm.list_models('visattn_*')` lists the
names. A released file of the model zoo may follow after a dot, as usual in timm:
'visattn_cswin_large.cswin_large_22k_224'. docs/timm.md describes the options.
"""
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import Format
from timm.models import (
    FeatureInfo,
    PretrainedCfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn

from visattn_dense.backbones import DenseBackbone
from visattn_dense.checkpoints import load_pretrained
from visattn_dense.errors import UserError, did_you_mean
from visattn_dense.registry import BACKBONES
from visattn_dense.zoo.table import Release, releases

from .classifier import FORMS, Classifier, load_classifier

__all__: list[str] = []

# Classes of the released classifiers, by what they were trained on.
_CLASSES = {'ImageNet-1k': 1000, 'ImageNet-22k, then 1k': 1000, 'ImageNet-22k': 21841}


class TimmFeatures(nn.Module):
    """A backbone with the methods of timm's `features_only` models.

    Args:
        backbone: computes the maps. In a state dict, its names follow 'backbone.'.
        output_fmt: 'NCHW' or 'NHWC', the order of the maps' dimensions.
        as_dict: return a dict from the number of the stage, '0' to '3', to the map.

    Attributes:
        feature_info: timm's description of all four maps, and of the maps that are returned.
        default_cfg: what the released weights expect: size, mean, standard deviation, ...
    """

    def __init__(self, backbone: DenseBackbone, *, output_fmt: str = 'NCHW',
                 as_dict: bool = False) -> None:
        super().__init__()
        if output_fmt not in ('NCHW', 'NHWC'):
            raise UserError(f"output_fmt is 'NCHW' or 'NHWC', got {output_fmt!r}")
        self.backbone = backbone
        self.output_fmt = Format(output_fmt)
        self.as_dict = as_dict
        self.feature_info = FeatureInfo(
            [dict(num_chs=channels, reduction=stride, module='backbone') for channels, stride in
             zip(backbone.stage_channels, backbone.stage_strides, strict=True)],
            backbone.out_indices)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in backward instead of keeping them."""
        self.backbone.with_cp = enable

    def forward(self, x: Tensor) -> list[Tensor] | dict[str, Tensor]:
        """(B, C, H, W) to the maps (B, channels[i], H/reduction[i], W/reduction[i])."""
        maps = list(self.backbone(x))
        if self.output_fmt is Format.NHWC:
            maps = [m.permute(0, 2, 3, 1) for m in maps]
        if self.as_dict:
            return {str(i): m for i, m in zip(self.backbone.out_indices, maps, strict=True)}
        return maps


def create(family: str, arch: str, *, pretrained: bool = False,
           pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
           pretrained_cfg_overlay: Mapping[str, Any] | None = None, features_only: bool = False,
           cache_dir: str | os.PathLike | None = None, device: torch.device | str | None = None,
           dtype: torch.dtype | None = None, **options: Any) -> TimmFeatures | Classifier:
    """Build a model; `timm.create_model` calls this function.

    Args:
        family, arch: the class of the backbone and its variant.
        pretrained: load released weights: the file that the name gives after a dot, otherwise the
            first file of the model zoo that fits.
        pretrained_cfg: the part of the name after the dot, or a whole config; `file` in a config is
            a checkpoint.
        pretrained_cfg_overlay: entries that replace entries of the config.
        features_only: build maps for dense prediction (see `_features`). If False, build a
            classifier (see `Classifier`).
        cache_dir: has to be None; released files lie in torch's cache.
        device, dtype: of the parameters; None for torch's defaults.
        options: for both kinds, `in_chans` and the arguments of the backbone's class; for a
            classifier also `num_classes`, `global_pool`, `drop_rate`; for features also
            `out_indices`, `output_fmt`, `feature_cls`, `output_stride`.

    Raises:
        UserError: a tag, an option or their combination does not exist, or the weights cannot be
            found.
    """
    if cache_dir is not None:
        raise UserError(f'cache_dir={str(cache_dir)!r} is not used here: set TORCH_HOME, see '
                        'docs/checkpoints.md')
    if 'in_channels' in options:
        raise UserError('timm calls the channels of the image in_chans, got in_channels')
    cfg = _config(family, arch, pretrained_cfg, pretrained_cfg_overlay)
    # timm adds this argument for a model from a folder or from the Hub.
    options.pop('pretrained_model_args', None)
    options['in_channels'] = options.pop('in_chans', 3)
    weights = _weights(cfg) if pretrained else None
    if features_only:
        model = _features(family, arch, weights, **options)
        described = {key: value for key, value in cfg.to_dict().items()
                     if key not in ('num_classes', 'classifier', 'global_pool')}
    else:
        model = _classifier(family, arch, cfg, weights, **options)
        described = cfg.to_dict()
    described['first_conv'] = next((name for name, part in model.named_modules()
                                    if isinstance(part, nn.Conv2d)), None)
    model.pretrained_cfg = model.default_cfg = described
    return model.to(device=device, dtype=dtype)


def _features(family: str, arch: str, weights: str | os.PathLike | None, *,
              out_indices: int | Sequence[int] = (0, 1, 2, 3), output_fmt: str = 'NCHW',
              feature_cls: str = 'list', output_stride: int = 32, num_classes: Any = None,
              global_pool: Any = None, drop_rate: Any = None, **options: Any) -> TimmFeatures:
    """The maps of a backbone.

    Args:
        out_indices: the maps to return, of those at strides 4, 8, 16, 32, in this order. Negative
            numbers count from the end. A single number n means the last n maps.
        output_fmt: see `TimmFeatures`.
        feature_cls: 'list' or 'getter' for a list of maps, 'dict' for a dict.
        output_stride: only 32 is possible.
        num_classes, global_pool, drop_rate: options of a classifier, ignored as in timm.
    """
    del num_classes, global_pool, drop_rate
    if output_stride != 32:
        raise UserError(f'the strides here are 4, 8, 16 and 32; output_stride={output_stride} '
                        'cannot be had')
    if feature_cls not in ('list', 'getter', 'dict'):
        raise UserError(f"feature_cls is 'list', 'getter' or 'dict', got {feature_cls!r}: the maps "
                        'are what the backbone returns, there are no modules to hook')
    backbone = BACKBONES.build(dict(type=family, arch=arch), out_indices=_indices(out_indices),
                               **options)
    if weights is not None:
        load_pretrained(backbone, weights)
    return TimmFeatures(backbone, output_fmt=output_fmt, as_dict=feature_cls == 'dict')


def _indices(wanted: int | Sequence[int], count: int = 4) -> tuple[int, ...]:
    """`out_indices` as timm reads them, as numbers from 0 to `count` − 1."""
    if isinstance(wanted, int):
        indices = tuple(range(count - wanted, count)) if 0 < wanted <= count else ()
    else:
        indices = tuple(count + i if i < 0 else i for i in wanted)
    if not indices or not all(0 <= i < count for i in indices):
        raise UserError(f'out_indices are stages from 0 to {count - 1}, or from -{count} to -1 '
                        f'counted from the end, or a number n from 1 to {count} for the last n; '
                        f'got {wanted!r}')
    return indices


def _classifier(family: str, arch: str, cfg: PretrainedCfg, weights: str | os.PathLike | None, *,
                num_classes: int | None = None, **options: Any) -> Classifier:
    release = releases().get(cfg.tag or '')
    known = dict(release.options) if release else {}
    if 'img_size' in inspect.signature(BACKBONES[family]).parameters:
        known.setdefault('img_size', cfg.input_size[-1])
    classes = cfg.num_classes if num_classes is None else num_classes
    model = Classifier(family, arch, num_classes=classes, **{**known, **options})
    if weights is not None:
        load_classifier(model, weights, new_classifier=classes != cfg.num_classes)
    return model


def _weights(cfg: PretrainedCfg) -> str | os.PathLike:
    """The checkpoint that a config names.

    Raises:
        UserError: the config names no checkpoint, or a checkpoint that cannot be downloaded.
    """
    release = releases().get(cfg.tag or '')
    if cfg.file:
        # timm's 'local-dir:' names the folder that its `save_for_hf` wrote.
        saved = [Path(cfg.file) / name for name in ('model.safetensors', 'pytorch_model.bin')]
        return next((path for path in saved if path.is_file()), cfg.file)
    if release is not None and cfg.url == release.url:
        return release.fetch()
    if cfg.url:
        return cfg.url
    elsewhere = ('weights from the Hub and from memory are not read here' if cfg.hf_hub_id
                 or cfg.state_dict else f'no weights of {cfg.architecture} were released, see '
                 'docs/zoo.md')
    raise UserError(f'{elsewhere}; for a file of your own give pretrained_cfg_overlay=dict('
                    'file=PATH)')


def _config(family: str, arch: str, given: str | Mapping[str, Any] | PretrainedCfg | None,
            overlay: Mapping[str, Any] | None) -> PretrainedCfg:
    """The config of a tag, the given config, or the config of the first release of the model.

    Raises:
        UserError: the tag is unknown or belongs to another model, or the config has an unknown
            entry.
    """
    name = _name(family, arch)
    tags = default_cfgs[name].cfgs
    if isinstance(given, str) and given and given not in tags:
        if given in releases():
            other = releases()[given]
            raise UserError(f'{given} is {other.family} {other.arch}, not {family} {arch}')
        raise UserError(f'{name} has no weights {given!r}. '
                        f'{did_you_mean(given, filter(None, tags)) or "None were released."}')
    try:
        return resolve_pretrained_cfg(name, given or None, overlay)
    except TypeError as error:
        raise UserError(f'pretrained_cfg of {name}: {error}') from error


def _name(family: str, arch: str) -> str:
    return f'visattn_{family}_{arch}'.lower()


def _described(family: str, arch: str, size: int | list[int], **facts: Any) -> PretrainedCfg:
    """timm's config of a model that was trained on images of `size`."""
    form = FORMS.get(family)
    size = size if isinstance(size, list) else (size, size)
    facts = dict(crop_pct=form.crops.get(arch, form.crop), classifier=form.classifier_name,
                 **facts) if form else facts
    return PretrainedCfg(input_size=(3, *size), pool_size=tuple(side // 32 for side in size),
                         **facts)


def _released(release: Release) -> PretrainedCfg:
    """timm's config of a released file. The file of a segmentor has no image classifier."""
    classes = _CLASSES[release.data] if release.kind == 'classifier' else 0
    return _described(
        release.family, release.arch, release.image_size, url=release.url, num_classes=classes,
        license=release.licence, origin_url=release.code, description=release.note or None,
        paper_ids=release.paper.replace('arXiv ', 'arXiv:'))


def _all_cfgs() -> dict[str, PretrainedCfg]:
    """The configs of each model: one for each released file, the preferred file first; or one
    config without a file."""
    cfgs = {}
    for family, cls in BACKBONES.module_dict.items():
        for arch in getattr(cls, 'archs', ()):
            fitting = sorted((release for release in releases().values()
                              if (release.family, release.arch) == (family, arch)),
                             key=lambda release: (release.kind != 'classifier',
                                                  release.url is None))
            name = _name(family, arch)
            cfgs |= {f'{name}.{release.name}': _released(release) for release in fitting}
            if not fitting:
                cfgs[name] = _described(family, arch, 384 if arch.endswith('384') else 224)
    return cfgs


def _entrypoint(family: str, arch: str) -> Callable[..., TimmFeatures | Classifier]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> TimmFeatures | Classifier:
        return create(family, arch, pretrained=pretrained, **kwargs)

    entrypoint.__name__ = _name(family, arch)
    entrypoint.__doc__ = f'{family} {arch}; see `create`.'
    return entrypoint


# `register_model` looks for this name.
default_cfgs = generate_default_cfgs(_all_cfgs())

for _family, _class in BACKBONES.module_dict.items():
    for _arch in getattr(_class, 'archs', ()):
        register_model(_entrypoint(_family, _arch))
