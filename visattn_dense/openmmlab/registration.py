"""What enters OpenMMLab's registries, and when. Nothing is imported before OpenMMLab asks for it.

| as soon as there is        | what happens                                                  |
|----------------------------|---------------------------------------------------------------|
| mmengine.registry          | the entries of `visattn_dense.registry.BACKBONES`, and every  |
|                            | later one, stand in mmengine's root registry `MODELS`         |
| mmengine.model             | `init_cfg` of a backbone may name mmengine's initialisers     |
| mmengine.runner.checkpoint | mmengine's loader knows 'visattn://NAME'                      |
| mmseg.models               | the decode heads stand in mmsegmentation's registry           |
| mmdet's three readers      | COCO files and masks are checked before pycocotools sees them |
| PIL.Image                  | Pillow opens images as large as OpenCV does                   |
| mmseg.datasets             | so do the data sets, where `openmmlab.datasets` was imported  |

The classes of `openmmlab.engine` need mmengine themselves and register when they are imported.
"""
import importlib
from collections.abc import Callable
from types import ModuleType

from visattn_dense.openmmlab.imports import when_imported
from visattn_dense.registry import BACKBONES


def arrange() -> None:
    """Wait for all of the table but its last line; called once, by `import visattn_dense`."""
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
