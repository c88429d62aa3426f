"""Convert a checkpoint to a file that has only weights, with this project's names."""
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visattn_dense.atomic import written_whole
from visattn_dense.checkpoints.matching import MatchReport, StateDict, unwrap
from visattn_dense.checkpoints.pretrained import nonfinite
from visattn_dense.errors import UserError, did_you_mean, few
from visattn_dense.registry import BACKBONES

from .heads import efficientvit_seg
from .recognise import recognise

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


def native_state(state: StateDict, report: MatchReport, layouts: Mapping[str, Any], *,
                 heads: bool = True) -> StateDict:
    """The tensors of `state` in this project's names.

    Args:
        state: the tensors, as in the file.
        report: how the file's backbone was matched.
        layouts: `layouts` of the backbone's class.
        heads: keep the tensors outside the backbone. In a whole model these tensors keep their
            names, which mmsegmentation and mmdetection have not changed since 0.x. EfficientViT's
            own head gets the names of `EfficientViTSegHead`. A classifier is always left out,
            because no dense model has a classifier.

    Returns:
        The backbone's tensors; their names begin with 'backbone.' if there are other tensors.
    """
    layout = layouts.get(report.layout, dict)
    ours = {name[len(report.prefix):]: tensor for name, tensor in state.items()
            if name.startswith(report.prefix)}
    backbone = {name: tensor for name, tensor in layout(ours).items()
                if name not in set(report.unused)}
    # Beside 'module.backbone.' stands 'module.decode_head.', so remove 'module.' from both.
    around = report.prefix.removesuffix('backbone.')
    others = _native_heads({name.removeprefix(around): tensor for name, tensor in state.items()
                            if not name.startswith(report.prefix)})
    if not heads or not others:
        return backbone
    return {f'backbone.{name}': tensor for name, tensor in backbone.items()} | others


def _native_heads(others: StateDict) -> StateDict:
    """The heads in this project's names. EfficientViT has one name, `head`, for two things: its
    classifier, which is left out, and its segmentation head."""
    head = {name.removeprefix('head.'): tensor for name, tensor in others.items()
            if name.startswith('head.')}
    named = {name: tensor for name, tensor in others.items() if not name.startswith('head.')}
    if any(name.startswith('input_ops.') for name in head):
        named |= {f'decode_head.{name}': tensor for name, tensor in efficientvit_seg(head).items()}
    return named


def implied_buffers(model: nn.Module, report: MatchReport) -> StateDict:
    """The buffers that a file does not hold but implies. The model's `on_loaded` sets them.

    For example, T2T-ViT's released files imply the scale of the attention.

    Args:
        model: a backbone without memory for its weights. The function changes the model; do not use
            the model afterwards.
        report: how a file was matched with `model`.
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
    """The weights in this project's names, and the recognised model in words.

    Args:
        contents: the contents of a checkpoint; see `read_checkpoint`.
        family: the class in `BACKBONES`, to overrule the recognition.
        heads: keep the heads of a whole model.
        dtype: 'float32', 'float16' or 'bfloat16' for floating tensors; None keeps their precision.

    Raises:
        UserError: no family here fits, or a number is not finite.
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
    state = _as_dtype(state, dtype)
    if broken := nonfinite(state):
        raise UserError(f'{len(broken)} tensors hold NaN or infinity'
                        f'{f" in {dtype}" if dtype else ""}: {few(broken)}')
    archs = ' or '.join(dict.fromkeys(candidate.arch for candidate in candidates
                                      if candidate.family == found.family))
    return state, f'{found.family} {archs}: {found.report}'


def extract(contents: Any, part: str = 'backbone') -> StateDict:
    """The tensors of one part of a trained model, without the part's name in their names.

    Args:
        contents: the contents of a checkpoint; see `read_checkpoint`.
        part: 'backbone', 'decode_head', 'neck', ..., or the dotted name of a part of a part.

    Raises:
        UserError: there is no such part. The message names the parts of the file.
    """
    state = {name.removeprefix('module.'): tensor for name, tensor in unwrap(contents).items()}
    found = {name[len(part) + 1:]: tensor for name, tensor in state.items()
             if name.startswith(f'{part}.')}
    if not found:
        parts = dict.fromkeys(name.split('.')[0] for name in state)
        raise UserError(f'the checkpoint has no part {part!r}. {did_you_mean(part, parts)} '
                        f'It has {few(parts, 12)}')
    return found


def save_state(state: StateDict, path: str | os.PathLike, *, metadata: Mapping[str, str],
               overwrite: bool = False) -> None:
    """Write weights as safetensors or with torch.save; the suffix decides.

    The file appears only when it is complete.

    Args:
        state: name -> tensor.
        path: *.safetensors, *.pth, *.pt, *.pth.tar or *.bin.
        metadata: texts about the weights. A safetensors file has these texts in its header.
        overwrite: replace an existing file.

    Raises:
        UserError: another suffix, or the file exists already.
    """
    path = Path(path)
    if not re.search(r'\.(safetensors|pth|pt|pth\.tar|bin)$', path.name):
        raise UserError(f'{path} has to end in .safetensors or .pth')
    if path.exists() and not overwrite:
        raise UserError(f'{path} is there already; choose another name or say --overwrite')
    # One storage for each tensor: a view would also save all other bytes of its storage.
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
    return {name: tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
            for name, tensor in state.items()}
