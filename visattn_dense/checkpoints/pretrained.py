"""load_pretrained: load any checkpoint into a backbone, or fail with a clear message."""
import logging
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from visattn_dense.errors import UserError, few

from .mapped import MappedPages
from .matching import MatchReport, StateDict, match_state_dict, unwrap
from .reading import read_checkpoint, resolve

log = logging.getLogger('visattn_dense')

# A caller who asks for at least this fraction wants every part of the model.
_WHOLE = 0.95
# Bytes copied at a time. Besides the model, loading needs a small multiple of this memory.
_PORTION = 16 << 20


def load_pretrained(model: nn.Module, checkpoint: str | os.PathLike, *,
                    prefix: str | None = None, min_matched: float = _WHOLE) -> MatchReport:
    """Fill a backbone from a checkpoint and report what was matched.

    The file may wrap its weights (`state_dict`, `state_dict_ema`, `model`, `module.`), may be a
    whole segmentor or detector (`backbone.`), and may have the authors' names or this project's
    names. The first convolution is adapted to another number of image channels. Position tables are
    adapted to another size.

    Args:
        model: the backbone; changed only if enough tensors match.
        checkpoint: path, http(s) URL or 'visattn://NAME'; see `read_checkpoint`.
        prefix: take only names that begin with this text. None: every prefix is tried.
        min_matched: fraction of the model's tensors, from 0 to 1, that must be filled. From 0.95
            on, the file also fills some tensor of every module of the first three levels.

    Returns:
        The report, which is also logged.

    Raises:
        FileNotFoundError, UserError: the file cannot be read; see `read_checkpoint`.
        UserError: less than `min_matched` of the model is in the file, or a number in the file is
            not finite.
    """
    path = resolve(checkpoint)
    state = unwrap(read_checkpoint(path, mmap=True))
    filled, report = match_state_dict(model, state, layouts=model.layouts, fresh=model.fresh,
                                      prefix=prefix, adapt=model.adapt_tensor)
    name = type(model).__name__
    if report.fraction < min_matched:
        raise UserError(
            f'{checkpoint} does not fit {name}: {report}\n'
            f'At least {min_matched:.0%} must match. Is it another family or arch? The names in '
            f'the file begin with {", ".join(list(state)[:3])}.')
    if report.lost and min_matched >= _WHOLE:
        raise UserError(f'{checkpoint} has no tensor of {few(report.lost)} in {name}, which would '
                        f'start at random: is it another arch? {report}\nTo load the rest all the '
                        f'same, set min_matched below {_WHOLE}')
    fill(model, filled, path)
    model.on_loaded(report)
    log.info('%s from %s: %s', name, checkpoint, report)
    return report


def require_finite(filled: StateDict, path: str | os.PathLike) -> None:
    """Check that every number of `filled` is finite.

    Raises:
        UserError: a number is not finite. The message names the tensors.
    """
    _report_broken(nonfinite(filled), path)


def _report_broken(broken: list[str], path: str | os.PathLike) -> None:
    if broken:
        raise UserError(f'{path} holds NaN or infinity in {few(broken)}: the training that wrote '
                        'it had diverged, or the file is damaged; nothing was loaded. Take an '
                        'earlier checkpoint')


def fill(model: nn.Module, filled: StateDict, path: str | os.PathLike) -> None:
    """Copy tensors into a model with the same names and shapes.

    Besides the model, the copying needs little memory: the tensors are copied in portions, and the
    pages of each portion that are mapped from the file are given back.

    Args:
        model: the model to fill; its precision and device stay.
        filled: name -> tensor; empty afterwards.
        path: the file of the tensors.

    Raises:
        UserError: a number is not finite; then the model is unchanged.
    """
    pages = MappedPages(path)
    broken = []
    for portion in _portions(filled):
        broken += nonfinite(portion)
        pages.release(portion.values())
    _report_broken(broken, path)
    for portion in _portions(filled):
        model.load_state_dict(portion, strict=False)
        pages.release(portion.values())
        for name in portion:
            # load_state_dict may have added the counter of a BatchNorm to `portion`.
            filled.pop(name, None)


def nonfinite(state: StateDict) -> list[str]:
    """The names of the tensors with a NaN or an infinity."""
    return [name for name, tensor in state.items()
            if tensor.is_floating_point() and not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    # One pass without a copy. If the sum overflows, look at each number.
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def _portions(state: StateDict) -> Iterator[dict[str, Tensor]]:
    """The tensors in groups of at most `_PORTION` bytes; a larger tensor is a group of its own."""
    portion, size = {}, 0
    for name, tensor in list(state.items()):
        if portion and size + tensor.nbytes > _PORTION:
            yield portion
            portion, size = {}, 0
        portion[name] = tensor
        size += tensor.nbytes
    if portion:
        yield portion
