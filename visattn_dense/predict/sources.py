"""Pictures from anything that holds pictures.

| source                              | what comes out                                          |
|-------------------------------------|---------------------------------------------------------|
| path of an image                    | the image                                               |
| http(s) address of an image         | the image                                               |
| folder                              | its images, without those of folders inside             |
| pattern with *, ? or [              | the images that match                                   |
| path of a .txt file                 | what its lines name, one source a line                  |
| path of a video, rtsp:// address    | the frames                                              |
| int                                 | the frames of the camera with this number               |
| bytes, an open binary file          | the image                                               |
| NumPy array, tensor, Pillow's Image | the image                                               |
| list, tuple                         | the pictures of each entry                              |
| any other iterable (a generator)    | the pictures of each entry, asked for one after another |

An image file keeps its bytes: the model's own loader decodes it, as in training. An array or a
tensor is decoded already. `as_rgb` says what becomes of grey, 16 bits, alpha and CMYK.
"""
from __future__ import annotations

import glob
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image, ImageOps

from visattn_dense.errors import UserError
from visattn_dense.images import MOST_PIXELS, opened, raw_mode
from visattn_dense.web import Interrupted, Refused, open_url

from . import video

log = logging.getLogger('visattn_dense')

IMAGES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm'}
_LARGEST = 2**30
_PATIENCE = 30.


@dataclass
class Picture:
    """One picture on its way to a model.

    Attributes:
        name: of the files of its result, without a suffix.
        path: of the image file; None without one.
        data: the bytes of an image file, or (H, W, 3) uint8 RGB; None where `path` has the image.
        frame: number of the frame in its video, from 0.
        fps: frames a second of its video, where that is known.
    """

    name: str
    path: str | None = None
    data: bytes | np.ndarray | None = None
    frame: int | None = None
    fps: float | None = None

    @property
    def title(self) -> str:
        """What to call the picture in a message."""
        return self.path or self.name

    def rgb(self) -> np.ndarray:
        """The picture, decoded by Pillow: (H, W, 3) uint8 RGB.

        Raises:
            UserError: it is no image, or damaged.
        """
        if isinstance(self.data, np.ndarray):
            return self.data
        try:
            if self.data is None:
                with opened(self.path) as image:
                    return as_rgb(image)
            with Image.open(io.BytesIO(self.data)) as image:
                return as_rgb(image)
        # Pillow's decoders raise SyntaxError and others, according to the format.
        except Exception as error:
            raise UserError(f'{self.title} is no image, or is damaged: {error}') from error


@dataclass
class Deferred:
    """Pictures that are made when they are asked for.

    Attributes:
        name: of the picture; of many pictures, the beginning of all names.
        make: gives the pictures for a name.
        frames: the pictures are called name_0, name_1 and so on.
        path: of a video; or an address.
    """

    name: str
    make: Callable[[str], Iterable[Picture]]
    frames: bool = False
    path: str | None = None


@dataclass
class Sources:
    """The pictures of a source; iterate over it once.

    Attributes:
        parts: pictures, and what makes pictures when it is asked for. Each part has its own `name`
            before the start.
        total: the number of pictures; None where nobody knows it.
        files: all files on this machine that are read: images, videos, lists.
    """

    parts: Sequence[Picture | Deferred]
    total: int | None = None
    files: Sequence[str] = ()

    @property
    def paths(self) -> list[str]:
        """Of the image files."""
        return [part.path for part in self.parts if isinstance(part, Picture) and part.path]

    def __iter__(self) -> Iterator[Picture]:
        for part in self.parts:
            if isinstance(part, Picture):
                yield part
            else:
                yield from part.make(part.name)

    def verify(self) -> None:
        """Look into the image files before work starts, without decoding them.

        A warning names a file of which the loader uses a part: one page of many, the upper 8 of 16
        bits; or a TIFF file with alpha.

        Raises:
            UserError: a file is no image, or is damaged.
        """
        for path in self.paths:
            try:
                with Image.open(path) as image:
                    used = _used(image)
                    image.verify()
            except Exception as error:
                raise UserError(f'{path} is no image, or is damaged: {error}') from error
            if used:
                log.warning('%s: %s', path, used)


