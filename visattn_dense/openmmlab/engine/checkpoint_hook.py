"""mmengine's CheckpointHook in another order: at every moment there is a complete checkpoint."""
from __future__ import annotations

import os.path as osp
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from visattn_dense.atomic import remove_leftovers, write_text_whole
from visattn_dense.openmmlab.engine.running_statistics import average_statistics


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """Saves first, then writes `last_checkpoint`, then removes outdated checkpoints.

    mmengine removes first: with `max_keep_ckpts=1`, and for the best checkpoint, it removes the
    only one. mmengine also overwrites `last_checkpoint` in place. The arguments are those of
    `CheckpointHook`. `DenseRunner.save_checkpoint` makes the checkpoint file itself appear only
    when it is complete.

    In a run of several processes, a validation and a checkpoint have the same running statistics:
    see `average_statistics`.
    """

    def before_val(self, runner) -> None:
        average_statistics(runner)

    def before_train(self, runner) -> None:
        self._keep_own_names(runner)
        super().before_train(runner)
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            for leftover in remove_leftovers(self.out_dir):
                runner.logger.info(f'Removed {leftover}, which an interrupted save left behind.')

    def _keep_own_names(self, runner) -> None:
        """Forget file names from a checkpoint that are not names of this run's files.

        mmengine removes the best and the outdated checkpoints by these names. After a move of the
        run to another folder, or in a file from somebody else, the names mean other files.
        """
        info = runner.message_hub.runtime_info
        out_dir = runner.work_dir if self.out_dir in (None, runner.work_dir) else osp.join(
            self.out_dir, osp.basename(runner.work_dir.rstrip(osp.sep)))
        for key in [key for key in info if key.startswith('best_ckpt')]:
            name = osp.basename(info[key]) if isinstance(info[key], str) else ''
            # The work directory may have been moved since the save.
            own = osp.join(out_dir, name)
            if self._is_best_name(name) and osp.isfile(own) and not osp.islink(own):
                info[key] = own
                continue
            runner.logger.warning(f'{key} of the checkpoint, {ascii(info[key])[:200]}, is no '
                                  f'file of this run in {out_dir}; no file will be removed for it.')
            del info[key]
        steps = info.get('keep_ckpt_ids')
        if steps is not None and not (isinstance(steps, list) and all(
                type(step) is int for step in steps)):
            runner.logger.warning('keep_ckpt_ids of the checkpoint are no steps; left out.')
            del info['keep_ckpt_ids']

    def _is_best_name(self, name: str) -> bool:
        return name.startswith('best_') and any(
            name.endswith('_' + self.filename_tmpl.format(int(step)).replace('/', '_'))
            for step in re.findall(r'\d+', name[-80:]))

    def _save_checkpoint(self, runner) -> None:
        average_statistics(runner)
        super()._save_checkpoint(runner)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        outdated = None
        if self.max_keep_ckpts > 0:
            if not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step:
                if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                    outdated = self.keep_ckpt_ids.popleft()
                self.keep_ckpt_ids.append(step)
                runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
            backend_args=self.backend_args, **self.args)
        if is_main_process():
            write_text_whole(osp.join(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
            if outdated is not None:
                path = self.file_backend.join_path(
                    self.out_dir, self.filename_tmpl.format(outdated))
                if self.file_backend.isfile(path):
                    self.file_backend.remove(path)

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        with self._removals_deferred():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removals_deferred(self) -> Iterator[None]:
        backend = self.file_backend
        self.file_backend = deferred = _DeferredRemoval(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        for path in deferred.removed:
            # If the new best checkpoint has the name of the old one, it has replaced the old one.
            if path not in self._best_paths() and backend.isfile(path):
                backend.remove(path)

    def _best_paths(self) -> list[str | None]:
        many = getattr(self, 'best_ckpt_path_dict', {})
        return [getattr(self, 'best_ckpt_path', None), *many.values()]


class _DeferredRemoval:
    """A file backend that records the files to remove, and removes nothing."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.removed: list[str] = []

    def remove(self, path: str) -> None:
        self.removed.append(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)
