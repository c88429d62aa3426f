"""Read COCO annotations and results, and report their faults before any evaluation.

Results are a list of detections, each with image_id, category_id, score and a bbox
[x, y, width, height] or a segmentation (RLE, compressed or not, or polygons): the format of the
COCO server. With `outfile_prefix`, mmdetection's CocoMetric writes this format to PREFIX.bbox.json
and PREFIX.segm.json.
"""
from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pycocotools import mask as rle_tools

from visattn_dense.errors import UserError, few
from visattn_dense.evaluation.coco_format import (
    box_problem,
    mask_problem,
    read_annotation_file,
    read_json,
    shown,
    usable_polygons,
)

# The entry that a detection needs for each kind of AP.
FIELD = {'bbox': 'bbox', 'segm': 'segmentation', 'boundary': 'segmentation'}
# Far above any score, and small enough that sums of scores stay finite.
_LARGEST_SCORE = 1e30


def read_annotations(path: str | os.PathLike) -> dict[str, Any]:
    """A COCO annotation file. Missing `annotations` (no objects) become an empty list.

    Masks are not checked here; `masks_as_rle` checks the masks if they are needed.

    Raises:
        UserError: the file is missing, is not an annotation file, or has a fault. The message names
            the entry.
    """
    return read_annotation_file(path, training=False, masks=False)


def result_files(path: str | os.PathLike) -> dict[str, Path]:
    """The file of results for each field, 'bbox' and 'segmentation'.

    Args:
        path: one file, which may hold both, or mmdetection's `outfile_prefix`.

    Raises:
        UserError: there is no such file.
    """
    path = Path(path)
    if path.suffix in ('.pkl', '.pickle'):
        raise UserError(f'{path} is a pickle; results are read from COCO JSON, which mmdetection '
                        'writes with outfile_prefix in its CocoMetric')
    if path.is_file():
        return {'bbox': path, 'segmentation': path}
    found = {field: Path(f'{path}.{kind}.json')
             for kind, field in (('bbox', 'bbox'), ('segm', 'segmentation'))}
    found = {field: file for field, file in found.items() if file.is_file()}
    if not found:
        raise UserError(f'results {path} do not exist, nor {path}.bbox.json or {path}.segm.json')
    return found


def read_results(path: str | os.PathLike, truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The detections of one file, checked against the annotations.

    Raises:
        UserError: the file is missing or is not a list of detections; a detection lacks an entry;
            or the annotations do not have the image or category of a detection.
    """
    results = read_json(path, 'results')
    if isinstance(results, dict) and 'annotations' in results:
        raise UserError(f'{path} is an annotation file, not a list of detections; is it in the '
                        'wrong place on the command line?')
    if not isinstance(results, list):
        raise UserError(f'{path} holds a {type(results).__name__}; results are a list of '
                        'detections, [{"image_id": ..., "category_id": ..., "score": ..., ...}]')
    for at, result in enumerate(results):
        problem = _problem(result)
        if problem:
            raise UserError(f'{path}: detection {at} {problem}')
    _check_ids(path, results, truth)
    return results


def masks_as_rle(items: Iterable[dict[str, Any]], truth: dict[str, Any],
                 what: str) -> list[dict[str, Any]]:
    """Copies of annotations or detections with every mask as compressed RLE.

    Raises:
        UserError: a mask is missing, cannot be read, or has another size than its image.
    """
    sizes = {image['id']: (image['height'], image['width']) for image in truth['images']}
    copies = []
    for at, item in enumerate(items):
        image = item['image_id']
        where = f'{what} {item.get("id", at)} (image {image})'
        mask = item.get('segmentation')
        if not mask:
            raise UserError(f'{where} has no mask ("segmentation"); with boxes only, ask for '
                            '--type bbox')
        if problem := mask_problem(mask, *sizes[image]):
            raise UserError(f'the mask of {where} {problem}')
        copies.append({**item, 'segmentation': _as_rle(mask, sizes[image])})
    return copies


def _as_rle(mask: dict | list, size: tuple[int, int]) -> dict[str, Any]:
    if isinstance(mask, list):
        return rle_tools.merge(rle_tools.frPyObjects(usable_polygons(mask), *size))
    if isinstance(mask['counts'], list):
        return rle_tools.frPyObjects(mask, *size)
    return mask


def mask_box(mask: dict | list, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """x, y, width and height of a mask without faults, in an image of `size` (H, W)."""
    if isinstance(mask, dict):
        return tuple(rle_tools.toBbox(_as_rle(mask, size)).tolist())
    x, y = ([number for polygon in usable_polygons(mask) for number in polygon[first::2]]
            for first in (0, 1))
    return min(x), min(y), max(x) - min(x), max(y) - min(y)


def _problem(result: Any) -> str | None:
    if not isinstance(result, dict):
        return f'is a {type(result).__name__}, not a dict'
    for key in ('image_id', 'category_id', 'score'):
        if key not in result:
            return f'has no {key!r}'
    for key in ('image_id', 'category_id'):
        if type(result[key]) not in (int, str):
            return f'has the {key} {shown(result[key])}, neither a whole number nor a word'
    score = result['score']
    if type(score) not in (int, float) or not abs(score) <= _LARGEST_SCORE:
        return f'has the score {shown(score)}, not a finite number'
    if 'bbox' not in result and 'segmentation' not in result:
        return 'has neither "bbox" nor "segmentation"'
    return box_problem(result['bbox']) if 'bbox' in result else None


def _check_ids(path: str | os.PathLike, results: list[dict[str, Any]],
               truth: dict[str, Any]) -> None:
    images = {image['id'] for image in truth['images']}
    names = {category['id'] for category in truth['categories']}
    if strange := _unlike(results, 'image_id', images):
        raise UserError(
            f'{path}: {strange} in the annotations ({len(images)} images, ids like '
            f'{_some(images)}). Were the results made on another split?')
    if strange := _unlike(results, 'category_id', names):
        given = {result['category_id'] for result in results}
        hint = ''
        if all(isinstance(i, int) and 0 <= i < len(names) for i in given):
            hint = (' They look like class indices 0..N-1: write the category ids of the '
                    'annotation file instead.')
        raise UserError(f'{path}: {strange} among the {len(names)} categories of the annotations '
                        f'(ids like {_some(names)}).{hint}')


def _unlike(results: list[dict[str, Any]], key: str, known: set) -> str:
    wrong = {result[key] for result in results} - known
    count = sum(result[key] in wrong for result in results)
    if not wrong:
        return ''
    return (f'{count} of {len(results)} detections have {key} {_some(wrong)}, which '
            f'{"is" if len(wrong) == 1 else "are"} not')


def _some(values: Iterable) -> str:
    return few(map(shown, sorted(values, key=lambda value: (str(type(value)), value))))
