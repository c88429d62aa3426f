"""TIFF files that do not fit into memory: windows out of them, label files into them.

tifffile reads and writes them: `pip install visattn-dense[tiff]`. Only the tiles or strips that a
window needs are decoded. The georeference of a GeoTIFF goes over into the label file unchanged.
Polygons in GeoJSON are made by rasterio: `pip install visattn-dense[geo]`.
"""
from __future__ import annotations

import json
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from visattn_dense.atomic import written_whole
from visattn_dense.errors import UserError

from .tiles import Window

SUFFIXES = {'.tif', '.tiff'}
TILE = 512
# ModelPixelScale, ModelTiepoint, ModelTransformation, and the three GeoKey tags.
_GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
_ORIENTATION = 274
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6
_JPEG = (6, 7)
_COLOURS = {3: 'a palette', 5: 'CMYK', 6: 'YCbCr', 8: 'CIE L*a*b*'}
_CACHE = 2**28
_LARGEST_SEGMENT = 2**27


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise UserError('maps in TIFF files need tifffile: pip install visattn-dense[tiff]'
                        ) from error
    return tifffile


def _rasterio() -> Any:
    try:
        import rasterio
    except ImportError as error:
        raise UserError('GeoJSON needs rasterio: pip install visattn-dense[geo]') from error
    return rasterio


def check_geojson() -> None:
    """Raises UserError where the package for polygons in GeoJSON is missing."""
    _rasterio()


