"""mmengine's "X is not in the ... registry" gets the names that X was probably meant to be."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from types import ModuleType

from visattn_dense.errors import closest

_UNKNOWN = re.compile(r'^(?P<name>\S+) is not in the \S+ registry\.')
_HINTED = 'Did you mean'


def name_near_types(registry_module: ModuleType) -> None:
    """Wrap `Registry.build`; the exception keeps its type and its traceback.

    Args:
        registry_module: `mmengine.registry.registry`.
    """
    registry_class = registry_module.Registry
    build = registry_class.build

    @functools.wraps(build)
    def build_or_name_near_ones(self: object, cfg: dict, *args: object, **kwargs: object) -> object:
        try:
            return build(self, cfg, *args, **kwargs)
        except KeyError as error:
            message = str(error.args[0]) if error.args else ''
            unknown = _UNKNOWN.match(message)
            # An inner build may have failed: the innermost registry that sees it knows best.
            if unknown and _HINTED not in message:
                near = near_types(self, unknown['name'])
                if near:
                    hint = f'{unknown[0]} {_HINTED} {" or ".join(map(repr, near))}?'
                    error.args = (hint + message[unknown.end():],)
            raise

    registry_class.build = build_or_name_near_ones


def near_types(registry: object, name: str) -> list[str]:
    """What the unknown `name` may have meant, from the registry, its parents and their children.

    Names of another scope are given as a config has to write them: 'mmdet.ResNet'.
    """
    choices: dict[str, str] = {}
    for node in _family(registry):
        # What is reachable without a prefix: the registry's own names and its parents'.
        bare = node is registry or node in _parents(registry)
        for key in node.module_dict:
            choices.setdefault(key, key if bare else f'{node.scope}.{key}')
    return [choices[key] for key in closest(name.split('.')[-1], choices)]


def _parents(registry: object) -> list[object]:
    found = []
    while registry.parent is not None:
        registry = registry.parent
        found.append(registry)
    return found


def _family(registry: object) -> Iterator[object]:
    """The registry, its parents from near to far, then every other registry under the root."""
    seen = [registry, *_parents(registry)]
    yield from seen
    waiting = [seen[-1]]
    while waiting:
        node = waiting.pop(0)
        if node not in seen:
            seen.append(node)
            yield node
        waiting += node.children.values()
