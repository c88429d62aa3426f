"""Find the newest checkpoint that a run can continue from, and check that it belongs to the run."""
from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import IterBasedTrainLoop
from torch import Tensor

from visattn_dense.checkpoints import read_checkpoint
from visattn_dense.checkpoints.pretrained import nonfinite
from visattn_dense.errors import UserError

log = logging.getLogger('visattn_dense')

# Longer than any path that a file system takes.
_LONGEST_PATH = 4096
# More iterations or epochs than any run has.
_MOST_STEPS = 1 << 48
# Arguments that distinguish the kinds of optimizers.
_MARKS = ('betas', 'momentum', 'alpha', 'rho', 'etas', 'lambd', 'max_iter')
# Entries of the optimizer's state that have the shape of their parameter.
_LIKE_PARAMETER = ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer', 'square_avg',
                   'grad_avg', 'exp_inf', 'sum')


def load_resumable(path: str | os.PathLike) -> dict[str, Any]:
    """The contents of a checkpoint that a training run can continue from.

    Raises:
        UserError: the file is missing, damaged, or not a training checkpoint.
    """
    contents = read_checkpoint(path, mmap=True)
    _require_resumable(contents, path)
    return contents


def _require_resumable(contents: Any, path: str | os.PathLike) -> None:
    meta = contents.get('meta') if isinstance(contents, dict) else None
    if not isinstance(meta, dict) or 'iter' not in meta or 'state_dict' not in contents:
        raise UserError(f'{path} is no training checkpoint: it has weights at most, no iteration '
                        'to go on from. Use load_from=PATH to start a new run from its weights')
    for key in ('iter', 'epoch'):
        value = meta.get(key, 0)
        if type(value) is not int or not 0 <= value < _MOST_STEPS:
            raise UserError(f'{path} cannot be resumed from: its {key} is {ascii(value)[:60]}, '
                            'not a count')
    seed = meta.get('seed')
    if seed is not None and (type(seed) is not int or not 0 <= seed < 1 << 32):
        raise UserError(f'{path} cannot be resumed from: its seed is {ascii(seed)[:60]}; a seed is '
                        'from 0 to 4294967295')


def _pointer(work_dir: Path) -> tuple[Path | None, str]:
    """The path in `last_checkpoint`, and a problem with it or ''. (None, '') without the file."""
    pointer = work_dir / 'last_checkpoint'
    if not os.path.lexists(pointer):
        return None, ''
    try:
        with open(pointer, 'rb') as file:
            text = file.read(_LONGEST_PATH + 1).decode('utf-8').strip()
        if len(text) > _LONGEST_PATH or not text.isprintable():
            return None, 'last_checkpoint does not hold a path'
        named = Path(text)
        return (named, '') if text and named.is_file() else (
            (named if text and len(named.name) < 256 else None),
            f'last_checkpoint names {text[:200]}, which is not there')
    except (OSError, ValueError) as error:
        return None, f'last_checkpoint cannot be read ({error})'


def candidates(work_dir: str | os.PathLike) -> list[Path]:
    """The training checkpoints of a work directory, in the order in which to try them.

    The first is the file that `last_checkpoint` names. A file that is both newer and of a later
    step comes before it: a kill may fall between the save and the writing of `last_checkpoint`. The
    others follow, newest first. Best checkpoints, and the copies that `published_keys` makes, have
    no optimizer state and are left out.
    """
    work_dir = Path(work_dir)
    named, _ = _pointer(work_dir)
    folders = [work_dir]
    if named is not None and named.name:
        if named.parent != work_dir and named.parent.is_dir():
            folders.append(named.parent)
        # The work directory may have been moved since the save.
        if not named.is_file():
            named = work_dir / named.name
    found = {path for folder in folders for path in folder.glob('*.pth')
             if path.is_file() and not path.name.startswith(('best_', '.'))}
    found -= {path for path in found if (copy := re.fullmatch(r'(.+)-[0-9a-f]{8}', path.stem))
              and path.with_name(f'{copy[1]}.pth') in found}
    ordered = sorted(found, key=lambda path: (path.stat().st_mtime_ns, _step(path)), reverse=True)
    if named in found:
        def is_ahead(path: Path) -> bool:
            newer = path.stat().st_mtime_ns > named.stat().st_mtime_ns
            return path == named or (newer and _step(path) > _step(named))
        ordered.sort(key=is_ahead, reverse=True)
    return ordered


def _step(path: Path) -> int:
    numbers = re.findall(r'\d+', path.stem)
    return int(numbers[-1]) if numbers else -1


