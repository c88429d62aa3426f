"""Former names: a module or name that has moved is also found under its former name.

`MOVED` is the whole list: the former dotted name of a module, or of a name in a module, and the
name of today. Modules below a moved package have moved with the package. Former names serve the
scripts, configs and dumped configs of users; nothing in this project uses a former name.
"""
from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

_ROOM = 'visattn_dense.openmmlab'
_ZOO = 'visattn_dense.zoo'
MOVED = {
    # modules
    'visattn_dense.allocator': 'visattn_dense.inference.allocator',
    'visattn_dense.compat': f'{_ROOM}.compat',
    'visattn_dense.config': f'{_ROOM}.config',
    'visattn_dense.datasets': f'{_ROOM}.datasets',
    'visattn_dense.engine': f'{_ROOM}.engine',
    'visattn_dense.heads': f'{_ROOM}.heads',
    f'{_ROOM}.explained': f'{_ROOM}.backbone',
    'visattn_dense.evaluation.classes': 'visattn_dense.evaluation.dataset_files',
    'visattn_dense.checkpoints.memory': 'visattn_dense.checkpoints.mapped',
    'visattn_dense.checkpoints.__main__': f'{_ZOO}.__main__',
    'visattn_dense.checkpoints.convert': f'{_ZOO}.convert',
    'visattn_dense.checkpoints.recognise': f'{_ZOO}.recognise',
    'visattn_dense.checkpoints.segmentor': f'{_ZOO}.segmentor',
    'visattn_dense.checkpoints.zoo': f'{_ZOO}.table',
    'visattn_dense.checkpoints.web': 'visattn_dense.web',
    # names in a module that is still there
    'visattn_dense.checkpoints.find_release': f'{_ZOO}.find_release',
    'visattn_dense.checkpoints.load_segmentor': f'{_ZOO}.load_segmentor',
    'visattn_dense.checkpoints.match_parts': f'{_ZOO}.match_parts',
    'visattn_dense.checkpoints.releases': f'{_ZOO}.releases',
    'visattn_dense.checkpoints.translate_checkpoint': f'{_ZOO}.translate_checkpoint',
    'visattn_dense.inference.open_segmentor': f'{_ROOM}.inference.open_segmentor',
}


def name_today(name: str) -> str | None:
    """Today's name of `name`, if the module or a package above it has moved; otherwise None."""
    for former, today in MOVED.items():
        if name == former or name.startswith(f'{former}.'):
            return today + name[len(former):]
    return None


def names_of(module: str) -> Callable[[str], Any]:
    """A `__getattr__` for a module from which names have moved to other modules."""
    def getattr_(name: str) -> Any:
        today = MOVED.get(f'{module}.{name}')
        if today is None:
            raise AttributeError(f'module {module!r} has no attribute {name!r}')
        home, _, leaf = today.rpartition('.')
        return getattr(importlib.import_module(home), leaf)

    return getattr_


def spec_of(name: str) -> ModuleSpec | None:
    """The spec for the import of a former name, which gives the module of today; otherwise None."""
    today = name.startswith('visattn_dense.') and name_today(name)
    if not today or not (spec := importlib.util.find_spec(today)):
        return None
    # `python -m` takes the name of the program from the origin.
    return ModuleSpec(name, _Loader(today), origin=spec.origin)


class _Loader:
    """Puts the module of today into `sys.modules` under the former name."""

    def __init__(self, today: str) -> None:
        self._today = today

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self._today)

    def get_code(self, name: str) -> CodeType | None:
        """For `python -m`."""
        return importlib.util.find_spec(self._today).loader.get_code(self._today)
