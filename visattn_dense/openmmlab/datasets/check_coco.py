"""Check of a COCO-format detection dataset: categories, annotations, boxes and images."""
import json
import mmap
import os
from collections import Counter
from pathlib import Path
from typing import Any

from visattn_dense.errors import did_you_mean
from visattn_dense.openmmlab.datasets.check_files import (
    check_folders,
    cores,
    image_size,
    list_files,
    read_all,
    source_hint,
    spread,
)
from visattn_dense.openmmlab.datasets.check_report import DatasetReport

# Above this, parsing all annotations takes seconds: the quick check reads images and categories.
QUICK_BYTES = 64 * 2**20


def read_lists(path: str, keys: tuple[str, ...]) -> dict[str, list]:
    """The named top-level lists of a large JSON file, without parsing the rest of it.

    Raises:
        ValueError: a list is not found, or is no valid JSON.
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


def read_annotations(path: str, quick: bool) -> dict[str, Any]:
    """The JSON file; without 'annotations' where it is large and `quick`.

    Raises:
        ValueError: no valid JSON, or no JSON object.
    """
    if quick and os.path.getsize(path) > QUICK_BYTES:
        try:
            return read_lists(path, ('images', 'categories'))
        # Unusual layout (spaces, nested lists): the slow way always works.
        except ValueError:
            pass
    with open(path, encoding='utf-8') as file:
        content = json.load(file)
    if not isinstance(content, dict):
        raise ValueError(f'holds a {type(content).__name__} instead of an object')
    return content


def check_coco(dataset: Any, has_masks: bool, report: DatasetReport, *, quick: bool) -> None:
    """Check a lazily built CocoDataset and fill its report.

    Args:
        dataset: CocoDataset or a subclass with its file format, built with lazy_init=True.
        has_masks: the model has a mask head, so annotations need a segmentation.
        report: receives sizes, boxes per class, problems and notes.
        quick: list all images but open only a sample of them.
    """
    report.unit = 'boxes'
    path, folder = dataset.ann_file, dataset.data_prefix.get('img') or ''
    if not check_folders(dataset, [folder, path], report):
        return
    try:
        content = read_annotations(path, quick)
    except ValueError as error:
        report.add('annotation file is no valid JSON', 'download or write it again',
                   f'{path} ({error})')
        return
    lost = [key for key in ('images', 'categories') if not isinstance(content.get(key), list)]
    if lost:
        report.add(f'annotation file has no {" and no ".join(lost)}',
                   'a COCO file has images, annotations and categories', path)
        return
    for key, wanted in (('images', {'id', 'file_name', 'width', 'height'}),
                        ('categories', {'id', 'name'})):
        incomplete = [f'entry {i} ({entry})' for i, entry in enumerate(content[key])
                      if not isinstance(entry, dict) or not wanted <= entry.keys()]
        if incomplete:
            report.add(f'{key} in {path} lack some of {", ".join(sorted(wanted))}',
                       'write all of them for each', incomplete)
            return
    images = {image['id']: image for image in content['images']}
    report.images = len(images)
    if not images:
        report.add('no images are listed', source_hint(dataset), path)
        return
    label_of = _check_categories(path, content['categories'], report)
    if 'annotations' in content:
        _check_boxes(path, content['annotations'], images, label_of, report)
        _check_masks(path, content['annotations'], has_masks, report)
    elif not quick:
        report.notes.append('the file has no annotations: good for testing only')
    _check_images(path, folder, list(images.values()), report, quick)


def _check_categories(path: str, categories: list[dict], report: DatasetReport) -> dict[int, int]:
    """Compare the file's categories with the config's classes; return category id -> class."""
    names = [category['name'] for category in categories]
    classes = report.classes
    unknown = [name for name in classes if name not in names]
    if unknown:
        hints = '; '.join(f'{name!r}: {did_you_mean(name, names)}' for name in unknown[:5])
        report.add('classes of the config that the annotation file does not have: '
                   + ', '.join(map(repr, unknown[:5])) + (', ...' if len(unknown) > 5 else ''),
                   f'set metainfo=dict(classes=(...)) to names of the file. {hints}', path)
    unused = [name for name in names if name not in classes]
    if unused:
        report.notes.append(f'{len(unused)} categories of {path} are not among the classes and '
                            f'their boxes are left out: {", ".join(map(str, unused[:8]))}')
    common = [name for name in names if name in classes]
    if not unknown and common != list(classes):
        # mmdet numbers the classes in the file's order, whatever the config's order is.
        report.add('classes stand in another order than the categories of the file, so results '
                   'would carry wrong names', f'write them as classes={tuple(common)}', path)
    return {category['id']: classes.index(category['name'])
            for category in categories if category['name'] in classes}


def _check_boxes(path: str, annotations: list[dict], images: dict, label_of: dict[int, int],
                 report: DatasetReport) -> None:
    """Every annotation: its image, its keys, its box; counts what mmdet leaves out."""
    broken, stray, outside = [], [], []
    flat, crowds = [], 0
    boxes_of: Counter = Counter()
    for annotation in annotations:
        name = f'annotation {annotation.get("id")}'
        image = images.get(annotation.get('image_id'))
        absent = [key for key in ('id', 'image_id', 'category_id', 'bbox', 'area')
                  if key not in annotation]
        if absent:
            broken.append(f'{name} (no {", ".join(absent)})')
            continue
        if len(annotation['bbox']) != 4:
            broken.append(f'{name} (bbox {annotation["bbox"]})')
            continue
        if image is None:
            stray.append(f'{name} (image_id {annotation["image_id"]})')
            continue
        name += f' of {image["file_name"]}'
        left, top, width, height = annotation['bbox']
        crowds += bool(annotation.get('iscrowd'))
        if width < 1 or height < 1 or annotation['area'] <= 0:
            flat.append(name)
            continue
        # COCO's own boxes overshoot by rounding.
        if (left < -1 or top < -1 or left + width > image['width'] + 1
                or top + height > image['height'] + 1):
            outside.append(f'{name} (box {annotation["bbox"]} in '
                           f'{image["width"]}x{image["height"]})')
        label = label_of.get(annotation['category_id'])
        if label is not None:
            boxes_of[image['id']] += 1
            report.counts[label] += 1
    if broken:
        report.add(f'incomplete annotations in {path}',
                   'write id, image_id, category_id, bbox [x, y, w, h] and area for each', broken)
    if stray:
        report.add(f'annotations in {path} refer to images that it does not list',
                   'add the images to the file or remove these annotations', stray)
    if outside:
        report.add(f'boxes outside their image in {path}',
                   'bbox is [x, y, width, height] in pixels of the original image, not '
                   '[x1, y1, x2, y2]', outside, blocks=False)
    repeated = [key for key, count in Counter(a.get('id') for a in annotations).items()
                if count > 1]
    if repeated:
        report.add(f'annotation ids used more than once in {path}', 'number them anew',
                   [f'annotation {key}' for key in repeated])
    if flat:
        report.notes.append(f'{len(flat)} boxes of zero area or below one pixel are left out, '
                            f'first {flat[0]}')
    report.notes.append(f'{sum(report.counts.values())} boxes, {crowds} of them crowd regions; '
                        f'{len(images) - len(boxes_of)} images without a box of these classes')
    if not report.counts:
        report.add('not one usable box of the classes', 'see the classes and boxes above; check '
                   'that ann_file is the right file', path)


def _check_masks(path: str, annotations: list[dict], has_masks: bool,
                 report: DatasetReport) -> None:
    """A mask head learns nothing from annotations without a segmentation."""
    if not has_masks:
        return
    bare = [f'annotation {annotation.get("id")}' for annotation in annotations
            if not annotation.get('segmentation')]
    if bare:
        report.add(f'annotations without a segmentation in {path}, but the model has a mask head',
                   'add polygons or RLE, or train a detector without mask_head', bare,
                   blocks=len(bare) == len(annotations))


def _check_images(path: str, folder: str, images: list[dict], report: DatasetReport,
                  quick: bool) -> None:
    """Files that are listed: there, readable, and of the size that the file says."""
    there = set(list_files(folder)) if folder else set()
    lost = [image for image in images if image['file_name'] not in there
            and not os.path.exists(os.path.join(folder, image['file_name']))]
    if lost:
        report.add(f'images listed in {path} do not exist',
                   f"copy them to {folder or 'the image folder'}, or set data_prefix=dict(img=...) "
                   'to the folder that has them',
                   [os.path.join(folder, image['file_name']) for image in lost])
    missing = {image['file_name'] for image in lost}
    images = [image for image in images if image['file_name'] not in missing]
    chosen = spread(images) if quick else images
    report.read = len(chosen)
    results = read_all(_size_or_fault, [os.path.join(folder, i['file_name']) for i in chosen],
                       workers=cores(), progress='' if quick else f'{report.split}: {report.name}')
    for image, (size, fault) in zip(chosen, results, strict=True):
        file = str(Path(folder, image['file_name']))
        if fault or size is None:
            report.add('image cannot be read', 'download or copy the file again',
                       f'{file} ({fault})')
            continue
        report.sizes.append(size)
        if size != (image['width'], image['height']):
            report.add(f'size differs from what {path} says',
                       'write the true width and height, or take the image the boxes were drawn '
                       'on', f'{file} is {size[0]}x{size[1]}, annotated as '
                       f'{image["width"]}x{image["height"]}')


def _size_or_fault(path: str) -> tuple[tuple[int, int] | None, str]:
    try:
        return image_size(path), ''
    except OSError as error:
        return None, str(error)
