"""Datasets: CamVid, a folder of the user's own images, and the check before any training.

The import of this package registers the dataset classes with mmsegmentation, without an import of
mmsegmentation. The classes are defined as soon as `mmseg.datasets` is imported; mmsegmentation's
registry imports it.
"""
import importlib
from typing import Any

from visattn_dense.openmmlab.registration import import_after

_CLASSES = {'CamVidDataset': 'visattn_dense.openmmlab.datasets.camvid',
            'FolderSegDataset': 'visattn_dense.openmmlab.datasets.folder'}


import_after('mmseg.datasets', *_CLASSES.values())


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
