"""Decode heads for mmsegmentation. Importing this package enters them in its registry of models.

`import visattn_dense` does that as soon as `mmseg.models` is there.
"""
from .efficientvit_seg import EfficientViTSegHead

__all__ = ['EfficientViTSegHead']
