"""The registry of backbones: one registration here serves every OpenMMLab 2 project.

`BACKBONES` holds this project's backbones by name and needs torch alone. As soon as mmengine is
imported (before or after), each entry is also in mmengine's root registry `MODELS`. mmseg, mmdet
and every other OpenMMLab 2 project search this registry after their own:

    custom_imports = dict(imports=['visattn_dense'])
    model = dict(backbone=dict(type='CSWin', arch='tiny'))

`visattn_dense.openmmlab.registration` does that.
"""
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping

from visattn_dense.errors import UserError, did_you_mean

Follower = Callable[[str, type, bool], object]


class Registry(Mapping[str, type]):
    """Classes by name: a mapping, with the methods that an OpenMMLab registry has.

    `register_module`, `get`, `build`, `in` and `module_dict` work as in mmengine's registries, so
    code for such a registry works with this class unchanged.

    Args:
        name: a word for an entry in error messages ('backbone').
        location: the package with the project's own entries, imported at the first look-up.
    """

    def __init__(self, name: str, location: str | None = None) -> None:
        self.name = name
        self._location = location
        self._classes: dict[str, type] = {}
        self._followers: list[Follower] = []

    @property
    def module_dict(self) -> dict[str, type]:
        """A copy of the table name -> class."""
        if self._location:
            importlib.import_module(self._location)
        return dict(self._classes)

    def __getitem__(self, name: str) -> type:
        return self.module_dict[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.module_dict)

    def __len__(self) -> int:
        return len(self.module_dict)

    def __repr__(self) -> str:
        return f'Registry({self.name}: {", ".join(self) or "empty"})'

    def register_module(self, name: str | None = None, *, force: bool = False,
                        module: type | None = None) -> Callable | type:
        """Enter a class under `name` (by default the name of the class); usable as a decorator.

        Raises:
            KeyError: another class has the name, and `force` is False.
        """
        def register(cls: type) -> type:
            key = name or cls.__name__
            if self._classes.get(key, cls) is not cls and not force:
                raise KeyError(f'{self.name} {key!r} is taken by {self._classes[key]}; '
                               'choose another name or pass force=True')
            self._classes[key] = cls
            for follower in self._followers:
                follower(key, cls, force)
            return cls

        return register if module is None else register(module)

    def follow(self, follower: Follower) -> None:
        """Call `follower(name, class, force)` for each entry: now, and for each later one."""
        for name, cls in self.module_dict.items():
            follower(name, cls, False)
        self._followers.append(follower)

    def build(self, cfg: Mapping, **kwargs):
        """Build `cfg['type']` (a name or a class) with the other entries of `cfg` as arguments.

        Raises:
            KeyError: there is no such name; the message has similar names.
            UserError: `cfg` has no type, or has an argument that the class does not take.
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


BACKBONES = Registry('backbone', 'visattn_dense.backbones')
