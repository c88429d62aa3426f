"""mmseg's IoUMetric with predictions in the folders of their images."""
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS

from .prediction_files import prediction_of


@METRICS.register_module()
class IoUMetricInFolders(IoUMetric):
    """IoUMetric whose `output_dir` has a folder for each folder of images.

    Args:
        image_root: the folder of images that becomes `output_dir`; see `prediction_files.root_of`.
        kwargs: of IoUMetric, with `output_dir`.
    """

    def __init__(self, *, image_root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_root, self.whole_output_dir = image_root, self.output_dir

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count and write each image of a batch."""
        for sample in data_samples:
            name = prediction_of(sample['img_path'], self.image_root)
            self.output_dir = os.path.join(self.whole_output_dir, os.path.dirname(name))
            os.makedirs(self.output_dir, exist_ok=True)
            super().process(data_batch, [sample])
