"""What enters OpenMMLab's registries, and when. Nothing is imported before OpenMMLab asks for it.

| as soon as there is        | what happens                                                  |
|----------------------------|---------------------------------------------------------------|
| mmengine.registry          | the entries of `visattn_dense.registry.BACKBONES`, and every  |
|                            | later one, stand in mmengine's root registry `MODELS`         |
| mmengine.model             | `init_cfg` of a backbone may name mmengine's initialisers     |
| mmengine.runner.checkpoint | mmengine's loader knows 'visattn://NAME'                      |
| mmseg.models               | the decode heads stand in mmsegmentation's registry           |
| mmseg.datasets             | so do the data sets, where `openmmlab.datasets` was imported  |

The classes of `openmmlab.engine` need mmengine themselves and register when they are imported.
"""
import importlib
from types import ModuleType

from visattn_dense.openmmlab.imports import when_imported
from visattn_dense.registry import BACKBONES


def arrange() -> None:
    """Wait for the first four of the table; called once, by `import visattn_dense`."""
    when_imported('mmengine.registry', _publish_backbones)
    when_imported('mmengine.model', _lend_initialisers)
    when_imported('mmengine.runner.checkpoint', _enter_scheme)
    import_after('mmseg.models', 'visattn_dense.openmmlab.heads')


def import_after(name: str, *ours: str) -> None:
    """Import modules of ours, which register their classes, right after the module `name`."""
    def import_ours(_: ModuleType) -> None:
        for module in ours:
            importlib.import_module(module)

    when_imported(name, import_ours)


def _publish_backbones(registry: ModuleType) -> None:
    models = registry.MODELS

    def publish(name: str, cls: type, force: bool) -> None:
        if models.module_dict.get(name) is not cls:
            models.register_module(name=name, module=cls, force=force)

    BACKBONES.follow(publish)


def _lend_initialisers(model: ModuleType) -> None:
    from visattn_dense.backbones import DenseBackbone
    DenseBackbone._initialize = staticmethod(model.initialize)


def _enter_scheme(checkpoint: ModuleType) -> None:
    from visattn_dense.openmmlab.schemes import register
    register(checkpoint)
