"""Write rendered scenes as a data set, once: ADEChallengeData2016 and COCO 2017 layouts.

    ROOT/ade/images/{training,validation}/scene_00000.jpg
    ROOT/ade/annotations/{training,validation}/scene_00000.png    0 = other, 1..150
    ROOT/coco/{train2017,val2017}/scene_00000.jpg                 the same pictures
    ROOT/coco/annotations/instances_{train,val}2017.json
    ROOT/scenes.json                                              written last

scenes.json holds the parameters. If scenes.json is missing or has other parameters, the folder is
rendered again. A folder with any other files is refused and stays as it was.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_tools
from tqdm import tqdm

from visattn_dense.errors import UserError

from .compose import Scene, render_scene
from .kinds import COCO_IDS, coco_categories

# Raise the version if the same seed gives other pictures.
VERSION = 1
_MANIFEST = 'scenes.json'
_STARTED = 'scenes.started'
# Earlier versions wrote this name into scenes.json; their folders stay valid.
_GENERATOR = 'visattn_dense.datasets.scenes'
_SPLITS = (('training', 'train'), ('validation', 'val'))
_OURS = re.compile(
    r'scenes\.(json|json\.part|started)'
    r'|ade/(images|annotations)/(training|validation)/scene_\d{5}\.(jpg|png)'
    r'|coco/(train|val)2017/scene_\d{5}\.jpg'
    r'|coco/annotations/instances_(train|val)2017\.json'
)


def scene_seed(seed: int, split: str, index: int) -> int:
    """Seed of one scene: no two scenes of a data set share it, nor do 'train' and 'val'."""
    words = [seed, ('train', 'val').index(split), index]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def write_dataset(root: str | Path, num_train: int = 160, num_val: int = 40,
                  size: tuple[int, int] = (192, 256), seed: int = 0,
                  progress: bool = True) -> bool:
    """Render a data set under ``root`` unless it is there already.

    Args:
        root: folder; new, empty, or written by this function.
        num_train, num_val: number of scenes, at least 1 each.
        size: (H, W) in pixels, at least 48 each.
        seed: non-negative; the same seed gives the same files.
        progress: show a bar on stderr.

    Returns:
        Whether anything was rendered: False if the same data set was complete.

    Raises:
        UserError: a number is bad, or ``root`` has files of others. Then nothing is written or
            deleted.
    """
    root = Path(root)
    if min(num_train, num_val) < 1 or max(num_train, num_val) > 99999:
        raise UserError('the number of scenes must be 1 to 99999 for train and for val, '
                        f'got {num_train} and {num_val}')
    if len(size) != 2 or min(size) < 48:
        raise UserError(f'size must be (height, width) of at least 48 pixels each, got {size}')
    if seed < 0:
        raise UserError(f'seed must not be negative, got {seed}')
    wanted = dict(generator=_GENERATOR, version=VERSION, num_train=num_train,
                  num_val=num_val, size=list(size), seed=seed)
    if _read_manifest(root) == wanted:
        return False
    _clear(root)
    (root / _STARTED).write_text('being rendered; scenes.json replaces this file at the end\n')
    with tqdm(total=num_train + num_val, desc='rendering scenes', unit='scene', file=sys.stderr,
              disable=not progress) as bar:
        for (ade, coco), count in zip(_SPLITS, (num_train, num_val), strict=True):
            _write_split(root, ade, coco, count, size, seed, bar)
    part = root / f'{_MANIFEST}.part'
    part.write_text(json.dumps(wanted, indent=2) + '\n')
    os.replace(part, root / _MANIFEST)
    (root / _STARTED).unlink()
    return True


def _read_manifest(root: Path) -> dict | None:
    """Return the parameters of a complete data set of ours, None if there is none."""
    try:
        found = json.loads((root / _MANIFEST).read_text())
    # ValueError: not JSON, or not even text.
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    ours = isinstance(found, dict) and found.get('generator') == _GENERATOR
    return found if ours else None


def _clear(root: Path) -> None:
    """Make ``root`` an empty folder of ours, or refuse before anything is deleted."""
    if root.exists() and not root.is_dir():
        raise UserError(f'{root} is a file; give a folder for the rendered scenes')
    files = [p for p in root.rglob('*') if not p.is_dir()] if root.exists() else []
    foreign = [p for p in files if not _OURS.fullmatch(p.relative_to(root).as_posix())]
    complete = _read_manifest(root) is not None
    if (root / _MANIFEST).exists() and not complete:
        foreign.append(root / _MANIFEST)
    marked = complete or (root / _STARTED).exists()
    if foreign or (files and not marked):
        example = (foreign or files)[0]
        raise UserError(f'{root} holds files that the scene renderer did not write, such as '
                        f'{example.relative_to(root)}; give a new or empty folder')
    root.mkdir(parents=True, exist_ok=True)
    # From here on the folder counts as half rendered.
    (root / _STARTED).touch()
    (root / _MANIFEST).unlink(missing_ok=True)
    for file in files:
        if file.name not in (_STARTED, _MANIFEST):
            file.unlink()


def _write_split(root: Path, ade: str, coco: str, count: int, size: tuple[int, int], seed: int,
                 bar: Any) -> None:
    images, labels, twins = (root / 'ade/images' / ade, root / 'ade/annotations' / ade,
                             root / f'coco/{coco}2017')
    for folder in (images, labels, twins, root / 'coco/annotations'):
        folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict] = []
    annotations: list[dict] = []
    for index in range(count):
        scene = render_scene(scene_seed(seed, coco, index), size)
        name = f'scene_{index:05d}'
        picture = images / f'{name}.jpg'
        _save(picture, scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        _save(labels / f'{name}.png', scene.label)
        _link(picture, twins / picture.name)
        entries.append(dict(id=index + 1, file_name=picture.name, height=size[0], width=size[1]))
        annotations += _annotations(scene, index + 1, len(annotations) + 1)
        bar.update()
    book = dict(
        info=dict(description='rendered street scenes', version=str(VERSION)),
        licenses=[], images=entries, annotations=annotations, categories=coco_categories(),
    )
    (root / f'coco/annotations/instances_{coco}2017.json').write_text(json.dumps(book))


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    """COCO annotations of a scene: compressed RLE, for crowds the uncompressed RLE of COCO."""
    entries = []
    for offset, instance in enumerate(scene.instances):
        if instance.crowd:
            segmentation = _plain_rle(instance.mask)
        else:
            segmentation = mask_tools.encode(np.asfortranarray(instance.mask, np.uint8))
            segmentation['counts'] = segmentation['counts'].decode('ascii')
        entries.append(dict(
            id=first_id + offset, image_id=image_id, category_id=COCO_IDS[instance.category],
            segmentation=segmentation, area=int(instance.mask.sum()), bbox=list(instance.bbox),
            iscrowd=int(instance.crowd),
        ))
    return entries


def _plain_rle(mask: np.ndarray) -> dict:
    """Run lengths down the columns, the first of them outside the mask."""
    flat = np.concatenate([[0], mask.ravel(order='F').astype(np.int8)])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return dict(size=list(mask.shape), counts=counts.tolist())


def _save(path: Path, picture: np.ndarray, options: list[int] | None = None) -> None:
    # imencode and a write of our own: imwrite reports a full disk only by its return value.
    done, code = cv2.imencode(path.suffix, picture, options or [])
    if not done:
        raise OSError(f'OpenCV could not encode {path}')
    path.write_bytes(code.tobytes())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # No hard links on this file system.
        shutil.copyfile(source, target)
