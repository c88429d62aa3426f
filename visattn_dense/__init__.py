"""Efficient-attention backbones for dense prediction on the OpenMMLab 2 stack.

Importing this package is cheap: it loads neither torch nor OpenMMLab. It arranges that

- OpenMMLab's last releases run on today's torch, numpy and Python
  (`visattn_dense.openmmlab.compat`);
- the backbones and heads stand in mmengine's root registry as soon as mmengine is there, whichever
  of the two is imported first (`visattn_dense.registry`).
"""
import importlib
from types import ModuleType

from visattn_dense.openmmlab import compat
from visattn_dense.openmmlab.imports import when_imported

__version__ = '0.1.0'


def _register_backbones(_: ModuleType) -> None:
    importlib.import_module('visattn_dense.backbones')


def _register_heads(_: ModuleType) -> None:
    importlib.import_module('visattn_dense.openmmlab.heads')


def _register_scheme(checkpoint: ModuleType) -> None:
    importlib.import_module('visattn_dense.openmmlab.schemes').register(checkpoint)


compat.apply()
when_imported('mmengine.registry', _register_backbones)
when_imported('mmseg.models', _register_heads)
when_imported('mmengine.runner.checkpoint', _register_scheme)
