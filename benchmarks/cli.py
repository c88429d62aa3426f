"""The command line: what to measure, in which order, and where to write the results."""
from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from visattn_dense.command import run
from visattn_dense.errors import UserError, did_you_mean
from visattn_dense.images import free_memory

from . import document, subjects
from .cases import memory_case, time_case
from .forms import has_compiler
from .isolation import collect
from .options import Size, parse_place, parse_size
from .passes import Plan
from .report import write_report

QUICK_SIZES, FULL_SIZES = ('224', '512'), ('224', '512', '1024', '1024x2048')
# On a CPU the only size in all forms: compiling for one takes minutes on a few cores.
_ALL_FORMS_CPU = Size(512, 512)
# Parity halves the sides where an image does not fit, down to this.
_LEAST_SIDE = 64


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks', description='Our attentions and backbones against their naive '
        'equations: forward, training step, peak memory, growth, share of the matrix-product rate.')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--quick', action='store_true', help='sizes 224 and 512, few repeats, ten '
                      'minutes at most; the default')
    form.add_argument('--plan', action='store_true', help='measure nothing: count the launches, '
                      'bytes and FLOPs of a forward pass on a GPU, whether or not there is one')
    form.add_argument('--host', action='store_true', help='measure the host alone: launches, time '
                      'and memory of passes on a GPU whose kernels do nothing; needs gcc, no GPU')
    form.add_argument('--full', action='store_true', help='all sizes, other forms (compiled, '
                      'bfloat16, channels_last), more repeats')
    parser.add_argument('--families', nargs='+', default=subjects.FAMILIES, metavar='FAMILY',
                        help=f'of {", ".join(subjects.FAMILIES)} (default: all)')
    parser.add_argument('--backbones', nargs='*', metavar='NAME:ARCH',
                        help='such as CSWin:tiny, or none at all (default: those of the families)')
    parser.add_argument('--no-operators', action='store_true', help='backbones alone')
    parser.add_argument('--sizes', nargs='+', metavar='SIZE', help='512 or HEIGHTxWIDTH '
                        '(default: 224 512, with --full also 1024 1024x2048)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1 (default: cpu)')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'),
                        help='by autocast (default: float32 on the CPU, bfloat16 on a GPU)')
    parser.add_argument('--threads', type=int, default=2, metavar='N', help='of the CPU '
                        '(default: %(default)s)')
    parser.add_argument('--runs', type=int, metavar='N', help='rounds (default: 3, with --full 5)')
    parser.add_argument('--seconds', type=float, metavar='S', help='no new round after them, for '
                        'forward and training each (default: 5, with --full 30)')
    parser.add_argument('--patience', type=float, metavar='S', help='give a process up after them '
                        '(default: 120, with --full 1800)')
    parser.add_argument('--minutes', type=float, metavar='M', help='begin nothing new after them '
                        '(default: 9.5, with --full no limit)')
    parser.add_argument('--memory', type=float, metavar='GIB', help='that a process may allocate '
                        'on the CPU (default: 0.9 of what is available)')
    parser.add_argument('--out', type=Path, metavar='FILE.md', help='the table; JSON lies beside '
                        'it and the plot under img/ (default: work_dirs/benchmarks/benchmarks.md, '
                        'with --full docs/notes/benchmarks.md)')
    args = parser.parse_args(arguments)
    args.words = sys.argv[1:] if arguments is None else list(arguments)
    for name, quick, full in (
            ('runs', 3, 5), ('seconds', 5., 30.), ('patience', 120., 1800.),
            ('minutes', 9.5, float('inf')),
            ('sizes', None if args.plan or args.host else QUICK_SIZES, FULL_SIZES),
            ('out', Path('work_dirs/benchmarks/benchmarks.md'), Path('docs/notes/benchmarks.md'))):
        if getattr(args, name) is None:
            setattr(args, name, full if args.full else quick)
    return args


