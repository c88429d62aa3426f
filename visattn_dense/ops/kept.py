"""What a form prepares from weights, such as another layout of a kernel, kept from call to call."""
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_kept = WeakTensorKeyDictionary()


def kept(prepare: Callable[[Tensor], Any], weight: Tensor) -> Any:
    """prepare(weight), computed once as long as the weight stays what it is.

    A weight that was written to, or that has other memory now, is prepared again. The result lives
    as long as `weight`, so it must not refer to that very tensor.

    Args:
        prepare: a function, not a lambda made anew for each call.
        weight: its argument.
    """
    # Tensors of torch.inference_mode count no versions.
    state = weight.data_ptr(), -1 if weight.is_inference() else weight._version
    found = _kept.setdefault(weight, {})
    if prepare not in found or found[prepare][0] != state:
        found[prepare] = state, prepare(weight)
    return found[prepare][1]
