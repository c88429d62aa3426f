"""Find the model of a checkpoint (family, arch, layout) from tensor names and shapes alone."""
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visattn_dense.checkpoints.matching import MatchReport, StateDict, match_state_dict, unwrap
from visattn_dense.checkpoints.pretrained import nonfinite
from visattn_dense.errors import UserError, few
from visattn_dense.registry import BACKBONES

# The parts that tell the kind of an OpenMMLab 2 model.
_DETECTOR = ('rpn_head', 'roi_head', 'bbox_head', 'mask_head')
_SEGMENTOR = ('decode_head', 'auxiliary_head')


@dataclass(frozen=True)
class Candidate:
    """A model of this project that a checkpoint fills, completely or in part.

    Attributes:
        family, arch: the class in `BACKBONES` and the name of its variant.
        report: what matches.
        score: from 0 to 1: the filled fraction of the model times the used fraction of the file's
            backbone. 1 means that model and file match completely.
    """

    family: str
    arch: str
    report: MatchReport
    score: float


@functools.cache
def _skeleton(family: str, arch: str) -> nn.Module:
    """A variant without memory for its weights."""
    with torch.device('meta'):
        return BACKBONES.get(family)(arch)


def recognise(state: StateDict) -> list[Candidate]:
    """The variants that `state` fits best. Several if `state` fits them equally.

    Raises:
        UserError: `state` fits no variant. The message has some names of `state`.
    """
    best: list[Candidate] = []
    for family, cls in BACKBONES.module_dict.items():
        archs = list(getattr(cls, 'archs', ()))
        # Variants of one family share most names; two families share few names or none.
        if archs and _overlap(_match(family, archs[0], state).report) >= .1:
            best += [_match(family, arch, state) for arch in archs]
    top = max((candidate.score for candidate in best), default=0.)
    if top < .5:
        raise UserError('the checkpoint is of none of the families here '
                        f'({", ".join(BACKBONES)}): its {len(state)} tensors have names like '
                        f'{few(state, 4)}')
    return [candidate for candidate in best if candidate.score == top]


def _match(family: str, arch: str, state: StateDict) -> Candidate:
    model = _skeleton(family, arch)
    _, report = match_state_dict(model, state, layouts=model.layouts, fresh=model.fresh,
                                 adapt=model.adapt_tensor)
    filled = len(report.matched) + len(report.adapted)
    # Without a prefix the heads of a whole model count as unused, equally for every variant.
    return Candidate(family, arch, report,
                     report.fraction * filled / max(1, filled + len(report.unused)))


def _overlap(report: MatchReport) -> float:
    """The fraction of the model's names that the file has, with any shapes."""
    there = len(report.matched) + len(report.adapted) + len(report.mismatched)
    return there / max(1, there + len(report.missing))


@dataclass(frozen=True)
class Summary:
    """What a checkpoint holds.

    Attributes:
        kind: 'backbone', 'classifier', 'segmentor', 'detector' or 'unknown'.
        candidates: the variants that the checkpoint fits; see `recognise`.
        parts: first part of the names -> number of tensors.
        parameters: numbers in all tensors.
        dtypes: precision -> number of tensors.
        nonfinite: names of the tensors with NaN or infinity.
        others: what the file holds besides the weights.
        problem: why no variant was recognised, or ''.
    """

    kind: str
    candidates: list[Candidate]
    parts: dict[str, int]
    parameters: int
    dtypes: dict[str, int]
    nonfinite: list[str]
    others: list[str]
    problem: str


def summarise(contents: Any) -> Summary:
    """Look at a checkpoint's contents.

    Raises:
        UserError: the contents hold no weights.
    """
    state = unwrap(contents)
    try:
        candidates, problem = recognise(state), ''
    except UserError as error:
        candidates, problem = [], str(error)
    parts = Counter(name.removeprefix('module.').split('.')[0] for name in state)
    return Summary(
        kind=_kind(parts, candidates), candidates=candidates, parts=dict(parts),
        parameters=sum(tensor.numel() for tensor in state.values()),
        dtypes=dict(Counter(str(tensor.dtype).removeprefix('torch.')
                            for tensor in state.values())),
        nonfinite=nonfinite(state), others=list(_others(contents, state)), problem=problem)


def _kind(parts: Mapping[str, int], candidates: list[Candidate]) -> str:
    if any(part in parts for part in _DETECTOR):
        return 'detector'
    if any(part in parts for part in _SEGMENTOR):
        return 'segmentor'
    if not candidates:
        return 'unknown'
    report = candidates[0].report
    if report.prefix.endswith('backbone.') and 'head' in parts:
        # EfficientViT's classifier and its segmentation head are both called `head`. The classifier
        # has three layers, the segmentation head has more.
        return 'segmentor' if parts['head'] > 20 else 'classifier'
    return 'classifier' if any('head' in name for name in report.unused) else 'backbone'


def _others(contents: Any, state: StateDict) -> Iterator[str]:
    """Names and sizes of the top-level entries that do not contain the weights."""
    if not isinstance(contents, Mapping) or contents.keys() >= state.keys():
        return
    inside = {id(tensor) for tensor in state.values()}
    for key, value in contents.items():
        found = list(_tensors(value))
        if not any(id(tensor) in inside for tensor in found):
            size = sum(tensor.nbytes for tensor in found)
            yield f'{key} ({size / 1e6:.1f} MB)' if size else str(key)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)
