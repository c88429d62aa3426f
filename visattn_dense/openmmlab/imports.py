"""`when_imported(name, callback)`: act on a module as soon as it exists, without importing it.

A finder at the head of `sys.meta_path` answers only for awaited names: it asks the finders behind
it and wraps the loader they give. The wrapper hands the module its real loader back *before* the
module's code runs, so `__spec__`, `__loader__`, inspect, pickle and pkgutil see what they always
see.
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
        _watch_running_import(spec)
    elif _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def _fire(name: str, module: ModuleType) -> None:
    """Run and forget what waits for `name`, including what a callback adds meanwhile."""
    while callbacks := _waiting.get(name):
        callback = callbacks.pop(0)
        if not callbacks:
            del _waiting[name]
        callback(module)


class _Finder:
    """Answers for awaited names only, with what the finders behind it find."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if moved := former.spec_of(name):
            return moved
        if name not in _waiting:
            return None
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, 'find_spec', None)
            if finder is self or find_spec is None:
                continue
            spec = find_spec(name, path, target)
            if spec is not None:
                # A namespace package has no loader and no code to wait for.
                if hasattr(spec.loader, 'exec_module'):
                    spec.loader = _NotifyingLoader(spec.loader)
                return spec
        return None


_FINDER = _Finder()


class _NotifyingLoader:
    """The real loader in everything but `exec_module`, which reports the executed module."""

    def __init__(self, loader: object) -> None:
        self._real = loader

    def __getattr__(self, attribute: str) -> object:
        # copy and pickle ask before __init__ has run.
        if attribute == '_real':
            raise AttributeError(attribute)
        return getattr(self._real, attribute)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        # Some loaders (extension modules) read spec.loader here.
        spec.loader = self._real
        try:
            return self._real.create_module(spec)
        finally:
            spec.loader = self

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = self._real
        module.__loader__ = self._real
        self._real.exec_module(module)
        # A module may replace itself in sys.modules while it runs.
        name = module.__spec__.name
        _fire(name, sys.modules.get(name, module))


class _WatchedSpec(ModuleSpec):
    """The spec of a module whose import is under way; importlib clears `_initializing` at its end.

    importlib offers no public sign for that moment. Where it stops using this attribute, the
    module counts as ready at once and `when_imported` never comes here.
    """

    def __setattr__(self, attribute: str, value: object) -> None:
        super().__setattr__(attribute, value)
        if attribute == '_initializing' and not value:
            self.__class__ = ModuleSpec
            # After a failed import the module is gone and the callbacks wait for the next one.
            module = sys.modules.get(self.name)
            if module is not None and getattr(module, '__spec__', None) is self:
                _fire(self.name, module)
            elif _FINDER not in sys.meta_path:
                sys.meta_path.insert(0, _FINDER)


def _watch_running_import(spec: ModuleSpec) -> None:
    # An import that went through our finder reports by itself.
    if type(spec) is ModuleSpec:
        spec.__class__ = _WatchedSpec