def find_resumable(work_dir: str | os.PathLike) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of `work_dir` that can be loaded, with its meta entry.

    The log has a line, with the reason, for each file that was passed over.

    Args:
        work_dir: the folder of the run's checkpoints.

    Returns:
        None if there is no checkpoint.

    Raises:
        UserError: there are checkpoints, but none can be loaded.
    """
    _, trouble = _pointer(Path(work_dir))
    if trouble:
        log.warning('%s.', trouble)
    paths = candidates(work_dir)
    for path in paths:
        try:
            return path, load_resumable(path)['meta']
        except UserError as error:
            log.warning('Passed over: %s.', error)
    if paths:
        raise UserError(f'none of the {len(paths)} checkpoints in {work_dir} can be resumed from '
                        f'({", ".join(path.name for path in paths[:4])}); start without --resume, '
                        'or move them away')
    return None


def cannot_resume(origin: str | os.PathLike, problem: str) -> UserError:
    """The error for a checkpoint that a run cannot go on from, with what to do instead."""
    return UserError(f'{origin} cannot be resumed from: {problem}. To start a new run from its '
                     f'weights: --cfg-options load_from={origin}, without --resume')


def check_training_state(runner: Any, contents: dict[str, Any], origin: str | os.PathLike) -> None:
    """Check that a checkpoint's training state belongs to this run, before mmengine reads it.

    Entries that mmengine would interpret, but that a run does not need, are removed. The log has a
    line for each.

    Args:
        runner: mmengine's runner, with its loop, optimizer and schedulers built.
        contents: the contents of the checkpoint; changed in place.
        origin: the name of the checkpoint in an error message.

    Raises:
        UserError: the iteration is outside the run; or optimizer or schedulers belong to another
            model or config; or a number is not finite.
    """
    _require_resumable(contents, origin)
    problem = (_steps_problem(runner, contents['meta'])
               or _optimizer_problem(runner.optim_wrapper, contents.get('optimizer'), runner.model)
               or _schedulers_problem(runner.param_schedulers, contents.get('param_schedulers'))
               or _numbers_problem(contents))
    if problem:
        raise cannot_resume(origin, problem)
    for line in clean_message_hub(contents):
        runner.logger.warning(f'Not taken over from {origin}: {line}.')


def _steps_problem(runner: Any, meta: Mapping[str, Any]) -> str:
    loop = runner.train_loop
    by_epoch = hasattr(loop, '_max_epochs') and not isinstance(loop, IterBasedTrainLoop)
    unit, limit = ('epoch', runner.max_epochs) if by_epoch else ('iter', runner.max_iters)
    done = meta.get(unit, 0)
    if done > limit:
        return (f'it has reached {unit} {done}, and train_cfg.max_{unit}s is {limit}; raise it to '
                'train on')
    return ''


def _optimizer_problem(wrapper: Any, state: Any, model: torch.nn.Module) -> str:
    if state is None:
        return ''
    if not isinstance(state, dict):
        return f'its optimizer is a {type(state).__name__}'
    if hasattr(wrapper, 'optim_wrappers'):
        if state.keys() != wrapper.optim_wrappers.keys():
            return f'its optimizers are {", ".join(map(str, state))}'
        return next(filter(None, (_optimizer_problem(wrapper[name], state[name], model)
                                  for name in state)), '')
    optimizer = wrapper.optimizer
    kind = type(optimizer).__name__
    groups, entries = state.get('param_groups'), state.get('state')
    if not (isinstance(groups, list) and isinstance(entries, dict) and all(
            isinstance(group, dict) and isinstance(group.get('params'), list)
            for group in groups)):
        return 'its optimizer has no groups of parameters, or no state'
    counts = [[len(group['params']) for group in side]
              for side in (groups, optimizer.param_groups)]
    if counts[0] != counts[1]:
        return (f'its optimizer has {sum(counts[0])} parameters in {len(counts[0])} groups, the '
                f'config {sum(counts[1])} in {len(counts[1])}: another model, or other settings '
                'for its parameters')
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        there, here = ({mark for mark in _MARKS if mark in side} for side in (group, own))
        if there != here:
            return (f'it was trained with another optimizer than {kind} (arguments '
                    f'{", ".join(sorted(there)) or "none"}; {kind} has '
                    f'{", ".join(sorted(here)) or "none"})')
        for key, value in group.items():
            if key != 'params' and not _is_finite_value(value):
                return f'its optimizer has {key} = {ascii(value)[:60]}'
        if type(group.get('lr')) not in (int, float) or group['lr'] < 0:
            return f'its learning rate is {ascii(group.get("lr"))[:60]}'
        for index, parameter in zip(group['params'], own['params'], strict=True):
            for key, value in _state_of(entries, index):
                if not isinstance(value, Tensor):
                    if not _is_finite_value(value):
                        return f'its optimizer has {key} = {ascii(value)[:60]}'
                elif (value.shape != parameter.shape if key in _LIKE_PARAMETER else
                        value.numel() > parameter.numel()):
                    return (f'its optimizer has {key} of {tuple(value.shape)} for the parameter '
                            f'{names.get(id(parameter), index)} of {tuple(parameter.shape)}')
    return ''


def _state_of(entries: Mapping[Any, Any], index: Any) -> Iterator[tuple[str, Any]]:
    entry = entries.get(index) if type(index) is int else None
    return iter(entry.items() if isinstance(entry, dict) else ())


def _is_finite_value(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite_value, value))
    return (value is None or isinstance(value, (bool, str, Tensor))
            or isinstance(value, (int, float)) and math.isfinite(value))


def _schedulers_problem(own: Any, stored: Any) -> str:
    if stored is None or own is None:
        return ''
    if isinstance(own, dict):
        if not isinstance(stored, dict) or stored.keys() != own.keys():
            return 'its schedulers are for other optimizers'
        return next(filter(None, (_schedulers_problem(own[name], stored[name])
                                  for name in own)), '')
    if not isinstance(stored, list) or not all(isinstance(entry, dict) for entry in stored):
        return 'its schedulers are no list of settings'
    if len(stored) != len(own):
        return f'it has {len(stored)} schedulers, the config {len(own)}'
    for scheduler, entry in zip(own, stored, strict=True):
        kind = type(scheduler).__name__
        for key, value in entry.items():
            if key not in vars(scheduler) or key == 'optimizer':
                return f'its scheduler has {ascii(key)[:60]}, which {kind} does not have'
            if callable(vars(scheduler)[key]):
                # How a one-cycle scheduler anneals: the config says that.
                entry[key] = vars(scheduler)[key]
            elif not _is_like(value, vars(scheduler)[key]):
                return f'its scheduler has {key} = {ascii(value)[:60]}'
    return ''


def _is_like(value: Any, own: Any) -> bool:
    """Whether a stored setting can replace the scheduler's own setting."""
    if isinstance(own, dict):
        return isinstance(value, dict) and all(_is_finite_value(v) for v in value.values())
    if isinstance(own, (list, tuple)) and own and isinstance(own[0], dict):
        # The phases of a one-cycle scheduler: numbers, and names of settings of the optimizer.
        return isinstance(value, list) and len(value) == len(own) and all(
            isinstance(phase, dict) and phase.keys() == mine.keys() and all(
                phase[key] == mine[key] if isinstance(mine[key], str) else
                _is_like(phase[key], mine[key]) for key in mine)
            for phase, mine in zip(value, own, strict=True))
    if isinstance(own, (list, tuple)):
        return isinstance(value, (list, tuple)) and _is_finite_value(value)
    if isinstance(own, bool) or isinstance(own, str):
        return type(value) is type(own)
    if isinstance(own, (int, float)):
        return type(value) in (int, float) and math.isfinite(value)
    return _is_finite_value(value)


