"""mmengine looks packages up with pkg_resources and pkgutil functions that are gone or going."""

from __future__ import annotations

import importlib.util
from types import ModuleType, SimpleNamespace


def use_importlib_metadata(package_utils: ModuleType) -> None:
    """`is_installed`, `get_installed_path` and `package2module` without pkg_resources.

    Their code is exchanged in place, because other modules of mmengine have imported the functions
    by name by the time they are mended.

    Args:
        package_utils: `mmengine.utils.package_utils`.
    """
    package_utils.is_installed.__code__ = _is_installed.__code__
    package_utils.get_installed_path.__code__ = _get_installed_path.__code__
    package_utils.package2module.__code__ = _package2module.__code__


# These run with mmengine.utils.package_utils as their globals: each imports what it needs.
def _is_installed(package):
    import importlib.util
    from importlib import metadata

    try:
        metadata.distribution(package)
        return True
    except metadata.PackageNotFoundError:
        spec = importlib.util.find_spec(package)
        return spec is not None and spec.origin is not None


def _get_installed_path(package):
    import importlib.util
    import os
    from importlib import metadata

    spec = importlib.util.find_spec(package)
    if spec is None:
        # A distribution under another name than its module, such as mmcv-lite.
        module = package2module(package)  # noqa: F821 (a global of the mended module)
        spec = importlib.util.find_spec(module)
    if spec is None:
        raise metadata.PackageNotFoundError(package)
    if spec.origin is None:
        raise RuntimeError(f'{package} is a namespace package: it has no single path')
    return os.path.dirname(spec.origin)


def _package2module(package):
    from importlib import metadata

    distribution = metadata.distribution(package)
    names = (distribution.read_text('top_level.txt') or '').split()
    if not names:
        files = distribution.files or []
        names = sorted({file.parts[0] for file in files if file.name == '__init__.py'})
    if not names:
        raise ValueError(f'can not infer the module name of {package}')
    return names[0]


def use_find_spec(module: ModuleType) -> None:
    """Give a module that calls `pkgutil.find_loader` the function that replaced it.

    Args:
        module: one that has imported `pkgutil` under its own name.
    """
    module.pkgutil = SimpleNamespace(find_loader=importlib.util.find_spec)
