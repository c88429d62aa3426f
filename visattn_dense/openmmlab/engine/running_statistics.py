"""The running statistics of BatchNorm in a run of several processes."""
from __future__ import annotations

from mmengine.dist import all_reduce_params, get_world_size
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def average_statistics(runner) -> None:
    """Give all processes the mean of their running means and variances.

    Each process updates the statistics of its BatchNorms with its own images, and mmengine tells
    DDP to leave them so. Without the mean, each process would score its share of a validation with
    other statistics than those of the checkpoint. All processes must call this together. SyncBN has
    one statistic for all, and a norm that does not train keeps its own.

    Args:
        runner: mmengine's runner, in training.
    """
    if get_world_size() == 1:
        return
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    # By name, because the modules of an averaged model do not say whether a norm trains.
    names = [name for name, norm in model.named_modules()
             if isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm)
             and norm.training and norm.running_mean is not None]
    averaged = [hook.ema_model.module for hook in runner.hooks
                if isinstance(hook, EMAHook) and getattr(hook, 'ema_model', None) is not None]
    for each in (model, *averaged):
        norms = [each.get_submodule(name) for name in names]
        statistics = [t for norm in norms for t in (norm.running_mean, norm.running_var)]
        if statistics:
            all_reduce_params(statistics, op='mean')
