"""Config files and --cfg-options for every tool. A typo in an option is an error."""
from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from visattn_dense.errors import UserError, did_you_mean, few

log = logging.getLogger('visattn_dense')

# Keys that are valid at the top of a config even if the config lacks them: the arguments of
# mmengine's Runner, and the keys that mmengine reads from the config.
_TOP_LEVEL = {
    'model', 'work_dir', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg',
    'val_cfg', 'test_cfg', 'auto_scale_lr', 'optim_wrapper', 'param_scheduler', 'val_evaluator',
    'test_evaluator', 'default_hooks', 'custom_hooks', 'data_preprocessor', 'load_from', 'resume',
    'launcher', 'env_cfg', 'log_processor', 'log_level', 'visualizer', 'default_scope',
    'randomness', 'experiment_name', 'model_wrapper_cfg', 'find_unused_parameters', 'sync_bn',
    'compile', 'activation_checkpointing', 'efficient_conv_bn_eval', 'custom_imports',
    'runner_type', 'tta_model', 'tta_pipeline', 'env', 'strategy',
}


class ConfigOptions(DictAction):
    """mmengine's KEY=VALUE action, with a usage error instead of a traceback. Paths and names keep
    their spaces."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        wrong = [value for value in values if '=' not in value]
        if wrong:
            parser.error(f'--cfg-options takes KEY=VALUE pairs, got {" ".join(wrong)}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:
            parser.error(f'--cfg-options: {error}')

    @staticmethod
    def _parse_iterable(text: str) -> Any:
        plain = text.strip('\'\" ')
        if ',' not in plain and plain[:1] not in ('(', '['):
            return DictAction._parse_int_float_bool(plain)
        # mmengine drops every space: those inside the elements are hidden from it.
        tight = re.sub(r' *([,()\[\]]) *', r'\1', text).replace(' ', _HIDDEN)
        return _with_spaces(DictAction._parse_iterable(tight))


_HIDDEN = '\0'


def _with_spaces(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_with_spaces, value))
    return value.replace(_HIDDEN, ' ') if isinstance(value, str) else value


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser --cfg-options; its values go to `merge_options`."""
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='change entries of the config, as in model.backbone.drop_path_rate=0.1'
                        ' or data_root=/data/ade; +KEY=VALUE adds one that looks like a typo')


def read_config(path: str) -> Config:
    """The config file at `path`. Every palette becomes a list of tuples, which mmdet needs, and
    every class of a config of pure Python its path, as in the config's copy in a work directory.

    Raises:
        UserError: the file does not exist or cannot be parsed; the message names the line.
    """
    file = Path(path)
    if file.is_dir():
        configs = few(sorted(str(config) for config in file.glob('*.py')))
        raise UserError(f'{path} is a folder, and a config file was expected'
                        + (f': {configs}?' if configs else ''))
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
        # A config is Python, so it may raise anything.
        raise UserError(f'{path} does not load: {type(error).__name__}: {error}') from error
    _name_classes(cfg)
    _paint_with_tuples(cfg)
    return cfg


def entries(node: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """Every dict in a config, the outer ones first, with its name as --cfg-options takes it.

    Args:
        node: the config, or a part of it.
        name: of `node`, for example 'model'.
    """
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, (Mapping, Config)):
        yield name, node
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    for key, value in children:
        yield from entries(value, f'{name}.{key}' if name else str(key))


def type_name(entry: Mapping[str, Any]) -> str:
    """The name of the class that an entry's `type` means, without its scope or module."""
    return str(entry.get('type')).rpartition('.')[2]


def dataset_of_test(cfg: Config) -> Mapping[str, Any]:
    """The test data set of a config, inside its wrappers; empty if the config has none."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def _name_classes(cfg: Config) -> None:
    """Name every class that stands as a `type` by its path."""
    for _, entry in list(entries(cfg)):
        kind = entry.get('type')
        if isinstance(kind, type):
            entry['type'] = f'{kind.__module__}.{kind.__qualname__}'


def _paint_with_tuples(cfg: Config) -> None:
    """Make every palette of a config a list of tuples."""
    for _, entry in list(entries(cfg)):
        palette = entry.get('palette')
        # A palette may also be a name, or one colour for all classes; such a palette stays.
        if isinstance(palette, (list, tuple)) and all(isinstance(c, list | tuple) for c in palette):
            entry['palette'] = [tuple(colour) for colour in palette]


def merge_options(cfg: Config, options: Mapping[str, Any] | None) -> None:
    """Apply --cfg-options.

    mmengine accepts any key, and nothing reads a misspelt key. Here a key that the config lacks is
    refused if it resembles a key of the config. A key that resembles no other key is a new argument
    (`model.backbone.with_cp=True`); a warning names the new argument. A leading + adds any key.

    A new `data_root` replaces the old one in every path of the config that begins with it. The
    value `a,b` becomes a tuple where the config has a tuple. A loader with num_workers=0 loses
    persistent_workers and prefetch_factor, which torch accepts only with workers.

    Raises:
        UserError: a key looks like a typo, an index is outside a list, or a key is a variable of
            the config file.
    """
    wanted = {}
    for key, value in (options or {}).items():
        if not key.startswith('+'):
            _check_key(cfg, key)
        key = key.removeprefix('+')
        wanted[key] = _like(_entry(cfg, key), value)
    _check_variables(cfg, [key for key in options or {} if not key.startswith('+')])
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
    """The entry of the config that `key` names; None if there is no such entry."""
    node: Any = cfg
    for part in key.split('.'):
        if isinstance(node, (list, tuple)):
            node = node[int(part)] if part.isdigit() and int(part) < len(node) else None
        else:
            node = node.get(part) if isinstance(node, (Mapping, Config)) else None
    return node


def _like(old: Any, new: Any) -> Any:
    """`new` with tuples where `old` has tuples; --cfg-options turns `a,b` into a list."""
    if not isinstance(new, list) or not isinstance(old, (list, tuple)):
        return new
    # If `new` is longer, its further values follow the last value of `old`.
    last = len(old) - 1
    inner = [_like(old[min(i, last)], value) for i, value in enumerate(new)] if old else new
    return tuple(inner) if isinstance(old, tuple) else inner


def _drop_idle_workers(cfg: Config) -> None:
    """Remove options that torch refuses for a loader without workers."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if not isinstance(loader, Mapping) or loader.get('num_workers'):
            continue
        for option in ('persistent_workers', 'prefetch_factor'):
            if loader.get(option):
                del loader[option]
                log.warning('%s has num_workers=0: %s is switched off.', name, option)


def _move_root(node: Any, old: str, new: str) -> None:
    """Replace the data root in every path below `node` that is the root or lies inside it."""
    entries = enumerate(node) if isinstance(node, list) else list(node.items())
    for key, value in entries:
        if isinstance(value, (dict, list)):
            _move_root(value, old, new)
        elif isinstance(value, str) and (value + '/').startswith(old.rstrip('/') + '/'):
            node[key] = new.rstrip('/') + value[len(old.rstrip('/')):]


def _check_variables(cfg: Config, wanted: Iterable[str]) -> None:
    """Refuse to change a variable of the config file: entries made with it would not change."""
    for key in wanted:
        name = key.split('.')[0]
        # A config may have entries that its own code reads: a + in front is for these.
        if name in cfg and name not in _TOP_LEVEL and name != 'data_root':
            raise UserError(f'--cfg-options {key}: {name} is a variable of the config file, and '
                            'the entries that were made with it are made already. Change those '
                            '(for example train_cfg.max_iters), or change it in a copy of the '
                            f'file. (If your own code reads it: +{key}=...)')


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
