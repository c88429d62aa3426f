"""Efficient-attention backbones for dense prediction on the OpenMMLab 2 stack.

Importing this package is cheap: it loads neither torch nor OpenMMLab. The import arranges that

- OpenMMLab's last releases run on today's torch, numpy and Python
  (`visattn_dense.openmmlab.compat`);
- Pillow opens images as large as OpenCV does (`visattn_dense.images`), and mmdetection reads COCO
  files only after a check (`visattn_dense.openmmlab.datasets.coco_guard`);
- the backbones and heads enter OpenMMLab's registries as soon as the registries are imported,
  before or after this package (`visattn_dense.openmmlab.registration`).
"""
from importlib import import_module

from visattn_dense.openmmlab import compat, registration

__version__ = '0.1.0'

compat.apply()
registration.arrange()


def __getattr__(name: str):
    # Imported by name at the first use. So `import visattn_dense` stays cheap, and the rooms below
    # do not depend on the room at the top.
    if name == 'Predictor':
        return import_module('visattn_dense.predictor').Predictor
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
