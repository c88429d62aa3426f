"""Finds `mmcv._ext` without a compiled mmcv, from the first line of a user's script.

A `.pth` file of the installation imports this module when Python starts. If that did not happen,
`visattn_dense.openmmlab.compat.apply()` calls `install()`. This module imports only the standard
library; nothing large is loaded before the import of `mmcv._ext`.

The finder stands last in `sys.meta_path`, so Python's own finders look first, and a compiled mmcv
is always preferred.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec

_BODY = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), 'visattn_dense', 'openmmlab', 'compat',
    'mmcv_ext.py')


class MmcvExtFinder:
    """A meta-path finder for the one name `mmcv._ext`."""

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """A real spec for `mmcv._ext` on `compat/mmcv_ext.py`; None for every other name."""
        if fullname != 'mmcv._ext' or not os.path.isfile(_BODY):
            return None
        return importlib.util.spec_from_file_location(fullname, _BODY)


def install() -> None:
    """Append the finder once, even if a process has loaded several copies of this module."""
    if not any(getattr(finder, '__name__', '') == MmcvExtFinder.__name__
               for finder in sys.meta_path):
        sys.meta_path.append(MmcvExtFinder)


install()
