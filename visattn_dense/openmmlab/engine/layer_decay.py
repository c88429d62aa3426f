"""Layer-wise learning-rate decay: the deeper a layer lies below the heads, the slower it learns.

    rate(layer) = rate · layer_decay^(D − depth(layer))

depth: 0 for the stem, then one more for each block (`DenseBackbone.layer_depths`); D, one more than
the last block's, is the depth of the heads, the neck and the backbone's output norms, which
therefore learn at the full rate. So in BEiT (arXiv 2106.08254) and, for what leads from stage to
stage, ConvNeXt (arXiv 2201.03545), which groups its blocks by three where here each is a layer.
"""
from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from visattn_dense.errors import UserError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with one entry more in `paramwise_cfg`:

        optim_wrapper = dict(
            constructor='LayerDecayConstructor',
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
            paramwise_cfg=dict(layer_decay=0.9, norm_decay_mult=0.))

    The other entries mean what they mean there; `lr_mult` multiplies the decayed rate. Parameters
    of equal settings share a group of the optimizer. Frozen parameters are in none.

    Args:
        optim_wrapper_cfg, paramwise_cfg: as mmengine's. `layer_decay` is the factor between
            neighbouring layers, in (0, 1].

    Raises:
        UserError: no such factor, no `lr`, or a model without a backbone of this project.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.layer_decay = (paramwise_cfg or {}).get('layer_decay')
        if not isinstance(self.layer_decay, (int, float)) or not 0 < self.layer_decay <= 1:
            raise UserError('LayerDecayConstructor takes paramwise_cfg=dict(layer_decay=...), the '
                            'factor from one layer to the one below, above 0 and at most 1; got '
                            f'{self.layer_decay!r}')
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        if self.base_lr is None:
            raise UserError('layer_decay scales optimizer.lr, which is not in the config')

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '',
                   is_dcn_module: int | float | None = None) -> None:
        """mmengine's groups, one for each parameter, decayed and put together.

        The base class walks down the modules by calling this; `prefix` is empty for the model.
        """
        if prefix:
            super().add_params(params, module, prefix, is_dcn_module)
            return
        single: list[dict] = []
        with _without_parameter_lines():
            super().add_params(single, module)
        params += self._decayed(single, module)

    def _decayed(self, single: list[dict], model: nn.Module) -> list[dict]:
        backbone = getattr(model, 'backbone', None)
        backbone = backbone.module if is_model_wrapper(backbone) else backbone
        if not hasattr(backbone, 'layer_depths'):
            raise UserError('layer_decay needs a backbone of visattn_dense, which knows the depth '
                            f'of its layers; model.backbone is a {type(backbone).__name__}. Take '
                            'the line constructor=... out of optim_wrapper')
        top = len(backbone.layer_groups())
        named = dict(backbone.named_parameters())
        depths = {id(named[name]): depth for name, depth in backbone.layer_depths().items()}
        groups: dict[str, dict[str, Any]] = {}
        for entry in single:
            settings = {'lr': self.base_lr, **entry}
            (parameter,) = settings.pop('params')
            settings['lr'] *= self.layer_decay ** (top - depths.get(id(parameter), top))
            group = groups.setdefault(repr(sorted(settings.items())), {'params': [], **settings})
            group['params'].append(parameter)
        MMLogger.get_current_instance().info(
            f'Layer decay {self.layer_decay}: {top} layers of the backbone, from '
            f'{self.base_lr * self.layer_decay ** top:.3g} for the stem to {self.base_lr:.3g} for '
            f'the heads, before warm-up; {len(groups)} groups of parameters.')
        return list(groups.values())


@contextmanager
def _without_parameter_lines() -> Iterator[None]:
    """mmengine writes a line for each parameter: hundreds, half of them as warnings."""
    logger = MMLogger.get_current_instance()

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not text.startswith('paramwise_options') and 'since its requires_grad' not in text

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
