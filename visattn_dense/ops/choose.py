"""Choose the form of an operator that computes, log the choice once, and force a form.

An operator is one function with several forms. All forms take the same arguments and give the same
result. The `why_not` of a form returns the reason why the form cannot compute with some arguments,
or None. The operator asks its forms in order, and the first form that returns None computes. The
mode of the call says which forms are asked:

auto       the forms with gradients: Triton on a GPU, torch elsewhere. Every module starts in this
           mode.
inference  first the compiled kernels, then the forms of 'auto'.
           `visattn_dense.layers.optimize_for_inference` sets this mode.
reference  the equation alone. `visattn_dense.attention.naive.as_naive` sets this mode.
"""
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch

from . import launching
from .kept import kept

Mode = Literal['auto', 'inference', 'reference']


class UsesOperators:
    """A second base class, beside nn.Module, of a module that passes `mode` to its operators."""
    mode: Mode = 'auto'

    def prepared(self, prepare: Callable[..., Any], weight: torch.Tensor, *more: Any) -> Any:
        """prepare(weight, *more); in mode 'inference', on a CPU, kept until an argument changes.

        In the other modes, gradients need the computation, and a weight may change unnoticed
        (`weight.data`). On a GPU, a CUDA graph could read a result that is no longer kept.

        Args:
            prepare, weight, more: see `visattn_dense.ops.kept.kept`.
        """
        if (self.mode != 'inference' or type(weight) not in (torch.Tensor, torch.nn.Parameter)
                or weight.device.type != 'cpu' or torch.compiler.is_compiling()
                or torch.jit.is_tracing()):
            return prepare(weight, *more)
        return kept(prepare, weight, *more)


class Form(NamedTuple):
    """A way to compute an operator.

    Attributes:
        name: unique within the operator.
        compute: takes the operator's arguments, returns the operator's result.
        why_not: takes the same arguments; returns why the form cannot compute, or None. A reason
            names no size, so that there are few different reasons.
        modes: the modes in which the operator asks this form.
        devices: the device types on which the operator asks this form; None for all.
    """
    name: str
    compute: Callable[..., Any]
    why_not: Callable[..., str | None] = lambda *args, **kwargs: None
    modes: tuple[Mode, ...] = ('auto', 'inference')
    devices: tuple[str, ...] | None = None


def reference_form(compute: Callable[..., Any]) -> Form:
    """The form that computes the equation itself."""
    return Form('reference', compute, modes=('reference',))


def compiled_form(compute: Callable[..., Any], why_not: Callable[..., str | None],
                  name: str = 'compiled') -> Form:
    """A form that calls the kernels in C++, for inference on a CPU."""
    return Form(name, compute, why_not, modes=('inference',), devices=('cpu',))


OTHER_CHANNELS = 'the parameters are for another number of channels'


def of_other_channels(channels: int, *parameters: torch.Tensor | None) -> str | None:
    """Why a kernel cannot compute a map of so many channels with parameters (channels, ...), or
    None: it would read beside them. torch then says what is wrong."""
    if any([t is not None and t.shape[0] != channels for t in parameters]):
        return OTHER_CHANNELS
    return None


def of_other_shapes(x: torch.Tensor, *maps: torch.Tensor | None) -> str | None:
    """Why a kernel cannot compute x with maps that should be like it, or None: it would read beside
    them. torch may broadcast them."""
    if any([t is not None and t.shape != x.shape for t in maps]):
        return 'the maps have different shapes'
    return None


def triton_form(compute: Callable[..., Any], why_not: Callable[..., str | None],
                name: str = 'triton') -> Form:
    """A form that calls Triton kernels, with gradients, on a GPU or in Triton's interpreter."""
    return Form(name, compute, why_not, devices=launching.DEVICES)


class Decision(NamedTuple):
    """A form that computed (`reason` is None), or the reason why the form did not compute."""
    operator: str
    form: str
    reason: str | None


OPERATORS: dict[str, 'Operator'] = {}

_forced: dict[str, str] = {}
_decisions: dict[Decision, None] = {}


class Operator:
    """A function with several forms. Each call chooses one form.

    Args:
        name: name of the operator.
        forms: the forms, in the order of asking. The last form of each mode takes all arguments.
    """

    def __init__(self, name: str, *forms: Form) -> None:
        self.name = name
        self.forms = {form.name: form for form in forms}
        self._asked = {mode: [form for form in forms if mode in form.modes]
                       for mode in get_args(Mode)}
        OPERATORS[name] = self

    def __call__(self, x: torch.Tensor, *args: Any, mode: Mode = 'auto', **kwargs: Any) -> Any:
        """The result of the form that is chosen for these arguments.

        Raises:
            ValueError: `use_implementation` forces a form that cannot take these arguments.
        """
        if self.name in _forced:
            form = self.forms[_forced[self.name]]
            reason = form.why_not(x, *args, **kwargs)
            if reason is not None:
                raise ValueError(f'use_implementation asks for the form {form.name!r} of '
                                 f"{self.name}, but {reason}; use 'auto' or another form")
            return form.compute(x, *args, **kwargs)
        device = 'cuda' if x.is_cuda else x.device.type
        for form in self._asked[mode]:
            if form.devices is not None and device not in form.devices:
                reason = f'the tensors are on {device!r}'
            else:
                reason = form.why_not(x, *args, **kwargs)
            _note(self.name, form.name, reason)
            if reason is None:
                return form.compute(x, *args, **kwargs)
        raise AssertionError(f'no form of {self.name} takes everything')


def _note(operator: str, form: str, reason: str | None) -> None:
    """Log a decision the first time. Log nothing while torch.compile traces."""
    if not torch.compiler.is_compiling() and (operator, form, reason) not in _decisions:
        _decisions[Decision(operator, form, reason)] = None
        logging.getLogger('visattn_dense').info(
            '%s: %s', operator, f'{form} computes' if reason is None else f'not {form}: {reason}')


def decisions() -> list[Decision]:
    """The decisions of all operators in this process so far, each once, in order."""
    return list(_decisions)


@contextmanager
def use_implementation(form: str, *, operator: str | None = None) -> Iterator[None]:
    """Force a form of one operator, or of all operators with such a form, while the block runs.

    The form is forced in the whole process and for every mode. Backward always belongs to the form
    that computed forward, also after the block.

    Args:
        form: name of a form; 'auto' for the rule at the top of this file.
        operator: name of an operator; None for all operators that have the form.

    Raises:
        ValueError: an unknown operator or form. The message names the known ones.
    """
    global _forced
    if operator is not None and operator not in OPERATORS:
        raise ValueError(f'operator is one of {", ".join(OPERATORS)}; got {operator!r}')
    chosen = [OPERATORS[operator]] if operator is not None else list(OPERATORS.values())
    names = sorted({name for each in chosen for name in each.forms} - {'reference'})
    if form not in ('auto', 'reference', *names):
        raise ValueError(f'form is one of reference, auto, {", ".join(names)}; got {form!r}')
    before = _forced
    changed = {each.name: form for each in chosen if form in each.forms}
    _forced = ({name: kept for name, kept in before.items() if OPERATORS[name] not in chosen}
               if form == 'auto' else before | changed)
    try:
        yield
    finally:
        _forced = before
