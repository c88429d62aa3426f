"""The results as Markdown, JSON and a plot.

A record is one subject at one size. Its entries, absent where they were not measured:

    family, name, kind, height, width, dtype, batch, graph, saturating    what
    macs                      multiply-accumulates of one image, attention included
    parity, gradient_parity   see `benchmarks.parity.Parity`
    forward, training         {'ours' | 'naive': {ms, least_ms, runs, fraction}}
    flops_per_s, bytes_per_s, floor_ms     ceilings in the same rounds; the last two on a GPU
    forms                     {form: {ms, eager_ms, fraction, difference, ...}}, own rounds
    memory                    {'forward, ours', ...: {mib, idle_mib, kind}}
    trouble                   {part: why it is missing}
"""
from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .cases import FAILED
from .forms import FORMS
from .isolation import EXPECTED
from .options import Size
from .plot import draw
from .report import check_writable, environment, table, write_report
from .timing import growth_exponent

Record = dict[str, Any]
_NONE = '–'


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions and options; checks that results can be written.

    Raises:
        UserError: they cannot.
    """
    check_writable(paths(args.out))
    versions = {}
    for name in ('torch', 'triton', 'timm', 'numpy'):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return dict(form='full' if args.full else 'short',
                command=shlex.join(['python', '-m', 'benchmarks', *map(str, args.words)]),
                environment=environment(torch.device(args.device)) | dict(threads=args.threads),
                versions=versions, sizes=list(args.sizes), records=[])


def paths(out: Path) -> tuple[Path, Path, Path]:
    """The table, the JSON and the plot."""
    return out, out.with_suffix('.json'), out.parent / 'img' / f'{out.stem}.png'


def write(out: Path, report: dict[str, Any]) -> None:
    """Table and JSON, each whole or not at all."""
    text, data, _ = paths(out)
    write_report(text, markdown(report, out), data, report)


def write_plot(out: Path, report: dict[str, Any]) -> None:
    """The picture, whole or not at all."""
    draw(report['records'], paths(out)[2])


def failures(records: Sequence[Record]) -> list[str]:
    """One line for each part that failed its parity or broke; a limit of time or memory is not a
    failure."""
    return [f'{record["name"]} at {size(record)}, {part}: {reason}'
            for record in records for part, reason in record['trouble'].items()
            if not reason.startswith(EXPECTED)]


def size(record: Record) -> str:
    """'512×512', with the batch if it is not 1, and with 'graph' for a CUDA graph."""
    batch = record.get('batch', '' if record['saturating'] else 1)
    return (str(Size(record['height'], record['width']))
            + (f', batch {batch}' if batch != 1 else '') + (', graph' if record['graph'] else ''))


def markdown(report: dict[str, Any], out: Path) -> str:
    """The document."""
    where, records = report['environment'], report['records']
    versions = ', '.join(f'{name} {version}' for name, version in report['versions'].items())
    rates = [record['flops_per_s'] for record in records if 'flops_per_s' in record]
    rate = (f'{min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f} GFLOP/s in the course of the run'
            if rates else 'not measured')
    idle = [taken['idle_mib'] for record in records for taken in record['memory'].values()]
    gpu = where['cuda'] is not None
    kinds = sorted({record['dtype'] for record in records})
    lines = [
        '# Benchmarks', '',
        f'Written by `{report["command"]}` ({report["form"]} form) on {where["date"]}, commit '
        f'{where["commit"] or "unknown"}. {where["device"]}, '
        + ('' if gpu else f'{where["threads"]} of {where["cores"]} hardware threads, ')
        + f'{where["system"]}, Python {where["python"]}, {versions}. '
        + ('' if gpu else 'No GPU was measured. ')
        + f'The rate of a plain matrix product in {" and ".join(kinds) or "float32"}: {rate}.', '',
        f'![Time over the naive form\'s, and share of the matrix-product rate]'
        f'({paths(out)[2].relative_to(out.parent)})', '',
        '*Ours* and *naive* have the same weights; naive is the equation of each attention '
        'written out (`visattn_dense.attention.naive`), in the same trunk. Both, and a matrix '
        'product, take turns in one process: medians. Eager, '
        + ('autocast where not float32, ' if gpu else 'one image, ')
        + 'random weights. *Of rate*: 2·MACs / time / the rate of the matrix product in the same '
        'rounds. Training: forward, backward, a step of SGD. Peak memory: '
        + ('the allocator\'s, weights included'
           if gpu else 'of a process that makes one pass, Python and libraries included'
           + (f' ({min(idle):.0f} MiB before there is a model)' if idle else ''))
        + '. A time stands here only if outputs (for training: gradients) of ours and naive differ '
        'by less than 1e-4, relatively, on noise of that size, or of the largest that fits where '
        'naive does not.', '']
    for kind, title in (('backbone', 'Backbones'), ('operator', 'Operators')):
        own = [record for record in records if record['kind'] == kind]
        if not own:
            continue
        first = kind
        lines += [f'## {title}', '', *table(
            (first, 'image', 'GMACs', 'forward ms', 'naive', 'ratio', 'of rate', 'naive',
             'training ms', 'naive', 'ratio', *(('over floor',) if gpu else ())),
            [_speed_row(record, gpu) for record in own], words=2), '']
        if any(record['memory'] for record in own):
            lines += ['Peak MiB:', '', *table(
                (first, 'image', 'forward', 'naive', 'ratio', 'training', 'naive', 'ratio'),
                [_memory_row(record) for record in own if record['memory']], words=2), '']
    lines += _growth(records) + _forms(records) + _missing(records)
    return '\n'.join(lines).rstrip() + '\n'


def _speed_row(record: Record, gpu: bool) -> list[str]:
    cells = [record['name'], size(record),
             f'{record["macs"] / 1e9:.2f}' if 'macs' in record else _NONE]
    for mode in ('forward', 'training'):
        pair = [_value(record, mode, side, 'ms', _ms) for side in ('ours', 'naive')]
        cells += [*pair, _ratio(*(record.get(mode, {}).get(side, {}).get('ms')
                                  for side in ('ours', 'naive')))]
        if mode == 'forward':
            cells += [_value(record, mode, side, 'fraction', lambda x: f'{x:.2f}')
                      for side in ('ours', 'naive')]
    if gpu:
        cells.append(_ratio(record.get('forward', {}).get('ours', {}).get('ms'),
                            record.get('floor_ms')))
    return cells


def _value(record: Record, mode: str, side: str, entry: str, text: Callable[[float], str]) -> str:
    found = record.get(mode, {}).get(side, {}).get(entry)
    if found is not None:
        return text(found)
    trouble = record['trouble']
    reason = trouble.get(f'{mode}, {side}') or trouble.get(mode) or ''
    return FAILED if reason == FAILED else reason.split(' in ')[0] or _NONE


def _ms(milliseconds: float) -> str:
    """Three digits."""
    return f'{milliseconds:.3g}' if milliseconds < 100 else f'{milliseconds:.0f}'


def _memory_row(record: Record) -> list[str]:
    cells = [record['name'], size(record)]
    for mode in ('forward', 'training'):
        found = [record['memory'].get(f'{mode}, {side}', {}).get('mib')
                 for side in ('ours', 'naive')]
        reasons = [record['trouble'].get(f'memory, {mode}, {side}', '') for side in (
            'ours', 'naive')]
        cells += [f'{value:.0f}' if value is not None else reason or _NONE
                  for value, reason in zip(found, reasons, strict=True)]
        cells.append(_ratio(*found))
    return cells


def _ratio(ours: float | None, naive: float | None) -> str:
    return f'{ours / naive:.2f}' if ours and naive else _NONE


def _growth(records: Sequence[Record]) -> list[str]:
    """How the time of each side grows with the pixels, over all measured sizes."""
    rows = []
    for key in dict.fromkeys((r['name'], r['graph'], r['saturating']) for r in records):
        own = [r for r in records if (r['name'], r['graph'], r['saturating']) == key]
        cells, counts = [], []
        for mode, batch in (('forward', 'batch'), ('training', 'training_batch')):
            for side in ('ours', 'naive'):
                times = {r['height'] * r['width']: r[mode][side]['ms'] / r[batch]
                         for r in own if side in r.get(mode, {})}
                exponent = growth_exponent(list(times), list(times.values()))
                cells.append(_NONE if exponent is None else f'{exponent:.2f}')
                counts.append(str(len(times)))
        if any(cell != _NONE for cell in cells):
            rows.append([key[0] + (', graph' if key[1] else ''), *cells,
                         '/'.join(counts)])
    if not rows:
        return []
    return ['## Growth', '', 'The exponent p of time ∝ pixels^p, fitted over the sizes above at '
            'which there is a time (last column: how many, in the order of the columns). 1 is '
            'linear, 2 quadratic.', '', *table(
                ('', 'forward', 'naive', 'training', 'naive', 'sizes'), rows, words=1), '']


def _forms(records: Sequence[Record]) -> list[str]:
    rows = [[record['name'], size(record), form, _ms(found['ms']),
             _ratio(found['ms'], found['eager_ms']),
             f'{found["fraction"]:.2f}' if 'fraction' in found else _NONE,
             f'{found["difference"]:.1e}']
            for record in records for form, found in record.get('forms', {}).items()]
    if not rows:
        return []
    legend = '; '.join(f'{form}: {text}' for form, text in FORMS.items())
    return ['## Other forms', '', 'Of ours, forward, against eager and the matrix product in the '
            f'same rounds, which are not those above. {legend}. '
            '*Differs*: relative difference of the outputs from eager float32.', '',
            *table(('', 'image', 'form', 'ms', 'over eager', 'of rate', 'differs'), rows,
                     words=3), '']


def _missing(records: Sequence[Record]) -> list[str]:
    lines = [f'- {record["name"]}, {size(record)}: ' + '; '.join(
        f'{part}: {reason}' for part, reason in record['trouble'].items())
        for record in records if record['trouble']]
    return ['## Not measured', '', *lines, ''] if lines else []