def chosen(args: argparse.Namespace) -> list[subjects.Subject]:
    """The operators and backbones that the options name.

    Raises:
        UserError: a family or backbone that there is not.
    """
    for family in args.families:
        if family not in subjects.FAMILIES:
            raise UserError(f'no family {family!r}. {did_you_mean(family, subjects.FAMILIES)}')
    names = args.backbones
    if names is None:
        defaults = (subjects.GPU_BACKBONES if args.device.startswith('cuda')
                    else subjects.CPU_BACKBONES if args.full else subjects.QUICK_BACKBONES)
        found = [subject for subject in map(subjects.backbone, defaults)
                 if subject.family in args.families]
    else:
        found = [subjects.backbone(name) for name in names]
    operators = () if args.no_operators else subjects.OPERATORS
    found += [subject for subject in operators if subject.family in args.families]
    if not found:
        raise UserError('nothing is left to measure: no backbones and no operators')
    return found


def plans(args: argparse.Namespace) -> list[Plan]:
    """Everything to measure, small images first, so that an early stop still has all families.

    Raises:
        UserError: an option has a bad value.
    """
    if min(args.runs, args.threads) < 1 or min(args.seconds, args.patience, args.minutes) <= 0 or (
            args.memory is not None and args.memory <= 0):
        raise UserError('--runs and --threads are at least 1, --seconds, --patience, --minutes and '
                        '--memory above 0')
    if args.out.suffix != '.md':
        raise UserError(f'--out names a Markdown file (.md), got {args.out}')
    dtype = args.dtype or ('bfloat16' if args.device.startswith('cuda') else 'float32')
    place, _ = parse_place(args.device, dtype)
    gpu = place.type == 'cuda'
    sizes = sorted((parse_size(text, _LEAST_SIDE) for text in args.sizes), key=math.prod)
    found = []
    for size in sizes:
        for subject in chosen(args):
            plan = Plan(subject, *size, device=args.device, dtype=dtype,
                        threads=args.threads, runs=args.runs, seconds=args.seconds,
                        forms=_forms(subject, size, gpu, args.full))
            # One image as a graph, without launches between kernels; then as many as fill the GPU.
            found += ([replace(plan, graph=True), replace(plan, batch=0, forms=())] if gpu
                      else [plan])
    return found


def _forms(subject: subjects.Subject, size: Size, gpu: bool, full: bool) -> tuple[str, ...]:
    if subject.kind != 'backbone':
        return ()
    forms = () if gpu else ('optimized',)
    if not full or not gpu and size != _ALL_FORMS_CPU:
        return forms
    forms += ('channels_last',) + (() if gpu else ('bfloat16',))
    if has_compiler():
        forms += ('compiled',) + (('naive compiled',) if gpu else ())
    return forms


