"""A resumed run does what the user typed: the config of the checkpoint beside that of today.

mmengine restores optimizer settings and schedulers from the checkpoint as a whole. Another learning
rate or a longer schedule in the config would change nothing. Here every difference is named, with
the value that holds. A changed rate or schedule is built anew and brought to the run's iteration.
"""
from __future__ import annotations

import ast
import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

from visattn_dense.openmmlab.engine.resume import cannot_resume

# What is compared. The model is compared by its tensors.
SECTIONS = ('optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'train_cfg', 'train_dataloader',
            'randomness')
# Text of a config beyond this is no config.
_LONGEST = 4 << 20
_ABSENT = 'absent'


def parse_config(text: Any) -> dict[str, Any] | None:
    """The entries of a config that mmengine printed, as plain values; the text is never run.

    Args:
        text: what `Config.pretty_text` gives: assignments of literals and dict(...).

    Returns:
        name -> value; an expression of another kind is kept as its text. None where the text is no
        such config.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        return None
    try:
        statements = ast.parse(text).body
        return {statement.targets[0].id: _value(statement.value) for statement in statements
                if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict' and not node.args:
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {_text(key): _value(value)
                for key, value in zip(node.keys, node.values, strict=True) if key is not None}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _text(node)


def _text(node: ast.expr) -> Any:
    return node.value if isinstance(node, ast.Constant) else ast.unparse(node)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (value then, value now), for the sections that a resumed run depends on."""
    return dict(_differences({name: then.get(name) for name in SECTIONS},
                             {name: now.get(name) for name in SECTIONS}))


def _differences(then: Any, now: Any, name: str = '') -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            yield from _differences(then.get(key, _ABSENT), now.get(key, _ABSENT),
                                    f'{name}.{key}' if name else str(key))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, pair in enumerate(zip(then, now, strict=True)):
            yield from _differences(*pair, f'{name}.{number}')
    elif then != now or type(then) is not type(now):
        yield name, (then, now)


def is_of_the_schedule(name: str) -> bool:
    """Whether a difference changes rates: mmengine would keep the values of the checkpoint."""
    return name.startswith(('optim_wrapper.optimizer', 'optim_wrapper.paramwise_cfg',
                            'param_scheduler', 'auto_scale_lr.enable'))


def _ends_with_the_run(schedulers: Any) -> bool:
    """Whether a scheduler has no end of its own: mmengine takes that of the run then."""
    if isinstance(schedulers, list):
        return any(map(_ends_with_the_run, schedulers))
    if not isinstance(schedulers, dict):
        return False
    if 'type' not in schedulers:
        return any(map(_ends_with_the_run, schedulers.values()))
    # What a metric has done to a rate cannot be done again.
    return 'end' not in schedulers and 'ReduceOnPlateau' not in str(schedulers['type'])


