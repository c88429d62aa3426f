"""CamVid: street scenes filmed from a car, 11 classes.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video: a high-definition ground truth
database", 2009. The 32 original classes are merged into the 11 classes of the literature, in the
order and with the colours of the SegNet tutorial (Badrinarayanan, Kendall, Cipolla). Labels hold
0..10; 255 is unlabelled. docs/datasets.md says how to convert the download.
"""
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """CamVid in the layout images/{train,val,test}/*.jpg, annotations/{train,val,test}/*.png.

    Args:
        img_suffix: ending of the image files; '.png' for the downloaded frames.
        seg_map_suffix: ending of the label files.
        reduce_zero_label: False, because 0 is a class (sky) here.
        kwargs: arguments of BaseSegDataset (data_root, data_prefix, pipeline, ...).
    """

    METAINFO = dict(
        classes=('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car',
                 'pedestrian', 'bicyclist'),
        palette=[[128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222],
                 [128, 128, 0], [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0],
                 [0, 128, 192]])

    def __init__(self, img_suffix: str = '.jpg', seg_map_suffix: str = '.png',
                 reduce_zero_label: bool = False, **kwargs: Any) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix,
                         reduce_zero_label=reduce_zero_label, **kwargs)
