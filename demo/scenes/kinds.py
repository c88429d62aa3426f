"""What the rendered scenes contain: the names, their ADE20K indices and their COCO categories.

ADE20K index = position in the class order of ADEChallengeData2016 (mmseg's
``ADE20KDataset.METAINFO['classes']``) + 1; 0 is 'other'. COCO categories are the 80 of the 2017
instance task with their official ids, which run from 1 to 90 with ten gaps.
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """One sort of thing a scene may show."""

    name: str
    ade_index: int
    coco: str | None = None


KINDS = {
    kind.name: kind
    for kind in (
        Kind('other', 0),
        Kind('building', 2),
        Kind('sky', 3),
        Kind('tree', 5),
        Kind('road', 7),
        Kind('grass', 10),
        Kind('sidewalk', 12),
        Kind('person', 13, 'person'),
        Kind('earth', 14),
        Kind('mountain', 17),
        Kind('plant', 18),
        Kind('car', 21, 'car'),
        Kind('fence', 33),
        Kind('signboard', 44),
        Kind('stop sign', 44, 'stop sign'),
        Kind('bus', 81, 'bus'),
        Kind('truck', 84, 'truck'),
        Kind('streetlight', 88),
        Kind('pole', 94),
        Kind('bicycle', 128, 'bicycle'),
        Kind('traffic light', 137, 'traffic light'),
    )
}

# ADE20K index -> name, for legends; 'stop sign' shares 44 with 'signboard'.
LABEL_NAMES = {kind.ade_index: kind.name for kind in reversed(KINDS.values())}

_SUPERCATEGORIES = (
    ('person', 'person'),
    ('vehicle', 'bicycle,car,motorcycle,airplane,bus,train,truck,boat'),
    ('outdoor', 'traffic light,fire hydrant,stop sign,parking meter,bench'),
    ('animal', 'bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe'),
    ('accessory', 'backpack,umbrella,handbag,tie,suitcase'),
    (
        'sports',
        'frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,'
        'surfboard,tennis racket',
    ),
    ('kitchen', 'bottle,wine glass,cup,fork,knife,spoon,bowl'),
    ('food', 'banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake'),
    ('furniture', 'chair,couch,potted plant,bed,dining table,toilet'),
    ('electronic', 'tv,laptop,mouse,remote,keyboard,cell phone'),
    ('appliance', 'microwave,oven,toaster,sink,refrigerator'),
    ('indoor', 'book,clock,vase,scissors,teddy bear,hair drier,toothbrush'),
)
_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


def coco_categories() -> list[dict]:
    """Return the 80 COCO categories as they stand in ``instances_val2017.json``."""
    ids = (i for i in range(1, 91) if i not in _UNUSED_IDS)
    return [
        {'supercategory': group, 'id': next(ids), 'name': name}
        for group, names in _SUPERCATEGORIES
        for name in names.split(',')
    ]


COCO_IDS = {category['name']: category['id'] for category in coco_categories()}
