"""The results as a Markdown table and as JSON."""
from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import visattn_dense
from visattn_dense.errors import UserError

_COLUMNS = ('size', 'GMACs', 'GFLOPs', 'images/s', 'p50 ms', 'p90 ms', 'p99 ms', 'peak MiB')


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions, commit and time of a measurement."""
    gpu = torch.cuda.get_device_name(device) if device.type == 'cuda' else None
    return dict(
        device=gpu or _processor(), threads=torch.get_num_threads(), cores=os.cpu_count(),
        system=platform.platform(), python=platform.python_version(), torch=torch.__version__,
        cuda=torch.version.cuda if gpu else None, visattn_dense=visattn_dense.__version__,
        commit=_commit(), date=time.strftime('%Y-%m-%d %H:%M'))


def markdown(report: Mapping[str, Any]) -> str:
    """What was measured and where, and one row for each size."""
    where, results = report['environment'], report['results']
    lines = [f'{report["config"]}, {report["part"]}, {report["dtype"]}, '
             f'{report["form"]}, batch {report["batch"]}: '
             f'{report["parameters"]["total"] / 1e6:.2f} M parameters',
             f'{where["device"]}, {where["threads"]} threads, torch {where["torch"]}, commit '
             f'{where["commit"] or "unknown"}, {where["date"]}', '']
    rows = [_COLUMNS, tuple('---:' for _ in _COLUMNS)]
    for result in results:
        took = result['latency_ms']
        rows.append((f'{result["height"]}×{result["width"]}', f'{result["macs"] / 1e9:.2f}',
                     f'{result["flops"] / 1e9:.2f}', f'{result["images_per_s"]:.2f}',
                     *(f'{took[key]:.1f}' for key in ('p50', 'p90', 'p99')),
                     f'{result["peak_mib"]:.0f}'))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ['| ' + ' | '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
              + ' |' for row in rows]
    kinds = {result['peak_kind'] for result in results}
    return '\n'.join([*lines, '', f'MACs and FLOPs are of one image, attention included; peak '
                      f'memory is {" or ".join(sorted(kinds))}.'])


def write_report(path: Path, report: Mapping[str, Any]) -> Sequence[Path]:
    """Write `path` (JSON) and the table beside it (.md); returns both.

    Raises:
        UserError: the folder cannot be written.
    """
    table = path.with_suffix('.md')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + '\n')
        table.write_text(markdown(report) + '\n')
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}; choose another with --out'
                        ) from error
    return path, table


def _processor() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return next(iter(names), platform.processor() or platform.machine())


def _commit() -> str | None:
    """Of the checkout that this file is in; with a + where the tree has changes."""
    def git(*words: str) -> str:
        return subprocess.run(['git', *words], cwd=Path(__file__).parent, capture_output=True,
                              text=True, check=True, timeout=20).stdout.strip()
    try:
        return git('rev-parse', '--short', 'HEAD') + ('+' if git('status', '--porcelain') else '')
    except (OSError, subprocess.SubprocessError):
        return None