def report(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """A line for each difference, with the value that holds."""
    lines = []
    for name, (then, now) in changed.items():
        holds = "the checkpoint's" if name.startswith('randomness.seed') else "the config's"
        lines.append(f'{_sides(name, then, now)}; {holds} holds')
    return lines


def _sides(name: str, then: Any, now: Any) -> str:
    return f'{name}: {_short(then)} in the checkpoint, {_short(now)} in the config'


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f'{text[:117]}...'


def compare(runner: Any, meta: Mapping[str, Any], origin: Any) -> bool:
    """Name every difference between the config of a checkpoint and that of a run.

    Args:
        runner: mmengine's, about to resume.
        meta: of the checkpoint; its entry `cfg` is the text of the config.
        origin: what the checkpoint is called in a message.

    Returns:
        Whether rates differ, so that `Schedule.enter` has to be called after the resume.

    Raises:
        UserError: one of the two counts iterations and the other epochs.
    """
    then, now = parse_config(meta.get('cfg')), parse_config(runner.cfg.pretty_text)
    if not then or not now:
        runner.logger.info(f'{origin} holds no config to compare with that of this run.')
        return False
    changed = differences(then, now)
    for name in ('train_cfg.type', 'train_cfg.by_epoch'):
        if name in changed:
            then, now = changed[name]
            raise cannot_resume(origin, f'{_sides(name, then, now)}; a run goes on with the loop '
                                'that it began with')
    for line in report(changed):
        runner.logger.warning(line + '.')
    longer = any(name.startswith('train_cfg.max_') for name in changed)
    return any(map(is_of_the_schedule, changed)) or (
        longer and _ends_with_the_run(now.get('param_scheduler')))


def begins_elsewhere(runner: Any, state: Any) -> bool:
    """Whether the rates of a checkpoint began with other values than those of a run, as with
    auto_scale_lr and another batch or number of processes; says so.

    Args:
        runner: mmengine's, about to resume.
        state: the checkpoint's entry `optimizer`, checked.
    """
    if not state or not runner.cfg.get('param_scheduler'):
        return False
    own = [wrapper.optimizer.param_groups for wrapper in _wrappers(runner.optim_wrapper)]
    several = hasattr(runner.optim_wrapper, 'optim_wrappers')
    stored = [entry['param_groups'] for entry in (state.values() if several else [state])]
    for groups, others in zip(own, stored, strict=True):
        for group, other in zip(groups, others, strict=True):
            here, there = group.get('initial_lr'), other.get('initial_lr')
            if (isinstance(here, float) and isinstance(there, float)
                    and not math.isclose(here, there)):
                runner.logger.warning(f'The learning rate of the checkpoint began at {there:.4g}, '
                                      f"the config's begins at {here:.4g} with this batch; the "
                                      "config's holds.")
                return True
    return False


class Schedule:
    """Optimizer settings and schedulers as the config of today builds them.

    Args:
        runner: mmengine's, its optimizer and schedulers built, nothing resumed yet.
    """

    def __init__(self, runner: Any) -> None:
        self._settings = [[{key: copy.deepcopy(value) for key, value in group.items()
                            if key != 'params'} for group in wrapper.param_groups]
                          for wrapper in _wrappers(runner.optim_wrapper)]

    def enter(self, runner: Any) -> None:
        """Give a resumed run these settings, its schedulers brought to its iteration."""
        for wrapper, groups in zip(_wrappers(runner.optim_wrapper), self._settings, strict=True):
            for group, settings in zip(wrapper.param_groups, groups, strict=True):
                # A scheduler keeps what its parameter began with beside the value of now.
                begun = {key.removeprefix('initial_'): value for key, value in settings.items()
                         if key.startswith('initial_')}
                group.update({**settings, **begun})
        if runner.param_schedulers is None:
            return
        schedulers = runner.build_param_scheduler(copy.deepcopy(runner.cfg.param_scheduler))
        runner.param_schedulers = schedulers
        everyone = [scheduler for several in schedulers.values() for scheduler in several] if (
            isinstance(schedulers, dict)) else list(schedulers)
        if any(getattr(scheduler, 'need_val_args', False) for scheduler in everyone):
            runner.logger.warning('A scheduler that follows a metric begins anew, at the rate of '
                                  'the config: its validations are not repeated.')
        for scheduler in everyone:
            # mmengine warns of schedulers that step before their optimizer; it has stepped.
            scheduler.optimizer._global_step = 0
        # In the order in which a run takes its steps: each iteration's, and each epoch's after it.
        steps_by_epoch = [False] * runner.iter
        for epoch in range(runner.epoch, 0, -1):
            steps_by_epoch.insert(epoch * len(runner.train_dataloader), True)
        for by_epoch in steps_by_epoch:
            for scheduler in everyone:
                if scheduler.by_epoch == by_epoch:
                    scheduler.step()


def _wrappers(wrapper: Any) -> list[Any]:
    return list(wrapper.optim_wrappers.values()) if hasattr(wrapper, 'optim_wrappers') else [
        wrapper]
