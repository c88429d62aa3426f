"""What was found in a picture: plain arrays, and their files."""
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from visattn_dense.atomic import write_text_whole, written_whole
from visattn_dense.visualization.objects import draw_objects
from visattn_dense.visualization.overlay import overlay, write_label

from . import masks as mask_tools
from .masks import Rle
from .sources import Picture


@dataclass(kw_only=True)
class Result:
    """The common part of all results.

    Attributes:
        name: of the result's files, without a suffix.
        path: of the image or video file; None where the picture came as an array or bytes.
        frame: number of the frame in its video, from 0; else None.
        fps: frames a second of that video; None if unknown.
        image: the picture, (H, W, 3) uint8 RGB, as the model's loader turned it.
        size: (H, W) of the picture, in pixels.
        model_size: (H, W) at which the model saw the picture.
        classes, palette: name and RGB triple of each class.
        end: `save_labels` writes NAME and this.
    """

    end: ClassVar[str] = '.json'
    name: str
    path: str | None
    frame: int | None
    fps: float | None
    image: np.ndarray
    model_size: tuple[int, int]
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[:2]

    @property
    def title(self) -> str:
        """What to call the picture in a message."""
        title = self.path or self.name
        return title if self.frame is None else f'{title} frame {self.frame}'

    def draw(self, *, opacity: float = 0.5, legend: bool = True) -> np.ndarray:
        """The picture with what was found over it: (H, W, 3) uint8 RGB, higher by the legend."""
        raise NotImplementedError

    def polygons(self) -> list[dict[str, Any]]:
        """Outlines, each with `class` (its index) and `rings`: see `masks.polygons`."""
        raise NotImplementedError

    def to_coco(self, image_id: int = 1, category_ids: Sequence[int] | None = None
                ) -> list[dict[str, Any]]:
        """COCO's results: one entry with image_id, category_id, bbox, score, segmentation each.

        Args:
            image_id: of this picture.
            category_ids: the id of each class in the data set; index + 1 where None.
        """
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain Python values, masks as RLE."""
        return dict(name=self.name, path=self.path, frame=self.frame, size=list(self.size),
                    model_size=list(self.model_size))

    def summary(self) -> str:
        """What was found, in a few words."""
        raise NotImplementedError

    def save_labels(self, folder: str | Path) -> Path:
        """Write what was found as a file for programs; returns its path."""
        raise NotImplementedError

    def save(self, folder: str | Path, *, opacity: float = 0.5, legend: bool = True) -> Path:
        """Write NAME_overlay.png and the file of `save_labels` to a folder, which may be new.

        Returns:
            The path of the overlay.
        """
        self.save_labels(folder)
        return self.save_overlay(folder, opacity=opacity, legend=legend)

    def save_overlay(self, folder: str | Path, *, opacity: float = 0.5, legend: bool = True
                     ) -> Path:
        """Write NAME_overlay.png alone; returns its path."""
        path = _ready(folder) / f'{self.name}_overlay.png'
        with written_whole(path) as temporary:
            Image.fromarray(self.draw(opacity=opacity, legend=legend)).save(temporary, 'PNG')
        return path

    def show(self) -> None:
        """Open the overlay in the viewer of this machine."""
        Image.fromarray(self.draw()).show(self.name)


@dataclass(kw_only=True)
class Segmentation(Result):
    """The classes of a picture's pixels.

    Attributes:
        labels: (H, W) class indices: uint8, or uint16 from 256 classes on.
        ignored: the value of pixels without a class: 255 or 65535.
        scores: (C, H, W) float16 probabilities, where they were asked for.
    """

    end: ClassVar[str] = '_label.png'
    labels: np.ndarray
    ignored: int = 255
    scores: np.ndarray | None = None

    def areas(self) -> dict[int, int]:
        """Class index -> number of its pixels, the largest first; classes that occur."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))[:len(self.classes)]
        order = np.argsort(-counts, kind='stable')
        return {int(i): int(counts[i]) for i in order if counts[i] and i != self.ignored}

    def draw(self, *, opacity: float = 0.5, legend: bool = True) -> np.ndarray:
        return overlay(self.image, self.labels, self.palette, opacity=opacity,
                       names=self.classes if legend else None, ignored=self.ignored)

    def polygons(self) -> list[dict[str, Any]]:
        """One entry for each connected area: `class` and `rings`, see `masks.polygons`."""
        return [{'class': index, 'rings': rings} for index in self.areas()
                for rings in mask_tools.polygons(self.labels == index)]

    def to_coco(self, image_id: int = 1, category_ids: Sequence[int] | None = None
                ) -> list[dict[str, Any]]:
        """One entry for each class that occurs, as COCO writes regions of "stuff"."""
        found = []
        for index, area in self.areas().items():
            mask = self.labels == index
            y, x = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            found.append(dict(
                image_id=image_id, category_id=_category(index, category_ids), area=area,
                bbox=[int(x[0]), int(y[0]), int(x[-1] - x[0] + 1), int(y[-1] - y[0] + 1)],
                segmentation=mask_tools.encode(mask), iscrowd=0))
        return found

    def to_json(self) -> dict[str, Any]:
        total = self.labels.size
        return super().to_json() | dict(segments=[
            {'class': index, 'name': self.classes[index], 'area': area, 'share': area / total,
             'rle': mask_tools.encode(self.labels == index)}
            for index, area in self.areas().items()])

    def summary(self) -> str:
        top = list(self.areas().items())[:3]
        return ', '.join(f'{self.classes[i]} {area / self.labels.size:.0%}' for i, area in top)

    def save_labels(self, folder: str | Path) -> Path:
        """Write NAME_label.png: class indices from 0, in grey; returns its path."""
        path = _ready(folder) / f'{self.name}{self.end}'
        with written_whole(path) as temporary:
            write_label(temporary, self.labels)
        return path


