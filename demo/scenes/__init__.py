"""Rendered street scenes with exact labels: the data of the demos, drawn from a seed."""

from .compose import Instance, Scene, render_scene
from .dataset import scene_seed, write_dataset
from .kinds import KINDS, LABEL_NAMES, Kind, coco_categories
from .overview import PALETTE, colourise, contact_sheet

__all__ = [
    'KINDS', 'LABEL_NAMES', 'PALETTE', 'Instance', 'Kind', 'Scene', 'coco_categories',
    'colourise', 'contact_sheet', 'render_scene', 'scene_seed', 'write_dataset',
]
