"""What stands for a training run in its folder (work_dir): the config and one checkpoint."""
from __future__ import annotations

import os
from pathlib import Path

from visattn_dense.errors import UserError
from visattn_dense.openmmlab.engine.resume import candidates


def config_of(folder: str | os.PathLike) -> Path:
    """The config file that a run left in its folder.

    Raises:
        UserError: there is no folder, no config, or more than one.
    """
    if not Path(folder).is_dir():
        raise UserError(f'there is no folder {folder}; give the work_dir of a training')
    found = sorted(Path(folder).glob('*.py'))
    if len(found) != 1:
        raise UserError(f'{folder} has {len(found)} config files at its top'
                        + (f' ({", ".join(path.name for path in found)})' if found else '')
                        + ', and the folder of a run has one: name the files themselves')
    return found[0]


def checkpoint_of(folder: str | os.PathLike) -> Path:
    """The newest best checkpoint of a run; without one, the newest.

    Raises:
        UserError: there is no checkpoint.
    """
    best = sorted(Path(folder).glob('best_*.pth'), key=lambda path: path.stat().st_mtime_ns)
    found = [*reversed(best), *candidates(folder)]
    if not found:
        raise UserError(f'{folder} has no checkpoint (*.pth) yet')
    return found[0]