@dataclass(kw_only=True)
class Detection(Result):
    """The objects of a picture, those of high scores first.

    Attributes:
        boxes: (N, 4) float32: x1, y1, x2, y2 in pixels of the picture.
        scores: (N,) float32, from 0 to 1.
        labels: (N,) int64 class indices.
        rles: N masks as COCO's RLE; None if the model finds boxes only.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    rles: Sequence[Rle] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.classes[i] for i in self.labels]

    @cached_property
    def masks(self) -> np.ndarray | None:
        """(N, H, W) bool, made when asked for; None if the model finds boxes only."""
        if self.rles is None:
            return None
        return np.array([mask_tools.decode(rle) for rle in self.rles], bool).reshape(
            -1, *self.size)

    def draw(self, *, opacity: float = 0.5, legend: bool = True) -> np.ndarray:
        one_by_one = None if self.rles is None else (
            lambda i: mask_tools.decode_part(self.rles[i]))
        return draw_objects(self.image, self.boxes, self.labels, self.scores, self.palette,
                            self.classes, mask=one_by_one, opacity=opacity, legend=legend)

    def polygons(self) -> list[dict[str, Any]]:
        """For each object `class`, `score`, `object` (its index) and `rings`: one entry for each
        connected part of its mask, or its box where there are no masks."""
        found = []
        for i in range(len(self)):
            shapes = [[_box_ring(self.boxes[i])]] if self.rles is None else (
                _mask_rings(self.rles[i]))
            found += [{'class': int(self.labels[i]), 'score': float(self.scores[i]), 'object': i,
                       'rings': rings} for rings in shapes]
        return found

    def to_coco(self, image_id: int = 1, category_ids: Sequence[int] | None = None
                ) -> list[dict[str, Any]]:
        return [dict(image_id=image_id, category_id=_category(label, category_ids), **rest)
                for label, rest in zip(self.labels.tolist(), self._objects(), strict=True)]

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | dict(objects=[
            {'class': label, 'name': self.classes[label], **rest}
            for label, rest in zip(self.labels.tolist(), self._objects(), strict=True)])

    def _objects(self) -> Iterator[dict[str, Any]]:
        for i, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()):
            entry = dict(bbox=[x1, y1, x2 - x1, y2 - y1], score=float(self.scores[i]),
                         area=(x2 - x1) * (y2 - y1), iscrowd=0)
            if self.rles is not None:
                entry |= dict(segmentation=self.rles[i], area=mask_tools.area(self.rles[i]))
            yield entry

    def summary(self) -> str:
        counts = np.bincount(self.labels, minlength=len(self.classes))
        top = [i for i in np.argsort(-counts, kind='stable') if counts[i]]
        return ', '.join(f'{counts[i]} {self.classes[i]}' for i in top[:6]) or 'nothing'

    def save_labels(self, folder: str | Path) -> Path:
        """Write NAME.json: `to_json`; returns its path."""
        path = _ready(folder) / f'{self.name}{self.end}'
        write_text_whole(path, json.dumps(self.to_json()) + '\n')
        return path


def about(picture: Picture) -> dict[str, Any]:
    """The fields of a result that come from its picture."""
    file = picture.path if picture.data is None or picture.frame is not None else None
    return dict(name=picture.name, path=file, frame=picture.frame, fps=picture.fps)


def _category(index: int, category_ids: Sequence[int] | None) -> int:
    return index + 1 if category_ids is None else category_ids[index]


def _box_ring(box: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = box
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def _mask_rings(rle: Rle) -> list[list[np.ndarray]]:
    mask, (y, x) = mask_tools.decode_part(rle)
    return [[ring + (x, y) for ring in rings] for rings in mask_tools.polygons(mask)]


def _ready(folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
