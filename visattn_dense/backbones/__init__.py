"""The backbones, each in a file that reads from the top down and in `visattn_dense.registry`."""
from .base import DenseBackbone
from .biformer import BiFormer
from .cswin import CSWin
from .efficientvit import EfficientViT
from .flatten_cswin import FLattenCSWin
from .t2t_vit import T2TViT

__all__ = ['BiFormer', 'CSWin', 'DenseBackbone', 'EfficientViT', 'FLattenCSWin', 'T2TViT']
