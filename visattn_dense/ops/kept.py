"""Keep what is prepared from weights, such as another layout, from one call to the next."""
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

_kept = WeakTensorKeyDictionary()


def kept(prepare: Callable[..., Any], weight: Tensor, *more: Any) -> Any:
    """prepare(weight, *more), computed once as long as the arguments do not change.

    If a weight was written to, or has other memory now, `prepare` runs again. The last result lives
    as long as `weight`, so the result must not refer to `weight`.

    Args:
        prepare: always the same function: a new lambda for each call would be computed each time.
        weight: the first argument of `prepare`.
        more: the others: weights, and values that can be compared.
    """
    state = tuple(_state(argument) for argument in (weight, *more))
    found = _kept.setdefault(weight, {})
    last = found.get(prepare)
    if last is None or last[0] != state:
        # Another thread may keep the result of other arguments meanwhile.
        # What a recording makes, each replay writes anew.
        with _disable_current_modes():
            last = found[prepare] = state, prepare(weight, *more)
    return last[1]


def _state(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    # Tensors made in torch.inference_mode have no version.
    return argument.data_ptr(), -1 if argument.is_inference() else argument._version
