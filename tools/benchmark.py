#!/usr/bin/env python
"""Measure a config's model: speed, memory, parameters, FLOPs; see docs/benchmarks.md.

    python tools/benchmark.py CONFIG [--sizes 512 1024 2048x1024] [--compile] [--device cuda]

Exit codes: 0 done, 2 bad input, 130 stopped.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401  (first)
import torch
from tqdm import tqdm

import visattn_dense  # noqa: F401  (mends and registers)
from benchmarks.config_model import config_subject, count_parameters
from benchmarks.flops import count_flops
from benchmarks.forms import make_ready
from benchmarks.options import Size, parse_place, parse_size
from benchmarks.passes import Plan, forward_pass
from benchmarks.peak_memory import PeakMemory
from benchmarks.report import check_writable, environment, table, write_report
from benchmarks.timing import measure
from visattn_dense.command import add_debug, run
from visattn_dense.errors import UserError
from visattn_dense.inference.allocator import keep_freed_memory
from visattn_dense.openmmlab.config import add_cfg_options, merge_options, read_config

# The backbones take any size; below this one the last maps are a pixel or nothing.
LEAST_SIDE = 32


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='benchmark.py', description='Images per second, latency, peak memory, parameters and '
        'FLOPs (attention included) of a config\'s model.')
    parser.add_argument('config', help='config file of a segmentor or detector')
    parser.add_argument('--sizes', nargs='+', default=['512'], metavar='SIZE',
                        help='512 or HEIGHTxWIDTH (default: 512)')
    parser.add_argument('--batch', type=int, default=1, metavar='N', help='images at a time '
                        '(default: %(default)s)')
    parser.add_argument('--part', choices=('model', 'backbone'), default='model',
                        help='backbone, neck and heads, or the backbone alone (default: model)')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--compile', dest='form', action='store_const', const='compiled',
                      default='eager', help='with torch.compile')
    # --optimise was the name of earlier versions.
    form.add_argument('--optimize', '--optimise', dest='form', action='store_const',
                      const='optimized', help='with BatchNorm folded and, on a CPU, packed '
                      'weights and freed memory kept (visattn_dense.layers.optimize_for_inference)')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: cuda where it is)')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32',
                        help='below float32 by autocast (default: %(default)s)')
    parser.add_argument('--runs', type=int, default=20, metavar='N',
                        help='timed runs for each size (default: %(default)s)')
    parser.add_argument('--warmup', type=int, default=3, metavar='N',
                        help='runs before them (default: %(default)s)')
    parser.add_argument('--seconds', type=float, metavar='S',
                        help='for each size, stop after so long with fewer runs')
    parser.add_argument('--threads', type=int, metavar='N', help='of the CPU (default: torch\'s)')
    parser.add_argument('--checkpoint', metavar='FILE', help='weights (default: random)')
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='the results; the table goes '
                        'beside it as .md (default: work_dirs/benchmark/NAME_OF_CONFIG.json)')
    add_cfg_options(parser)
    add_debug(parser)
    return parser.parse_args(arguments)


def benchmark(args: argparse.Namespace) -> None:
    """Measure each size; the table is printed and written when all are done."""
    if args.runs < 1 or args.warmup < 0 or args.batch < 1 or (args.threads or 1) < 1:
        raise UserError(f'--runs, --batch and --threads are at least 1 and --warmup 0, got '
                        f'{args.runs}, {args.batch}, {args.threads} and {args.warmup}')
    sizes = [parse_size(text, LEAST_SIDE) for text in args.sizes]
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    place, _ = parse_place(device, args.dtype)
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options)
    subject = config_subject(cfg, part=args.part, checkpoint=args.checkpoint)
    module = subject.ours(place)
    out = args.out or Path('work_dirs/benchmark') / f'{Path(args.config).stem}.json'
    paths = out, out.with_suffix('.md')
    check_writable(paths)

    def passes(batch: int, size: Size):
        plan = Plan(subject, *size, batch=batch, device=device, dtype=args.dtype)
        return forward_pass(plan, module, plan.input())

    # Before anything is compiled or packed: neither leaves operators that the counter knows.
    flops = [count_flops(passes(1, size)) for size in sizes]
    report = dict(
        config=args.config, part=args.part, dtype=args.dtype, form=args.form, batch=args.batch,
        environment=environment(place), parameters=count_parameters(module), results=[])
    if args.form == 'optimized':
        keep_freed_memory()
    make_ready(args.form, module)
    for size, count in zip(sizes, flops, strict=True):
        run = passes(args.batch, size)
        with PeakMemory(place) as memory:
            took = measure(run, place, warmup=args.warmup, runs=args.runs, seconds=args.seconds,
                           watch=lambda numbers, size=size: tqdm(numbers, str(size), leave=False,
                                                                 file=sys.stderr))
        report['results'].append(dict(
            height=size.height, width=size.width, macs=count.total // 2, flops=count.total,
            attention_flops=count.attention, latency_ms=took._asdict(),
            images_per_s=1e3 * args.batch / took.mean, peak_mib=memory.mib,
            peak_kind=memory.kind))
    text = markdown(report)
    print(text)
    write_report(paths[1], text + '\n', paths[0], report)
    print('\n'.join(f'  {path}' for path in paths))


def markdown(report: Mapping[str, Any]) -> str:
    """What was measured and where, and one row for each size."""
    where, results = report['environment'], report['results']
    rows = [(str(Size(result['height'], result['width'])), f'{result["macs"] / 1e9:.2f}',
             f'{result["flops"] / 1e9:.2f}', f'{result["images_per_s"]:.2f}',
             *(f'{result["latency_ms"][key]:.1f}' for key in ('p50', 'p90', 'p99')),
             f'{result["peak_mib"]:.0f}') for result in results]
    kinds = {result['peak_kind'] for result in results}
    return '\n'.join([
        f'{report["config"]}, {report["part"]}, {report["dtype"]}, {report["form"]}, batch '
        f'{report["batch"]}: {report["parameters"]["total"] / 1e6:.2f} M parameters',
        f'{where["device"]}, {where["threads"]} threads, torch {where["torch"]}, commit '
        f'{where["commit"] or "unknown"}, {where["date"]}', '',
        *table(('size', 'GMACs', 'GFLOPs', 'images/s', 'p50 ms', 'p90 ms', 'p99 ms', 'peak MiB'),
               rows, words=0, aligned=True), '',
        f'MACs and FLOPs are of one image, attention included; peak memory is '
        f'{" or ".join(sorted(kinds))}.'])


def main(arguments: list[str] | None = None) -> int:
    return run(benchmark, parse_args(arguments), codes={torch.OutOfMemoryError: 2},
               message=_message)


def _message(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return f'out of memory: {error}; fewer images (--batch) or smaller --sizes'
    return str(error)


if __name__ == '__main__':
    sys.exit(main())