class Limits:
    """The time that is left for the run, and the memory for one process."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.end = time.monotonic() + 60 * args.minutes
        self.patience = args.patience
        self.memory_gib = args.memory
        self.late = f'not begun within {args.minutes:g} minutes'

    def seconds(self) -> float:
        return min(self.patience, self.end - time.monotonic())

    def memory(self, plan: Plan) -> int | None:
        """Bytes, or None for no limit."""
        if plan.device != 'cpu':
            return None
        if self.memory_gib is not None:
            return int(self.memory_gib * 2**30)
        free = free_memory()
        return free and int(0.9 * free)


def measure_all(args: argparse.Namespace, todo: list[Plan]) -> Iterator[dict[str, Any]]:
    """Each plan in its processes.

    Yields:
        A record for each plan; see `benchmarks.document`.
    """
    limits = Limits(args)
    for plan in tqdm(todo, 'benchmarks', file=sys.stderr):
        subject = plan.subject
        record = dict(family=subject.family, name=subject.name, kind=subject.kind,
                      height=plan.height, width=plan.width, dtype=plan.dtype, graph=plan.graph,
                      saturating=not plan.batch, memory={}, trouble={})
        if limits.seconds() <= 0:
            yield record | dict(trouble=dict(all=limits.late))
            continue
        found, reason = collect(time_case, plan, seconds=limits.seconds(),
                                memory=limits.memory(plan))
        for part in ('trouble', 'training_trouble', 'forms_trouble'):
            record['trouble'] |= found.pop(part, {})
        record |= found
        if reason:
            record['trouble']['times'] = reason
        if found.get('parity', {}).get('passed'):
            _measure_memory(plan, record, limits)
        yield record


def _measure_memory(plan: Plan, record: dict[str, Any], limits: Limits) -> None:
    for mode in ('forward', 'training'):
        batch = record.get('training_batch' if mode == 'training' else 'batch') or plan.batch or 1
        for side in ('ours', 'naive'):
            seconds, what = limits.seconds(), f'memory, {mode}, {side}'
            if seconds <= 0:
                record['trouble'][what] = limits.late
                continue
            taken, reason = collect(memory_case, plan, side == 'naive', mode == 'training', batch,
                                    seconds=seconds, memory=limits.memory(plan))
            if reason:
                record['trouble'][what] = reason
            else:
                record['memory'][f'{mode}, {side}'] = taken


def main(arguments: list[str] | None = None) -> int:
    """0 done, 1 something failed its parity or broke, 2 bad input, 130 stopped."""
    return run(benchmark, parse_args(arguments))


def show_plan(args: argparse.Namespace) -> None:
    """Print the table of `benchmarks.plan`, or with --host that of `benchmarks.no_gpu`."""
    from . import plan
    from .no_gpu import passes
    sizes = plan.BATCHES
    if args.sizes is not None:
        sizes = {size: plan.BATCHES.get(size, 1)
                 for size in (parse_size(text, _LEAST_SIDE) for text in args.sizes)}
    names = list(subjects.GPU_BACKBONES) if args.backbones is None else args.backbones
    for name in names:
        subjects.backbone(name)
    for row in (passes if args.host else plan).table(names, sizes):
        print(row, flush=True)


def measure_gpu(args: argparse.Namespace) -> int:
    """Print and write the table of `benchmarks.gpu_table`, line by line."""
    from . import gpu_table
    place, _ = parse_place(args.device, args.dtype or 'bfloat16')
    report = document.begin(args)
    names = args.backbones or gpu_table.BACKBONES
    for name in names:
        subjects.backbone(name)
    where = report['environment']
    found = gpu_table.Table(place, args.minutes, tuple(names), dtype=args.dtype or 'bfloat16')
    found.lines += [f'# {where["device"]}', '', f'Written by `{report["command"]}` on '
                    f'{where["date"]}, commit {where["commit"] or "unknown"}, torch '
                    f'{where["torch"]}.', '']
    print('\n'.join(found.lines))
    text, data, _ = document.paths(args.out)
    for line in found.run():
        print(line, flush=True)
        write_report(text, '\n'.join(found.lines) + '\n', data,
                     report | dict(records=found.records))
    print(f'  {text}\n  {data}')
    return 1 if found.failed else 0


def benchmark(args: argparse.Namespace) -> int:
    if args.plan or args.host:
        show_plan(args)
        return 0
    if args.device.startswith('cuda') and not args.full:
        return measure_gpu(args)
    records: list[dict[str, Any]] = []
    todo = plans(args)
    report = document.begin(args) | dict(records=records)
    try:
        for record in measure_all(args, todo):
            records.append(record)
            # After each: a run of hours that is stopped keeps what it has.
            document.write(args.out, report)
    except KeyboardInterrupt:
        print(f'\nStopped; {len(records)} of {len(todo)} measured.', file=sys.stderr)
    document.write_plot(args.out, report)
    print(document.markdown(report, args.out))
    failures = document.failures(records)
    for line in failures:
        print(f'failed: {line}', file=sys.stderr)
    print('\n'.join(f'  {path}' for path in document.paths(args.out)))
    return 130 if len(records) < len(todo) else 1 if failures else 0
