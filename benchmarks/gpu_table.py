"""What a GPU of compute capability 8 or later does with the backbones, in minutes.

One process, so that libraries load once. Correctness comes before time, and small work before
large work; each result is printed and written at once, so that a run that is cut off keeps its
results. `python -m benchmarks --device cuda --minutes 4` writes the table.
"""
from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visattn_dense.layers import optimize_for_inference

from . import gpu, parity, plan, subjects
from .isolation import out_of_memory
from .options import Size
from .passes import Plan, forward_pass, loss_of, training_step
from .peak_memory import PeakMemory
from .report import table
from .timing import Call, measure

BACKBONES = ('EfficientViT:b2', 'T2TViT:14', 'EfficientViT:l2', 'BiFormer:small',
             'FLattenCSWin:tiny', 'CSWin:small')

# Milliseconds of the authors' own code, in bfloat16 on one H200 with torch 2.11, on 26 November
# 2026: forward (the kernels alone, as a CUDA graph) at the size and batch of `WORK`; a training
# step. They are from that run, not from the run that writes the table.
OFFICIAL = {
    ('EfficientViT:b2', 'forward', 512): 10.6, ('EfficientViT:b2', 'training', 512): 84.9,
    ('EfficientViT:l2', 'forward', 512): 13.5, ('EfficientViT:l2', 'training', 512): 95.2,
    ('T2TViT:14', 'forward', 512): 28.5, ('T2TViT:14', 'training', 512): 82.3,
    ('BiFormer:small', 'forward', 512): 62.0, ('BiFormer:small', 'training', 512): 203.6,
    ('BiFormer:small', 'forward', 2048): 243.7,
    ('FLattenCSWin:tiny', 'forward', 448): 23.3, ('FLattenCSWin:tiny', 'training', 448): 145.0,
    ('FLattenCSWin:tiny', 'forward', 1792): 27.2,
    ('CSWin:small', 'forward', 512): 31.7, ('CSWin:small', 'training', 512): 174.3,
    ('CSWin:small', 'forward', 2048): 44.7,
}
_OFFICIAL_DEVICE = 'H200'


class Work(NamedTuple):
    """A pass to time: 'forward' or 'training', with the side of the images and their number."""
    mode: str
    side: int
    batch: int


WORK = (Work('forward', 512, 16), Work('training', 512, 16), Work('forward', 2048, 1))
# The official FLatten takes multiples of 224 only.
_SIDES = {'FLattenCSWin:tiny': {512: 448, 2048: 1792}}

HEADER = ('backbone', 'size', 'batch', 'pass', 'kernels ms', 'eager ms', 'eager / kernels',
          'naive kernels ms', 'ours / naive', 'official ms', 'ours / official', 'peak GiB',
          'naive GiB', 'first s')
_ROW = '| ' + ' | '.join(['{}'] * len(HEADER)) + ' |'


