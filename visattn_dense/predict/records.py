"""Results of many pictures in one JSON file, written as they come."""
from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from visattn_dense.atomic import written_whole

from .results import Result

_BLOCK = 1 << 20


class JsonWriter:
    """Writes results into a file; a context manager. The file appears when all is written.

    NAME.jsonl gets `Result.to_json`, one line a picture. Every other name gets a COCO file with
    images, annotations and categories, whose ids count from 1; category i + 1 is class i. Memory
    does not grow with the number of pictures.

    Args:
        path: the file.
        classes: the names of all classes.
    """

    def __init__(self, path: str | os.PathLike, classes: Sequence[str]) -> None:
        self._path, self._classes = Path(path), classes
        self._lines = self._path.suffix.lower() == '.jsonl'
        self._images = self._annotations = 0

    def __enter__(self) -> JsonWriter:
        self._parts = [tempfile.TemporaryFile('w+', encoding='utf-8') for _ in range(2)]
        return self

    def write(self, result: Result) -> None:
        """Add a result."""
        images, annotations = self._parts
        if self._lines:
            _add(images, result.to_json(), first=True)
            images.write('\n')
            return
        height, width = result.size
        entry = dict(id=self._images + 1, file_name=result.path or result.name, height=height,
                     width=width)
        _add(images, entry | ({} if result.frame is None else dict(frame=result.frame)),
             first=not self._images)
        self._images += 1
        for found in result.to_coco(self._images):
            _add(annotations, dict(id=self._annotations + 1, **found),
                 first=not self._annotations)
            self._annotations += 1

    def __exit__(self, kind: type | None, *rest: object) -> None:
        if kind in (None, KeyboardInterrupt):
            categories = json.dumps([dict(id=i + 1, name=name)
                                     for i, name in enumerate(self._classes)])
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self._path) as temporary, open(temporary, 'w',
                                                              encoding='utf-8') as file:
                if self._lines:
                    _copy(self._parts[0], file)
                else:
                    file.write('{"images": [')
                    _copy(self._parts[0], file)
                    file.write('],\n"annotations": [')
                    _copy(self._parts[1], file)
                    file.write(f'],\n"categories": {categories}}}\n')
        for part in self._parts:
            part.close()


def _add(file: IO[str], entry: dict[str, Any], *, first: bool) -> None:
    file.write(('' if first else ',\n') + json.dumps(entry))


def _copy(source: IO[str], target: IO[str]) -> None:
    source.seek(0)
    while block := source.read(_BLOCK):
        target.write(block)
