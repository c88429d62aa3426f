"""Decode heads for mmsegmentation. The import of this package registers them in mmseg's `MODELS`.

`import visattn_dense` imports this package as soon as `mmseg.models` is imported.
"""
from .efficientvit_seg import EfficientViTSegHead

__all__ = ['EfficientViTSegHead']
