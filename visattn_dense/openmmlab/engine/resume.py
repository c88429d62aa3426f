"""Which checkpoint a run goes on from: the newest one that loads."""
from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from visattn_dense.errors import UserError, did_you_mean


def load_checkpoint(path: str | os.PathLike) -> Any:
    """The contents of a checkpoint, tensors on the CPU, after every byte was checked.

    Raises:
        UserError: missing, damaged, or it holds objects that could run code, which are not built.
    """
    path = Path(path)
    if not path.is_file():
        folder = path.parent
        there = [p.name for p in folder.glob('*.pth')] if folder.is_dir() else []
        raise UserError(f'no checkpoint {path}. {did_you_mean(path.name, there)}'.rstrip())
    try:
        if zipfile.is_zipfile(path):
            # torch.load does not look at the checksums.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise UserError(f'{path} is damaged: wrong checksum of {damaged}')
        return torch.load(path, map_location='cpu', weights_only=True)
    except UserError:
        raise
    except Exception as error:
        # torch raises RuntimeError, EOFError, UnpicklingError, ... according to the damage.
        raise UserError(f'{path} does not load ({path.stat().st_size:,} bytes; '
                        f'{_first_reason(error)})') from error


def _first_reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ['']
    reason = next((line for line in lines if 'Unsupported' in line), lines[0])
    refused = ' Nothing of it was executed.' if 'Unsupported' in reason else ''
    return f'{type(error).__name__}: {reason[:200]}{refused}'


def load_resumable(path: str | os.PathLike) -> dict[str, Any]:
    """`load_checkpoint` of one that a training run can go on from.

    Raises:
        UserError: as there, or it is no training checkpoint.
    """
    contents = load_checkpoint(path)
    meta = contents.get('meta') if isinstance(contents, dict) else None
    if not isinstance(meta, dict) or 'iter' not in meta or 'state_dict' not in contents:
        raise UserError(f'{path} is no training checkpoint: it has weights at most, no iteration '
                        'to go on from. Use load_from=PATH to start a new run from its weights')
    return contents


def candidates(work_dir: str | os.PathLike) -> list[Path]:
    """The training checkpoints of a work directory, in the order in which to try them.

    First what `last_checkpoint` names, unless a file both newer and further along is there (a kill
    may come between the two); then the others, newest first. Best checkpoints have no optimizer
    state and are left out.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    named = Path(pointer.read_text().strip()) if pointer.is_file() else None
    folders = [work_dir]
    if named is not None and named.name:
        if named.parent != work_dir and named.parent.is_dir():
            folders.append(named.parent)
        # The work directory may have been moved since.
        if not named.is_file():
            named = work_dir / named.name
    found = {path for folder in folders for path in folder.glob('*.pth')
             if path.is_file() and not path.name.startswith(('best_', '.'))}
    ordered = sorted(found, key=lambda path: (path.stat().st_mtime_ns, _step(path)), reverse=True)
    if named in found:
        def is_ahead(path: Path) -> bool:
            newer = path.stat().st_mtime_ns > named.stat().st_mtime_ns
            return path == named or (newer and _step(path) > _step(named))
        ordered.sort(key=is_ahead, reverse=True)
    return ordered


def _step(path: Path) -> int:
    numbers = re.findall(r'\d+', path.stem)
    return int(numbers[-1]) if numbers else -1


def find_resumable(work_dir: str | os.PathLike, say: Callable[[str], None]
                   ) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of `work_dir` that loads, with its meta entry; None without any.

    Args:
        work_dir: where the run saves.
        say: gets one line for each file that was passed over, and why.

    Raises:
        UserError: there are checkpoints and none of them loads.
    """
    pointer = Path(work_dir) / 'last_checkpoint'
    named = pointer.read_text().strip() if pointer.is_file() else ''
    paths = candidates(work_dir)
    if named and not Path(named).is_file():
        say(f'last_checkpoint names {named}, which is not there.')
    for path in paths:
        try:
            return path, load_resumable(path)['meta']
        except UserError as error:
            say(f'Passed over: {error}.')
    if paths:
        raise UserError(f'none of the {len(paths)} checkpoints in {work_dir} can be resumed from '
                        f'({", ".join(path.name for path in paths[:4])}); start without --resume, '
                        'or move them away')
    return None
