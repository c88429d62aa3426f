"""What every validation of a run gave, class by class, and the best of each class so far.

`WORK_DIR/validations.json` holds one entry for each validation: its iteration, its metrics, and the
score of each class. A run that is resumed goes on with the entries before its iteration.
"""
from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from visattn_dense.atomic import write_text_whole

NAME = 'validations.json'
_OF_CLASS = '_precision'


@HOOKS.register_module()
class ValidationRecordHook(Hook):
    """Writes `validations.json`, and says in the log which classes were better before.

    Scores of classes are IoU in percent (mmseg's IoUMetric) or AP from 0 to 1 (mmdet's CocoMetric,
    whose `classwise` is set: of masks where the model has masks). mmseg's and mmdet's own tables
    have the scores of the present validation.
    """

    # After the line of the log about the validation.
    priority = 'LOW'

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []
        self._classes: dict[str, float | None] = {}
        self._training = False

    def before_train(self, runner) -> None:
        self._training = True
        # A checkpoint is written before the validation of its iteration, so this one counts too.
        self._entries = [entry for entry in read_validations(runner.work_dir)
                         if entry['iteration'] <= runner.iter]

    def before_val(self, runner) -> None:
        self._watch(runner.val_loop.evaluator.metrics)

    def before_test(self, runner) -> None:
        self._watch(runner.test_loop.evaluator.metrics)

    def _watch(self, metrics: list[Any]) -> None:
        """Ask for the scores of classes: mmseg's metric prints these, and returns means alone."""
        self._classes = {}
        for metric in metrics:
            if getattr(metric, 'classwise', None) is False:
                metric.classwise = True
            count = getattr(type(metric), 'total_area_to_metrics', None)
            if count is not None:
                def counted(*args: Any, of=metric, count=count, **kwargs: Any) -> Any:
                    found = count(*args, **kwargs)
                    if 'IoU' in found:
                        self._classes = dict(zip(of.dataset_meta['classes'],
                                                 map(_percent, found['IoU']), strict=False))
                    return found
                metric.total_area_to_metrics = counted

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        # mmdet gives the scores of classes first, and save_best='auto' takes the first score.
        for key in [key for key in metrics or () if key.endswith(_OF_CLASS)]:
            metrics[key] = metrics.pop(key)
        if not (self._training and metrics and is_main_process()):
            return
        classes = self._classes or {
            key.rpartition('/')[2].removesuffix(_OF_CLASS): _number(value)
            for key, value in metrics.items() if key.endswith(_OF_CLASS)}
        entry = dict(iteration=runner.iter, metrics={
            key: _number(value) for key, value in metrics.items() if not key.endswith(_OF_CLASS)},
            classes=classes)
        # A run that was killed before its next checkpoint comes to the same iteration again.
        self._entries = [old for old in self._entries if old['iteration'] < runner.iter] + [entry]
        try:
            write_text_whole(Path(runner.work_dir, NAME), '[\n' + ',\n'.join(
                json.dumps(old, ensure_ascii=False) for old in self._entries) + '\n]\n')
        except OSError as error:
            runner.logger.warning(f'{NAME} cannot be written, the training goes on: {error}')
        if classes:
            runner.logger.info(best_so_far(self._entries))


def read_validations(work_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of a run's `validations.json`; [] if there is none, or a damaged one."""
    try:
        entries = json.loads(Path(work_dir, NAME).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return []
    return list(filter(_is_entry, entries)) if isinstance(entries, list) else []


def _is_entry(entry: Any) -> bool:
    return (isinstance(entry, dict) and isinstance(entry.get('iteration'), int)
            and isinstance(entry.get('metrics'), dict) and isinstance(entry.get('classes'), dict)
            and all(score is None or isinstance(score, (int, float))
                    for score in entry['classes'].values()))


def best_of_classes(entries: list[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """The best score of each class, and the iteration of the first validation that had it."""
    best: dict[str, tuple[float, int]] = {}
    for entry in entries:
        for name, score in entry['classes'].items():
            if score is not None and (name not in best or score > best[name][0]):
                best[name] = score, entry['iteration']
    return best


def best_so_far(entries: list[Mapping[str, Any]]) -> str:
    """A table of the classes that an earlier validation had better than the last one."""
    now, best = entries[-1]['classes'], best_of_classes(entries)
    worse = {name: found for name, found in best.items()
             if now.get(name) is None or now[name] < found[0]}
    if not worse:
        return 'Best of each class so far: all in this validation.'
    width = max(5, *map(len, worse))
    lines = [f'Best of each class so far: {len(best) - len(worse)} of {len(best)} in this '
             'validation, the others before:',
             f'  {"class":<{width}}{"now":>10}{"best":>10}{"at iteration":>14}']
    for name, (score, iteration) in sorted(worse.items(), key=lambda item: item[0]):
        present = '-' if now.get(name) is None else f'{now[name]:.4g}'
        lines.append(f'  {name:<{width}}{present:>10}{score:>10.4g}{iteration:>14}')
    return '\n'.join(lines)


def _percent(value: Any) -> float | None:
    return None if np.isnan(value) else round(100 * float(value), 2)


def _number(value: Any) -> Any:
    """A JSON value: None for what is not finite, text for what is no number."""
    if isinstance(value, (bool, str)):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None
