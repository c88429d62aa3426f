"""The model zoo: released files by name, and whole models and files of this project from them.

table      the released files by name ('visattn://cswin_tiny_224'), as data
recognise  which family, arch and layout a file is of
convert    a file in this project's names
segmentor  load_segmentor: a checkpoint into a whole model, part by part

`python -m visattn_dense.zoo --help` is the command.
"""
from .segmentor import load_segmentor, match_parts, translate_checkpoint
from .table import find_release, releases

__all__ = ['find_release', 'load_segmentor', 'match_parts', 'releases', 'translate_checkpoint']
