"""From a picture to a model's input, by the test pipeline of a config."""
from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from visattn_dense.errors import UserError
from visattn_dense.predict.sources import Picture

Results = dict[str, Any]


@dataclass
class PreparedPicture:
    """A picture as the model takes it.

    Attributes:
        picture: where it comes from.
        image: (H, W, 3) uint8 RGB, as the loader turned it.
        inputs: (C, h, w) of each version; one version, unless test-time augmentation makes more.
        samples: OpenMMLab's data sample of each version.
    """

    picture: Picture
    image: np.ndarray
    inputs: list[Tensor]
    samples: list[Any]

    @property
    def key(self) -> Hashable:
        """Pictures of one key share a batch: the shapes of all versions are equal."""
        return tuple(version.shape for version in self.inputs)

    @property
    def model_size(self) -> tuple[int, int]:
        return tuple(self.inputs[0].shape[-2:]) if self.inputs else self.image.shape[:2]


@dataclass
class Preparation:
    """The steps of a test pipeline.

    Attributes:
        load: the first step, from dict(img_path=...) to dict(img=..., img_shape=..., ori_shape=...)
            with `img` in BGR; it decides about EXIF, grey, 16 bits, alpha and pages.
        rest: the steps after it, to dict(inputs=..., data_samples=...).
        in_colour: `load` gives three channels of 8 bits, so an array can take its place. Otherwise
            an array goes to `load` as the file of a PNG.
        as_float: `load` gives float32.
    """

    load: Callable[[Results], Results]
    rest: Callable[[Results], Results]
    in_colour: bool = True
    as_float: bool = False

    def __call__(self, picture: Picture) -> PreparedPicture:
        """Load and prepare a picture.

        Raises:
            UserError: the picture is no image, is damaged, or has a size that the steps do not
                take.
        """
        results = self._loaded(picture)
        # A step of the pipeline may change the pixels in place.
        rgb = np.ascontiguousarray(_rgb(picture, results['img']))
        try:
            packed = self.rest(results)
        # A very long or narrow picture may be left without a row or a column by its resizing.
        except Exception as error:
            raise UserError(f"{picture.title}: the steps of the config's test pipeline fail on "
                            f'{rgb.shape[0]}x{rgb.shape[1]} pixels: {error}') from error
        inputs, samples = packed['inputs'], packed['data_samples']
        several = isinstance(inputs, list)
        return PreparedPicture(picture, rgb, inputs if several else [inputs],
                               samples if several else [samples])

    def loaded(self, picture: Picture) -> PreparedPicture:
        """Load a picture only: a picture without versions, to be computed window by window.

        Raises:
            UserError: the picture is no image, or is damaged.
        """
        image = np.ascontiguousarray(_rgb(picture, self._loaded(picture)['img']))
        return PreparedPicture(picture, image, [], [])

    def _loaded(self, picture: Picture) -> Results:
        try:
            results = self._load(picture)
            if results['img'].ndim < 2:
                raise ValueError('the loader of the config gives no picture')
        # OpenCV and the loaders of users raise anything; mmcv gives None for a damaged file.
        except Exception as error:
            raise UserError(f'{picture.title} cannot be read as an image: {error}') from error
        return results

    def _load(self, picture: Picture) -> Results:
        if picture.data is None:
            results = self.load(dict(img_path=picture.path))
        elif self.in_colour and isinstance(picture.data, np.ndarray):
            image = picture.data[..., ::-1]
            results = dict(img=image.astype(np.float32 if self.as_float else np.uint8),
                           img_path=picture.path, img_shape=image.shape[:2],
                           ori_shape=image.shape[:2])
        else:
            results = self._through_a_file(picture.data)
        # mmdetection rescales its boxes by it; a pipeline without Resize leaves it out.
        return dict(img_id=0, scale_factor=(1., 1.)) | results

    def _through_a_file(self, data: bytes | np.ndarray) -> Results:
        handle, path = tempfile.mkstemp(prefix='visattn_')
        try:
            with os.fdopen(handle, 'wb') as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    from PIL import Image
                    Image.fromarray(data).save(file, 'PNG', compress_level=1)
            return self.load(dict(img_path=path))
        finally:
            with suppress(OSError):
                os.unlink(path)


def _rgb(picture: Picture, image: np.ndarray) -> np.ndarray:
    """What to draw on: the loader's BGR image, or what Pillow makes of another kind of image."""
    if image.dtype == np.uint8 and image.shape[2:] == (3,):
        return image[..., ::-1]
    rgb = picture.rgb()
    if rgb.shape[:2] != image.shape[:2]:
        raise UserError(f'{picture.title}: the loader of the config gives {image.shape[0]}x'
                        f'{image.shape[1]} pixels, Pillow {rgb.shape[0]}x{rgb.shape[1]}; turn the '
                        'image upright and save it')
    return rgb
