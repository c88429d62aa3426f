"""Mends that let OpenMMLab's last releases run on today's torch, NumPy, OpenCV and Python.

`import visattn_dense` calls `apply()`. `apply()` imports none of the mended packages: every mend
waits for the import of its module, and then looks at the installed versions. `mends()` lists the
mends with their status; `python -m visattn_dense.doctor` prints this list.
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
