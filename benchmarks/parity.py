"""Whether ours computes the same as its naive equation. Without parity, no speed is reported.

The relative error of a tensor is ‖ours − naive‖ / ‖naive‖. The largest error has to stay under
`TOLERANCE`, for the outputs, and for the gradients of the input and of the parameters.
"""
from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visattn_dense.ops import use_implementation

from .isolation import out_of_memory
from .passes import loss_of
from .subjects import Subject

TOLERANCE = 1e-4
# For a form of ours against eager float32. Rounding may change the routing of a region of BiFormer,
# often in bfloat16. Such a change is not an error, but increases the difference.
FORM_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.2}


@dataclass(frozen=True)
class Parity:
    """The largest relative error, and the dtype and size of the input that gave this error."""

    passed: bool
    error: float
    dtype: str
    height: int
    width: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


def relative_error(found: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]
                   ) -> float:
    """The largest relative error of the tensors; infinite if a tensor is not finite or the shapes
    differ."""
    found, expected = (t if isinstance(t, (tuple, list)) else (t,) for t in (found, expected))
    worst = 0.
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape or not a.isfinite().all():
            return float('inf')
        a, b = a.double(), b.double()
        worst = max(worst, float((a - b).norm() / b.norm().clamp_min(1e-30)))
    return worst


def check(subject: Subject, ours: nn.Module, naive: nn.Module, height: int, width: int,
          device: torch.device, *, gradients: bool = False) -> Parity:
    """Compare on noise of that size; where the naive form does not fit, on half of each side.

    In float32. Where that fails, the CPU tries float64, and a GPU, whose kernels are made for
    float32 and below, two more inputs: a near tie in a routing may fall either way by rounding.

    Raises:
        MemoryError: not even 64 pixels fit.
    """
    attempts = ([(torch.float32, 1), (torch.float64, 1)] if device.type == 'cpu'
                else [(torch.float32, seed) for seed in (1, 2, 3)])
    while True:
        try:
            for dtype, seed in attempts:
                x = subject.input(1, height, width, device, seed).to(dtype)
                found = _results(_in(ours, dtype), x, gradients)
                # Also the operators outside the attentions: norms and linear layers.
                with use_implementation('reference'):
                    expected = _results(_in(naive, dtype), x, gradients)
                error = relative_error(found, expected)
                if error <= TOLERANCE:
                    break
            return Parity(error <= TOLERANCE, error, str(dtype).removeprefix('torch.'), height,
                          width)
        except (RuntimeError, MemoryError) as reason:
            if not out_of_memory(reason):
                raise
            if min(height, width) < 128:
                raise MemoryError('not even a small input fits') from reason
            height, width = height // 2, width // 2


def _in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module, which is in float32, or a copy in another dtype."""
    return module if dtype == torch.float32 else copy.deepcopy(module).to(dtype)


def _results(module: nn.Module, x: Tensor, gradients: bool) -> tuple[Tensor, ...]:
    """Outputs, or with gradients: the loss's for the input and each parameter that has one."""
    if not gradients:
        with torch.inference_mode():
            out = module(x)
        return tuple(out) if isinstance(out, (tuple, list)) else (out,)
    x = x.clone().requires_grad_()
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss_of(module(x)), [x, *parameters], allow_unused=True)
    # One vector for all parameters: a gradient that is zero but for rounding has no relative error.
    flat = torch.cat([g.flatten() for g in found[1:] if g is not None])
    return found[0], flat
