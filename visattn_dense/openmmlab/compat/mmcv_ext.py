"""The body of `mmcv._ext` where no compiled mmcv is installed (mmcv-lite).

`visattn_dense_startup` points `import mmcv._ext` here. Operators that have an implementation in
`visattn_dense.openmmlab.compat.kernels` are those functions; every other name that mmcv's Python
code asks for is a function that raises `MissingOpError` when it is called, so that importing
`mmcv.ops` works and only using such an operator fails. Other attributes raise AttributeError as
usual.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from visattn_dense.openmmlab.compat.kernels import (
    carafe,
    deform_conv,
    deform_roi_pool,
    focal_loss,
    masked_conv,
    ms_deform_attn,
    psamask,
    roi_align,
    roi_pool,
    sync_bn,
)
from visattn_dense.openmmlab.compat.kernels import nms as nms_kernels
from visattn_dense.openmmlab.compat.op_names import COMPILED_MMCV, FORK_OPS, MMCV_OPS

#: The modules that implement operators, by what computes them. In each, the public functions
#: that are named like an operator are that operator.
_KERNELS = {
    'torchvision': (nms_kernels, roi_align, deform_conv),
    'torch': (
        carafe, deform_roi_pool, focal_loss, masked_conv, ms_deform_attn, psamask, roi_pool,
        sync_bn),
}
#: Operators that stand in a module of torchvision's without using it.
_ELSEWHERE = {'softnms': 'NumPy', 'nms_match': 'NumPy'}

#: The operators that work here, each with its function and what computes it.
IMPLEMENTED: dict[str, tuple[Callable[..., object], str]] = {
    name: (getattr(module, name), _ELSEWHERE.get(name, backend))
    for backend, modules in _KERNELS.items()
    for module in modules
    for name in MMCV_OPS
    if callable(getattr(module, name, None))
}


class MissingOpError(NotImplementedError):
    """An operator that only a compiled mmcv has."""


def _missing(name: str) -> Callable[..., object]:
    def op(*args: object, **kwargs: object) -> object:
        raise MissingOpError(
            f"mmcv operator '{name}' has no implementation without a compiled mmcv (docs/compat.md "
            f'lists the {len(IMPLEMENTED)} that have one). The compiled mmcv 2.1.0 has it, and is '
            f'used as soon as it is installed: {COMPILED_MMCV}'
        )

    op.__name__ = op.__qualname__ = name
    op.__doc__ = f'`{name}` of the compiled mmcv; raises MissingOpError.'
    return op


def get_compiler_version() -> str:
    """What stands in environment reports in the place of mmcv's compiler."""
    return 'none (mmcv-lite with the operators of visattn_dense.openmmlab.compat)'


def get_compiling_cuda_version() -> str:
    """The CUDA version of the kernels in use, which is torch's."""
    return torch.version.cuda or 'not available'


globals().update({name: _missing(name) for name in (*MMCV_OPS, *FORK_OPS)})
globals().update({name: function for name, (function, _) in IMPLEMENTED.items()})
