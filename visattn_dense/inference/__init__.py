"""Trained models at work.

segmentor  a segmentor on images of any size
allocator  the C library's allocator, told to keep what is freed
"""
from .segmentor import Segmentor, open_segmentor, window_spans

__all__ = ['Segmentor', 'open_segmentor', 'window_spans']
