"""Which form of an operator computes: decided here, said once, and forced by `use_implementation`.

An operator is one function with several forms: other functions of the same arguments that give the
same result. A form says with `why_not` what keeps it from taking some arguments. The operator asks
its forms in order, and the first one without a reason computes. What an operator may use depends on
the mode of the call:

auto       the forms with gradients: Triton on a GPU, torch elsewhere. Every module starts with it.
inference  before them the compiled kernels: `visattn_dense.layers.optimize_for_inference`.
reference  the equation alone: `visattn_dense.attention.naive.as_naive`.
"""
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

Mode = Literal['auto', 'inference', 'reference']


class UsesOperators:
    """A module that calls operators, beside nn.Module; it hands `mode` to each of them."""
    mode: Mode = 'auto'


class Form(NamedTuple):
    """A way to compute an operator.

    Attributes:
        name: unique within the operator.
        compute: takes the operator's arguments, returns its result.
        why_not: takes them too; returns what keeps the form from computing, or None. The reasons
            are few: a reason names no size.
        modes: in which the operator asks this form.
        devices: where the operator asks this form, types of devices; None for everywhere.
    """
    name: str
    compute: Callable[..., Any]
    why_not: Callable[..., str | None] = lambda *args, **kwargs: None
    modes: tuple[Mode, ...] = ('auto', 'inference')
    devices: tuple[str, ...] | None = None


def reference_form(compute: Callable[..., Any]) -> Form:
    """The form that is the equation itself."""
    return Form('reference', compute, modes=('reference',))


def compiled_form(compute: Callable[..., Any], why_not: Callable[..., str | None],
                  name: str = 'compiled') -> Form:
    """A form of the kernels in C++, for inference on a CPU."""
    return Form(name, compute, why_not, modes=('inference',), devices=('cpu',))


class Decision(NamedTuple):
    """That a form computed (`reason` is None), or why it did not."""
    operator: str
    form: str
    reason: str | None


OPERATORS: dict[str, 'Operator'] = {}

_forced: dict[str, str] = {}
_decisions: dict[Decision, None] = {}


class Operator:
    """A function that one of its forms computes.

    Args:
        name: of the operator.
        forms: in the order in which they are asked; the last one of a mode takes everything.
    """

    def __init__(self, name: str, *forms: Form) -> None:
        self.name = name
        self.forms = {form.name: form for form in forms}
        OPERATORS[name] = self

    def __call__(self, x: torch.Tensor, *args: Any, mode: Mode = 'auto', **kwargs: Any) -> Any:
        """The result of the form that is chosen for these arguments.

        Raises:
            ValueError: `use_implementation` forces a form that cannot take them.
        """
        if self.name in _forced:
            form = self.forms[_forced[self.name]]
            reason = form.why_not(x, *args, **kwargs)
            if reason is not None:
                raise ValueError(f'use_implementation asks for the form {form.name!r} of '
                                 f"{self.name}, but {reason}; use 'auto' or another form")
            return form.compute(x, *args, **kwargs)
        for form in self.forms.values():
            if mode not in form.modes:
                continue
            if form.devices is not None and x.device.type not in form.devices:
                reason = f'the tensors are on {x.device.type!r}'
            else:
                reason = form.why_not(x, *args, **kwargs)
            _note(self.name, form.name, reason)
            if reason is None:
                return form.compute(x, *args, **kwargs)
        raise AssertionError(f'no form of {self.name} takes everything')


def _note(operator: str, form: str, reason: str | None) -> None:
    """Log a decision the first time; a compiler that traces has nothing to log."""
    if torch.compiler.is_compiling():
        return
    decision = Decision(operator, form, reason)
    if decision not in _decisions:
        _decisions[decision] = None
        logging.getLogger('visattn_dense').info(
            '%s: %s', operator, f'{form} computes' if reason is None else f'not {form}: {reason}')


def decisions() -> list[Decision]:
    """What the operators of this process decided so far, each decision once, in order."""
    return list(_decisions)


@contextmanager
def use_implementation(form: str, *, operator: str | None = None) -> Iterator[None]:
    """Force a form of one operator, or of all that have it, while the block runs.

    It holds for the whole process, whatever the mode of the call. Backward is that of the forward
    it belongs to, in or out of the block.

    Args:
        form: name of a form; 'auto' for the rule at the top of this file.
        operator: name of an operator.

    Raises:
        ValueError: an unknown operator or form; the known ones are named.
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
