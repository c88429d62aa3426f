"""Checkpoints of whatever origin into a model: find, read safely, unwrap, rename, fit, report.

zoo         the released files by name ('visattn://cswin_tiny_224'), as data
web         one http(s) request that ends, whatever the server does
download    a file from the network into the cache: whole, verified, once
archive     what a file is, by its bytes
reading     a file to its contents, never executing code from it
matching    the state dict inside, the prefix and layout that fit a model best
pretrained  load_pretrained: all of it, with a report, or a clear failure
segmentor   load_segmentor: the same for a whole model, part by part
recognise   which family, arch and layout a file is of
convert     a file in this project's names
schemes     'visattn://' for mmengine
"""
from types import ModuleType

from visattn_dense.compat.imports import when_imported

from .matching import Layout, MatchReport, match_state_dict, rename, unwrap
from .pretrained import load_pretrained
from .reading import read_checkpoint
from .segmentor import load_segmentor, match_parts, translate_checkpoint
from .zoo import find_release, releases

__all__ = [
    'Layout', 'MatchReport', 'find_release', 'load_pretrained', 'load_segmentor', 'match_parts',
    'match_state_dict', 'read_checkpoint', 'releases', 'rename', 'translate_checkpoint', 'unwrap',
]


def _register_scheme(checkpoint: ModuleType) -> None:
    from .schemes import register
    register(checkpoint)


when_imported('mmengine.runner.checkpoint', _register_scheme)
