"""Addresses of a checkpoint that are neither a path nor an http(s) address.

`SCHEMES` has, for each scheme, the dotted name of the function that gives the file. The function is
imported only for an address with its scheme. So this room does not depend on the rooms that name
files.
"""
import importlib
from collections.abc import Callable
from pathlib import Path

SCHEMES = {'visattn': 'visattn_dense.zoo.table.fetch'}


def fetcher(address: str) -> Callable[[str], Path] | None:
    """The function that gives the file of an address SCHEME://..., or None for other schemes."""
    scheme, mark, _ = address.partition('://')
    if not mark or scheme not in SCHEMES:
        return None
    module, _, function = SCHEMES[scheme].rpartition('.')
    return getattr(importlib.import_module(module), function)
