"""What enters OpenMMLab's registries, and when. Nothing is imported before OpenMMLab asks for it.

| as soon as there is        | what happens                                                  |
|----------------------------|---------------------------------------------------------------|
| mmengine.registry          | every entry of `visattn_dense.registry.BACKBONES`, now and    |
|                            | later, enters mmengine's root registry `MODELS`               |
| mmengine.model             | `init_cfg` of a backbone may name mmengine's initialisers     |
| mmengine.logging           | the messages of this project go to mmengine's logger          |
| mmengine.runner.checkpoint | mmengine's loader knows 'visattn://NAME'                      |
| mmseg.models               | the decode heads enter mmsegmentation's registry              |
| mmdet's three readers      | COCO files and masks are checked before pycocotools sees them |
| PIL.Image                  | Pillow opens images as large as OpenCV does                   |
| mmseg.datasets             | the data sets enter mmsegmentation's registry, if             |
|                            | `openmmlab.datasets` was imported                             |

The classes of `openmmlab.engine` import mmengine and register when they are imported.
"""
import importlib
from collections.abc import Callable
from types import ModuleType

from visattn_dense.openmmlab.imports import when_imported
from visattn_dense.registry import BACKBONES


def arrange() -> None:
    """Wait for every module of the table but the last; `import visattn_dense` calls this once."""
    when_imported('mmengine.registry', _publish_backbones)
    when_imported('mmengine.model', _lend_initialisers)
    when_imported('mmengine.logging', _call('visattn_dense.openmmlab.run_log', 'follow'))
    when_imported('mmengine.runner.checkpoint',
                  _call('visattn_dense.openmmlab.schemes', 'register'))
    import_after('mmseg.models', 'visattn_dense.openmmlab.heads')
    import_after('PIL.Image', 'visattn_dense.images')
    for reader in ('mmdet.datasets.coco', 'mmdet.evaluation.metrics.coco_metric',
                   'mmdet.datasets.transforms.loading'):
        when_imported(reader, _call('visattn_dense.openmmlab.datasets.coco_guard', 'guard'))


def import_after(name: str, *ours: str) -> None:
    """Import modules of ours, which register their classes, right after the module `name`."""
    def import_ours(_: ModuleType) -> None:
        for module in ours:
            importlib.import_module(module)

    when_imported(name, import_ours)


def _call(module: str, function: str) -> Callable[[ModuleType], None]:
    """A callback that imports a module of ours and calls its function."""
    def call(imported: ModuleType) -> None:
        getattr(importlib.import_module(module), function)(imported)

    return call


def _publish_backbones(registry: ModuleType) -> None:
    models = registry.MODELS

    def publish(name: str, cls: type, force: bool) -> None:
        if models.module_dict.get(name) is not cls:
            models.register_module(name=name, module=cls, force=force)

    BACKBONES.follow(publish)


def _lend_initialisers(model: ModuleType) -> None:
    from visattn_dense.backbones import DenseBackbone
    DenseBackbone._initialize = staticmethod(model.initialize)
