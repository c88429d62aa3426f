"""Find the weights of a model in any checkpoint: wrapper, prefix, layout, shapes."""
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from visattn_dense.errors import UserError, few

from .pickled import check_names

StateDict = dict[str, Tensor]
Layout = Callable[[StateDict], StateDict]
"""A function from the tensor names (and shapes) of a checkpoint to those of a model here."""

# In the order of preference: authors publish figures of the averaged weights. mmengine's EMAHook
# saves the averaged weights as `state_dict`, and the weights of the training as `ema_state_dict`.
_WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model', 'module', 'ema_state_dict')


def rename(*rules: tuple[str, str | Callable[[re.Match], str]]) -> Layout:
    """A layout that changes names only: all regular expressions, in turn, on every name.

    Args:
        rules: (pattern, replacement), as for `re.sub`.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def layout(state: StateDict) -> StateDict:
        out = {}
        for name, tensor in state.items():
            for pattern, replacement in compiled:
                name = pattern.sub(replacement, name)
            out[name] = tensor
        return out

    return layout


def unwrap(contents: Any) -> StateDict:
    """The state dict inside a checkpoint's contents.

    Raises:
        UserError: there is no state dict (the message says what the contents are), or a tensor in
            the state dict has an unusable name.
    """
    looked_at = contents
    # No script has more wrappers. Contents that contain themselves would have no end.
    for _ in range(8):
        if not isinstance(looked_at, Mapping):
            break
        inner = next((looked_at[key] for key in _WRAPPERS
                      if isinstance(looked_at.get(key), Mapping) and looked_at[key]), None)
        if inner is None:
            break
        looked_at = inner
    if isinstance(looked_at, Mapping):
        tensors = {name: value for name, value in looked_at.items() if isinstance(value, Tensor)}
        if tensors:
            check_names(tensors)
            return tensors
    found = (f'the keys {", ".join(ascii(str(key))[1:-1][:60] for key in list(contents)[:8])}'
             if isinstance(contents, Mapping) else f'a {type(contents).__name__}')
    raise UserError(f'the checkpoint holds {found}, and no state dict under any of '
                    f'{", ".join(_WRAPPERS)} or at its top')


@dataclass
class MatchReport:
    """Which tensors of a model a checkpoint fills.

    Attributes:
        layout: the layout whose names fit ('native' is this project's own).
        prefix: the beginning of the names in the file ('backbone.' in a whole segmentor).
        matched: names that are filled without a change of shape.
        adapted: name -> change, for names that are filled after a change of shape.
        missing: names that the file does not fill.
        mismatched: name -> difference, for names whose shape or kind of number does not fit.
        converted: name -> the file's precision, for names that are filled after a change of
            precision.
        fresh: names that such files never hold; `fraction` does not count them as missing.
        unused: names in the file that the model does not use (a classifier, optimizer state).
    """

    layout: str
    prefix: str
    matched: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @property
    def fraction(self) -> float:
        """The filled fraction of the model's tensors without the fresh ones, from 0 to 1."""
        filled = len(self.matched) + len(self.adapted)
        return filled / max(1, filled + len(self.missing) + len(self.mismatched))

    @property
    def lost(self) -> list[str]:
        """The modules of the first three levels of which the file fills no tensor at all.

        Norms are left out: a norm that starts anew is the identity, not random.
        """
        def modules(names: Iterable[str]) -> set[str]:
            parts = [name.split('.') for name in names]
            return {'.'.join(part[:depth]) for part in parts for depth in (1, 2, 3)
                    if depth < len(part) and 'norm' not in part[depth - 1]}

        unfilled = modules((*self.missing, *self.mismatched))
        return sorted(unfilled - modules((*self.matched, *self.adapted, *self.fresh)))

    def __str__(self) -> str:
        filled = len(self.matched) + len(self.adapted)
        total = filled + len(self.missing) + len(self.mismatched)
        lines = [f'matched {filled} of {total} tensors ({self.fraction:.1%}), layout '
                 f'{self.layout}' + (f', prefix {self.prefix!r}' if self.prefix else '')]
        for dtype, count in Counter(self.converted.values()).items():
            lines.append(f'  converted from {dtype}: {count} tensors')
        for title, names in (('adapted', [f'{k} {v}' for k, v in self.adapted.items()]),
                             ('wrong shape', [f'{k} {v}' for k, v in self.mismatched.items()]),
                             ('missing', self.missing),
                             ('fresh, not in such files', self.fresh),
                             ('in the file, not used', self.unused)):
            if names:
                lines.append(f'  {title}: {few(names)}')
        return '\n'.join(lines)


def match_state_dict(model: nn.Module, state: StateDict, *, layouts: Mapping[str, Layout],
                     fresh: Iterable[str] = (), prefix: str | None = None,
                     adapt: Callable[[str, Tensor], Tensor | None] | None = None,
                     ) -> tuple[StateDict, MatchReport]:
    """Find the tensors of `state` that fill `model`, for any prefix and layout of the names.

    Args:
        model: the model to fill; it is not changed.
        state: the checkpoint's tensors.
        layouts: name -> layout, for the other namings of such files.
        fresh: patterns of tensors that such files never hold.
        prefix: take only names that begin with this prefix; None: try every prefix in the file.
        adapt: a function that fits a tensor of another shape to a name, or returns None.

    Returns:
        The tensors in the model's naming and shapes, and the report.
    """
    target = model.state_dict()
    native: dict[str, Layout] = {'native': dict}
    best: tuple[int, int, str, str, StateDict] | None = None
    for candidate, names in _prefixes(state, prefix):
        stripped = {name[len(candidate):]: state[name] for name in names}
        for layout_name, layout in {**native, **layouts}.items():
            renamed = layout(stripped)
            # With equal counts, the longer prefix is better: it leaves fewer names unused.
            score = (len(renamed.keys() & target.keys()), len(candidate))
            if best is None or score > best[:2]:
                best = (*score, candidate, layout_name, renamed)
    _, _, found_prefix, layout_name, renamed = best

    report = MatchReport(layout_name, found_prefix)
    fresh_pattern = re.compile('|'.join(fresh) or r'(?!)')
    filled: StateDict = {}
    for name, wanted in target.items():
        tensor = renamed.get(name)
        if tensor is None:
            # The counters of BatchNorm have no effect, and old files lack them.
            optional = fresh_pattern.fullmatch(name) or name.endswith('num_batches_tracked')
            (report.fresh if optional else report.missing).append(name)
            continue
        if tensor.dtype.is_floating_point != wanted.dtype.is_floating_point or tensor.is_complex():
            report.mismatched[name] = (f'{_short(tensor.dtype)} in the file, '
                                       f'{_short(wanted.dtype)} here')
            continue
        if tensor.shape == wanted.shape:
            filled[name] = tensor
            report.matched.append(name)
        else:
            change = f'{tuple(tensor.shape)} in the file, {tuple(wanted.shape)} here'
            fitted = adapt(name, tensor) if adapt else None
            if fitted is None:
                fitted = _adapt_channels(model, name, tensor)
            if fitted is None:
                report.mismatched[name] = change
                continue
            filled[name] = fitted
            report.adapted[name] = change
        if tensor.dtype != wanted.dtype:
            report.converted[name] = _short(tensor.dtype)
    report.unused = sorted(renamed.keys() - target.keys())
    return filled, report


def _adapt_channels(model: nn.Module, name: str, tensor: Tensor) -> Tensor | None:
    """The kernel of the model's first convolution, adapted to another number of image channels.

    The same as in timm: for one channel, the sum of the three channels; for several, the three
    channels in turn, scaled so that the sum over channels keeps its size.
    """
    first = next(((owner, module) for owner, module in model.named_modules()
                  if isinstance(module, nn.Conv2d)), None)
    if first is None or name != f'{first[0]}.weight'.lstrip('.'):
        return None
    here, there = first[1].weight.shape, tensor.shape
    if len(there) != 4 or there[1] != 3 or (here[0], *here[2:]) != (there[0], *there[2:]):
        return None
    from timm.models import adapt_input_conv
    return adapt_input_conv(here[1], tensor)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def _prefixes(state: StateDict, given: str | None) -> list[tuple[str, list[str]]]:
    """Each possible prefix with its names: '' and every beginning of a name up to its first, second
    or third dot. If `given` is not None: only `given` with its names."""
    if given is not None:
        return [(given, [name for name in state if name.startswith(given)])]
    found: dict[str, list[str]] = {'': list(state)}
    for name in state:
        parts = name.split('.', 3)
        for n in range(1, len(parts)):
            found.setdefault('.'.join(parts[:n]) + '.', []).append(name)
    return sorted(found.items(), key=lambda item: len(item[0]))
