"""`when_imported(name, callback)`: act on a module as soon as it exists, without importing it.

importlib marks the spec of a module while the module's code runs: `_initializing` is set before the
code and cleared after it. A spec of the class `_WatchedSpec` answers the second event. Two places
make a spec a watched one: the finder here, which stands first in `sys.meta_path` and passes on what
the other finders find; and `when_imported`, for a module whose import is under way. At the end the
spec is a plain ModuleSpec again. Loaders are never touched.

The same finder answers for former names of this project's modules (`visattn_dense.former`).
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

    Where it already has been, the call happens now. A module that is being imported at this very
    moment (it imports us, directly or not) is waited for. A failed import keeps the callback
    for the next attempt; `importlib.reload` does not call it again. An exception of the callback
    reaches whoever imported the module.

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

    importlib keeps the spec object from the search to the end of the import and offers no public
    sign for that end, so the class of the very object is exchanged. Where importlib stops using
    `_initializing`, `when_imported` takes every module in `sys.modules` for ready.
    """

    def __setattr__(self, attribute: str, value: object) -> None:
        if attribute != '_initializing' or value:
            super().__setattr__(attribute, value)
            return
        # A module may have put another one into its place. After a failed import there is none,
        # and the callbacks wait for the next attempt.
        module = sys.modules.get(self.name)
        try:
            # Before the mark is cleared: other threads wait for it.
            if module is not None:
                _fire(self.name, module)
        finally:
            super().__setattr__(attribute, value)
            self.__class__ = ModuleSpec


def _watch(spec: ModuleSpec | None) -> None:
    if type(spec) is ModuleSpec:
        spec.__class__ = _WatchedSpec


class _Finder:
    """Answers for former and awaited names only; for the latter with what the others find."""

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
