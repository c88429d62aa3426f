"""Trained models at work.

segmentor  a segmentor on images of any size
allocator  the C library's allocator, told to keep what is freed
"""
from visattn_dense import former

from .segmentor import Segmentor, window_spans

__all__ = ['Segmentor', 'window_spans']
__getattr__ = former.names_of(__name__)
