"""The one validator of COCO-style JSON: annotations, detections and their masks.

The check of the data, tools/eval_ap.py and mmdetection's own loading all use this validator, so all
three accept the same files. pycocotools trusts its input. With a coordinate that is NaN, it runs
without end. With a huge coordinate, it writes outside its memory. Runs that do not add up give a
wrong mask. So pycocotools gets a mask only if `mask_problem` finds no fault.
"""
from __future__ import annotations

import json
import os
import re
import reprlib
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visattn_dense.errors import UserError
from visattn_dense.images import MOST_PIXELS
from visattn_dense.predict.masks import MOST_CHARACTERS, runs_of

# COCO itself nests five deep: file, annotations, annotation, segmentation, polygon.
MOST_DEPTH = 32
# A coordinate that is further than this many image sides away from the image is a fault, not a
# rounding error.
REACH = 10
# Length limit of a mask's outline in fifths of a pixel; pycocotools keeps the outline in memory.
_MOST_OUTLINE = 2**26
_FAR = 1e9
_MOST_AREA = 1e18
_SHOWN = 5
_NUMBERS = {int, float}
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlist = _short.maxdict = 4
_short.maxlevel = 3
_short.maxlong = 25


class Fault(NamedTuple):
    """One fault. what: without the entry. fix: what to do. entry: where, and what stands there.

    part: 'file', 'images', 'categories' or 'annotations'. A fault of the first three is the last:
    what follows cannot be understood without them.
    """

    what: str
    fix: str
    entry: str
    part: str


def shown(value: Any) -> str:
    """A short printable text for a value of any size and depth."""
    return _short.repr(value)


def nesting(text: bytes) -> int:
    """The nesting depth of lists and objects in a JSON text. The time is linear in the length."""
    if b'\\' in text:
        text = re.sub(rb'\\.', b'', text, flags=re.DOTALL)
    text = text.translate(None, delete=bytes(set(range(256)) - set(b'[]{}"')))
    # Most strings had no bracket and are empty now.
    text = re.sub(rb'"[^"]*"', b'', text.replace(b'""', b''))
    steps = np.frombuffer(text, np.uint8)
    ups = np.isin(steps, np.frombuffer(b'[{', np.uint8)).astype(np.int8)
    return int(np.cumsum(2 * ups - 1, dtype=np.int64).max(initial=0))


