"""Layer-wise learning-rate decay: lower layers learn more slowly.

    rate(layer) = rate · layer_decay^(D − depth(layer))

The depth is 0 for the stem, and one more for each block (`DenseBackbone.layer_depths`). D is one
more than the depth of the last block. Heads, neck and the backbone's output norms have depth D, so
they learn at the full rate. BEiT (arXiv 2106.08254) counts in the same way. ConvNeXt (arXiv
2201.03545) gives downsampling the same depth as here, but counts three blocks as one layer.
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
    """mmengine's constructor with one more entry in `paramwise_cfg`:

        optim_wrapper = dict(
            constructor='LayerDecayConstructor',
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
            paramwise_cfg=dict(layer_decay=0.9, norm_decay_mult=0.))

    The other entries have the same meaning as in mmengine; `lr_mult` multiplies the decayed rate.
    Parameters with equal settings share a group of the optimizer. Frozen parameters are in no
    group.

    Args:
        optim_wrapper_cfg, paramwise_cfg: as in mmengine. `layer_decay` is the factor between
            neighbouring layers, in (0, 1].

    Raises:
        UserError: `layer_decay` is missing or out of range, there is no `lr`, or the model has no
            backbone of this project.
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
        """Add the groups: mmengine's, one for each parameter, with decayed rates, then merged.

        The base class calls this method for every module; `prefix` is empty for the model.
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
    """While the block runs, drop mmengine's line for each parameter: hundreds of lines."""
    logger = MMLogger.get_current_instance()

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not text.startswith('paramwise_options') and 'since its requires_grad' not in text

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
