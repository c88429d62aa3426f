"""The registry of backbones: one registration here serves every OpenMMLab 2 project.

`BACKBONES` holds this project's backbones by name and needs torch alone. The moment mmengine is
imported (before or after), each entry also stands in mmengine's root registry `MODELS`, which
mmseg, mmdet and every other OpenMMLab 2 project search after their own:

    custom_imports = dict(imports=['visattn_dense'])
    model = dict(backbone=dict(type='CSWin', arch='tiny'))
"""
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

from visattn_dense.errors import UserError, did_you_mean
from visattn_dense.openmmlab.imports import when_imported


class Registry:
    """Classes by name, mirrored into mmengine's root registry `MODELS`.

    It speaks mmengine's dialect (`register_module`, `get`, `build`, `in`, `module_dict`), so code
    written for an OpenMMLab registry works with it unchanged.

    Args:
        name: what the entries are, for error messages ('backbone').
        location: the package that holds the project's own entries, imported at the first look-up.
    """

    def __init__(self, name: str, location: str | None = None) -> None:
        self.name = name
        self._location = location
        self._classes: dict[str, type] = {}
        when_imported('mmengine.registry', self._publish_all)

    @property
    def module_dict(self) -> dict[str, type]:
        """A copy of the table name -> class."""
        if self._location:
            importlib.import_module(self._location)
        return dict(self._classes)

    def __contains__(self, name: str) -> bool:
        return name in self.module_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self.module_dict)

    def __len__(self) -> int:
        return len(self.module_dict)

    def __repr__(self) -> str:
        return f'Registry({self.name}: {", ".join(self) or "empty"})'

    def register_module(self, name: str | None = None, *, force: bool = False,
                        module: type | None = None) -> Callable | type:
        """Enter a class under `name` (its own name by default); usable as a decorator.

        Raises:
            KeyError: the name is taken by another class and `force` is False.
        """
        def register(cls: type) -> type:
            key = name or cls.__name__
            if self._classes.get(key, cls) is not cls and not force:
                raise KeyError(f'{self.name} {key!r} is taken by {self._classes[key]}; '
                               'choose another name or pass force=True')
            self._classes[key] = cls
            mmengine_registry = sys.modules.get('mmengine.registry')
            if hasattr(mmengine_registry, 'MODELS'):
                self._publish(key, mmengine_registry, force=force)
            return cls

        return register if module is None else register(module)

    def get(self, name: str) -> type | None:
        """The class called `name`, or None."""
        return self.module_dict.get(name)

    def build(self, cfg: Mapping, **kwargs):
        """Build `cfg['type']` (a name or a class) with the other entries of `cfg` as arguments.

        Raises:
            KeyError: no such name; the message gives the nearest ones.
            UserError: `cfg` has no type, or an argument that the class does not take.
        """
        args = {**kwargs, **cfg}
        args.pop('_scope_', None)
        if 'type' not in args:
            raise UserError(f'a {self.name} config needs a type, one of {", ".join(self)}; '
                            f'got {dict(cfg)}')
        kind = args.pop('type')
        cls = kind if inspect.isclass(kind) else self.get(kind)
        if cls is None:
            raise KeyError(f'{self.name} {kind!r} is not registered. {did_you_mean(kind, self)}')
        return cls(**args)

    def _publish_all(self, mmengine_registry: ModuleType) -> None:
        for name in self._classes:
            self._publish(name, mmengine_registry)

    def _publish(self, name: str, mmengine_registry: ModuleType, *, force: bool = False) -> None:
        root, cls = mmengine_registry.MODELS, self._classes[name]
        if root.module_dict.get(name) is not cls:
            root.register_module(name=name, module=cls, force=force)


BACKBONES = Registry('backbone', 'visattn_dense.backbones')