def read_json(path: str | os.PathLike, what: str) -> Any:
    """The contents of a JSON file.

    Args:
        path: the file.
        what: a word for the file in messages, for example 'annotations'.

    Raises:
        UserError: the file is missing, is a folder, is not JSON, or is nested deeper than
            `MOST_DEPTH`.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise UserError(f'{what} {path} is {"a folder" if stat.S_ISDIR(mode) else "no file"}; '
                            'name the JSON file')
        text = Path(path).read_bytes()
    # A name may hold a NUL byte.
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{what} {path} cannot be read: {reason}') from error
    if (depth := nesting(text)) > MOST_DEPTH:
        raise UserError(f'{what} {path} is no COCO file: lists and objects lie {depth} deep in one '
                        'another, 5 are usual')
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{what} {path} is no JSON: {error}') from error


def read_annotation_file(path: str | os.PathLike, *, training: bool, masks: bool) -> dict[str, Any]:
    """A COCO annotation file without a fault. Missing `annotations` become an empty list.

    Args:
        path: the file.
        training: as `annotation_faults`.
        masks: as `annotation_faults`.

    Raises:
        UserError: the file cannot be read or has a fault. The message names the entries.
    """
    data = read_json(path, 'annotations')
    faults = list(islice(annotation_faults(data, training=training, masks=masks), _SHOWN + 1))
    if faults:
        alike = [fault.entry for fault in faults if fault.what == faults[0].what]
        more = ', ...' if len(alike) > _SHOWN else ''
        raise UserError(f'{path}: {faults[0].what}: {", ".join(alike[:_SHOWN])}{more}\n'
                        f'    fix: {faults[0].fix}')
    # mmdetection writes no `annotations` if there are no objects.
    data.setdefault('annotations', [])
    return data


def annotation_faults(data: Any, *, training: bool, masks: bool = True) -> Iterator[Fault]:
    """All faults that would break a reader of COCO annotations.

    Args:
        data: content of the JSON file.
        training: the rules of mmdetection: images need file_name, annotations need id and area, ids
            are whole numbers, and each category has a name of its own. False: ids may be words.
        masks: check segmentations too.
    """
    if not isinstance(data, dict):
        wrong = f'it holds a {type(data).__name__}'
    elif lost := [key for key in ('images', 'categories') if key not in data]:
        wrong = f'it has no {" and no ".join(lost)}'
    else:
        wrong = ', '.join(f'"{key}" is {shown(data[key])}'
                          for key in ('images', 'categories', 'annotations')
                          if not isinstance(data.get(key, []), list))
    if wrong:
        yield Fault('no COCO annotation file', 'a COCO file is an object with the lists images, '
                    'annotations and categories; results are no such file', wrong, 'file')
        return
    sound = True
    for fault in (*_entry_faults(data['images'], 'images', _image_problem, training),
                  *_entry_faults(data['categories'], 'categories', _category_problem, training)):
        sound = False
        yield fault
    if sound:
        yield from _annotation_entry_faults(data, training, masks)


def _entry_faults(entries: list, part: str, problem_of: Any, training: bool) -> Iterator[Fault]:
    """Faults of images or categories."""
    ids: dict[Any, int] = {}
    names: dict[str, int] = {}
    for at, entry in enumerate(entries):
        problem = problem_of(entry, training)
        if problem:
            yield Fault(f'"{part}" has entries that cannot be used', problem[1],
                        f'entry {at} of "{part}" {problem[0]}', part)
            continue
        first = ids.setdefault(entry['id'], at)
        if first != at:
            yield Fault(f'"{part}" lists an id more than once', 'number them anew, and what refers '
                        'to them', f'id {shown(entry["id"])} (entries {first} and {at})', part)
        elif training and part == 'categories' and names.setdefault(entry['name'], at) != at:
            yield Fault('two categories share a name', 'give each category one entry',
                        f'{shown(entry["name"])} (entries {names[entry["name"]]} and {at})', part)


def _image_problem(image: Any, training: bool) -> tuple[str, str] | None:
    keys = ('id', 'width', 'height', *(('file_name', ) if training else ()))
    if lacking := _lacking(image, keys):
        return lacking
    if not _is_id(image['id'], training):
        return f'has the id {shown(image["id"])}', _id_rule(training)
    width, height = image['width'], image['height']
    if not (type(width) is type(height) is int and 0 < width and 0 < height
            and width * height <= MOST_PIXELS):
        return (f'has the width {shown(width)} and the height {shown(height)}',
                f'write pixels as whole numbers, at most {MOST_PIXELS} in one image')
    if training and not _is_text(image['file_name']):
        return (f'has the file_name {shown(image["file_name"])}',
                'write the name as a text, relative to the image folder')
    return None


def _category_problem(category: Any, training: bool) -> tuple[str, str] | None:
    if lacking := _lacking(category, ('id', 'name')):
        return lacking
    if not _is_id(category['id'], training):
        return f'has the id {shown(category["id"])}', _id_rule(training)
    if not _is_text(category['name']):
        return f'has the name {shown(category["name"])}', 'write the name as a text'
    return None


def _annotation_entry_faults(data: dict[str, Any], training: bool, masks: bool) -> Iterator[Fault]:
    images = {image['id']: image for image in data['images']}
    categories = {category['id'] for category in data['categories']}
    keys = ('image_id', 'category_id', 'bbox', *(('id', 'area') if training else ()))
    annotations = data.get('annotations', [])
    ids: dict[Any, int] = {}
    crowds = sound = 0
    for at, annotation in enumerate(annotations):
        problem = _annotation_problem(annotation, keys, images, categories, training, masks)
        if problem:
            yield Fault(*problem[:2], f'{_named(annotation, at)} {problem[2]}', 'annotations')
            continue
        sound += 1
        crowds += bool(annotation.get('iscrowd'))
        if 'id' in annotation and ids.setdefault(annotation['id'], at) != at:
            yield Fault('annotation ids are used more than once', 'number them anew, from 1',
                        f'{_named(annotation, at)} (entries {ids[annotation["id"]]} and {at})',
                        'annotations')
    if sound and crowds == sound:
        yield Fault('every annotation is a crowd region (iscrowd=1), and there is no object to '
                    'learn or to find', 'write iscrowd=0 for single objects',
                    f'all {crowds} annotations', 'annotations')


def _annotation_problem(annotation: Any, keys: tuple[str, ...], images: dict, categories: set,
                        training: bool, masks: bool) -> tuple[str, str, str] | None:
    """(what, fix, what stands there) of one annotation."""
    if lacking := _lacking(annotation, keys):
        return ('annotations lack something', 'write '
                f'{", ".join(keys)} for each', lacking[0])
    if 'id' in annotation and not _is_id(annotation['id'], training):
        return ('annotation ids that are no ids', _id_rule(training),
                f'has the id {shown(annotation["id"])}')
    for key, known, part in (('image_id', images, 'images'),
                             ('category_id', categories, 'categories')):
        value = annotation[key]
        if not _is_id(value, training) or value not in known:
            return (f'annotations refer to {part} that the file does not list',
                    _reference_fix(part, categories),
                    f'has the {key} {shown(value)}, which is not in "{part}"')
    image = images[annotation['image_id']]
    width, height = image['width'], image['height']
    if problem := box_problem(annotation['bbox'], REACH * max(width, height)):
        return ('boxes that are none', 'a box is [x, y, width, height] in pixels', problem)
    area = annotation.get('area', 0)
    if type(area) not in _NUMBERS or not 0 <= area <= _MOST_AREA:
        return ('areas that are none', 'an area is a number of square pixels',
                f'has the area {shown(area)}')
    for key in ('iscrowd', 'ignore'):
        flag = annotation.get(key, 0)
        if type(flag) not in (int, float, bool) or flag not in (0, 1):
            return (f'{key} is neither 0 nor 1', f'write {key} as 0 or 1',
                    f'has {key} {shown(flag)}')
    mask = annotation.get('segmentation')
    # No mask at all is written in three ways; whether one is needed is for others to say.
    if not masks or mask is None or mask == [] or mask == {}:
        return None
    if problem := mask_problem(mask, height, width):
        return ('masks that cannot be read', 'a mask is polygons [[x1, y1, x2, y2, x3, y3, ...], '
                '...] or RLE {"size": [height, width], "counts": ...} of its image',
                f'has a mask which {problem}')
    return None


def box_problem(box: Any, reach: float = _FAR) -> str | None:
    """The fault of a box [x, y, width, height]; None if there is no fault.

    Args:
        box: any JSON value.
        reach: largest number of pixels that a coordinate may have.
    """
    if not (isinstance(box, list | tuple) and len(box) == 4 and {type(x) for x in box} <= _NUMBERS
            and all(-_FAR <= x <= _FAR for x in box)):
        return f'has the bbox {shown(box)}; a box is [x, y, width, height], four finite numbers'
    if box[2] < 0 or box[3] < 0:
        return f'has the bbox {shown(box)} of a negative width or height'
    if max(map(abs, box)) > reach:
        return f'has the bbox {shown(box)}, more than {REACH} image sides away'
    return None


def mask_problem(mask: Any, height: int, width: int) -> str | None:
    """The fault of a mask of an image; None if pycocotools can read the mask.

    Args:
        mask: any JSON value.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    if isinstance(mask, list):
        return _polygon_problem(mask, REACH * max(height, width))
    if isinstance(mask, dict):
        return _rle_problem(mask, height, width)
    return f'is neither RLE nor polygons: {shown(mask)}'


