"""A config's backbone and an image as the config prepares it, for `visattn_dense.explain`.

    backbone = open_backbone(cfg, CHECKPOINT)   # of a segmentor or a detector
    prepared = prepare_image(cfg, 'photo.jpg')
"""
from __future__ import annotations

import os
from pathlib import Path

import torch
from mmengine.config import Config

from visattn_dense.backbones import DenseBackbone
from visattn_dense.errors import MissingFileError, UserError
from visattn_dense.explain.subject import Prepared, normalised
from visattn_dense.explain.subject import fill as fill_backbone
from visattn_dense.openmmlab.engine.launch import register_scope
from visattn_dense.openmmlab.inference import preparation
from visattn_dense.predict.sources import Picture
from visattn_dense.registry import BACKBONES


def open_backbone(cfg: Config, checkpoint: str | os.PathLike) -> DenseBackbone:
    """The backbone of a config's model, with its weights, in evaluation mode.

    Args:
        cfg: a config of a segmentor, a detector or another model with a `backbone` of this project.
        checkpoint: of the whole model or of the backbone; see `load_pretrained`. 'none' for random
            weights.

    Raises:
        UserError, FileNotFoundError: another backbone, or a checkpoint that does not load or fit.
    """
    entry = cfg.get('model', {}).get('backbone')
    if entry is None or entry.get('type') not in BACKBONES:
        found = 'no model.backbone' if entry is None else f'the backbone {entry.get("type")!r}'
        raise UserError(f'{cfg.filename} has {found}; the backbones here are '
                        f'{", ".join(BACKBONES)}')
    entry = {key: value for key, value in entry.to_dict().items() if key != 'init_cfg'}
    torch.manual_seed(0)
    backbone = BACKBONES.build(entry)
    fill_backbone(backbone, checkpoint)
    return backbone.eval()


def prepare_image(cfg: Config, path: str | os.PathLike) -> Prepared:
    """An image file after a config's test pipeline and normalisation, without padding.

    Raises:
        UserError: the file is missing, not an image, or damaged.
    """
    if not os.path.exists(path):
        raise MissingFileError(f'no image {path}: there is no such file')
    register_scope(cfg.get('default_scope'))
    prepared = preparation(cfg)(Picture(Path(path).stem, os.fspath(path)))
    # The pipelines load BGR.
    picture = prepared.inputs[0].permute(1, 2, 0).flip(-1).contiguous().numpy()
    options = cfg.model.get('data_preprocessor') or {}
    mean, std = options.get('mean') or [0.] * 3, options.get('std') or [1.] * 3
    if not (options.get('bgr_to_rgb') or options.get('rgb_to_bgr')):
        image = normalised(picture, mean[::-1], std[::-1]).flip(1)
    else:
        image = normalised(picture, mean, std)
    return Prepared(image, picture, tuple(prepared.samples[0].ori_shape[:2]))
