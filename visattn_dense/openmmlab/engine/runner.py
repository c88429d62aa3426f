"""mmengine's Runner for long trainings: nothing is lost, and training works on a CPU too."""
from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS, LOG_PROCESSORS, RUNNERS, Registry
from mmengine.runner import BaseLoop, LogProcessor, Runner
from torch import nn
from torch.utils.data import DataLoader

from visattn_dense.atomic import written_whole
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.engine.checkpoint_hook import AtomicCheckpointHook
from visattn_dense.openmmlab.engine.checks import check_batch_norm
from visattn_dense.openmmlab.engine.data_stream import enter_at, numbered, seed_draws
from visattn_dense.openmmlab.engine.distributed import on_first_rank
from visattn_dense.openmmlab.engine.few_launches import average_together, step_by_few_groups
from visattn_dense.openmmlab.engine.foreign import ForeignCheckpointHook
from visattn_dense.openmmlab.engine.nonfinite import NonFiniteLossHook
from visattn_dense.openmmlab.engine.pictures import PicturesHook
from visattn_dense.openmmlab.engine.resume import find_resumable, load_resumable
from visattn_dense.openmmlab.engine.resumed_config import Schedule
from visattn_dense.openmmlab.engine.seeding import IterationSeedHook
from visattn_dense.openmmlab.engine.speed import SpeedHook, SpeedLogProcessor
from visattn_dense.openmmlab.engine.validations import ValidationRecordHook
from visattn_dense.openmmlab.run_log import RUN_LOG


class ResilientMixin:
    """The additions of `DenseRunner`, for any subclass of mmengine's Runner (`cfg.runner_type`).

    - a checkpoint file appears only when it is complete;
    - resume continues from the newest checkpoint that can be loaded. The batches, augmentations and
      dropout are those of an uninterrupted run, and past data are not read again;
    - `NonFiniteLossHook` checks every loss;
    - distributed runs work on CPUs (gloo), where SyncBN becomes BN;
    - `auto_scale_lr` counts gradient accumulation;
    - every run writes pictures of itself (`PicturesHook`; `default_hooks=dict(pictures=None)` turns
      them off) and the scores of each class (`ValidationRecordHook`), and logs images per second.
    """

    started = False
    """Whether training or testing has begun its first batch."""
    schedule_changed = False
    """Whether a resumed run has other rates in its config than its checkpoint."""

    def train(self) -> nn.Module:
        loader = self._train_dataloader
        if isinstance(loader, Mapping):
            check_batch_norm(self.model.train(), loader.get('batch_size'))
        if self._resume:
            self._choose_resume()
        return super().train()

    def _choose_resume(self) -> None:
        """Choose the file to resume from, and take its seed before any data is drawn."""
        choice = on_first_rank(self._find_resume)
        if choice is None:
            self.logger.info(f'No checkpoint in {self.work_dir} to resume from: '
                             'starting from the beginning.')
            # mmengine would load any file that last_checkpoint names. load_from is still loaded.
            self._resume = False
            return
        path, seed = choice
        self.logger.info(f'Resuming from {path}.')
        self._load_from = path
        if seed is not None and seed != self._randomness_cfg.get('seed'):
            if self._randomness_cfg.get('seed') is not None:
                self.logger.warning(f'The run began with seed {seed} and goes on with this seed.')
            self._randomness_cfg.update(seed=seed)
            self.set_randomness(**self._randomness_cfg)

    def _find_resume(self) -> tuple[str, int | None] | None:
        # 'auto' (tools/train.py --resume) searches only the work directory. If there is no
        # checkpoint yet, the run begins from load_from.
        where = None if self._resume == 'auto' else self._load_from
        if where is not None and not Path(where).is_dir():
            if urlparse(str(where)).scheme not in ('', 'http', 'https', 'visattn'):
                return where, None
            return where, load_resumable(where)['meta'].get('seed')
        found = find_resumable(where or self.work_dir)
        return None if found is None else (str(found[0]), found[1].get('seed'))

    def resume(self, *args, **kwargs) -> None:
        schedule = Schedule(self)
        super().resume(*args, **kwargs)
        if self.schedule_changed:
            schedule.enter(self)
            self.logger.warning('Optimizer settings and schedulers are those of the config, '
                                f'brought to iteration {self.iter}.')
        enter_at(self.train_loop)

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        RUN_LOG.hand_over()
        return logger

    def build_log_processor(self, log_processor: Any) -> LogProcessor:
        if isinstance(log_processor, Mapping) and _means(
                log_processor.get('type') or LogProcessor, LogProcessor, LOG_PROCESSORS):
            log_processor = dict(log_processor, type=SpeedLogProcessor)
        return super().build_log_processor(log_processor)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        self._train_dataloader = numbered(self._train_dataloader)
        return super().build_train_loop(loop)

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, seed: int | None = None,
                         diff_rank_seed: bool = False) -> DataLoader:
        built = Runner.build_dataloader(dataloader, seed=seed, diff_rank_seed=diff_rank_seed)
        seed_draws(built, seed)
        return built

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        if not isinstance(get_file_backend(out_dir), LocalBackend):
            return super().save_checkpoint(out_dir, filename, *args, **kwargs)
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        try:
            with written_whole(Path(out_dir) / filename) as temporary:
                super().save_checkpoint(out_dir, temporary.name, *args, **kwargs)
        except OSError as error:
            raise UserError(f'cannot write the checkpoint {filename} into {out_dir}: {error}. '
                            'Earlier checkpoints are untouched; make room and use --resume'
                            ) from error

    @contextmanager
    def _only_in_the_log_file(self) -> Iterator[None]:
        """While the block runs, write lines below a warning to the log file, not to the screen."""
        screens = [handler for handler in self.logger.handlers
                   if type(handler) is logging.StreamHandler]
        levels = [handler.level for handler in screens]
        for handler in screens:
            handler.setLevel(max(handler.level, logging.WARNING))
        try:
            yield
        finally:
            for handler, level in zip(screens, levels, strict=True):
                handler.setLevel(level)

    def build_optim_wrapper(self, optim_wrapper: Any) -> OptimWrapper:
        # mmengine writes a line for every parameter with settings of its own: hundreds of lines.
        with self._only_in_the_log_file():
            built = super().build_optim_wrapper(optim_wrapper)
        for wrapper in built.values() if isinstance(built, OptimWrapperDict) else [built]:
            step_by_few_groups(wrapper.optimizer)
        return built

    def _log_env(self, env_cfg: dict) -> None:
        with self._only_in_the_log_file():
            super()._log_env(env_cfg)
        self.logger.info(f'Environment and config are in {self._log_dir}/{self.timestamp}.log')

    @master_only
    def dump_config(self) -> None:
        # A test leaves the config of a training in the same folder as it is.
        folder = self._log_dir if self._train_loop is None else self.work_dir
        self.cfg.dump(Path(folder, Path(self.cfg.filename or f'{self.timestamp}.py').name))

    def get_hooks_info(self) -> str:
        return ', '.join(type(hook).__name__ for hook in self.hooks)

    def register_hooks(self, default_hooks: dict | None = None,
                       custom_hooks: list | None = None) -> None:
        default_hooks = dict(default_hooks or {})
        saving = default_hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
        if isinstance(saving, Mapping) and _means(saving.get('type'), CheckpointHook, HOOKS):
            default_hooks['checkpoint'] = dict(saving, type=AtomicCheckpointHook)
        if default_hooks.setdefault('pictures', dict(type=PicturesHook)) is None:
            del default_hooks['pictures']
        super().register_hooks(default_hooks, custom_hooks)
        # The last one measures how long an iteration takes with all others.
        for kind in (_StartedHook, ForeignCheckpointHook, IterationSeedHook, NonFiniteLossHook,
                     ValidationRecordHook, SpeedHook):
            if not any(isinstance(hook, kind) for hook in self.hooks):
                self.register_hook(kind())

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        on_cpu = not torch.cuda.is_available()
        if not self.distributed or not on_cpu or is_model_wrapper(model):
            return super().wrap_model(model_wrapper_cfg, model)
        settings = dict(broadcast_buffers=False,
                        find_unused_parameters=self.cfg.get('find_unused_parameters', False))
        settings.update(model_wrapper_cfg or {})
        settings.pop('type', None)
        # gloo has no SyncBatchNorm, and DDP accepts no device_ids for a model on the CPU.
        return MMDistributedDataParallel(module=revert_sync_batchnorm(model), **settings)

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        counts = getattr(optim_wrapper, '_accumulative_counts', 1)
        if auto_scale_lr and auto_scale_lr.get('enable') and counts != 1:
            auto_scale_lr = dict(
                auto_scale_lr, base_batch_size=auto_scale_lr['base_batch_size'] / counts)
            self.logger.info(f'Gradients of {counts} batches are accumulated for each step.')
        built = (list(optim_wrapper.values()) if isinstance(optim_wrapper, OptimWrapperDict)
                 else [optim_wrapper])
        before = [wrapper.optimizer.param_groups[0].get('lr') for wrapper in built]
        super().scale_lr(optim_wrapper, auto_scale_lr)
        for wrapper, rate in zip(built, before, strict=True):
            # The log's base_lr, which mmengine leaves as it was.
            if rate and wrapper.base_param_settings:
                wrapper.base_param_settings['lr'] *= wrapper.optimizer.param_groups[0]['lr'] / rate


