"""Other forms of a model, measured beside eager float32 of ours."""
from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from visattn_dense.layers import optimize_for_inference

from .passes import Plan, forward_pass

FORMS = {
    'optimized': 'weights packed, BatchNorm folded, compiled kernels where there is a C++ compiler '
                 '(`optimize_for_inference`)',
    'channels_last': 'the image channels_last in memory',
    'bfloat16': 'autocast to bfloat16',
    'compiled': 'torch.compile (inductor, static shapes)',
    'naive compiled': 'torch.compile of the naive form',
}


def has_compiler() -> bool:
    """Whether there is a C++ compiler for inductor."""
    return any(shutil.which(name) for name in (os.environ.get('CXX') or 'g++', 'clang++'))


def make_ready(form: str, module: nn.Module, dynamic: bool | None = None) -> None:
    """Compile or optimize a module in place, or leave it eager.

    Args:
        form: 'eager', 'compiled' or 'optimized'.
        module: in evaluation mode. If it has a method `networks`, each of these is compiled.
        dynamic: whether the compiled code takes any size; None: torch decides.

    Raises:
        ValueError: another form.
    """
    if form == 'optimized':
        optimize_for_inference(module, graphs=1)
    elif form == 'compiled':
        for network in module.networks() if hasattr(module, 'networks') else [module]:
            # The forward of the instance: mmseg calls decode_head.forward, not decode_head.
            network.forward = torch.compile(network.forward, dynamic=dynamic)
    elif form != 'eager':
        raise ValueError(f'forms are eager, {", ".join(FORMS)}, got {form!r}')


def form_calls(form: str, plan: Plan, x: Tensor) -> tuple[Callable[[], object], torch.dtype]:
    """One form's forward pass on x, and the dtype that it computes in."""
    module = (plan.subject.naive if form.startswith('naive') else plan.subject.ours)(plan.place)
    dtype = plan.kind
    if form == 'channels_last':
        x = x.to(memory_format=torch.channels_last)
    elif form == 'bfloat16':
        dtype = torch.bfloat16
    else:
        make_ready(form.removeprefix('naive '), module, dynamic=False)
    return forward_pass(plan, module, x, dtype), dtype
