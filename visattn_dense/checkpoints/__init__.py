"""Checkpoints of any origin: find the file, read it safely, unwrap, rename, fit, report.

This room knows no models; `visattn_dense.zoo` knows them.

archive     finds the format of a file from its bytes
pickled     reads a pickle as data: plain values and tensors
download    downloads a file into the cache once, and verifies it
reading     reads the contents of a file without executing code from it
addresses   finds the function that gives the file of 'visattn://NAME'
matching    finds the state dict, and the prefix and layout that fit a model best
pretrained  load_pretrained: fills a backbone and reports, or fails with a clear message
mapped      gives back the memory of tensors that are mapped from a file
"""
from visattn_dense import former

from .matching import Layout, MatchReport, match_state_dict, rename, unwrap
from .pretrained import load_pretrained
from .reading import read_checkpoint

__all__ = ['Layout', 'MatchReport', 'load_pretrained', 'match_state_dict', 'read_checkpoint',
           'rename', 'unwrap']
__getattr__ = former.names_of(__name__)
