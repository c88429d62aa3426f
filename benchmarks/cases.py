"""What the child processes do: time one subject at one size, or make one pass for its memory."""
from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from visattn_dense.inference.allocator import keep_freed_memory

from . import gpu, parity
from .flops import count_flops
from .forms import form_calls
from .isolation import out_of_memory
from .passes import Plan, forward_pass, training_step
from .peak_memory import PeakMemory
from .timing import interleave, matrix_product, summary

FAILED = 'parity failed'


def time_case(plan: Plan) -> Iterator[dict[str, Any]]:
    """Parity, then times: forward, training step, other forms.

    Yields:
        Entries of the record, as they become known; see `benchmarks.document`.
    """
    _prepare(plan)
    keep_freed_memory()
    ours, naive = plan.subject.pair(plan.place)
    found = parity.check(plan.subject, ours, naive, plan.height, plan.width, plan.place)
    macs = count_macs(ours, plan)
    yield dict(macs=macs, parity=found.record())
    if not found.passed:
        yield dict(trouble={'forward': FAILED, 'training': FAILED})
        return
    yield from _forward(plan, ours, naive, macs)

    found = parity.check(plan.subject, ours, naive, plan.height, plan.width, plan.place,
                         gradients=True)
    yield dict(gradient_parity=found.record())
    if found.passed:
        yield from _training(plan, ours, naive)
    else:
        yield dict(training_trouble=dict(training=FAILED))
    if plan.forms:
        del ours, naive
        gc.collect()
        yield from _forms(plan, macs)


def memory_case(plan: Plan, naive: bool, training: bool, batch: int) -> Iterator[dict[str, Any]]:
    """The peak memory of a process that makes one pass, and its memory before there is a model."""
    _prepare(plan)
    with PeakMemory(plan.place) as idle:
        pass
    with PeakMemory(plan.place) as memory:
        module = (plan.subject.naive if naive else plan.subject.ours)(plan.place)
        x = plan.input(batch)
        (training_step if training else forward_pass)(plan, module, x)()
    yield dict(mib=memory.mib, idle_mib=idle.mib, kind=memory.kind)


def count_macs(module: nn.Module, plan: Plan) -> int:
    """Multiply-accumulates of one image; counted on shapes, without computing."""
    shadow, x = copy.deepcopy(module).to('meta'), plan.input(1).to('meta')
    with torch.inference_mode():
        return count_flops(lambda: shadow(x)).total // 2


def _prepare(plan: Plan) -> None:
    torch.set_num_threads(plan.threads)
    torch.backends.cudnn.allow_tf32 = False


def _forward(plan: Plan, ours: nn.Module, naive: nn.Module, macs: int) -> Iterator[dict[str, Any]]:
    modules = dict(ours=ours, naive=naive)
    batch = plan.batch or _saturating(plan, modules, training=False)
    x = plan.input(batch)
    calls = {name: forward_pass(plan, module, x) for name, module in modules.items()}
    for name, call in calls.items() if plan.graph else ():
        try:
            calls[name] = gpu.graphed(call)
        except RuntimeError as error:
            # The plain call below reports that the pass does not fit.
            if not out_of_memory(error):
                raise
    product, flops = matrix_product(plan.place, plan.kind)
    calls = {'matrix product': product, **calls}
    on_gpu = plan.place.type == 'cuda'
    if on_gpu:
        calls['copy'], copied = gpu.memory_copy(plan.place)
    took, trouble = interleave(calls, plan.place, runs=plan.runs, seconds=plan.seconds)
    times = {name: summary(each) for name, each in took.items()}
    rate = flops / times.pop('matrix product')['ms'] * 1e3
    record = dict(batch=batch, flops_per_s=rate, forward=times, trouble={
        f'forward, {name}': reason for name, reason in trouble.items()})
    for entry in times.values():
        entry['fraction'] = _fraction(macs * batch, entry['ms'], rate)
    if on_gpu:
        record['bytes_per_s'] = copied / times.pop('copy')['ms'] * 1e3
        with torch.inference_mode(), plan.autocast():
            out = ours(x)
        moved = gpu.compulsory_bytes(ours, (x, *(out if isinstance(out, tuple) else (out,))),
                                     plan.kind.itemsize)
        record['floor_ms'] = gpu.floor_ms(moved, 2. * macs * batch, record['bytes_per_s'], rate)
    yield record


def _training(plan: Plan, ours: nn.Module, naive: nn.Module) -> Iterator[dict[str, Any]]:
    modules = dict(ours=ours, naive=naive)
    batch = plan.batch or _saturating(plan, modules, training=True)
    x = plan.input(batch)
    steps = {name: training_step(plan, module, x) for name, module in modules.items()}
    took, trouble = interleave(steps, plan.place, runs=plan.runs, seconds=plan.seconds)
    yield dict(training={name: summary(each) for name, each in took.items()},
               training_batch=batch,
               training_trouble={f'training, {name}': reason for name, reason in trouble.items()})


def _forms(plan: Plan, macs: int) -> Iterator[dict[str, Any]]:
    ours = plan.subject.ours(plan.place)
    x = plan.input(plan.batch or 1)
    with torch.inference_mode():
        expected = ours(x)
    found: dict[str, Any] = {}
    trouble: dict[str, str] = {}
    product, flops = matrix_product(plan.place, plan.kind)
    for form in plan.forms:
        try:
            call, dtype = form_calls(form, plan, x)
            error = parity.relative_error(call(), expected)
            if not error <= parity.FORM_TOLERANCE[dtype]:
                trouble[form] = FAILED
                continue
            calls = {'matrix product': product, 'eager': forward_pass(plan, ours, x), form: call}
            took, missing = interleave(calls, plan.place, runs=plan.runs, seconds=plan.seconds)
            if missing:
                trouble[form] = missing.get(form) or missing['eager']
                continue
            times = {name: summary(each) for name, each in took.items()}
            rate = flops / times['matrix product']['ms'] * 1e3
            found[form] = times[form] | dict(
                difference=error, eager_ms=times['eager']['ms'],
                fraction=_fraction(macs * x.shape[0], times[form]['ms'], rate))
        # A compiler fails in many ways; keep the results of the other forms.
        except Exception as error:
            trouble[form] = f'{type(error).__name__}: {str(error).strip()[:200]}'
        yield dict(forms=dict(found), forms_trouble=dict(trouble))


def _fraction(macs: int, ms: float, rate: float) -> float:
    """The share of a rate in FLOP/s that `macs` multiply-accumulates in `ms` reach."""
    return 2e3 * macs / ms / rate


def _saturating(plan: Plan, modules: dict[str, nn.Module], *, training: bool) -> int:
    """The batch that saturates the GPU with the naive form; with ours if naive never fits."""
    make = training_step if training else forward_pass
    for name in ('naive', 'ours'):
        found = gpu.saturating_batch(
            lambda batch, module=modules[name]: make(plan, module, plan.input(batch)), plan.place)
        if found:
            return found
    raise MemoryError('not even one image fits')
