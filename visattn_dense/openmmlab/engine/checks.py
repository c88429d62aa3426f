"""Find mistakes before a training begins, and report each in one message."""
from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from torch import nn

from visattn_dense.errors import UserError, did_you_mean, few
from visattn_dense.openmmlab.config import entries, type_name

_NEEDED = {'train': ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'),
           'test': ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')}


def check_entries(cfg: Config, task: str) -> None:
    """Check that the config has every entry that `task` ('train', 'test') needs.

    Raises:
        UserError: entries are missing. The message names these and similar entries of the config.
    """
    missing = [name for name in _NEEDED[task] if cfg.get(name) is None]
    if missing:
        others = [key for key in cfg if key not in _NEEDED[task]]
        raise UserError(f'the config {cfg.filename} has no {" and no ".join(missing)}, which '
                        f'{task}ing needs. {did_you_mean(missing[0], others)}')


def check_loop(cfg: Config) -> None:
    """Check that the training has an iteration, and that its validations have an interval.

    Raises:
        UserError: a number below 1. The message names the entry.
    """
    for key in ('max_iters', 'max_epochs', 'val_interval'):
        value = cfg.train_cfg.get(key)
        if isinstance(value, (int, float)) and value < 1 and (
                key != 'val_interval' or cfg.get('val_cfg') is not None):
            hint = '; --no-validate trains without validations' if key == 'val_interval' else ''
            raise UserError(f'train_cfg.{key} is at least 1, got {value}{hint}')


def check_folder(path: str, what: str, option: str) -> None:
    """Check that a folder exists or can be made, and that files can be written there.

    Args:
        path: the folder.
        what: the folder in words, for the message.
        option: the option that names another folder.

    Raises:
        UserError: the folder cannot be used.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f'cannot write to {what} {path}: {error.strerror}; choose another with '
                        f'{option}') from error


def check_weights(cfg: Config) -> None:
    """Check that the files of pretrained weights in the config exist.

    Raises:
        UserError: a file is missing. The message names the entry and the file.
    """
    named = [(f'{name}.{key}', entry[key]) for name, entry in entries(cfg.model, 'model')
             for key in ('checkpoint', 'pretrained') if isinstance(entry.get(key), str)
             and (key == 'pretrained' or entry.get('type') == 'Pretrained')]
    # With resume=True, load_from is the file to resume from; the runner checks this file.
    if isinstance(cfg.get('load_from'), str) and cfg.get('resume') is not True:
        named.append(('load_from', cfg.load_from))
    for entry, source in named:
        # An address (https://, torchvision://, ...) is checked when the run loads it.
        if '://' in source or Path(source).expanduser().exists():
            continue
        raise UserError(f'{entry} names the file {source}, which does not exist')


def check_class_weights(cfg: Config) -> None:
    """Check that every list of class weights has one weight for each output of its loss.

    Raises:
        UserError: a list is too short or too long. The message has the entry and both lengths.
    """
    for name, head in entries(cfg.model, 'model'):
        for key in ('loss_decode', 'loss_cls') if isinstance(head.get('num_classes'), int) else ():
            losses = head.get(key)
            for loss in losses if isinstance(losses, (list, tuple)) else [losses]:
                weights = loss.get('class_weight') if isinstance(loss, Mapping) else None
                if isinstance(weights, (list, tuple)):
                    _compare_weights(f'{name}.{key}.class_weight', len(weights), head, loss, key)


def _compare_weights(entry: str, found: int, head: Mapping, loss: Mapping, key: str) -> None:
    # A softmax over boxes or queries has one more output, for "no object". mmseg's SAN has such a
    # loss in loss_decode, with the name loss_cls_ce.
    of_objects = key == 'loss_cls' or 'loss_cls' in loss.get('loss_name', '')
    needed = head['num_classes'] + int(of_objects and not loss.get('use_sigmoid'))
    if not of_objects:
        needed = head.get('out_channels') or needed
    if found != needed:
        raise UserError(f'{entry} has {found} weights, and the loss has {needed} outputs '
                        f'(num_classes={head["num_classes"]}{", background" if of_objects else ""}'
                        '). Give one weight for each output, in the order of the classes')


def learning_rate_message(cfg: Config, world_size: int) -> str | None:
    """A line about the learning rate if the real batch differs from the config's; else None."""
    scale = cfg.get('auto_scale_lr') or {}
    base = scale.get('base_batch_size')
    loader = cfg.train_dataloader
    batch = loader.get('batch_size') if isinstance(loader, Mapping) else None
    if not base or not batch:
        return None
    wrapper = cfg.optim_wrapper
    steps = wrapper.get('accumulative_counts', 1) if isinstance(wrapper, Mapping) else 1
    real = world_size * batch * steps
    if real == base:
        return None
    parts = f'{world_size} process{"es" if world_size > 1 else ""} x {batch} images'
    parts += f' x {steps} accumulated' if steps > 1 else ''
    if scale.get('enable'):
        return (f'The learning rate is scaled by {real / base:g}: the real batch is {real} '
                f'({parts}), the config is made for {base}.')
    return (f'The learning rate is made for a batch of {base}, the real batch is {real} ({parts}): '
            f'it is {_times(base / real)} for it. --auto-scale-lr multiplies it by '
            f'{real / base:g}.')


def _times(factor: float) -> str:
    return (f'{factor:g} times too high' if factor > 1 else f'{1 / factor:g} times too low')


def accumulation_message(cfg: Config) -> str | None:
    """A line if checkpoints fall between the batches of one accumulated step; else None."""
    steps = cfg.optim_wrapper.get('accumulative_counts', 1)
    saving = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    interval = saving.get('interval', -1)
    if steps > 1 and not saving.get('by_epoch', True) and interval > 0 and interval % steps:
        return (f'Checkpoints every {interval} iterations fall between the {steps} batches of one '
                'step; a resumed run loses their gradients. Make the interval a multiple.')
    return None


def count_sync_bn(model: Mapping) -> int:
    """How many entries of a model config are synchronized batch norms."""
    return sum(type_name(entry) in ('SyncBN', 'SyncBatchNorm', 'MMSyncBN')
               for _, entry in entries(model))


def unused_parameters_message(model: nn.Module, error: str) -> str | None:
    """Explain DDP's error about parameters without a gradient; None for another error."""
    found = re.search(r'did not receive grad for rank \d+: ([\d ]+)', error)
    if found is None:
        return None
    names = [name for name, value in model.module.named_parameters() if value.requires_grad]
    unused = [names[int(index)] for index in found[1].split()]
    return (f'{len(unused)} parameters take no part in the loss, which distributed training has to '
            f'know: {few(unused)}. Leave them out of '
            'the model (out_indices, frozen_stages), or add --cfg-options '
            'find_unused_parameters=True, which costs a little time in every iteration')


def check_batch_norm(model: nn.Module, batch_size: int) -> None:
    """Check that every BatchNorm in training gets at least two values for each channel.

    After a pool to 1×1, as in the heads of PSPNet, UPerNet and DeepLab, one image gives one value.

    Args:
        model: in training mode.
        batch_size: images of one process.

    Raises:
        UserError: a BatchNorm gets one value. The message names the first such module.
    """
    if batch_size != 1:
        return
    for name, parent in model.named_modules():
        children = list(parent.children()) if isinstance(parent, nn.Sequential) else []
        for number, child in enumerate(children):
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                for later in children[number + 1:]:
                    # nn.SyncBatchNorm sees the images of all processes.
                    if any(isinstance(module, nn.BatchNorm2d) and module.training
                           for module in later.modules()):
                        raise UserError(_lone_value(name))


def _lone_value(name: str) -> str:
    return (f'BatchNorm in {name} has one value for each channel in a batch of one image: it '
            'stands behind a pool to 1x1. Use train_dataloader.batch_size=2 or more (with '
            'drop_last=True if one image is left over), SyncBN on several GPUs, or '
            "norm_cfg=dict(type='GN', num_groups=32) in the head")


def lone_value_message(model: nn.Module, error: BaseException) -> str | None:
    """Explain torch's error about one value for each channel; None for another error."""
    if 'Expected more than 1 value per channel' not in str(error):
        return None
    names = {id(module): name for name, module in model.named_modules()}
    trace, found = error.__traceback__, 'a module'
    while trace is not None:
        module = trace.tb_frame.f_locals.get('self')
        found = names.get(id(module)) or found
        trace = trace.tb_next
    return _lone_value(found)


def root_cause(error: BaseException) -> str:
    """The cause of a failed build, without mmengine's chain of wrapping messages."""
    cause = error
    while cause.__cause__ is not None or (cause.__context__ is not None
                                          and not cause.__suppress_context__):
        cause = cause.__cause__ or cause.__context__
    text = str(error) if cause is error else f'{error} ({type(cause).__name__}: {cause})'
    name = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
    return name + text.strip('\'"')


def message_of(error: BaseException) -> str:
    """The message of an error; without the traceback if the error comes from a data worker."""
    text = str(error)
    if 'Original Traceback' in text:
        text = text.rstrip().rpartition('UserError: ')[2]
    return text
