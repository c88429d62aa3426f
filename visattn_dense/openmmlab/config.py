"""Reading config files and --cfg-options, without silent typos: every tool does it here."""
from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from visattn_dense.errors import UserError, did_you_mean

log = logging.getLogger('visattn_dense')

# What a config may have at its top without saying so: arguments of mmengine's Runner, and what it
# reads from cfg.
_TOP_LEVEL = {
    'model', 'work_dir', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg',
    'val_cfg', 'test_cfg', 'auto_scale_lr', 'optim_wrapper', 'param_scheduler', 'val_evaluator',
    'test_evaluator', 'default_hooks', 'custom_hooks', 'data_preprocessor', 'load_from', 'resume',
    'launcher', 'env_cfg', 'log_processor', 'log_level', 'visualizer', 'default_scope',
    'randomness', 'experiment_name', 'model_wrapper_cfg', 'find_unused_parameters', 'sync_bn',
    'compile', 'activation_checkpointing', 'efficient_conv_bn_eval', 'custom_imports',
    'runner_type', 'tta_model', 'tta_pipeline', 'env',
}


class ConfigOptions(DictAction):
    """mmengine's KEY=VALUE action, with a usage error instead of a traceback."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        wrong = [value for value in values if '=' not in value]
        if wrong:
            parser.error(f'--cfg-options takes KEY=VALUE pairs, got {" ".join(wrong)}')
        super().__call__(parser, namespace, values, option_string)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser --cfg-options; its values go to `merge_options`."""
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='change entries of the config, as in model.backbone.drop_path_rate=0.1'
                        ' or data_root=/data/ade; +KEY=VALUE adds one that looks like a typo')


def read_config(path: str) -> Config:
    """The config file at `path`, each palette in it a list of tuples: mmdet paints with no other.

    Raises:
        UserError: it is not there, or does not parse; the message says where.
    """
    file = Path(path)
    if not file.is_file():
        folder = file.parent
        names = [str(folder / p.name) for p in folder.glob('*')] if folder.is_dir() else []
        hint = (did_you_mean(str(file), [n for n in names if n.endswith(('.py', '.json', '.yaml'))])
                if names else f'The folder {folder} does not exist.' if not folder.is_dir() else '')
        raise UserError(f'no config file {path}. {hint}'.rstrip())
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise UserError(f'{path}: syntax error in line {error.lineno}: {error.msg}') from error
    except Exception as error:
        # A config is Python: anything may come out of it.
        raise UserError(f'{path} does not load: {type(error).__name__}: {error}') from error
    _paint_with_tuples(cfg)
    return cfg


def _paint_with_tuples(node: Any) -> None:
    """Make every palette below `node` a list of tuples."""
    if isinstance(node, (Mapping, Config)):
        palette = node.get('palette')
        # Names of colours, and one colour for all classes, stay as they are.
        if isinstance(palette, (list, tuple)) and all(isinstance(c, list | tuple) for c in palette):
            node['palette'] = [tuple(colour) for colour in palette]
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            _paint_with_tuples(value)


def merge_options(cfg: Config, options: Mapping[str, Any] | None) -> None:
    """Apply --cfg-options.

    mmengine takes any key and ignores those that nothing reads. Here a key that is not in the
    config is refused where it looks like one that is; a key unlike any other is a new argument
    (`model.backbone.with_cp=True`) and is named in a line. A leading + says that it is meant.

    A new `data_root` replaces the old one wherever a path of the config begins with it. Where the
    config has a tuple, the value `a,b` becomes one. A loader that ends with num_workers=0 has no
    workers to keep: persistent_workers and prefetch_factor are dropped from it.

    Raises:
        UserError: a key that looks like a typo, or an index outside a list.
    """
    wanted = {}
    for key, value in (options or {}).items():
        if not key.startswith('+'):
            _check_key(cfg, key)
        key = key.removeprefix('+')
        wanted[key] = _like(_entry(cfg, key), value)
    _check_variables(cfg, wanted)
    old_root = cfg.get('data_root')
    try:
        cfg.merge_from_dict(wanted)
    except (KeyError, TypeError, AssertionError) as error:
        raise UserError(f'--cfg-options {" ".join(wanted)}: {error}') from error
    if old_root and 'data_root' in wanted:
        # The datasets hold copies of it: a variable of a config file is gone once it is read.
        _move_root(cfg, str(old_root), str(wanted['data_root']))
    _drop_idle_workers(cfg)