def _means(kind: Any, cls: type, registry: Registry) -> bool:
    """Whether a `type` in a config, a name, a path or a class, is a class itself."""
    return (registry.get(kind) if isinstance(kind, str) else kind) is cls


class _StartedHook(Hook):
    """Sets `started` at the first batch: errors before it are errors in building the run. Readies
    the averaged models, which exist from `before_run` on."""

    priority = 'HIGHEST'

    def before_train(self, runner) -> None:
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                average_together(hook.ema_model)

    def _before_iter(self, runner, batch_idx: int, data_batch=None, mode: str = 'train') -> None:
        runner.started = True


@RUNNERS.register_module()
class DenseRunner(ResilientMixin, Runner):
    """mmengine's Runner with `ResilientMixin`. With `runner_type='DenseRunner'` in a config, any
    OpenMMLab launcher uses this runner."""


def runner_class(base: type | None) -> type:
    """`DenseRunner`; or a class that joins `ResilientMixin` and another subclass of Runner.

    A runner that is not a subclass of Runner (mmengine's FlexibleRunner) is returned unchanged.
    """
    if base is None or base is Runner:
        return DenseRunner
    if issubclass(base, ResilientMixin):
        return base
    if not issubclass(base, Runner):
        logging.getLogger('visattn_dense').warning(
            f'{base.__name__} is no subclass of mmengine.runner.Runner: its checkpoints are not '
            'written atomically, and --resume repeats data')
        return base
    return type(f'Resilient{base.__name__}', (ResilientMixin, base), {})
