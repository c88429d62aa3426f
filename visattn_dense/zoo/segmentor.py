"""Load a whole released model (backbone and heads) into a whole model here, part by part."""
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from visattn_dense.checkpoints.matching import MatchReport, StateDict, match_state_dict, unwrap
from visattn_dense.checkpoints.pretrained import fill, require_finite
from visattn_dense.checkpoints.reading import read_checkpoint, resolve
from visattn_dense.errors import UserError, few

log = logging.getLogger('visattn_dense')

# The last layers of mmseg's and mmdet's heads: their width is the number of classes.
_CLASSIFIER = re.compile(r'(^|\.)(conv_seg|fc_cls|fc_reg|conv_logits|retina_cls)\.(weight|bias)$')


def match_parts(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[StateDict, MatchReport]:
    """Find the tensors of `state` that fill each part of a model, under any names of the parts.

    Each part of the model (backbone, decode_head, ...) is searched by itself, in all its `layouts`.
    First the tensors whose names begin with the part's own name are taken. If the file has no such
    tensors and the part has other layouts, every other prefix in the file is tried, except the
    names of the model's other parts. So a released EfficientViT-Seg (`backbone.`, `head.`) fills a
    segmentor with EfficientViTSegHead. A released UPerNet of mmsegmentation 0.x, whose backbone has
    other tensor names, fills an UPerNet of today.

    Args:
        model: a segmentor or detector; it is not changed.
        state: the checkpoint's tensors.

    Returns:
        The tensors in the model's naming and shapes, and one report. If the file has no auxiliary
        head, the model's auxiliary head counts as fresh, because it acts in training only.
    """
    if all(name.startswith('module.') for name in state):
        state = {name.removeprefix('module.'): tensor for name, tensor in state.items()}
    filled: StateDict = {}
    whole = MatchReport('', '')
    layouts, prefixes = [], []
    parts = {name: part for name, part in model.named_children() if part.state_dict()}
    for name, part in parts.items():
        own, known = f'{name}.', getattr(part, 'layouts', {})
        here, prefix = dict(state), own
        if known and not any(key.startswith(own) for key in state):
            others = tuple(f'{other}.' for other in parts)
            here, prefix = {k: v for k, v in state.items() if not k.startswith(others)}, None
        found, report = match_state_dict(
            part, here, layouts=known, fresh=getattr(part, 'fresh', ()), prefix=prefix,
            adapt=getattr(part, 'adapt_tensor', None))
        if not found and name.startswith('auxiliary_head'):
            whole.fresh += [own + key for key in part.state_dict()]
            continue
        filled.update({own + key: tensor for key, tensor in found.items()})
        layouts.append(f'{name}: {report.layout}')
        prefixes.append(report.prefix)
        whole.matched += [own + key for key in report.matched]
        whole.missing += [own + key for key in report.missing]
        whole.fresh += [own + key for key in report.fresh]
        whole.adapted.update({own + key: what for key, what in report.adapted.items()})
        whole.mismatched.update({own + key: what for key, what in report.mismatched.items()})
        whole.converted.update({own + key: what for key, what in report.converted.items()})
        # Without a prefix, the tensors that one part does not use belong to the other parts.
        whole.unused += [report.prefix + key for key in report.unused if report.prefix]
    if all(prefixes):
        whole.unused += [key for key in state if not key.startswith(tuple(prefixes))]
    whole.layout = ', '.join(layouts)
    return filled, whole


def fit_whole(model: nn.Module, contents: Mapping[str, Any], *, origin: str | os.PathLike,
              min_matched: float = 1., new_classes: bool = False, training: bool = False,
              ) -> tuple[StateDict, MatchReport]:
    """The tensors of a checkpoint that fill a whole model. Every tool and hook uses this rule.

    Args:
        model: a segmentor or detector; it is not changed.
        contents: the contents of a checkpoint file.
        origin: the name of the checkpoint in an error message.
        min_matched: fraction of the model's tensors that must be filled.
        new_classes: the file may have another number of classes. Then the last layers of the heads
            keep their random weights, and the report counts these layers as fresh.
        training: auxiliary heads have to fit too. They act in training only.

    Returns:
        The tensors in the model's naming and shapes, and the report.

    Raises:
        UserError: less than `min_matched` of the model is in the file. If the numbers of classes
            differ, the message has both numbers.
    """
    filled, report = match_parts(model, unwrap(contents))
    require_fit(model, report, origin=origin, min_matched=min_matched, new_classes=new_classes,
                training=training)
    return filled, report


def require_fit(model: nn.Module, report: MatchReport, *, origin: str | os.PathLike,
                min_matched: float = 1., new_classes: bool = False, training: bool = False) -> None:
    """The rule of `fit_whole` for a report of `match_parts`, whose entries it moves to `fresh`.

    Args:
        model: a segmentor or detector.
        report: what of the model was matched.
        origin, min_matched, new_classes, training: see `fit_whole`.

    Raises:
        UserError: see `fit_whole`.
    """
    for name in list(report.mismatched):
        anew = new_classes and _CLASSIFIER.search(name)
        if anew or (not training and name.startswith('auxiliary_head')):
            report.fresh.append(f'{name} {report.mismatched.pop(name)}')
    if not training:
        unused = [name for name in report.missing if name.startswith('auxiliary_head')]
        report.fresh += unused
        report.missing = [name for name in report.missing if name not in set(unused)]
    if report.fraction < min_matched:
        count = len(report.matched) + len(report.adapted)
        other = [*(f'{name} {change}' for name, change in report.mismatched.items()),
                 *report.missing]
        raise UserError(
            f'{origin} does not fit {type(model).__name__}: it fits {count} of the '
            f'{count + len(other)} tensors and was made with another config. '
            f'{_class_counts(report)}Not fitting: {few(other)}. At least {min_matched:.0%} must '
            'match. Does the config name another arch, head or number of classes? A file of a '
            'backbone alone goes in by its init_cfg')


def _class_counts(report: MatchReport) -> str:
    """If a classifier does not fit: a sentence with the numbers of classes of file and model."""
    for name, change in report.mismatched.items():
        found = _CLASSIFIER.search(name)
        widths = re.findall(r'\((\d+)', change)
        if found and found[2] in ('conv_seg', 'fc_cls', 'conv_logits') and len(widths) == 2:
            # The classifier of boxes has one more output, for the background.
            there, here = (int(width) - (found[2] == 'fc_cls') for width in widths)
            return (f'The checkpoint was trained with {there} classes, the config has {here} '
                    f'({name}). ')
    return ''


def load_segmentor(model: nn.Module, checkpoint: str | os.PathLike, *,
                   min_matched: float = 1., new_classes: bool = False) -> MatchReport:
    """Fill a whole model from a checkpoint and report what was matched.

    Args:
        model: a segmentor (or any model of parts); changed only if enough tensors match.
        checkpoint: path, http(s) URL or 'visattn://NAME'; see `read_checkpoint`.
        min_matched: fraction of the model's tensors that must be filled. By default all tensors: a
            classifier with random weights makes every number wrong.
        new_classes: the model has other classes than the file. Then the last layers keep their
            random weights, and the report counts these layers as fresh.

    Returns:
        The report, which is also logged.

    Raises:
        FileNotFoundError, UserError: the file cannot be read; see `read_checkpoint`.
        UserError: less than `min_matched` of the model is in the file, or numbers in the file are
            not finite.
    """
    path = resolve(checkpoint)
    filled, report = fit_whole(model, read_checkpoint(path, mmap=True), origin=checkpoint,
                               min_matched=min_matched, new_classes=new_classes)
    fill(model, filled, path)
    log.info('%s from %s: %s', type(model).__name__, checkpoint, report)
    return report


def translate_checkpoint(model: nn.Module, contents: dict[str, Any], *, min_matched: float = 1.,
                         origin: str = 'the checkpoint') -> MatchReport | None:
    """Rename a foreign checkpoint's weights to the names of `model`, inside `contents`.

    Afterwards a loader that compares names, such as mmengine's runner, can load `contents`.

    Args:
        model: a segmentor or detector; it is not changed.
        contents: the contents of a checkpoint file; the entry `state_dict` is replaced where the
            weights have other names, or lie elsewhere.
        min_matched: fraction of the model's tensors that a foreign checkpoint must fill.
        origin: the name of the checkpoint in an error message.

    Returns:
        The report. None if the checkpoint's own names fill as much of the model.

    Raises:
        UserError: renaming fills more of the model, but still less than `min_matched`.
    """
    state = unwrap(contents)
    filled, report = match_parts(model, state)
    if is_native(model, state, filled):
        place_weights(contents, state)
        return None
    require_fit(model, report, origin=origin, min_matched=min_matched, training=True)
    require_finite(filled, origin)
    place_weights(contents, filled)
    return report


def place_weights(contents: dict[str, Any], state: StateDict) -> None:
    """Put weights where mmengine's loader and hooks read them: the entry `state_dict`.

    A file may have its weights under `model` or at its top, or averaged ones beside `state_dict`.
    """
    there = contents.get('state_dict')
    if not isinstance(there, Mapping) or any(
            there.get(name) is not tensor for name, tensor in state.items()):
        contents['state_dict'] = state


def is_native(model: nn.Module, state: Mapping[str, Tensor], filled: StateDict) -> bool:
    """Whether a checkpoint fills a model with its own names as well as with any other names.

    Args:
        model: a segmentor or detector.
        state: the checkpoint's tensors.
        filled: the tensors that `match_parts` found in `state`.
    """
    plain = {name.removeprefix('module.'): tensor.shape for name, tensor in state.items()}
    fitting = sum(plain.get(name) == tensor.shape for name, tensor in model.state_dict().items())
    return len(filled) <= fitting
