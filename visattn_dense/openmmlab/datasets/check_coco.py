"""Check a COCO-format detection dataset: categories, annotations, boxes and images."""
import json
import mmap
import os
from collections import Counter
from pathlib import Path
from typing import Any

from visattn_dense.errors import UserError, did_you_mean, few
from visattn_dense.evaluation.coco_files import mask_box
from visattn_dense.evaluation.coco_format import annotation_faults, read_json, usable_polygons
from visattn_dense.files import list_files
from visattn_dense.openmmlab.datasets.check_files import check_folders, source_hint
from visattn_dense.openmmlab.datasets.check_loading import Loading
from visattn_dense.openmmlab.datasets.check_report import SHOWN, DatasetReport

# COCO counts this many detections in one image.
MAX_DETS = 100
# To parse the annotations of a larger file takes seconds. There the quick check reads only images
# and categories.
QUICK_BYTES = 64 * 2**20


def read_lists(path: str, keys: tuple[str, ...]) -> dict[str, list]:
    """The named top-level lists of a large JSON file. The rest of the file is not parsed.

    Raises:
        ValueError: a list is not found, or is not valid JSON.
    """
    decoder = json.JSONDecoder()
    found = {}
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for key in keys:
            start = text.find(f'"{key}":'.encode())
            opening = text.find(b'[', start)
            end = text.find(b'}]', opening) + 2
            if start < 0 or opening < 0 or end < 2:
                raise ValueError(f'{path} has no list {key!r}')
            found[key] = decoder.decode(text[opening:end].decode())
    return found


