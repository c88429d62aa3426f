"""A config's model as a function of an image size."""
from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from visattn_dense.errors import UserError
from visattn_dense.inference.allocator import keep_freed_memory
from visattn_dense.layers import optimize_for_inference

Part = Literal['model', 'backbone']


@dataclass
class Subject:
    """What is measured.

    Attributes:
        model: of mmseg or mmdet, in evaluation mode on its device.
        part: all of its networks, or its backbone alone.
        scope: 'mmseg' or 'mmdet'.
        device, dtype: where and in what it computes; below float32 by autocast.
    """

    model: nn.Module
    part: Part
    scope: str
    device: torch.device
    dtype: torch.dtype

    @property
    def measured(self) -> nn.Module:
        return self.model.backbone if self.part == 'backbone' else self.model

    def parameters(self) -> dict[str, int]:
        """Numbers of parameters: of all that is measured, and of its parts at the top level."""
        own = {name: sum(p.numel() for p in child.parameters())
               for name, child in self.measured.named_children()}
        total = sum(p.numel() for p in self.measured.parameters())
        return {'total': total} | ({} if self.part == 'backbone' else own)

    def runner(self, batch: int, height: int, width: int) -> Callable[[], object]:
        """A function that passes one batch of noise of that size through the networks.

        For a detector: backbone, neck and heads, 1000 proposals of each image and masks for the
        first 100; no post-processing.
        """
        images = torch.randn(batch, 3, height, width, device=self.device)
        samples = self._samples(batch, height, width)
        reduced = self.dtype != torch.float32

        def run() -> object:
            with torch.inference_mode(), torch.autocast(
                    self.device.type, dtype=self.dtype if reduced else torch.bfloat16,
                    enabled=reduced), DefaultScope.overwrite_default_scope(self.scope):
                if self.part == 'backbone':
                    return self.model.backbone(images)
                return self.model(images, samples, mode='tensor')

        return run

    def compile(self, dynamic: bool | None = None) -> None:
        """Compile the networks; the choice of proposals between them stays eager."""
        names = ('backbone',) if self.part == 'backbone' else (
            'backbone', 'neck', 'decode_head', 'bbox_head', 'rpn_head')
        for name in names:
            module = getattr(self.model, name, None)
            if isinstance(module, nn.Module):
                # Of the instance: mmseg calls decode_head.forward, not the module.
                module.forward = torch.compile(module.forward, dynamic=dynamic)

    def optimise(self) -> None:
        """Ready the networks for inference alone, and the allocator with them."""
        keep_freed_memory()
        optimize_for_inference(self.measured)

    def _samples(self, batch: int, height: int, width: int) -> list | None:
        if self.scope != 'mmdet':
            return None
        from mmdet.structures import DetDataSample
        meta = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1., 1.),
                    pad_shape=(height, width), batch_input_shape=(height, width))
        return [DetDataSample(metainfo=meta) for _ in range(batch)]


def load_subject(cfg: Config, *, part: Part = 'model', device: str = 'cpu',
                 dtype: torch.dtype = torch.float32,
                 checkpoint: str | os.PathLike | None = None) -> Subject:
    """Build the model of a config, without pretrained weights: speed does not depend on them.

    Args:
        cfg: a config of mmseg or mmdet; it is not changed.
        part: all networks, or the backbone alone.
        device: a torch device.
        dtype: float32, or bfloat16 and float16 by autocast.
        checkpoint: weights to load; random ones where None.

    Raises:
        UserError: no model of mmseg or mmdet in the config, an unknown device, float16 on the CPU,
            or a checkpoint that does not load or fit.
    """
    scope = cfg.get('default_scope')
    if scope not in ('mmseg', 'mmdet') or 'model' not in cfg:
        raise UserError(f'{cfg.filename} is no config of a segmentor or detector: its '
                        f'default_scope is {scope!r}, it has to be mmseg or mmdet')
    if dtype == torch.float16 and torch.device(device).type == 'cpu':
        raise UserError('CPUs do not compute in float16; --dtype bfloat16 goes')
    from visattn_dense.openmmlab.engine.launch import register_scope
    register_scope(scope)
    model_cfg = copy.deepcopy(cfg.model)
    model_cfg.backbone.pop('init_cfg', None)
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        # About losses, which have no part here.
        warnings.simplefilter('ignore')
        model = revert_sync_batchnorm(MODELS.build(model_cfg)).eval()
    if checkpoint is not None:
        _load(model, checkpoint)
    try:
        where = torch.device(device)
        model = model.to(where)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device {device!r} is not to be had here: {error}') from error
    return Subject(model, part, scope, where, dtype)


def _load(model: nn.Module, source: str | os.PathLike) -> None:
    from visattn_dense.checkpoints import read_checkpoint, unwrap
    state = dict(unwrap(read_checkpoint(source)))
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in state.items()
               if name in own and tensor.shape == own[name].shape}
    if len(fitting) < 0.95 * len(own):
        raise UserError(f'{source} fits {len(fitting)} of the {len(own)} tensors of the model: it '
                        'was made with another config')
    model.load_state_dict(fitting, strict=False)
