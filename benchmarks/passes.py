"""What is measured of a subject at a size, and its passes as calls."""
from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .subjects import Subject
from .timing import Call


@dataclass(frozen=True)
class Plan:
    """One subject at one size.

    Attributes:
        subject, height, width: what, and the image's size.
        batch: images at a time; 0 for the number of images that saturates the GPU.
        device, dtype: of the computation; a dtype below float32 by autocast.
        threads: number of threads on the CPU.
        runs: number of rounds.
        seconds: after this time no new round begins; warm-up is not included.
        forms: other forms of ours to measure, see `benchmarks.forms`.
        graph: on a GPU, replay forward passes as CUDA graphs.
    """

    subject: Subject
    height: int
    width: int
    batch: int = 1
    device: str = 'cpu'
    dtype: str = 'float32'
    threads: int = 2
    runs: int = 5
    seconds: float = 20.
    forms: tuple[str, ...] = ()
    graph: bool = False

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)

    @property
    def kind(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def input(self, batch: int | None = None) -> Tensor:
        return self.subject.input(batch or self.batch, self.height, self.width, self.place)

    def autocast(self, dtype: torch.dtype | None = None) -> AbstractContextManager:
        kind = dtype or self.kind
        reduced = kind != torch.float32
        return torch.autocast(self.place.type, dtype=kind if reduced else torch.bfloat16,
                              enabled=reduced, cache_enabled=not self.graph)


def forward_pass(plan: Plan, module: nn.Module, x: Tensor, dtype: torch.dtype | None = None
                 ) -> Call:
    """Inference as a call."""
    def run() -> object:
        with torch.inference_mode(), plan.autocast(dtype):
            return module(x)

    return run


def training_step(plan: Plan, module: nn.Module, x: Tensor) -> Call:
    """Forward, backward and a step of plain SGD as a call; an operator's input has a gradient."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-6)
    if plan.subject.kind == 'operator':
        x = x.clone().requires_grad_()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        x.grad = None
        with plan.autocast():
            out = module(x)
        loss_of(out).backward()
        optimizer.step()

    return run


def loss_of(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A scalar that depends on every output: the sum of the mean squares of the positive parts.

    Without the cut at 0, the mean square of the outputs of a LayerNorm would be constant. Then all
    gradients would be rounding errors, which cannot be compared.
    """
    outs = out if isinstance(out, (tuple, list)) else (out,)
    return sum(t.to(torch.promote_types(t.dtype, torch.float32)).relu().square().mean()
               for t in outs)