def usable_polygons(mask: list[list[float]]) -> list[list[float]]:
    """The polygons of at least three points. mmdetection also leaves out the other polygons."""
    return [polygon for polygon in mask if len(polygon) >= 6]


def _polygon_problem(mask: list, reach: float) -> str | None:
    outline = 0.
    for at, polygon in enumerate(mask):
        if not isinstance(polygon, list):
            return f'has {shown(polygon)} for polygon {at}'
        if len(polygon) % 2:
            return f'has {len(polygon)} numbers in polygon {at}, x without y'
        if not set(map(type, polygon)) <= _NUMBERS:
            return f'has something else than numbers in polygon {at}: {shown(polygon)}'
        if not polygon:
            continue
        low, high = min(polygon), max(polygon)
        # A comparison with NaN is false, but min and max may ignore a NaN.
        if not (-reach <= low and high <= reach) or any(x != x for x in polygon):
            return (f'has coordinates in polygon {at} that are not finite or lie more than {REACH} '
                    f'image sides away: {shown(low)} to {shown(high)}')
        longest = 5 * (high - low + 1) * len(polygon)
        if longest > _MOST_OUTLINE:
            points = np.array(polygon, float).reshape(-1, 2)
            steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
            longest = 5 * float(steps.sum() + len(points))
        outline += longest
    if not usable_polygons(mask):
        return 'has no polygon of three points'
    if outline > _MOST_OUTLINE:
        return 'has an outline that is too long to be drawn'
    return None


