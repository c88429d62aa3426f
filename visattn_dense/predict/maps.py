"""A TIFF file of any size to a label file or to objects, in the memory of one row of windows."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from visattn_dense.atomic import written_whole
from visattn_dense.visualization.objects import draw_objects
from visattn_dense.visualization.overlay import overlay

from .rasters import (
    Raster,
    check_geojson,
    label_features,
    object_features,
    write_geojson,
    write_label_map,
)
from .results import Detection
from .stream import Options
from .tiles import Window

_PREVIEW = 2048
Read = Callable[[Window], np.ndarray]


class TiledRuntime(Protocol):
    """A runtime that computes windows of a picture which never is in memory as a whole.

    It has one of the two methods. `read` gives the pixels of a window, (h, w, 3) uint8 RGB.
    """

    def bands(self, size: tuple[int, int], read: Read, options: Options) -> Iterator[np.ndarray]:
        """Segmentors: (h, W) labels from the top to the bottom."""

    def objects(self, size: tuple[int, int], read: Read, options: Options,
                progress: Callable[[int], object]) -> dict[str, Any]:
        """Detectors: the fields boxes, scores, labels and rles of a `Detection`.

        `progress` gets the number of picture rows that each finished row of windows adds.
        """


def map_file(runtime: Any, path: str | os.PathLike, folder: str | os.PathLike, options: Options, *,
             name: str | None = None, geojson: bool = False, opacity: float = 0.5,
             legend: bool = True,
             progress: Callable[[int], object] = lambda rows: None) -> list[Path]:
    """Predict on a TIFF file.

    Segmentors write NAME_label.tif, tiled and with the georeference of the file; detectors
    NAME.json. NAME_overlay.png is a reduced picture of at most 2048 pixels. With `geojson` polygons
    go to NAME.geojson.

    Args:
        runtime: a `TiledRuntime` with classes and palette.
        path: the TIFF file.
        folder: where to write.
        options: of the results.
        name: of the files; that of the TIFF file, without its suffix, where None.
        geojson: write polygons too.
        opacity, legend: of the overlay; see `Result.draw`.
        progress: called with the number of picture rows that are done now.

    Returns:
        What was written.

    Raises:
        UserError: a file that cannot be read; tifffile, or for GeoJSON rasterio, is missing.
    """
    folder, name = Path(folder), name or Path(path).stem
    folder.mkdir(parents=True, exist_ok=True)
    if geojson:
        check_geojson()
    with Raster(path) as raster:
        preview = _Preview(raster)
        if hasattr(runtime, 'bands'):
            target = folder / f'{name}_label.tif'
            few = len(runtime.classes) < 256
            bands = runtime.bands(raster.size, preview.read, options)
            write_label_map(target, raster.size, preview.labelled(bands, progress),
                            runtime.palette, dtype=np.uint8 if few else np.uint16, geo=raster.geo)
            picture = overlay(preview.image, preview.labels, runtime.palette, opacity=opacity,
                              names=runtime.classes if legend else None,
                              ignored=255 if few else 65535)
            features = label_features(target, runtime.classes, 255 if few else 65535)
        else:
            fields = runtime.objects(raster.size, preview.read, options, progress)
            # The picture is not in memory; a view of one number has its size.
            found = Detection(
                name=name, path=str(path), frame=None, fps=None,
                image=np.broadcast_to(np.uint8(0), (*raster.size, 3)), model_size=runtime.crop,
                classes=runtime.classes, palette=runtime.palette, **fields)
            target = found.save_labels(folder)
            picture = draw_objects(preview.image, found.boxes / preview.step, found.labels,
                                   found.scores, runtime.palette, runtime.classes,
                                   opacity=opacity, legend=legend)
            features = object_features(path, found.polygons(), runtime.classes) if geojson else ()
    written = [target, folder / f'{name}_overlay.png']
    with written_whole(written[1]) as temporary:
        Image.fromarray(picture).save(temporary, 'PNG')
    if geojson:
        written.append(folder / f'{name}.geojson')
        write_geojson(written[2], features)
    return written


class _Preview:
    """Every `step`-th pixel of a raster and of its labels, noted down as they pass by."""

    def __init__(self, raster: Raster) -> None:
        self.raster = raster
        self.step = -(-max(raster.size) // _PREVIEW)
        size = tuple(-(-side // self.step) for side in raster.size)
        self.image, self.labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint16)

    def read(self, window: Window) -> np.ndarray:
        pixels = self.raster.read(window)
        places, parts = zip(*(self._part(span) for span in window), strict=True)
        self.image[places] = pixels[parts]
        return pixels

    def labelled(self, bands: Iterable[np.ndarray], progress: Callable[[int], object]
                 ) -> Iterator[np.ndarray]:
        top = 0
        for band in bands:
            place, part = self._part((top, top + len(band)))
            self.labels[place] = band[part, ::self.step]
            top += len(band)
            yield band
            progress(len(band))

    def _part(self, span: tuple[int, int]) -> tuple[slice, slice]:
        """Where the multiples of `step` in a span lie: in the preview, and in the span."""
        first = -(-span[0] // self.step)
        return (slice(first, -(-span[1] // self.step)),
                slice(first * self.step - span[0], None, self.step))