def _used(image: Image.Image) -> str:
    pages = getattr(image, 'n_frames', 1)
    return '; '.join(filter(None, (
        f'{pages} pages, the first is used' if pages > 1 and image.format != 'MPO' else '',
        '16 bits a channel, the upper 8 are used'
        if '16' in image.mode or ';16' in raw_mode(image) else '',
        'alpha: OpenCV multiplies the colours of a TIFF file by it, Pillow drops it'
        if image.format == 'TIFF' and image.mode in ('RGBA', 'RGBa') else '')))


def open_sources(source: Any, *, channels: str = 'rgb') -> Sources:
    """The pictures of a source; see the table of this module.

    Args:
        source: what the table names.
        channels: 'rgb' or 'bgr', the order of colours in NumPy arrays and tensors. OpenCV's arrays
            are 'bgr'. An array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a tensor (C, H, W) or
            (N, C, H, W); both hold uint8, uint16, or floats from 0 to 1.

    Raises:
        UserError: something is not there, is a folder without images, or is no picture.
    """
    if channels not in ('rgb', 'bgr'):
        raise UserError(f"channels is 'rgb' or 'bgr', got {channels!r}")
    if isinstance(source, Sources):
        return source
    if isinstance(source, (str, os.PathLike)):
        try:
            return _named(os.fspath(source))
        except UserError:
            raise
        # A name that is too long, a folder that may not be read, half an address.
        except (OSError, ValueError) as error:
            raise UserError(f'{source} cannot be read: {error}') from error
    if isinstance(source, (int, np.integer)) and not isinstance(source, bool):
        return _video(int(source))
    if _is_one(source):
        return _one(source, 'image', channels)
    if isinstance(source, (list, tuple)):
        return _joined([_part(entry, number, channels) for number, entry in enumerate(source)])
    if isinstance(source, Iterable):
        return Sources([Deferred('', lambda name: _streamed(source, channels, name))])
    raise UserError(f'cannot predict on {type(source).__name__}: give a path, an address, bytes, '
                    'an array, an image, or several of them')


def _is_one(source: Any) -> bool:
    return (isinstance(source, (bytes, bytearray, memoryview, np.ndarray, Image.Image))
            or _is_tensor(source) or hasattr(source, 'read'))


def _is_tensor(source: Any) -> bool:
    # torch is not imported here; whoever has a tensor has imported torch.
    return all(hasattr(source, name) for name in ('detach', 'cpu', 'permute'))


def _part(entry: Any, number: int, channels: str) -> Sources:
    if _is_one(entry):
        return _one(entry, f'image_{number:06d}', channels)
    sources = open_sources(entry, channels=channels)
    for part in sources.parts:
        # A generator inside a list: its pictures count from 0 again.
        part.name = part.name or f'part{number}_'
    return sources


def _one(source: Any, name: str, channels: str) -> Sources:
    # A batch of tensors has one picture for each entry of its first axis.
    batch = _is_tensor(source) and source.ndim == 4
    return Sources([Deferred(_stem_of(source, name),
                            lambda name: _decoded(source, name, channels), frames=batch)],
                   source.shape[0] if batch else 1)


def _streamed(source: Iterable, channels: str, beginning: str) -> Iterator[Picture]:
    for number, entry in enumerate(source):
        sources = _part(entry, number, channels)
        for part in sources.parts:
            # Names of all pictures so far would grow without end; the number tells twins apart.
            if part.name != f'image_{number:06d}':
                part.name = f'{part.name}_{number:06d}'
            part.name = beginning + part.name
        yield from sources


def _joined(sources: Sequence[Sources]) -> Sources:
    """Deferred sources one after another; each image file once."""
    totals = [source.total for source in sources]
    seen, parts, twice = set(), [], 0
    for part in (part for source in sources for part in source.parts):
        if isinstance(part, Picture):
            if part.path in seen:
                twice += 1
                continue
            seen.add(part.path)
        parts.append(part)
    _tell_apart(parts)
    return Sources(parts, None if None in totals else sum(totals) - twice,
                   [file for source in sources for file in source.files])


