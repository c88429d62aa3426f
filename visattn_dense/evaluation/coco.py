"""Box, mask and boundary AP, counted like the COCO server.

faster-coco-eval counts if it is installed, otherwise pycocotools. Both give the same numbers;
faster-coco-eval is several times faster. Boundary AP (Cheng et al., CVPR 2021, arXiv:2103.16562)
replaces the IoU of two masks by min(mask IoU, boundary IoU); crowd regions keep the mask IoU, as in
the authors' boundary-iou-api. pycocotools has no boundary IoU, so this module computes the matrix
of boundary IoUs for pycocotools.

Areas (small, medium, large) are box areas for box AP, and mask areas for mask and boundary AP. If a
detection has a box and a mask, pycocotools would take the box area for masks too. Therefore
mmdetection's CocoMetric removes the box, and so does this module.
"""
from __future__ import annotations

import contextlib
import importlib.util
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visattn_dense.errors import UserError
from visattn_dense.evaluation.boundary import DEFAULT_RATIO, boundary_distance, boundary_region
from visattn_dense.evaluation.coco_files import FIELD, masks_as_rle

TYPES = tuple(FIELD)
_USED = ('id', 'image_id', 'category_id', 'bbox', 'area', 'segmentation')
BACKENDS = ('faster-coco-eval', 'pycocotools')
# Name: (recall instead of precision, index of the IoU threshold, of the area range, of maxDets),
# in COCO's order. Thresholds are 0.50:0.05:0.95; maxDets are 1, 10 and max_dets (100 for COCO).
_ALL = slice(None)
MAX_DETS = 100
_MOST_DETS = 100_000
METRICS = {
    'AP': (False, _ALL, 0, 2), 'AP50': (False, 0, 0, 2), 'AP75': (False, 5, 0, 2),
    'APs': (False, _ALL, 1, 2), 'APm': (False, _ALL, 2, 2), 'APl': (False, _ALL, 3, 2),
    'AR1': (True, _ALL, 0, 0), 'AR10': (True, _ALL, 0, 1), 'AR100': (True, _ALL, 0, 2),
    'ARs': (True, _ALL, 1, 2), 'ARm': (True, _ALL, 2, 2), 'ARl': (True, _ALL, 3, 2),
}


@dataclass(frozen=True)
class CocoScores:
    """Precision and recall of one evaluation.

    Attributes:
        precision: (10 thresholds, 101 recalls, K categories, 4 area ranges, 3 maxDets); -1 if
            there is no object to find.
        recall: (10, K, 4, 3), likewise.
        categories: the K categories by id: id, name and number of objects without crowds.
        max_dets: how many detections of each category count in an image; the last of the 3 maxDets.
    """

    precision: np.ndarray
    recall: np.ndarray
    categories: tuple[tuple[int, str, int], ...]
    max_dets: int = MAX_DETS

    def metrics(self, category: int | None = None) -> dict[str, float]:
        """The twelve COCO numbers, 0..1, over all categories or for the category at this index.
        NaN if there is no object to find. With another `max_dets`, AR100 has its name (AR300)."""
        which = _ALL if category is None else slice(category, category + 1)
        found = {}
        for name, (recall, threshold, area, dets) in METRICS.items():
            values = (self.recall[threshold, which, area, dets] if recall
                      else self.precision[threshold][..., which, area, dets])
            values = values[values > -1]
            found[name] = float(values.mean()) if values.size else float('nan')
        return dict(zip(metric_names(self.max_dets), found.values(), strict=True))


def metric_names(max_dets: int = MAX_DETS) -> list[str]:
    """The names of the twelve numbers: AP, ..., AR100, ..."""
    return [f'AR{max_dets}' if name == 'AR100' else name for name in METRICS]


def crowded_images(items: Iterable[dict[str, Any]], max_dets: int = MAX_DETS) -> tuple[int, int]:
    """How many images hold more than `max_dets` objects or detections of one category, and the
    largest number of objects or detections."""
    counts = Counter((item['image_id'], item['category_id']) for item in items
                     if not item.get('iscrowd'))
    above = {image for (image, _), count in counts.items() if count > max_dets}
    return len(above), max(counts.values(), default=0)


def default_backend() -> str:
    """'faster-coco-eval' where it is installed, otherwise 'pycocotools'."""
    return BACKENDS[0 if importlib.util.find_spec('faster_coco_eval') else 1]


