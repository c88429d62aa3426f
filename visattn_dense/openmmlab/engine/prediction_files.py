"""The names of the predictions of a segmentor: one label PNG for each test image.

mmseg's IoUMetric names a prediction as its image, without the folders: of two images with one name,
the second prediction overwrites the first. Where this would happen, each prediction lies in the
folder of its image, counted from the deepest folder that holds all images.
"""
from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from visattn_dense.errors import UserError


def read_test_data(cfg: Config) -> Any:
    """The data set of a config's test."""
    scope = cfg.get('default_scope') or 'mmengine'
    # pycocotools prints its progress.
    with DefaultScope.overwrite_default_scope(scope), contextlib.redirect_stdout(io.StringIO()):
        return DATASETS.build(cfg.test_dataloader.dataset)


def images_of(dataset: Any) -> list[str]:
    """The file of each image; [] of a data set that does not say."""
    if not hasattr(dataset, 'get_data_info'):
        return []
    infos = (dataset.get_data_info(number) for number in range(len(dataset)))
    return [info['img_path'] for info in infos if 'img_path' in info]


def root_of(images: Sequence[str]) -> str | None:
    """The folder from which predictions keep the folders of their images; None: they keep none.

    Raises:
        UserError: two images of one folder have one name, but for the suffix.
    """
    whole = {os.path.abspath(image) for image in images}
    if len({prediction_of(image, None) for image in whole}) == len(whole):
        return None
    root = os.path.commonpath([os.path.dirname(image) for image in whole])
    taken: dict[str, str] = {}
    for image in sorted(whole):
        other = taken.setdefault(prediction_of(image, root), image)
        if other != image:
            raise UserError(f'{other} and {image} would have the same prediction; give one of the '
                            'images, and its label, another name')
    return root


def prediction_of(image: str, root: str | None) -> str:
    """The file of an image's prediction below the folder of predictions, without '.png'.

    Args:
        image: the file of the image.
        root: from `root_of`.
    """
    kept = os.path.basename(image) if root is None else os.path.relpath(image, root)
    return os.path.splitext(kept)[0]