def _tell_apart(parts: Sequence[Picture | Deferred]) -> None:
    """Give each part its own name: its stem, with more of the path where two are alike.

    `clip_000001` is also the name of a frame of `clip`.
    """
    taken: set[str] = set()
    videos: set[str] = set()
    for part in parts:
        frames = isinstance(part, Deferred) and part.frames
        part.name = next(name for name in _choices(part) if _is_free(name, frames, taken, videos))
        taken.add(part.name)
        if frames:
            videos.add(part.name)


def _choices(part: Picture | Deferred) -> Iterator[str]:
    yield part.name
    path = Path(part.path or part.name)
    yield path.name.replace('.', '_')
    if path.parent.name:
        yield f'{path.parent.name}_{path.stem}'
    # A bare number would be that of a frame.
    yield from (f'{path.stem}_no{number}' for number in count(2))


def _is_free(name: str, frames: bool, taken: set[str], videos: set[str]) -> bool:
    stem, _, number = name.rpartition('_')
    if name in taken or (stem in videos and number.isdecimal()):
        return False
    return not frames or not any(re.fullmatch(re.escape(name) + r'_\d+', other)
                                 for other in taken)


def _named(name: str, lists: tuple[str, ...] = ()) -> Sources:
    """What a path, an address or a pattern names; `lists`: the lists that led here."""
    scheme = urlsplit(name).scheme if '://' in name else ''
    if scheme in ('http', 'https'):
        suffix = Path(urlsplit(name).path).suffix.lower()
        if suffix in video.SUFFIXES:
            return _video(name)
        stem = Path(unquote(urlsplit(name).path)).stem or 'image'
        return Sources([Deferred(stem, lambda stem: [Picture(stem, data=fetch(name))], path=name)],
                       1)
    if scheme:
        return Sources([_frames(name, scheme)])
    if not name:
        raise UserError('the name of a source is empty; the current folder is "."')
    path = Path(name)
    if path.is_dir():
        # Hidden are also the "._photo.jpg" beside each photo that comes from a Mac.
        inside = sorted(p for p in path.iterdir()
                        if p.suffix.lower() in IMAGES and not p.name.startswith('.'))
        if not inside:
            raise UserError(f'the folder {path} holds no images ({", ".join(sorted(IMAGES))})')
        return _files(inside)
    if path.is_file():
        if path.suffix.lower() in video.SUFFIXES:
            return _video(name)
        return _listed(path, lists) if path.suffix.lower() == '.txt' else _files([path])
    if glob.has_magic(name):
        matches = sorted(Path(p) for p in glob.glob(name, recursive=True))
        matches = [p for p in matches if p.suffix.lower() in IMAGES]
        if not matches:
            raise UserError(f'no image matches {name}')
        return _files(matches)
    raise UserError(f'no image {path}: there is no such file or folder')


def _files(paths: Sequence[Path]) -> Sources:
    for path in paths:
        # A pipe would be waited for without end.
        if not path.is_file():
            raise UserError(f'{path} is no image: it is no file, or leads to none')
    pictures = [Picture(path.stem, str(path)) for path in paths]
    _tell_apart(pictures)
    return Sources(pictures, len(pictures), [picture.path for picture in pictures])


def _listed(path: Path, lists: tuple[str, ...]) -> Sources:
    """The sources that the lines of a file name; relative paths begin at the file's folder."""
    real = os.path.realpath(path)
    if real in lists:
        raise UserError(f'the list {path} leads back to itself: take the line out that names it')
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'the list {path} cannot be read: {error}') from error
    names = [name for line in lines if (name := line.strip()) and not name.startswith('#')]
    if not names:
        raise UserError(f'the list {path} names nothing; it has one path or address a line')
    sources = _joined([_named(name if '://' in name else str(path.parent / name), (*lists, real))
                       for name in names])
    sources.files = [*sources.files, str(path)]
    return sources


