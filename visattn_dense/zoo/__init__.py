"""The model zoo: released files by name. Loads whole models from files, and converts files.

table      the released files by name ('visattn://cswin_tiny_224'), as data
recognise  finds the family, arch and layout of a file
convert    writes a file with this project's names
segmentor  load_segmentor: loads a checkpoint into a whole model, part by part

`python -m visattn_dense.zoo --help` is the command.
"""
from .segmentor import load_segmentor, match_parts, translate_checkpoint
from .table import find_release, releases

__all__ = ['find_release', 'load_segmentor', 'match_parts', 'releases', 'translate_checkpoint']
