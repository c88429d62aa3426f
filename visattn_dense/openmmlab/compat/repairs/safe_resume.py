"""Let `torch.load(weights_only=True)` read mmengine's training checkpoints, and nothing more.

What `Runner.save_checkpoint` writes beside tensors and plain containers, found by listing the
globals of checkpoints from mmseg and mmdet runs (optimizer, schedulers, EMA, AMP, message hub):

- mmengine.logging.history_buffer.HistoryBuffer, one per logged scalar;
- numpy arrays and scalars inside them: numpy.ndarray, numpy.dtype and the two constructors
  `_reconstruct` and `scalar`, which NumPy 1 and NumPy 2 store under different module names;
- builtins.getattr, because every HistoryBuffer carries its statistics methods and pickle writes
  a method as getattr(class, name).

The real getattr would be a way out of the sandbox. What is registered under its name hands out
methods of HistoryBuffer and refuses everything else.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import ModuleType

#: The element types a logged scalar or its history can have.
_DTYPES = ('?', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')


def allow_training_checkpoints(checkpoint: ModuleType) -> None:
    """Register the classes above with torch's restricted unpickler.

    Args:
        checkpoint: `mmengine.runner.checkpoint`, the module that calls torch.load.
    """
    import numpy as np
    import torch
    from mmengine.logging.history_buffer import HistoryBuffer

    multiarray = getattr(np, '_core', None) or np.core
    constructors = []
    for function, name in (
        (multiarray.multiarray._reconstruct, '_reconstruct'),
        (multiarray.multiarray.scalar, 'scalar'),
    ):
        constructors += [
            _under_name(function, module, name)
            for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
        ]
    dtypes = list(dict.fromkeys(type(np.dtype(code)) for code in _DTYPES))
    torch.serialization.add_safe_globals([
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        *dtypes,
        *constructors,
        _under_name(_method_getter(HistoryBuffer), 'builtins', 'getattr'),
    ])


def _under_name(function: Callable[..., object], module: str, name: str) -> Callable[..., object]:
    """A new function that a pickle finds as `module.name`."""

    def renamed(*args: object) -> object:
        return function(*args)

    renamed.__module__, renamed.__name__, renamed.__qualname__ = module, name, name
    return renamed


def _method_getter(owner: type) -> Callable[[object, str], object]:
    """getattr, but only for the public methods that the class `owner` itself defines."""

    def get(target: object, name: str) -> object:
        if (
            target is owner
            and isinstance(name, str)
            and not name.startswith('_')
            and callable(vars(owner).get(name))
        ):
            return getattr(owner, name)
        raise pickle.UnpicklingError(
            f'this file asks for the attribute {name!r} of {target!r}, which no training '
            'checkpoint of mmengine does. It was not loaded, because reading it could run code '
            'from the file'
        )

    return get
