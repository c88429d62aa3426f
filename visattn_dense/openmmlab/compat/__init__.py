"""Mends that let OpenMMLab's last releases run on today's torch, NumPy, OpenCV and Python.

`apply()` is called by `import visattn_dense`. It imports none of the mended packages: every mend
waits for the module that it is about and looks at the installed versions then. `mends()` lists
them with what became of each; `python -m visattn_dense.doctor` prints that list.
"""

from __future__ import annotations

import visattn_dense_startup
from visattn_dense.openmmlab.compat.mend import Mend
from visattn_dense.openmmlab.compat.mends import MENDS

__all__ = ['Mend', 'apply', 'mends']


def apply() -> None:
    """Arm every mend. Cheap and idempotent; loads neither torch nor OpenMMLab."""
    # Python's start-up has done this already where the installation's .pth file is in place.
    visattn_dense_startup.install()
    for mend in MENDS:
        mend.arm()


def mends() -> tuple[Mend, ...]:
    """All mends of this package, in the order in which they are armed."""
    return MENDS
