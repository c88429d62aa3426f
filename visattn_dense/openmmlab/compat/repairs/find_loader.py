"""`pkgutil.find_loader`, which OpenMMLab calls and Python 3.14 removed."""

from __future__ import annotations

import importlib.util
from types import ModuleType, SimpleNamespace


def use_find_spec(module: ModuleType) -> None:
    """Give a module that calls `pkgutil.find_loader` the function that replaced it.

    Args:
        module: one that has imported `pkgutil` under its own name.
    """
    module.pkgutil = SimpleNamespace(find_loader=importlib.util.find_spec)