def _rle_problem(mask: dict, height: int, width: int) -> str | None:
    if lacking := _lacking(mask, ('size', 'counts')):
        return lacking[0]
    size, counts = mask['size'], mask['counts']
    if not (isinstance(size, list | tuple) and len(size) == 2
            and all(type(side) is int for side in size)):
        return f'has the size {shown(size)}; it is [height, width]'
    if tuple(size) != (height, width):
        return f'is {shown(size[0])}x{shown(size[1])}, the image {height}x{width} (height x width)'
    if isinstance(counts, list):
        if not set(map(type, counts)) <= {int} or (counts and min(counts) < 0):
            return f'has counts that are no lengths: {shown(counts)}'
        if sum(counts) != height * width:
            return 'has runs that do not add up to the size'
        return None
    if isinstance(counts, str | bytes):
        return _compressed_problem(counts, height * width)
    return f'has the counts {shown(counts)}; they are a text or a list of lengths'


def _compressed_problem(counts: str | bytes, pixels: int) -> str | None:
    """Whether COCO's compressed runs (see `predict.masks`) are complete and add up."""
    try:
        raw = counts if isinstance(counts, bytes) else counts.encode('ascii')
    except UnicodeEncodeError:
        return 'has counts with characters that RLE does not have'
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not codes.size:
        return 'has empty counts'
    if codes.min() < 0 or codes.max() > 63:
        return 'has counts with characters that RLE does not have'
    if codes[-1] >= 32:
        return 'has counts that end inside a number'
    if np.diff(np.flatnonzero(codes < 32), prepend=-1).max() > MOST_CHARACTERS:
        return 'has counts with a number that is too long'
    runs = runs_of(codes)
    if runs.min() < 0 or runs.max() > pixels:
        return 'has counts that are no lengths'
    if int(runs.sum()) != pixels:
        return 'has runs that do not add up to the size'
    return None


def _lacking(entry: Any, keys: Iterable[str]) -> tuple[str, str] | None:
    if not isinstance(entry, dict):
        return (f'is {shown(entry)}, not an object', f'write an object with {", ".join(keys)}')
    lost = [key for key in keys if key not in entry]
    if lost:
        return f'has no {", ".join(lost)}', f'write {", ".join(keys)} for each'
    return None


def _is_id(value: Any, whole: bool) -> bool:
    # In Python, JSON's true is an int.
    return (type(value) is int and -2**63 <= value < 2**63) or (not whole and _is_text(value))


def _id_rule(whole: bool) -> str:
    return ('ids are whole numbers' + (': words would come in another order in each process'
            if whole else ' or words'))


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or '\0' in value:
        return False
    try:
        value.encode()
    # Half of a surrogate pair, which no file name and no terminal takes.
    except UnicodeEncodeError:
        return False
    return True


def _reference_fix(part: str, categories: set) -> str:
    if part == 'images':
        return 'add the images to the file, or remove these annotations'
    if categories and all(type(key) is int for key in categories) and 0 not in categories:
        return ('write the ids of "categories" '
                f'({", ".join(map(str, sorted(categories)[:_SHOWN]))}, ...); if these count from '
                '0, they are class indices')
    return 'write the ids of "categories", or add the category there'


def _named(annotation: Any, at: int) -> str:
    if isinstance(annotation, dict) and _is_id(annotation.get('id'), False):
        return f'annotation {shown(annotation["id"])}'
    return f'entry {at} of "annotations"'
