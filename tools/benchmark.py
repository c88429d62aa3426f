#!/usr/bin/env python
"""Measure a config's model: speed, memory, parameters, FLOPs; see docs/benchmark.md.

    python tools/benchmark.py CONFIG [--sizes 512 1024 2048x1024] [--compile] [--device cuda]

Exit codes: 0 done, 2 bad input, 130 stopped.
"""
from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import visattn_dense  # noqa: E402, F401  (mends and registers)
from visattn_dense.benchmark import (  # noqa: E402
    PeakMemory,
    count_flops,
    environment,
    load_subject,
    markdown,
    measure,
    write_report,
)
from visattn_dense.errors import UserError  # noqa: E402
from visattn_dense.openmmlab.config import add_cfg_options, merge_options, read_config  # noqa: E402


def size(text: str) -> tuple[int, int]:
    """'512' or 'HEIGHTxWIDTH' to (height, width)."""
    found = re.fullmatch(r'(\d+)(?:[x×](\d+))?', text)
    if not found or min(height := int(found[1]), width := int(found[2] or height)) < 32:
        raise argparse.ArgumentTypeError(
            f'a size is a number of pixels or HEIGHTxWIDTH, at least 32, got {text!r}')
    return height, width


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='benchmark.py', description='Images per second, latency, peak memory, parameters and '
        'FLOPs (attention included) of a config\'s model.')
    parser.add_argument('config', help='config file of a segmentor or detector')
    parser.add_argument('--sizes', nargs='+', type=size, default=[(512, 512)],
                        metavar='SIZE', help='512 or HEIGHTxWIDTH (default: 512)')
    parser.add_argument('--batch', type=int, default=1, metavar='N', help='images at a time '
                        '(default: %(default)s)')
    parser.add_argument('--part', choices=('model', 'backbone'), default='model',
                        help='backbone, neck and heads, or the backbone alone (default: model)')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--compile', action='store_true', help='with torch.compile')
    form.add_argument('--optimise', action='store_true', help='with BatchNorm folded and, on a '
                      'CPU, packed weights and freed memory kept (visattn_dense.layers.'
                      'optimize_for_inference)')
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
    return parser.parse_args(arguments)


def benchmark(args: argparse.Namespace) -> None:
    """Measure each size; the table is printed and written when all are done."""
    if args.runs < 1 or args.warmup < 0 or args.batch < 1 or (args.threads or 1) < 1:
        raise UserError(f'--runs, --batch and --threads are at least 1 and --warmup 0, got '
                        f'{args.runs}, {args.batch}, {args.threads} and {args.warmup}')
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options, lambda note: print(note, file=sys.stderr))
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    subject = load_subject(cfg, part=args.part, device=device, dtype=getattr(torch, args.dtype),
                           checkpoint=args.checkpoint)
    form = 'compiled' if args.compile else 'optimised' if args.optimise else 'eager'
    report = dict(
        config=args.config, part=args.part, dtype=args.dtype, form=form, batch=args.batch,
        environment=environment(subject.device), parameters=subject.parameters(), results=[])
    # Before anything is compiled: compiled code hides its operators from the counter.
    flops = [count_flops(subject.runner(1, *shape)) for shape in args.sizes]
    if args.compile:
        subject.compile()
    elif args.optimise:
        subject.optimise()
    for shape, count in zip(args.sizes, flops, strict=True):
        run = subject.runner(args.batch, *shape)
        with PeakMemory(subject.device) as memory:
            took = measure(run, subject.device, warmup=args.warmup, runs=args.runs,
                           seconds=args.seconds, watch=lambda numbers, shape=shape: tqdm(
                               numbers, f'{shape[0]}×{shape[1]}', leave=False, file=sys.stderr))
        report['results'].append(dict(
            height=shape[0], width=shape[1], macs=count.total // 2, flops=count.total,
            attention_flops=count.attention, latency_ms=took._asdict(),
            images_per_s=1e3 * args.batch / took.mean, peak_mib=memory.mib,
            peak_kind=memory.kind))
    print(markdown(report))
    out = args.out or Path('work_dirs/benchmark') / f'{Path(args.config).stem}.json'
    for path in write_report(out, report):
        print(f'  {path}')


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    try:
        benchmark(args)
    except (UserError, FileNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f'error: out of memory: {error}; fewer images (--batch) or smaller --sizes',
              file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\nStopped.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
