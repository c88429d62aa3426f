"""Pictures: overlays of labels on images, sheets of image | truth | prediction, training curves."""
from .colour import colourise, distinct_palette
from .curve import draw_curve, read_scalars
from .overlay import overlay, write_label
from .sheet import Row, draw_sheet

__all__ = ['Row', 'colourise', 'distinct_palette', 'draw_curve', 'draw_sheet', 'overlay',
           'read_scalars', 'write_label']