def _entry(cfg: Config, key: str) -> Any:
    """The entry of the config that `key` names; None where there is none."""
    node: Any = cfg
    for part in key.split('.'):
        if isinstance(node, (list, tuple)):
            node = node[int(part)] if part.isdigit() and int(part) < len(node) else None
        else:
            node = node.get(part) if isinstance(node, (Mapping, Config)) else None
    return node


def _like(old: Any, new: Any) -> Any:
    """`new` with tuples where `old` has them: --cfg-options makes a list of `a,b`."""
    if not isinstance(new, list) or not isinstance(old, (list, tuple)):
        return new
    # A longer list goes on as the old one ends.
    last = len(old) - 1
    inner = [_like(old[min(i, last)], value) for i, value in enumerate(new)] if old else new
    return tuple(inner) if isinstance(old, tuple) else inner


def _drop_idle_workers(cfg: Config) -> None:
    """Take from a loader without workers what torch refuses then."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if not isinstance(loader, Mapping) or loader.get('num_workers'):
            continue
        for option in ('persistent_workers', 'prefetch_factor'):
            if loader.get(option):
                del loader[option]
                log.warning('%s has num_workers=0: %s is switched off.', name, option)


def _move_root(node: Any, old: str, new: str) -> None:
    """Replace a data root wherever a path below `node` is it or lies in it."""
    entries = enumerate(node) if isinstance(node, list) else list(node.items())
    for key, value in entries:
        if isinstance(value, (dict, list)):
            _move_root(value, old, new)
        elif isinstance(value, str) and (value + '/').startswith(old.rstrip('/') + '/'):
            node[key] = new.rstrip('/') + value[len(old.rstrip('/')):]


def _check_variables(cfg: Config, wanted: Mapping[str, Any]) -> None:
    """Refuse to change what nobody reads any more: variables that a config file computes with."""
    for key in wanted:
        if key in cfg and key not in _TOP_LEVEL and key != 'data_root':
            raise UserError(f'--cfg-options {key}: {key} is a variable of the config file, and the '
                            'entries that were made with it are made already. Change those (for '
                            'example train_cfg.max_iters), or change it in a copy of the file')


def _check_key(cfg: Config, key: str) -> None:
    node: Any = cfg
    parts = key.split('.')
    for depth, part in enumerate(parts):
        here = '.'.join(parts[:depth]) or 'the config'
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(f'--cfg-options {key}: {here} is a list of {len(node)}, '
                                f'and {part!r} is no index into it')
            node = node[int(part)]
        elif isinstance(node, (Mapping, Config)):
            if part not in node:
                if depth or part not in _TOP_LEVEL:
                    _refuse_typo(key, part, here, node if depth else {*node, *_TOP_LEVEL})
                    log.warning('--cfg-options %s: %s had no %r; added as a new entry.',
                                key, here, part)
                return
            node = node[part]
        elif node is None:
            return
        else:
            raise UserError(f'--cfg-options {key}: {here} is {node!r} and has no entries')


def _refuse_typo(key: str, part: str, here: str, known: Iterable[str]) -> None:
    near = get_close_matches(part, list(known), n=2, cutoff=0.75)
    if near:
        raise UserError(f'--cfg-options {key}: {here} has no {part!r}. Did you mean '
                        f'{" or ".join(map(repr, near))}? (If you mean {part!r}: +{key}=...)')
