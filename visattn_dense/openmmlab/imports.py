"""`when_imported(name, callback)`: act on a module as soon as it exists, without importing it.

importlib marks the spec of a module while the module's code runs: `_initializing` is set before the
code and cleared after it. A spec of the class `_WatchedSpec` acts when the mark is cleared. Two
places turn a spec into a watched spec: the finder here, which stands first in `sys.meta_path` and
returns the results of the other finders; and `when_imported`, for a module whose import has begun.
At the end the spec is a plain ModuleSpec again. Loaders are never changed.

The same finder finds modules under their former names (`visattn_dense.former`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from visattn_dense import former

Callback = Callable[[ModuleType], object]

_waiting: dict[str, list[Callback]] = {}


def when_imported(name: str, callback: Callback) -> None:
    """Call `callback(module)` right after module `name` has been executed.

    If the module has already been executed, the call happens now. If the import of the module has
    begun (the module imports us, directly or not), the call happens at the end of this import.
    After a failed import, the callback waits for the next attempt. `importlib.reload` does not call
    the callback again. The importer of the module gets an exception of the callback.

    Args:
        name: dotted module name; its parents need not be imported.
        callback: called once with the module.
    """
    module = sys.modules.get(name)
    spec = getattr(module, '__spec__', None)
    if module is not None and not getattr(spec, '_initializing', False):
        callback(module)
        return
    _waiting.setdefault(name, []).append(callback)
    if module is not None:
        _watch(spec)


def _fire(name: str, module: ModuleType) -> None:
    """Run and forget what waits for `name`, including what a callback adds meanwhile."""
    while callbacks := _waiting.get(name):
        callback = callbacks.pop(0)
        if not callbacks:
            del _waiting[name]
        callback(module)


class _WatchedSpec(ModuleSpec):
    """The spec of an awaited module.

    importlib keeps the spec object from the search to the end of the import, and gives no public
    sign at this end. Therefore the class of the spec object is exchanged. If a later importlib does
    not use `_initializing`, `when_imported` treats every module in `sys.modules` as ready.
    """

    def __setattr__(self, attribute: str, value: object) -> None:
        if attribute != '_initializing' or value:
            super().__setattr__(attribute, value)
            return
        # A module may put another module into its place in sys.modules. After a failed import there
        # is no module, and the callbacks wait for the next attempt.
        module = sys.modules.get(self.name)
        try:
            # Before the mark is cleared: other threads wait for this mark.
            if module is not None:
                _fire(self.name, module)
        finally:
            super().__setattr__(attribute, value)
            self.__class__ = ModuleSpec


def _watch(spec: ModuleSpec | None) -> None:
    if type(spec) is ModuleSpec:
        spec.__class__ = _WatchedSpec


class _Finder:
    """Finds former names, and awaited names with the help of the other finders; nothing else."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        if moved := former.spec_of(name):
            return moved
        if name not in _waiting:
            return None
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, 'find_spec', None)
            if finder is not _Finder and find_spec and (spec := find_spec(name, path, target)):
                _watch(spec)
                return spec
        return None


sys.meta_path.insert(0, _Finder)