def _video(where: str | int) -> Sources:
    """The frames of a video, or of the camera of a number, which is opened once before."""
    fps, total = video.about(where)
    if isinstance(where, int):
        # A slow model misses frames of a camera, so the time between two is not known.
        return Sources([_frames(where, f'camera_{where}')])
    # A file's name may have a '#' or '?', which would end the path of an address.
    path = Path(urlsplit(where).path if '://' in where else where)
    return Sources([_frames(where, path.stem or 'video', fps)], total,
                   [] if '://' in where else [where])


def _frames(where: str | int, name: str, fps: float | None = None) -> Deferred:
    return Deferred(name, lambda name: (
        Picture(f'{name}_{number:06d}', str(where), frame, number, fps)
        for number, frame in enumerate(video.frames(where))), frames=True, path=str(where))


def fetch(url: str) -> bytes:
    """The bytes behind an http(s) address, at most 1 GiB.

    Raises:
        UserError: the server does not answer, refuses, is too slow, or sends too much.
    """
    body = bytearray()
    try:
        with open_url(url, {'User-Agent': 'visattn-dense'}, _PATIENCE) as response:
            while block := response.read_some(1 << 16):
                body += block
                if len(body) > _LARGEST:
                    raise UserError(f'{url} has more than {_LARGEST} bytes')
    except (Interrupted, Refused) as error:
        raise UserError(f'{url} cannot be fetched: {error}') from error
    return bytes(body)


def _decoded(source: Any, name: str, channels: str) -> list[Picture]:
    """The pictures of something that is no name: one, or several of a batch of tensors."""
    if isinstance(source, Image.Image):
        return [Picture(name, data=as_rgb(source))]
    if isinstance(source, (bytes, bytearray, memoryview)):
        return [Picture(name, data=bytes(source))]
    if hasattr(source, 'read'):
        data = source.read()
        if not isinstance(data, bytes):
            raise UserError(f'{source} is open as text; open it as bytes (mode "rb")')
        return [Picture(name, data=data)]
    if not isinstance(source, np.ndarray):
        # NumPy has no bfloat16.
        exact = source.float() if source.dtype.is_floating_point else source
        array = exact.detach().cpu().numpy()
        if array.ndim == 4:
            return [picture for number, image in enumerate(source)
                    for picture in _decoded(image, f'{name}_{number}', channels)]
        if array.ndim != 3 or array.shape[0] not in (1, 3, 4):
            raise UserError(f'a tensor of a picture is (C, H, W) or (N, C, H, W) with 1, 3 or 4 '
                            f'channels, got {array.shape}')
        source = np.moveaxis(array, 0, 2)
    return [Picture(name, data=_array_as_rgb(source, channels))]


def _stem_of(source: Any, name: str) -> str:
    file = getattr(source, 'filename', None) or getattr(source, 'name', None)
    return Path(file).stem if isinstance(file, str) and file else name


def _array_as_rgb(array: np.ndarray, channels: str) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise UserError(f'an array of a picture is (H, W) or (H, W, C) with 1, 3 or 4 channels, '
                        f'got {array.shape}; of several pictures, give a list')
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        # A comparison with NaN is false.
        if not (0 <= array.min() and array.max() <= 1):
            raise UserError('an array of floats holds values from 0 to 1, got '
                            f'{array.min():g} to {array.max():g}; give bytes from 0 to 255 as '
                            'uint8')
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise UserError(f'an array of a picture is uint8, uint16 or floats from 0 to 1, got '
                        f'{array.dtype}')
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    array = array[..., :3]
    # A copy: who gave the array may write the next picture into it before this one is computed.
    return np.array(array[..., ::-1] if channels == 'bgr' else array, order='C')


def as_rgb(image: Image.Image) -> np.ndarray:
    """An image of Pillow as (H, W, 3) uint8 RGB, as OpenCV reads a file in colour (of a TIFF file,
    OpenCV also multiplies the colours by alpha).

    The EXIF orientation is applied. Grey becomes three equal channels, alpha is dropped, of 16 bits
    the upper 8 stay, CMYK is converted without its profile, of several pages the current one counts
    (the first, unless somebody moved on).
    """
    if image.width * image.height > MOST_PIXELS:
        raise UserError(f'an image of {image.width}x{image.height} pixels is too large')
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I;16') or image.mode == 'I':
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert('RGB'))