def read_annotations(path: str, quick: bool) -> Any:
    """The contents of the JSON file. With `quick`, a large file gives no 'annotations'.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    if quick and os.path.getsize(path) > QUICK_BYTES:
        try:
            return read_lists(path, ('images', 'categories'))
        # The layout is unusual (spaces, nested lists). The slow way works for every layout.
        except (ValueError, RecursionError):
            pass
    return read_json(path, 'annotations')


def check_coco(dataset: Any, has_masks: bool, report: DatasetReport, *, quick: bool,
               loading: Loading | None = None) -> None:
    """Check a lazily built CocoDataset and fill its report.

    Args:
        dataset: CocoDataset or a subclass with its file format, built with lazy_init=True.
        has_masks: whether annotations need a segmentation: the model has a mask head, or the
            pipeline loads masks.
        report: receives sizes, boxes per class, problems and notes.
        quick: list all images but open only a sample of them.
        loading: the loading steps of the dataset's pipeline, which read a sample of the images.
    """
    report.unit = 'boxes'
    path, folder = dataset.ann_file, dataset.data_prefix.get('img')
    if 'img' not in dataset.data_prefix:
        report.add('data_prefix names no folder of images', "set data_prefix=dict(img='...')",
                   f'data_prefix={dict(dataset.data_prefix)}')
        return
    if not check_folders(dataset, [folder], report, files=[path]):
        return
    try:
        content = read_annotations(path, quick)
    except UserError as error:
        report.add('annotation file is no COCO JSON', 'download or write it again', str(error))
        return
    faults = list(annotation_faults(content, training=True))
    for fault in faults:
        report.add(f'{path}: {fault.what}', fault.fix, fault.entry)
    if any(fault.part != 'annotations' for fault in faults):
        return
    images = {image['id']: image for image in content['images']}
    report.images = len(images)
    if not images:
        report.add('no images are listed', source_hint(dataset), path)
        return
    label_of = _check_categories(path, content['categories'], report)
    if 'annotations' in content:
        if not faults:
            used = _check_boxes(dataset, content['annotations'], images, label_of, report)
            _check_masks(path, used, images, has_masks, report)
    elif not quick or os.path.getsize(path) <= QUICK_BYTES:
        if report.split == 'train':
            report.add('the file has no annotations to learn from', 'check that ann_file is the '
                       'right file', path)
        else:
            report.notes.append('the file has no annotations: good for testing only')
    _check_images(path, folder, list(images.values()), report, quick, loading,
                  has_labels=bool(content.get('annotations')))


def _check_categories(path: str, categories: list[dict], report: DatasetReport) -> dict[int, int]:
    """Compare the file's categories with the config's classes; return category id -> class."""
    names = [category['name'] for category in categories]
    classes = report.classes
    unknown = [name for name in classes if name not in names]
    if unknown:
        hints = '; '.join(f'{name!r}: {did_you_mean(name, names)}' for name in unknown[:SHOWN])
        report.add('classes of the config that the annotation file does not have: '
                   + few(map(repr, unknown), SHOWN),
                   f'set metainfo=dict(classes=(...)) to names of the file. {hints}', path)
    unused = [name for name in names if name not in classes]
    if unused:
        report.notes.append(f'{len(unused)} categories of {path} are not among the classes and '
                            f'their boxes are left out: {few(unused, 8)}')
    common = [name for name in names if name in classes]
    if not unknown and common != list(classes):
        # mmdet numbers the classes in the order of the file, not of the config.
        report.add('classes stand in another order than the categories of the file, so results '
                   'would carry wrong names', f'write them as classes={tuple(common)}', path)
    return {category['id']: classes.index(category['name'])
            for category in categories if category['name'] in classes}


def _check_boxes(dataset: Any, annotations: list[dict], images: dict, label_of: dict[int, int],
                 report: DatasetReport) -> list[dict]:
    """Count the boxes that mmdetection uses and leaves out. `annotations` have no faults.

    Returns:
        list[dict]: the annotations that a training uses.
    """
    outside, left_out, stray, used, ignored, crowds = [], [], [], [], 0, 0
    boxes_of: Counter = Counter()
    for annotation in annotations:
        image = images[annotation['image_id']]
        name = f'annotation {annotation["id"]} of {image["file_name"]}'
        if annotation.get('ignore'):
            ignored += 1
            continue
        left, top, width, height = annotation['bbox']
        inside = (min(left + width, image['width']) - max(left, 0),
                  min(top + height, image['height']) - max(top, 0))
        if min(inside) <= 0 and min(width, height) >= 1:
            stray.append(f'{name} (box {annotation["bbox"]} in '
                         f'{image["width"]}x{image["height"]})')
            continue
        if min(inside) <= 0 or width < 1 or height < 1 or annotation['area'] <= 0:
            left_out.append(name)
            continue
        # COCO's own boxes overshoot by rounding.
        if (left < -1 or top < -1 or left + width > image['width'] + 1
                or top + height > image['height'] + 1):
            outside.append(f'{name} (box {annotation["bbox"]} in '
                           f'{image["width"]}x{image["height"]})')
        label = label_of.get(annotation['category_id'])
        if label is not None:
            used.append(annotation)
            crowds += bool(annotation.get('iscrowd'))
            boxes_of[image['id']] += 1
            report.counts[label] += 1
    if outside or stray:
        report.add(f'boxes outside their image in {dataset.ann_file}',
                   'bbox is [x, y, width, height] in pixels of the original image, not '
                   '[x1, y1, x2, y2]', [*stray, *outside], blocks=False)
    if left_out:
        report.notes.append(f'{len(left_out)} boxes of zero area or below one pixel are left out, '
                            f'first {left_out[0]}')
    if ignored:
        report.notes.append(f'{ignored} boxes are left out for their "ignore": 1')
    report.notes.append(f'{sum(report.counts.values())} boxes, {crowds} of them crowd regions; '
                        f'{len(images) - len(boxes_of)} images without a box of these classes')
    if boxes_of and (most := max(boxes_of.values())) > MAX_DETS:
        full = sum(count > MAX_DETS for count in boxes_of.values())
        report.notes.append(
            f'{full} image{"s"[:full > 1]} with more than {MAX_DETS} objects (at most {most}): '
            f'COCO counts {MAX_DETS} detections. Raise max_per_img in the test_cfg of the model, '
            "CocoMetric's proposal_nums, and --max-dets of tools/eval_ap.py")
    if not report.counts:
        report.add('not one usable box of the classes', 'see the classes and boxes above; check '
                   'that ann_file is the right file', dataset.ann_file)
    _note_filtered(dataset, images, report)
    return used


def _note_filtered(dataset: Any, images: dict, report: DatasetReport) -> None:
    """Report how many images `filter_cfg` removes from a training, and whether any is left."""
    chosen = dict(getattr(dataset, 'filter_cfg', None) or {})
    if dataset.test_mode or not chosen or not report.counts:
        return
    smallest = chosen.get('min_size', 0)
    small = [image for image in images.values()
             if min(image['width'], image['height']) < smallest]
    if small:
        report.notes.append(f'{len(small)} images below {smallest} pixels are left out '
                            f'(filter_cfg.min_size), first {small[0]["file_name"]}')
    if len(small) == len(images):
        report.add(f'filter_cfg.min_size={smallest} leaves out every image',
                   'set filter_cfg=dict(min_size=...) of the dataset below their sizes',
                   dataset.ann_file)


def _check_masks(path: str, annotations: list[dict], images: dict, has_masks: bool,
                 report: DatasetReport) -> None:
    """Report parts of masks that are not drawn; if the model needs masks, those that are missing
    or lie beside their boxes."""
    dropped = [f'annotation {annotation["id"]}' for annotation in annotations
               if isinstance(annotation.get('segmentation'), list)
               and len(usable_polygons(annotation['segmentation'])) < len(
                   annotation['segmentation'])]
    if dropped:
        report.add(f'{path}: polygons of fewer than three points, which are left out',
                   'remove these polygons, or draw them again', dropped, blocks=False)
    if not has_masks:
        return
    bare = [f'annotation {annotation["id"]}' for annotation in annotations
            if not annotation.get('segmentation')]
    if bare:
        report.add(f'annotations without a segmentation in {path}, but the model has a mask head',
                   'add polygons or RLE, or train a detector without mask_head', bare)
    beside = [f'annotation {annotation["id"]} of {images[annotation["image_id"]]["file_name"]}'
              for annotation in annotations if _lies_beside(annotation, images)]
    if beside:
        report.add(f'{path}: less than half of the mask lies in the box of the object',
                   'draw both on the same image, in pixels of the original size', beside,
                   blocks=False)


def _lies_beside(annotation: dict, images: dict) -> bool:
    """Less than half of the rectangle around the mask is inside the box. A box may be larger than
    its mask: it may hold the hidden part of an object."""
    if not annotation.get('segmentation'):
        return False
    image = images[annotation['image_id']]
    box, mask = annotation['bbox'], mask_box(annotation['segmentation'],
                                             (image['height'], image['width']))
    inside = 1.
    for axis in (0, 1):
        # A mask may be a line.
        start, length = mask[axis], max(mask[axis + 2], 1.)
        inside *= max(0., min(start + length, box[axis] + box[axis + 2])
                      - max(start, box[axis])) / length
    return inside < .5


def _check_images(path: str, folder: str, images: list[dict], report: DatasetReport,
                  quick: bool, loading: Loading | None, has_labels: bool) -> None:
    """Check the listed images: each exists, can be read, has the size that the JSON file says, and
    is loaded unchanged."""
    try:
        there = set(list_files(folder)) if folder else set()
    except UserError as error:
        report.add('the image folder cannot be searched', 'repair the folder', str(error))
        return
    lost = [image for image in images if image['file_name'] not in there
            and not os.path.exists(os.path.join(folder, image['file_name']))]
    if lost:
        report.add(f'images listed in {path} do not exist',
                   f"copy them to {folder or 'the image folder'}, or set data_prefix=dict(img=...) "
                   'to the folder that has them',
                   [os.path.join(folder, image['file_name']) for image in lost])
    missing = {image['file_name'] for image in lost}
    images = [image for image in images if image['file_name'] not in missing]
    loading = loading or Loading.usual()
    items = [dict(img_path=os.path.join(folder, image['file_name']), img_id=image['id'])
             for image in images]
    items = loading.sample(items) if quick else items
    report.read = len(items)
    readings = loading.read_images(items, progress='' if quick else
                                   f'{report.split}: {report.name}')
    listed = {image['id']: image for image in images}
    for item, reading in zip(items, readings, strict=True):
        image = listed[item['img_id']]
        file = str(Path(item['img_path']))
        if reading.fault:
            report.add(*loading.unreadable(file, reading))
        # The image could not be decoded; `compare` reports this.
        if reading.size is None:
            continue
        report.sizes.append(reading.size)
        if reading.size != (image['width'], image['height']):
            report.add(f'size differs from what {path} says',
                       'write the true width and height, or take the image the boxes were drawn '
                       f'on{reading.turned_hint()}',
                       f'{file} is {reading.size[0]}x{reading.size[1]}, annotated as '
                       f'{image["width"]}x{image["height"]}')
    loading.compare(items, readings, report, has_labels=has_labels)
