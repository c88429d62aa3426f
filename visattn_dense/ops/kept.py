"""Keep what a form prepares from a weight, such as another layout, from one call to the next."""
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_kept = WeakTensorKeyDictionary()


def kept(prepare: Callable[[Tensor], Any], weight: Tensor) -> Any:
    """prepare(weight), computed once as long as the weight does not change.

    If the weight was written to, or has other memory now, `prepare` runs again. The result lives as
    long as `weight`, so the result must not refer to `weight`.

    Args:
        prepare: always the same function: a new lambda for each call would be computed each time.
        weight: the argument of `prepare`.
    """
    # Tensors made in torch.inference_mode have no version.
    state = weight.data_ptr(), -1 if weight.is_inference() else weight._version
    found = _kept.setdefault(weight, {})
    if prepare not in found or found[prepare][0] != state:
        found[prepare] = state, prepare(weight)
    return found[prepare][1]
