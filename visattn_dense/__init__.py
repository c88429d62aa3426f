"""Efficient-attention backbones for dense prediction on the OpenMMLab 2 stack.

Importing this package is cheap: it loads neither torch nor OpenMMLab. It arranges that

- OpenMMLab's last releases run on today's torch, numpy and Python (`visattn_dense.compat`);
- Pillow opens images as large as OpenCV does (`visattn_dense.images`);
- mmdetection reads COCO files only after a check (`visattn_dense.datasets.coco_guard`);
- the backbones and heads stand in mmengine's root registry as soon as mmengine is there, whichever
  of the two is imported first (`visattn_dense.registry`).
"""
import importlib
from types import ModuleType

from visattn_dense import compat
from visattn_dense.compat.imports import when_imported

__version__ = '0.1.0'


def _register_backbones(_: ModuleType) -> None:
    importlib.import_module('visattn_dense.backbones')


def _register_heads(_: ModuleType) -> None:
    importlib.import_module('visattn_dense.heads')


def _raise_pixel_limit(_: ModuleType) -> None:
    importlib.import_module('visattn_dense.images')


def _guard_coco(module: ModuleType) -> None:
    importlib.import_module('visattn_dense.datasets.coco_guard').guard(module)


compat.apply()
when_imported('PIL.Image', _raise_pixel_limit)
for _name in ('mmdet.datasets.coco', 'mmdet.evaluation.metrics.coco_metric',
              'mmdet.datasets.transforms.loading'):
    when_imported(_name, _guard_coco)
when_imported('mmengine.registry', _register_backbones)
when_imported('mmseg.models', _register_heads)
