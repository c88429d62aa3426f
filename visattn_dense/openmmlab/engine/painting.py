"""The pictures of `tools/test.py --show-dir`: each test image with its prediction over it."""
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import mmcv
from mmengine import fileio
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

# What OpenCV writes; a picture of another kind is written as PNG.
_WRITTEN = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


@HOOKS.register_module()
class PaintHook(Hook):
    """Writes every test image, painted by the run's visualizer, under the image's own name.

    The hooks of mmsegmentation and mmdetection leave out the folders of the images: of two images
    with one name, the second picture overwrites the first.

    Args:
        folder: of the pictures.
        root: the folder of images that becomes `folder`, so that subfolders are kept; None: all
            pictures lie in `folder`.
        score_thr: least score of an object that is painted; None where the visualizer has no
            objects (segmentation).
        show: also show each picture in a window.
        wait_time: seconds for which a window waits; 0: for a key.
        backend_args: of mmengine's file backend, which reads the images.
    """

    def __init__(self, folder: str, *, root: str | None = None, score_thr: float | None = None,
                 show: bool = False, wait_time: float = 0., backend_args: dict | None = None
                 ) -> None:
        self.folder, self.root = folder, root
        self.show, self.wait_time = show, wait_time
        self.backend_args = backend_args
        self.options = {} if score_thr is None else dict(pred_score_thr=score_thr)

    def after_test_iter(self, runner, batch_idx: int, data_batch: Any = None,
                        outputs: Sequence[Any] | None = None) -> None:
        for sample in outputs or ():
            image = mmcv.imfrombytes(fileio.get(sample.img_path, backend_args=self.backend_args),
                                     channel_order='rgb')
            name = painted_name(sample.img_path, self.root)
            runner.visualizer.add_datasample(
                name, image, data_sample=sample, show=self.show, wait_time=self.wait_time,
                out_file=os.path.join(self.folder, name), **self.options)


def painted_name(image: str, root: str | None) -> str:
    """The file of an image's picture below the folder of pictures.

    Args:
        image: the file of the image.
        root: see `PaintHook`.
    """
    name = os.path.basename(image) if root is None else os.path.relpath(image, root)
    return name if name.lower().endswith(_WRITTEN) else name + '.png'


def painted_root(images: Sequence[str]) -> str | None:
    """The folder from which pictures keep the folders of their images; None: they keep none."""
    whole = {os.path.abspath(image) for image in images}
    if len({painted_name(image, None) for image in whole}) == len(whole):
        return None
    return os.path.commonpath([os.path.dirname(image) for image in whole])
