"""A program of torch.export, or a library of AOTInductor, that tools/export.py wrote."""
from __future__ import annotations

import inspect
import json
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from visattn_dense.errors import UserError
from visattn_dense.predict.card import Card
from visattn_dense.predict.exported import Exported, exported


def open_program(path: str | os.PathLike, device: str | None = None) -> Exported:
    """A .pt2 file. A library in it is executed: open files of people you trust.

    Args:
        path: the file.
        device: 'cpu' or None.

    Raises:
        UserError: no model of tools/export.py, or another device.
    """
    path = os.fspath(path)
    if device not in (None, 'cpu'):
        raise UserError(f'{path} computes on a CPU, not on {device!r}; an ONNX file runs on a GPU')
    # Detectors compute with torchvision's operators.
    with suppress(ImportError, RuntimeError, OSError):
        import torchvision  # noqa: F401
    try:
        with zipfile.ZipFile(path) as archive:
            compiled = any('/aotinductor/' in name for name in archive.namelist())
        if compiled:
            program: Any = torch._inductor.aoti_load_package(path)
            table = program.loader.get_metadata()
        else:
            extra = {'card.json': ''}
            loaded = torch.export.load(path, extra_files=extra)
            program = without_guards(loaded)
            table = json.loads(extra['card.json'] or '{}')
    # torch's loaders raise errors of many kinds.
    except Exception as error:
        raise UserError(f'{path} does not load in torch {torch.__version__}: {error}') from error

    def compute(*inputs: np.ndarray) -> Sequence[np.ndarray]:
        try:
            with torch.no_grad():
                found = program(*map(torch.from_numpy, inputs))
        except (RuntimeError, AssertionError) as error:
            shape = 'x'.join(map(str, inputs[0].shape))
            raise UserError(f'{path} does not compute an input of {shape}: '
                            f'{str(error).splitlines()[0]}') from error
        return [part.numpy() for part in (found if isinstance(found, (tuple, list)) else [found])]
    return exported(Card.read(table, path), compute, path)


def without_guards(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """What computes a program, without the program's own questions about the size.

    The guards of a program for any size refuse small sizes, of which the program is right: they ask
    if a length is 1. tools/export_table.py compares such sizes.
    """
    can_choose = 'check_guards' in inspect.signature(program.module).parameters
    return program.module(**(dict(check_guards=False) if can_choose else {}))