class Raster:
    """The first page of a TIFF file, window by window; a context manager.

    Of more than three bands the first three are used. Grey becomes three equal bands, of 16 bits
    the upper 8 stay, as the loaders of configs do. Grey may be stored as a negative, and YCbCr in
    JPEG.

    Args:
        path: the file, with bands of uint8 or uint16, in tiles or strips.

    Attributes:
        size: (H, W) in pixels.
        geo: the tags of the georeference, as tifffile writes them; empty without one.

    Raises:
        UserError: tifffile is missing, the file is no TIFF, or has pixels of another kind.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        tifffile = _tifffile()
        self.path = Path(path)
        try:
            self._file = tifffile.TiffFile(path)
            page = self._page = self._file.pages[0]
        except (OSError, tifffile.TiffFileError, IndexError) as error:
            raise UserError(f'{path} is no TIFF file, or is damaged: {error}') from error
        tags = page.tags
        segment = ((page.tilelength, page.tilewidth) if page.is_tiled else
                   (min(page.rowsperstrip, page.imagelength), page.imagewidth))
        fault = _fault(page, segment)
        if fault:
            self._file.close()
            raise UserError(f'{path} cannot be read window by window: {fault}. Convert it to '
                            'tiles of RGB with 8 bits a band: gdal_translate -co TILED=YES')
        self.size = page.imagelength, page.imagewidth
        self.geo = [(code, tags[code].dtype, tags[code].count, tags[code].value, True)
                    for code in _GEO_TAGS if code in tags]
        self._planes = page.planarconfig == 2 and page.samplesperpixel > 1
        self._bands = page.samplesperpixel
        self._white_is_zero = page.photometric == _WHITE_IS_ZERO
        self._segment = segment
        self._across = -(-self.size[1] // self._segment[1])
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()

    def read(self, window: Window) -> np.ndarray:
        """The pixels of ((y1, y2), (x1, x2)): (h, w, 3) uint8 RGB."""
        (y1, y2), (x1, x2) = window
        height, width = self._segment
        bands = 1 if self._bands < 3 else 3
        pixels = np.zeros((y2 - y1, x2 - x1, bands), np.uint8)
        for row in range(y1 // height, -(-y2 // height)):
            for column in range(x1 // width, -(-x2 // width)):
                top, left = row * height, column * width
                for band in range(bands if self._planes else 1):
                    segment = self._decoded(row, column, band)
                    part = segment[max(y1 - top, 0):y2 - top, max(x1 - left, 0):x2 - left]
                    y, x = max(top - y1, 0), max(left - x1, 0)
                    target = pixels[y:y + part.shape[0], x:x + part.shape[1]]
                    if self._planes:
                        target[..., band] = part[..., 0]
                    else:
                        target[:] = part[..., :bands]
        return pixels if bands == 3 else np.repeat(pixels, 3, axis=2)

    def _decoded(self, row: int, column: int, band: int) -> np.ndarray:
        """A tile or strip, (h, w, bands) uint8; the last ones stay in memory."""
        down = -(-self.size[0] // self._segment[0])
        index = (band * down + row) * self._across + column
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
            page, handle = self._page, self._file.filehandle
            try:
                if page.databytecounts[index]:
                    handle.seek(page.dataoffsets[index])
                    data = handle.read(page.databytecounts[index])
                    segment = page.decode(data, index, jpegtables=page.jpegtables)[0][0]
                else:
                    # A sparse file leaves out tiles that hold "no data" alone.
                    segment = np.full((*self._segment, self._bands), page.nodata, page.dtype)
            # Codecs raise anything; without imagecodecs some are missing.
            except Exception as error:
                raise UserError(f'{self.path}: the tile at row {row * self._segment[0]}, column '
                                f'{column * self._segment[1]} cannot be decoded: {error}. A codec '
                                'that is missing comes with pip install visattn-dense[tiff]'
                                ) from error
            if segment.dtype == np.uint16:
                segment = (segment >> 8).astype(np.uint8)
            if self._white_is_zero:
                segment = 255 - segment
            self._cache[index] = segment
            self._cached += segment.nbytes
            while self._cached > _CACHE and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
            return segment


def _fault(page: Any, segment: tuple[int, int]) -> str:
    """Why a page cannot be read; empty where it can."""
    if page.dtype not in (np.uint8, np.uint16):
        return f'its pixels are {page.dtype}'
    if page.bitspersample not in (8, 16):
        return f'its pixels have {page.bitspersample} bits a band'
    # The decoder of JPEG gives RGB.
    decoded = page.photometric == _YCBCR and page.compression in _JPEG and page.planarconfig == 1
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) and not decoded:
        return f'its colours are {_COLOURS.get(page.photometric, f"of kind {page.photometric:d}")}'
    if _ORIENTATION in page.tags and page.tags[_ORIENTATION].value != 1:
        return 'it is to be turned (tag Orientation)'
    if segment[0] * segment[1] > _LARGEST_SEGMENT:
        return f'its strips of {segment[0]}x{segment[1]} pixels are too large'
    return ''


def write_label_map(path: str | os.PathLike, size: tuple[int, int], bands: Iterable[np.ndarray],
                    palette: Sequence[Sequence[int]], *, dtype: type = np.uint8,
                    geo: Sequence[tuple] = ()) -> None:
    """Write a tiled, compressed TIFF of class indices, band by band.

    Args:
        path: the file; it appears when all is written.
        size: (H, W) in pixels.
        bands: (h, W) labels from the top to the bottom.
        palette: RGB triple of each class; viewers of uint8 files show these colours.
        dtype: of the labels.
        geo: tags of a `Raster`.

    Raises:
        UserError: tifffile is missing.
    """
    tifffile = _tifffile()
    options: dict[str, Any] = dict(photometric='minisblack')
    if dtype == np.uint8:
        colours = np.zeros((3, 256), np.uint16)
        colours[:, :len(palette)] = 257 * np.array(palette, np.uint16).T[:, :256]
        options = dict(photometric='palette', colormap=colours)
    # A classic TIFF ends at 4 GiB; compressed labels are much smaller than the picture.
    large = size[0] * size[1] * np.dtype(dtype).itemsize > 2**31
    with written_whole(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=large) as file:
        file.write(_tiles(size, bands, dtype), shape=size, dtype=dtype, tile=(TILE, TILE),
                   compression='zlib', extratags=geo, metadata=None, **options)


def _tiles(size: tuple[int, int], bands: Iterable[np.ndarray], dtype: type
           ) -> Iterator[np.ndarray]:
    """The tiles of all rows, filled up with zeros at the right and at the bottom."""
    width = -(-size[1] // TILE) * TILE
    rows, filled, done = np.zeros((TILE, width), dtype), 0, 0
    for band in bands:
        while len(band):
            part = band[:TILE - filled]
            rows[filled:filled + len(part), :size[1]] = part
            filled, done, band = filled + len(part), done + len(part), band[len(part):]
            if filled == TILE or done == size[0]:
                for x in range(0, width, TILE):
                    yield rows[:, x:x + TILE].copy()
                rows[:], filled = 0, 0


def write_geojson(path: str | os.PathLike, features: Iterable[dict[str, Any]]) -> int:
    """Write features one after another; returns their number."""
    count = 0
    with written_whole(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        for count, feature in enumerate(features, 1):
            file.write((',\n' if count > 1 else '') + json.dumps(feature))
        file.write('\n]}\n')
    return count


def label_features(path: str | os.PathLike, classes: Sequence[str], ignored: int
                   ) -> Iterator[dict[str, Any]]:
    """GeoJSON features of a label file: one for each connected area of a class.

    Coordinates are longitude and latitude where the file has a georeference, as GeoJSON wants it;
    else pixels, x to the right and y down. GDAL reads the file in parts.

    Raises:
        UserError: rasterio is missing.
    """
    rasterio = _rasterio()
    from rasterio import features
    with _quiet(rasterio), rasterio.open(path) as file:
        place = _to_degrees(file)
        for shape, value in features.shapes(rasterio.band(file, 1), transform=file.transform):
            if int(value) != ignored:
                yield dict(type='Feature', geometry=place(shape), properties={
                    'class': int(value), 'name': classes[int(value)]})


def object_features(path: str | os.PathLike, found: Sequence[dict[str, Any]],
                    classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """GeoJSON features of objects on an image file, in the coordinates of `label_features`.

    Args:
        path: the image file.
        found: entries with class, score, object and rings (pixels): `Detection.polygons`.
        classes: the names of all classes.
    """
    rasterio = _rasterio()
    with _quiet(rasterio), rasterio.open(path) as file:
        place = _to_degrees(file)
        for entry in found:
            rings = [[file.transform * (float(x), float(y)) for x, y in [*ring, ring[0]]]
                     for ring in entry['rings']]
            yield dict(type='Feature', geometry=place(dict(type='Polygon', coordinates=rings)),
                       properties={'class': entry['class'], 'name': classes[entry['class']],
                                   'score': entry['score'], 'object': entry['object']})


@contextmanager
def _quiet(rasterio: Any) -> Iterator[None]:
    with warnings.catch_warnings():
        # A picture without a georeference is usual here.
        warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
        yield


def _to_degrees(file: Any) -> Any:
    from rasterio.warp import transform_geom
    if file.crs is None:
        return lambda shape: shape
    return lambda shape: transform_geom(file.crs, 'EPSG:4326', shape)