@dataclass
class Table:
    """The work, and what is known so far.

    Attributes:
        device: where to measure. Without CUDA there are no graphs: eager times stand for kernels.
        minutes: nothing begins after them.
        names: the backbones.
        work: the passes.
        dtype: of autocast.
        steps: of the training at random sizes.
        lines, records: the results, as Markdown and as data.
    """
    device: torch.device
    minutes: float
    names: tuple[str, ...] = BACKBONES
    work: tuple[Work, ...] = WORK
    dtype: str = 'bfloat16'
    steps: int = 100
    lines: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end = time.monotonic() + 60 * self.minutes
        self._wrong: set[str] = set()

    def run(self) -> Iterator[str]:
        """Measure everything.

        Yields:
            The lines of the Markdown text, as they become known.
        """
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        for line in self._lines():
            self.lines.append(line)
            yield line

    @property
    def failed(self) -> bool:
        """Whether a backbone computes something else than its naive form."""
        return bool(self._wrong)

    def _late(self) -> bool:
        return time.monotonic() > self._end

    def _lines(self) -> Iterator[str]:
        yield '## Correct?'
        yield ''
        yield ('Relative error beside the naive form, float32, 64×96, and of half precision beside '
               'float32. *Graphs*: outputs and gradients of a training step by CUDA graphs, beside '
               'a plain step. *Optimized*: after optimize_for_inference, by a CUDA graph. '
               '*Launches* of a forward pass at 1024×1024, counted on shapes.')
        yield ''
        yield from table(('backbone', 'outputs', 'gradients', 'graphs', 'half', 'optimized',
                          'launches', ''), [], words=1)
        for name in self.names:
            if not self._late():
                yield self._correctness(name)
        yield ''
        yield '## Time'
        yield ''
        yield ('*Kernels*: the forward pass as a CUDA graph; the training step with graphs of the '
               'backbone (`graph_training`). *Official*: the authors\' code on '
               f'one {_OFFICIAL_DEVICE}, from another run. *First*: the first pass at the size, '
               'with everything that it compiles.')
        yield ''
        yield from table(HEADER, [], words=1)
        for work in self.work:
            for name in self.names:
                if self._late():
                    yield f'| {name} | {work.side} | {work.batch} | {work.mode}: not begun |'
                elif name not in self._wrong:
                    yield self._time(name, work)
        yield ''
        yield '## A new size at every step'
        yield ''
        yield from self._random_sizes()

    def _correctness(self, name: str) -> str:
        subject = subjects.backbone(name)
        ours, naive = subject.pair(self.device)
        check = partial(parity.check, subject, ours, naive, 64, 96, self.device)
        outputs, gradients = check(), check(gradients=True)
        x = subject.input(2, 64, 96, self.device)
        graphs = _error_of_graphs(ours, x)
        ours.eval()
        with torch.inference_mode():
            full = ours(x)
            with torch.autocast(self.device.type, getattr(torch, self.dtype)):
                half = ours(x)
        error = parity.relative_error(tuple(t.float() for t in half), full)
        optimize_for_inference(ours, graphs=1)
        with torch.inference_mode():
            for _ in range(3):                       # plain, recorded, replayed
                fast = ours(x)
        optimized = parity.relative_error(fast, full)
        passed = (outputs.passed and gradients.passed and graphs < 1e-3 and error < .2
                  and optimized < 1e-3)
        if not passed:
            self._wrong.add(name)
        launches = plan.cost(subject.make, 4, Size(1024, 1024)).launches
        self.records.append(dict(name=name, outputs=outputs.error, gradients=gradients.error,
                                 graphs=graphs, half=error, optimized=optimized, launches=launches,
                                 passed=passed))
        return (f'| {name} | {outputs.error:.1e} | {gradients.error:.1e} | {graphs:.1e} | '
                f'{error:.1e} | {optimized:.1e} | {launches} | '
                f'{"" if passed else "WRONG: no times"} |')

    def _time(self, name: str, work: Work) -> str:
        subject = subjects.backbone(name)
        side = _SIDES.get(name, {}).get(work.side, work.side)
        todo = Plan(subject, side, side, batch=work.batch, device=str(self.device),
                    dtype=self.dtype, graph=self.device.type == 'cuda')
        found: dict[str, Any] = dict(name=name, mode=work.mode, side=side, batch=work.batch)
        for who in ('ours', 'naive'):
            if who == 'naive' and self._late():
                break
            found[who] = self._measure(todo, work.mode, getattr(subject, who))
        self.records.append(found)
        return _ROW.format(*_cells(found))

    def _measure(self, todo: Plan, mode: str, make: Callable[[torch.device], nn.Module]
                 ) -> dict[str, float]:
        """First pass, eager pass and kernels in milliseconds, peak memory in GiB."""
        gc.collect()
        found = {}
        try:
            module = make(self.device)
            call = (training_step if mode == 'training' else forward_pass)(
                todo, module, todo.input())
            found['first'] = measure(call, self.device, warmup=0, runs=1).p50
            with PeakMemory(self.device) as memory:
                found['eager'] = measure(call, self.device, warmup=2, runs=10, seconds=3).p50
            found['gib'] = memory.mib / 2**10
            graphed: Call = (gpu.graphed(call) if todo.graph and mode == 'forward' else call)
            if mode == 'training':
                module.graph_training()          # records during the warm-up
            found['kernels'] = measure(graphed, self.device, warmup=3, runs=20, seconds=3).p50
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        return found

    def _random_sizes(self) -> Iterator[str]:
        """Training at a new size in each step, then at the same sizes again."""
        if self._late():
            yield 'Not begun.'
            return
        name = self.names[-1]
        subject = subjects.backbone(name)
        module = subject.ours(self.device)
        chance, sizes = random.Random(0), {}
        while len(sizes) < self.steps:
            sizes[Size(*(32 * chance.randint(8, 20) for _ in range(2)))] = None

        def step(size: Size) -> float:
            todo = Plan(subject, *size, batch=2, device=str(self.device), dtype=self.dtype)
            return measure(training_step(todo, module, todo.input()), self.device, warmup=0,
                           runs=1).p50

        step(Size(256, 256))                     # compiles the kernels of the model
        rounds: list[list[float]] = []
        for _ in range(2):
            rounds.append([])
            for size in sizes:
                if self._late():
                    break
                rounds[-1].append(step(size))
        ratios = [first / later for first, later in zip(*rounds, strict=False)]
        self.records.append(dict(name=name, first=rounds[0], later=rounds[1]))
        if not ratios:
            yield 'Not finished.'
            return
        yield (f'{name}, training step of two images, {len(ratios)} random sizes of 256 to 640 a '
               f'side: first step at a size / later step at that size: median '
               f'{statistics.median(ratios):.2f}, largest {max(ratios):.2f}.')
        yield ''
        yield from table(('milliseconds', 'first step at a size', 'later step'),
                         histogram(rounds), words=1)


