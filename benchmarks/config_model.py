"""A config's model as a subject: a segmentor or detector, or its backbone alone."""
from __future__ import annotations

import copy
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Literal

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from visattn_dense.errors import UserError
from visattn_dense.openmmlab.engine.launch import register_scope
from visattn_dense.zoo import load_segmentor

from .subjects import Subject

Part = Literal['model', 'backbone']


class WholeModel(nn.Module):
    """A model of mmseg or mmdet as a function of images: its networks, without post-processing.

    Of a detector: backbone, neck and heads, 1000 proposals of each image and masks for the first
    100.

    Args:
        model: a segmentor or detector.
        scope: 'mmseg' or 'mmdet'.
    """

    def __init__(self, model: nn.Module, scope: str) -> None:
        super().__init__()
        self.model = model
        self.scope = scope

    def forward(self, images: Tensor) -> object:
        """(B, 3, H, W) to what mode='tensor' of the model gives."""
        with DefaultScope.overwrite_default_scope(self.scope):
            return self.model(images, self._samples(*images.shape), mode='tensor')

    def networks(self) -> list[nn.Module]:
        """What compiles; the choice of proposals between the networks stays eager."""
        found = (getattr(self.model, name, None)
                 for name in ('backbone', 'neck', 'decode_head', 'bbox_head', 'rpn_head'))
        return [network for network in found if isinstance(network, nn.Module)]

    def _samples(self, batch: int, channels: int, height: int, width: int) -> list | None:
        if self.scope != 'mmdet':
            return None
        from mmdet.structures import DetDataSample
        meta = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1., 1.),
                    pad_shape=(height, width), batch_input_shape=(height, width))
        return [DetDataSample(metainfo=meta) for _ in range(batch)]


def config_subject(cfg: Config, *, part: Part = 'model',
                   checkpoint: str | os.PathLike | None = None) -> Subject:
    """The model of a config, without pretrained weights: speed does not depend on them.

    Args:
        cfg: a config of mmseg or mmdet; it is not changed.
        part: all networks, or the backbone alone.
        checkpoint: weights to load; random ones where None.

    Raises:
        UserError: no model of mmseg or mmdet in the config. Making the model raises it too, for a
            checkpoint that does not load or fit.
    """
    scope = cfg.get('default_scope')
    if scope not in ('mmseg', 'mmdet') or 'model' not in cfg:
        raise UserError(f'{cfg.filename} is no config of a segmentor or detector: its '
                        f'default_scope is {scope!r}, it has to be mmseg or mmdet')
    register_scope(scope)
    return Subject('config', Path(cfg.filename).stem, part,
                   partial(_make, cfg.model, scope, part, checkpoint))


def count_parameters(module: nn.Module) -> dict[str, int]:
    """Numbers of parameters: 'total', and of a whole model its parts at the top level."""
    parts = module.model.named_children() if isinstance(module, WholeModel) else ()
    return {name: sum(p.numel() for p in part.parameters())
            for name, part in (('total', module), *parts)}


def _make(model_cfg: Config, scope: str, part: Part, checkpoint: str | os.PathLike | None
          ) -> nn.Module:
    model_cfg = copy.deepcopy(model_cfg)
    model_cfg.backbone.pop('init_cfg', None)
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        # About losses, which have no part here.
        warnings.simplefilter('ignore')
        model = revert_sync_batchnorm(MODELS.build(model_cfg))
    if checkpoint is not None:
        load_segmentor(model, checkpoint)
    return model.backbone if part == 'backbone' else WholeModel(model, scope)
