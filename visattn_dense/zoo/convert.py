"""From whatever a checkpoint is to a file of weights alone, in this project's names."""
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visattn_dense.atomic import written_whole
from visattn_dense.checkpoints.matching import MatchReport, StateDict, unwrap
from visattn_dense.checkpoints.pretrained import nonfinite
from visattn_dense.errors import UserError, did_you_mean
from visattn_dense.registry import BACKBONES

from .heads import efficientvit_seg
from .recognise import recognise

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


def native_state(state: StateDict, report: MatchReport, layouts: Mapping[str, Any], *,
                 heads: bool = True) -> StateDict:
    """The tensors of `state` in this project's names.

    Args:
        state: the tensors as they are in the file.
        report: how the backbone in it was matched.
        layouts: those of the backbone's class.
        heads: keep what is not the backbone's. In a whole model it keeps its names, which
            mmsegmentation and mmdetection have not changed since 0.x; EfficientViT's own head gets
            those that it has here. A classifier is left out all the same: no dense model has one.

    Returns:
        The backbone's tensors, under 'backbone.' where there are others.
    """
    layout = layouts.get(report.layout, dict)
    ours = {name[len(report.prefix):]: tensor for name, tensor in state.items()
            if name.startswith(report.prefix)}
    backbone = {name: tensor for name, tensor in layout(ours).items()
                if name not in set(report.unused)}
    # 'module.backbone.' has 'module.decode_head.' beside it.
    around = report.prefix.removesuffix('backbone.')
    others = _native_heads({name.removeprefix(around): tensor for name, tensor in state.items()
                            if not name.startswith(report.prefix)})
    if not heads or not others:
        return backbone
    return {f'backbone.{name}': tensor for name, tensor in backbone.items()} | others


def _native_heads(others: StateDict) -> StateDict:
    """EfficientViT calls both its classifier and its segmentation head `head`."""
    head = {name.removeprefix('head.'): tensor for name, tensor in others.items()
            if name.startswith('head.')}
    named = {name: tensor for name, tensor in others.items() if not name.startswith('head.')}
    if any(name.startswith('input_ops.') for name in head):
        named |= {f'decode_head.{name}': tensor for name, tensor in efficientvit_seg(head).items()}
    return named


def implied_buffers(model: nn.Module, report: MatchReport) -> StateDict:
    """What a file does not hold and yet decides: buffers that the model's `on_loaded` sets.

    T2T-ViT's released files imply the scale of their attention.

    Args:
        model: a backbone without memory for its weights, which is used up.
        report: how a file was matched with it.
    """
    found = {}
    for name, buffer in list(model.named_buffers()):
        if name in report.fresh and buffer.is_floating_point():
            owner, _, leaf = name.rpartition('.')
            found[name] = torch.full(buffer.shape, torch.nan)
            model.get_submodule(owner)._buffers[leaf] = found[name]
    model.on_loaded(report)
    return {name: buffer for name, buffer in found.items() if not buffer.isnan().any()}


def convert(contents: Any, *, family: str | None = None, heads: bool = True,
            dtype: str | None = None) -> tuple[StateDict, str]:
    """The weights in this project's names, and what they were recognised as.

    Args:
        contents: a checkpoint's; see `read_checkpoint`.
        family: the class in `BACKBONES`, where recognition is not to be trusted.
        heads: keep the heads of a whole model.
        dtype: 'float32', 'float16' or 'bfloat16' for floating tensors; None leaves them.

    Raises:
        UserError: no family here fits, or some of the numbers are not finite.
    """
    state = unwrap(contents)
    candidates = recognise(state)
    if family is not None:
        if family not in BACKBONES:
            raise UserError(f'there is no family {family!r}. {did_you_mean(family, BACKBONES)}')
        candidates = [found for found in candidates if found.family == family]
        if not candidates:
            raise UserError(f'the checkpoint does not fit {family}; leave the family out to have '
                            'it recognised')
    found = candidates[0]
    cls = BACKBONES.get(found.family)
    state = native_state(state, found.report, cls.layouts, heads=heads)
    with torch.device('meta'):
        backbone = cls(found.arch)
    inside = 'backbone.' if any(name.startswith('backbone.') for name in state) else ''
    state |= {inside + name: buffer
              for name, buffer in implied_buffers(backbone, found.report).items()}
    if broken := nonfinite(state):
        raise UserError(f'{len(broken)} tensors hold NaN or infinity: {", ".join(broken[:5])}')
    archs = ' or '.join(dict.fromkeys(candidate.arch for candidate in candidates
                                      if candidate.family == found.family))
    return _as_dtype(state, dtype), f'{found.family} {archs}: {found.report}'


def extract(contents: Any, part: str = 'backbone') -> StateDict:
    """The tensors of one part of a trained model, its name taken off theirs.

    Args:
        contents: a checkpoint's; see `read_checkpoint`.
        part: 'backbone', 'decode_head', 'neck', ...; the dotted name of a part of a part also goes.

    Raises:
        UserError: there is no such part; the message names those that are.
    """
    state = {name.removeprefix('module.'): tensor for name, tensor in unwrap(contents).items()}
    found = {name[len(part) + 1:]: tensor for name, tensor in state.items()
             if name.startswith(f'{part}.')}
    if not found:
        parts = dict.fromkeys(name.split('.')[0] for name in state)
        raise UserError(f'the checkpoint has no part {part!r}. {did_you_mean(part, parts)} '
                        f'It has {", ".join(list(parts)[:12])}')
    return found


def save_state(state: StateDict, path: str | os.PathLike, *, metadata: Mapping[str, str],
               overwrite: bool = False) -> None:
    """Write weights as safetensors or with torch.save, by the suffix, whole or not at all.

    Args:
        state: name -> tensor.
        path: *.safetensors, *.pth, *.pt, *.pth.tar or *.bin.
        metadata: what to say about them in the file; safetensors keeps it in its header.
        overwrite: replace a file that is there.

    Raises:
        UserError: another suffix; or a file is there already.
    """
    path = Path(path)
    if not re.search(r'\.(safetensors|pth|pt|pth\.tar|bin)$', path.name):
        raise UserError(f'{path} has to end in .safetensors or .pth')
    if path.exists() and not overwrite:
        raise UserError(f'{path} is there already; choose another name or say --overwrite')
    # One storage for each tensor: parts of others would bring all of their bytes along.
    state = {name: tensor.detach().clone(memory_format=torch.contiguous_format)
             for name, tensor in state.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            if path.suffix == '.safetensors':
                from safetensors.torch import save_file
                save_file(state, temporary, metadata={'format': 'pt', **metadata})
            else:
                torch.save({'meta': dict(metadata), 'state_dict': state}, temporary)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from error


def _as_dtype(state: StateDict, dtype: str | None) -> StateDict:
    if dtype is None:
        return state
    if dtype not in DTYPES:
        raise UserError(f'dtype is one of {", ".join(DTYPES)}, got {dtype!r}')

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor

    return {name: cast(tensor) for name, tensor in state.items()}
