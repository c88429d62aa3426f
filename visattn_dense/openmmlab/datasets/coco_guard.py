"""Check COCO files in mmdetection's own loading, before pycocotools reads them.

A run may load a file that was not checked: with another launcher, or if the file is too large for
the quick check. Therefore `import visattn_dense` adds three checks to mmdetection when its modules
are imported. All three use `visattn_dense.evaluation.coco_format`:

    CocoDataset.COCOAPI               the annotation file of a dataset
    evaluation.metrics.CocoMetric     the annotation file of the metric
    transforms.LoadAnnotations        each mask, of any dataset, before it is drawn
"""
from __future__ import annotations

from types import ModuleType
from typing import Any

from visattn_dense.errors import UserError
from visattn_dense.evaluation.coco_format import mask_problem, read_annotation_file


def guard(module: ModuleType) -> None:
    """Add the check to one of the three modules, right after the import of the module."""
    _GUARDS[module.__name__](module)


def _checked_coco(base: type, training: bool) -> type:
    """A subclass of `base` (mmdetection's COCO) that validates its file."""

    class CheckedCOCO(base):
        """COCO annotations without a fault.

        Raises:
            UserError: the file has a fault. The message names the entries.
        """

        def __init__(self, annotation_file: str | None = None) -> None:
            super().__init__()
            if annotation_file is not None:
                self.dataset = read_annotation_file(annotation_file, training=training, masks=True)
                if not training:
                    _count_from_one(self.dataset)
                self.createIndex()
                self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    return CheckedCOCO


def _count_from_one(truth: dict[str, Any]) -> None:
    """Raise the ids of annotations where one of them is 0: COCO's evaluation takes 0 for unmatched.

    Source: cocoapi issue 507.
    """
    annotations = truth.get('annotations', [])
    if any(annotation['id'] == 0 for annotation in annotations):
        for annotation in annotations:
            annotation['id'] += 1


def _guard_dataset(module: ModuleType) -> None:
    # Subclasses with a format of their own (LVIS, panoptic) set a COCOAPI of their own.
    module.CocoDataset.COCOAPI = _checked_coco(module.CocoDataset.COCOAPI, training=True)


def _guard_metric(module: ModuleType) -> None:
    # mmdetection converts other datasets to annotations, whose ids may be words.
    module.COCO = _checked_coco(module.COCO, training=False)


def _guard_masks(module: ModuleType) -> None:
    original = module.LoadAnnotations._process_masks

    def _process_masks(self: Any, results: dict) -> list:
        for at, instance in enumerate(results.get('instances', [])):
            where = f'object {at} of {results.get("img_path")}'
            if not instance.get('mask'):
                raise UserError(f'{where} has no mask, and the pipeline loads masks: add polygons '
                                'or RLE to the annotations, or train a detector without mask_head')
            if problem := mask_problem(instance['mask'], *results['ori_shape']):
                raise UserError(f'the mask of {where} {problem}')
        return original(self, results)

    module.LoadAnnotations._process_masks = _process_masks


_GUARDS = {'mmdet.datasets.coco': _guard_dataset,
           'mmdet.evaluation.metrics.coco_metric': _guard_metric,
           'mmdet.datasets.transforms.loading': _guard_masks}
