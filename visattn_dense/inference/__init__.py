"""Trained models at work, in torch.

preparation  from a picture to a model's input
segmentor    a segmentor on images of any size
detector     a detector or instance segmentor
allocator    the C library's allocator, told to keep what is freed
"""
from visattn_dense import former

from .segmentor import Segmentor, window_spans

__all__ = ['Segmentor', 'window_spans']
__getattr__ = former.names_of(__name__)