def _error_of_graphs(model: nn.Module, x: Tensor) -> float:
    """The relative error of outputs and gradients of a replayed training step."""
    def step() -> tuple[Tensor, ...]:
        outputs = model(x)
        return (*(out.detach() for out in outputs),
                *torch.autograd.grad(loss_of(outputs), list(model.parameters())))

    model.train()
    expected = step()
    model.graph_training()
    for _ in range(3):                               # plain, recorded, replayed
        found = step()
    del model.forward
    return parity.relative_error(found, expected)


def histogram(rounds: list[list[float]]) -> list[list[str]]:
    """Rows of a table: how many times lie in each range. The ranges double."""
    low = 2.**(int(min(map(min, filter(None, rounds)))).bit_length() - 1)
    rows = []
    while any(t >= low for times in rounds for t in times):
        counts = [sum(low <= t < 2 * low for t in times) for times in rounds]
        rows.append([f'{low:g} to {2 * low:g}', *map(str, counts)])
        low *= 2
    return rows


def _cells(found: Mapping[str, Any]) -> list[str]:
    ours, naive = found['ours'], found.get('naive', {})
    official = OFFICIAL.get((found['name'], found['mode'], found['side']))

    def number(value: float | None, form: str = '.2f', *, missing: str = '–') -> str:
        return missing if value is None else f'{value:{form}}'

    def ratio(a: float | None, b: float | None) -> str:
        return number(a / b if a and b else None)

    kernels = ours.get('kernels')
    return [
        found['name'], f'{found["side"]}', f'{found["batch"]}', found['mode'],
        number(kernels, missing='does not fit'), number(ours.get('eager')),
        ratio(ours.get('eager'), kernels), number(naive.get('kernels'), missing='does not fit'
                                                  if 'naive' in found else '–'),
        ratio(kernels, naive.get('kernels')), number(official), ratio(kernels, official),
        number(ours.get('gib')), number(naive.get('gib')),
        number(ours['first'] / 1e3 if 'first' in ours else None)]
