"""The names of the predictions of a segmentor: one label PNG for each test image.

mmseg's IoUMetric names a prediction as its image, without the folders: of two images with one name,
the second prediction overwrites the first. Where this would happen, each prediction lies in the
folder of its image, counted from the deepest folder that holds all images.
"""
from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
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
    return [info['img_path'] for info in _infos(dataset) if 'img_path' in info]


def check_not_replaced(written: Iterable[str], dataset: Any, option: str) -> None:
    """Check that no output takes the place of an image or a label of the data set.

    Args:
        written: the files that a run will write.
        dataset: the data set of the test.
        option: the option that names the folder of the files.

    Raises:
        UserError: an image or a label would be overwritten.
    """
    read = {os.path.realpath(info[key]) for info in _infos(dataset)
            for key in ('img_path', 'seg_map_path') if info.get(key)}
    for path in written:
        if os.path.realpath(path) in read:
            raise UserError(f'{option} would overwrite {path}, a file of the test data; name '
                            'another folder')


def _infos(dataset: Any) -> Iterator[dict[str, Any]]:
    if hasattr(dataset, 'get_data_info'):
        for number in range(len(dataset)):
            yield dataset.get_data_info(number)


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
