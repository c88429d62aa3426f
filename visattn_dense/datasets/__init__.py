"""Datasets: CamVid, folders of one's own, and the check before any training.

Importing this package registers the dataset classes with mmsegmentation, without importing it: they
are defined as soon as `mmseg.datasets` is there, which mmsegmentation's registry sees to.
"""
import importlib
from types import ModuleType
from typing import Any

from visattn_dense.compat.imports import when_imported

_CLASSES = {'CamVidDataset': 'visattn_dense.datasets.camvid',
            'FolderSegDataset': 'visattn_dense.datasets.folder'}


def _register(_: ModuleType) -> None:
    for module in _CLASSES.values():
        importlib.import_module(module)


when_imported('mmseg.datasets', _register)


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
