"""Do for many parameters at once what mmengine does for one after the other.

With `paramwise_cfg`, mmengine gives every parameter a group of its own: 465 groups for UPerNet with
CSWin-T. torch updates the parameters of a group together, so such a step starts a dozen kernels for
each parameter: thousands, more than all other work of the host. `EMAHook` starts one for each.
"""
from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer


def step_by_few_groups(optimizer: Optimizer) -> None:
    """While the optimizer steps, groups with the same settings are one group.

    Outside of a step, groups, rates and checkpoints stay as they are. The numbers stay too: the
    optimizers of torch update each parameter by its own gradient and state. Optimizers of other
    libraries may not, so they are left alone.
    """
    if not type(optimizer).__module__.startswith('torch.optim.') or isinstance(optimizer, LBFGS):
        return
    plain = optimizer.step

    def step(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        own = optimizer.param_groups
        optimizer.param_groups = _joined(optimizer)
        try:
            return plain(*args, **kwargs)
        finally:
            optimizer.param_groups = own

    # A method, since schedulers ask the step for its optimizer.
    optimizer.step = MethodType(step, optimizer)


def _joined(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups, those of equal settings as one. Only the settings that the optimizer knows count.
    """
    joined: dict[Any, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        # The groups are mmengine's ConfigDict, which takes ten times as long as a dict.
        settings = tuple([dict.get(group, name) for name in optimizer.defaults])
        try:
            hash(settings)
        except TypeError:                            # a setting is a list or the like
            settings = id(group)
        if settings not in joined:
            joined[settings] = dict(dict.items(group), params=[])
        joined[settings]['params'] += group['params']
    return list(joined.values())


def average_together(averaged: BaseAveragedModel) -> None:
    """Let the model of an `EMAHook` move all parameters at once, by the same numbers.

    For averages by `lerp_`, which mmengine's exponential ones are. Others stay as they are.
    """
    kind = type(averaged)
    try:
        kind.avg_func(averaged, _Momentum(), None, averaged.steps)
    except (AttributeError, TypeError):
        return

    def update_parameters(averaged: BaseAveragedModel, model: nn.Module) -> None:
        targets: list[Tensor] = []
        sources: list[Tensor] = []

        def collect(target: Tensor, source: Tensor, steps: Tensor) -> None:
            targets.append(target)
            sources.append(source)
            if len(targets) == 1:
                kind.avg_func(averaged, momentum, None, steps)

        momentum = _Momentum()
        averaged.avg_func = collect
        try:
            kind.update_parameters(averaged, model)
        finally:
            del averaged.avg_func
        if targets:
            torch._foreach_lerp_(targets, sources, momentum.value)

    averaged.update_parameters = MethodType(update_parameters, averaged)


class _Momentum:
    """Stands for a parameter, to learn how far an average moves towards the model."""

    def lerp_(self, source: object, momentum: float) -> None:
        self.value = momentum
