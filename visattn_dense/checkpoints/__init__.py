"""Checkpoints of whatever origin: find the file, read it safely, unwrap, rename, fit, report.

This room knows no model: `visattn_dense.zoo` does.

web         one http(s) request that ends, whatever the server does
archive     what a file is, by its bytes
pickled     a pickle as data: plain values and tensors
download    a file from the network into the cache: whole, verified, once
reading     a file to its contents, never executing code from it
addresses   which function has the file of 'visattn://NAME'
matching    the state dict inside, the prefix and layout that fit a model best
pretrained  load_pretrained: all of it, with a report, or a clear failure
memory      the memory of tensors that are mapped from a file
"""
from visattn_dense import former

from .matching import Layout, MatchReport, match_state_dict, rename, unwrap
from .pretrained import load_pretrained
from .reading import read_checkpoint

__all__ = ['Layout', 'MatchReport', 'load_pretrained', 'match_state_dict', 'read_checkpoint',
           'rename', 'unwrap']
__getattr__ = former.names_of(__name__)