def evaluate_coco(truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str, *,
                  backend: str | None = None, max_dets: int = MAX_DETS) -> CocoScores:
    """Evaluate detections against annotations.

    Args:
        truth: content of an annotation file, from `read_annotations`.
        results: detections, from `read_results`; an empty list gives AP 0.
        kind: 'bbox', 'segm' or 'boundary'.
        backend: one of BACKENDS; None: the faster one of the installed backends.
        max_dets: how many detections of each category count in an image, at least 10.

    Raises:
        UserError: detections or annotations lack an entry that `kind` needs, or there is no object.
    """
    if not 10 <= max_dets <= _MOST_DETS:
        raise UserError(f'max_dets is {max_dets}; it is from 10 to {_MOST_DETS}, 100 at COCO')
    if kind not in TYPES:
        raise UserError(f'unknown kind of AP {kind!r}; it is one of {", ".join(TYPES)}')
    backend = backend or default_backend()
    # The evaluators keep everything that they get, so they get these entries only.
    objects = [{**{key: annotation[key] for key in _USED if key in annotation},
                'iscrowd': int(annotation.get('iscrowd', 0))}
               for annotation in truth['annotations']]
    if not any(not annotation['iscrowd'] for annotation in objects):
        raise UserError('the annotations hold no object (crowd regions do not count), so there is '
                        'no AP')
    lacking = [at for at, result in enumerate(results) if FIELD[kind] not in result]
    if lacking:
        raise UserError(f'{len(lacking)} of {len(results)} detections have no {FIELD[kind]!r} '
                        f'(the first is number {lacking[0]}), so there is no {kind} AP')
    keys = ('image_id', 'category_id', 'score', FIELD[kind])
    detections = [{'iscrowd': 0, **{key: result[key] for key in keys}} for result in results]
    if kind != 'bbox':
        objects = masks_as_rle(objects, truth, 'annotation')
        detections = masks_as_rle(detections, truth, 'detection')
    names = {category['id']: category['name'] for category in truth['categories']}
    counts = dict.fromkeys(sorted(names, key=_by_kind), 0)
    for annotation in objects:
        counts[annotation['category_id']] += not annotation['iscrowd']
    run = _run_faster if backend == BACKENDS[0] else _run_pycocotools
    evaluated = run(_as_dataset(truth, objects, kind), _as_dataset(truth, detections, kind), kind,
                    [1, 10, max_dets])
    return CocoScores(np.asarray(evaluated['precision']), np.asarray(evaluated['recall']),
                      tuple((i, names[i], count) for i, count in counts.items()), max_dets)


def _as_dataset(truth: dict[str, Any], items: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """COCO dataset of annotations or detections, numbered in the order of their ids.

    Both evaluators need annotations that count from 1 (pycocotools takes 0 for "not matched" and
    misses that object), and faster-coco-eval takes integers only. Areas are filled in where they
    are missing.
    """
    numbers = {part: {old: new for new, old in
                      enumerate(sorted((item['id'] for item in truth[part]), key=_by_kind), 1)}
               for part in ('images', 'categories')}
    annotations = [{'area': _area(item, kind), **item, 'id': number,
                    'image_id': numbers['images'][item['image_id']],
                    'category_id': numbers['categories'][item['category_id']]}
                   for number, item in enumerate(items, 1)]
    return {'annotations': annotations,
            'images': [{'id': numbers['images'][image['id']], 'height': image['height'],
                        'width': image['width']} for image in truth['images']],
            'categories': [{'id': numbers['categories'][category['id']], 'name': category['name']}
                           for category in truth['categories']]}


def _by_kind(value: int | str) -> tuple[str, int | str]:
    """A sort key for ids, which may be numbers or words."""
    return type(value).__name__, value


def _area(item: dict[str, Any], kind: str) -> float:
    """Area of the box in square pixels; area of the mask if masks are evaluated."""
    if kind == 'bbox':
        return item['bbox'][2] * item['bbox'][3]
    return float(rle_tools.area(item['segmentation']))


def _run_faster(truth: dict[str, Any], found: dict[str, Any], kind: str,
                max_dets: list[int]) -> dict[str, Any]:
    from faster_coco_eval import COCO as FasterCOCO
    from faster_coco_eval import COCOeval_faster

    evaluation = COCOeval_faster(FasterCOCO(truth), FasterCOCO(found), kind,
                                 boundary_dilation_ratio=DEFAULT_RATIO)
    evaluation.params.maxDets = max_dets
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


def _run_pycocotools(truth: dict[str, Any], found: dict[str, Any], kind: str,
                     max_dets: list[int]) -> dict[str, Any]:
    # The evaluator prints its progress; only the caller shall print.
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for data in (truth, found):
            side = COCO()
            side.dataset = data
            side.createIndex()
            sides.append(side)
        evaluation = _BoundaryEval(*sides) if kind == 'boundary' else COCOeval(*sides, kind)
        evaluation.params.maxDets = max_dets
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


class _BoundaryEval(COCOeval):
    """Mask AP of pycocotools with min(mask IoU, boundary IoU) in place of the mask IoU."""

    def __init__(self, truth: COCO, found: COCO) -> None:
        super().__init__(truth, found, 'segm')

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray | list:  # noqa: N803
        """(detections by falling score, objects), or an empty list."""
        ious = super().computeIoU(imgId, catId)
        objects, detections = self._gts[imgId, catId], self._dts[imgId, catId]
        if not objects or not detections:
            return ious
        order = np.argsort([-d['score'] for d in detections], kind='mergesort')
        regions = [_boundary_rle(detections[i]) for i in order[:self.params.maxDets[-1]]]
        crowd = [int(annotation['iscrowd']) for annotation in objects]
        of_boundary = rle_tools.iou(regions, [_boundary_rle(a) for a in objects], crowd)
        return np.where(np.array(crowd, bool), ious, np.minimum(ious, of_boundary))


def _boundary_rle(item: dict[str, Any]) -> dict[str, Any]:
    mask = rle_tools.decode(item['segmentation'])
    region = boundary_region(mask, boundary_distance(*mask.shape)) & (mask > 0)
    return rle_tools.encode(np.asfortranarray(region, np.uint8))