def _numbers_problem(contents: Mapping[str, Any]) -> str:
    for entry in ('ema_state_dict', 'optimizer'):
        broken = [name for name, tensor in _tensors(entry, contents.get(entry))
                  if nonfinite({name: tensor})]
        if broken:
            return f'{", ".join(broken[:3])} hold NaN or infinity'
    return ''


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(f'{name}.{key}', inner)


def clean_message_hub(contents: dict[str, Any]) -> list[str]:
    """Remove from the message hub all entries that a run of mmengine never writes.

    The hub keeps logged numbers and settings of hooks. These become attributes of the running hub,
    so each entry has to be of the kind that its hook expects.

    Returns:
        One line for each removed entry.
    """
    hub = contents.get('message_hub')
    if not isinstance(hub, dict):
        contents['message_hub'] = dict(log_scalars={}, runtime_info={}, resumed_keys={})
        return ['the history of logged values, which has no entries']
    dropped = []
    kinds = dict(log_scalars=lambda key, value: isinstance(value, HistoryBuffer),
                 runtime_info=_is_runtime_info, resumed_keys=lambda key, value: type(value) is bool)
    for part, fits in kinds.items():
        entries = hub.get(part)
        entries = entries if isinstance(entries, dict) else {}
        hub[part] = {key: value for key, value in entries.items()
                     if isinstance(key, str) and key.isprintable() and fits(key, value)}
        dropped += [f'message_hub.{part}.{ascii(key)[:80]}' for key in entries
                    if key not in hub[part]]
    return dropped


def _is_runtime_info(key: str, value: Any) -> bool:
    if key.startswith('best_score'):
        return type(value) in (int, float) and not math.isnan(value)
    if key.startswith('best_ckpt') or key == 'last_ckpt':
        return isinstance(value, str)
    if key == 'keep_ckpt_ids':
        return isinstance(value, list) and all(type(step) is int and 0 <= step < _MOST_STEPS
                                               for step in value)
    if key in ('max_iters', 'max_epochs'):
        return type(value) is int and 0 < value < _MOST_STEPS
    return True
