"""What both command lines write alike: Markdown tables, where they were measured, and files."""
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
from visattn_dense.atomic import write_text_whole
from visattn_dense.errors import UserError


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions, commit and time of a measurement."""
    gpu = torch.cuda.get_device_name(device) if device.type == 'cuda' else None
    return dict(
        device=gpu or _processor(), threads=torch.get_num_threads(), cores=os.cpu_count(),
        system=platform.platform(), python=platform.python_version(), torch=torch.__version__,
        cuda=torch.version.cuda if gpu else None, visattn_dense=visattn_dense.__version__,
        commit=_commit(), date=time.strftime('%Y-%m-%d %H:%M'))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int,
          aligned: bool = False) -> list[str]:
    """The lines of a Markdown table.

    Args:
        header: the titles of the columns.
        rows: the cells of each row.
        words: number of first columns that hold words; the other columns hold numbers.
        aligned: pad the cells to columns of one width, for a screen.
    """
    marks = ['---' if i < words else '---:' for i in range(len(header))]
    lines = [header, marks, *rows]
    if aligned:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
                 for line in lines]
    return ['| ' + ' | '.join(line) + ' |' for line in lines]


def check_writable(paths: Sequence[Path]) -> None:
    """Make the folders of output files.

    Raises:
        UserError: a folder cannot be made, or the path of a file is a folder.
    """
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(21, 'it is a folder')
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}; choose another with --out'
                        ) from error


def write_report(markdown: Path, text: str, data: Path, report: Mapping[str, Any]) -> None:
    """Write the Markdown and the JSON, each whole or not at all."""
    write_text_whole(data, json.dumps(report, indent=1) + '\n')
    write_text_whole(markdown, text)


def _processor() -> str:
    """The processor's name, and the instruction set that torch takes there."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    named = dict(line.split(':', 1) for line in reversed(lines) if ':' in line)
    names = {key.strip(): value.strip() for key, value in named.items()}
    name = names.get('model name') or platform.processor() or platform.machine()
    tiles = ' and AMX' if 'amx_tile' in names.get('flags', '').split() else ''
    return f'{name} with {torch.backends.cpu.get_cpu_capability()}{tiles}'


def _commit() -> str | None:
    """The commit of the checkout that has this file; with a + if the tree has changes."""
    def git(*words: str) -> str:
        return subprocess.run(['git', *words], cwd=Path(__file__).parent, capture_output=True,
                              text=True, check=True, timeout=20).stdout.strip()
    try:
        return git('rev-parse', '--short', 'HEAD') + ('+' if git('status', '--porcelain') else '')
    except (OSError, subprocess.SubprocessError):
        return None
