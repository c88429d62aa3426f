"""Frames out of a video or a camera by OpenCV, and into a video by PyAV.

OpenCV is there already, as mmcv needs it; it reads files, cameras and network streams alike and
turns frames as the file says. But its wheels write no H.264, which browsers and telephones play;
PyAV's wheels do: `pip install visattn-dense[video]`.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visattn_dense.atomic import written_whole
from visattn_dense.errors import UserError

SUFFIXES = {'.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.flv',
            '.ts', '.gif'}


# What can be written, and ffmpeg's name of the container.
_WRITTEN = {'.mp4': 'mp4', '.mkv': 'matroska'}


class About(NamedTuple):
    """Frames a second, and the number of frames as the head of the file says; None if unknown."""

    fps: float | None
    frames: int | None


def _capture(where: str | int) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError('videos and cameras need OpenCV: pip install opencv-python-headless'
                        ) from error
    # Each backend of OpenCV that does not know the source writes a warning to stderr.
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_ERROR)
    try:
        capture = cv2.VideoCapture(where)
    finally:
        log.setLogLevel(level)
    if not capture.isOpened():
        raise UserError(
            f'the camera {where} cannot be opened: it is not there (cameras count from 0), or '
            'another program uses it, or you may not read it' if isinstance(where, int) else
            f'the video {where} cannot be opened: it is damaged, or of a format that OpenCV does '
            'not know')
    return capture


def about(where: str | int) -> About:
    """What the head of a video says, or the camera of a number.

    Raises:
        UserError: it cannot be opened.
    """
    import cv2
    capture = _capture(where)
    try:
        fps, frames = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        capture.release()
    return About(fps if 0 < fps < 1000 else None, frames if frames > 0 else None)


def frames(where: str | int) -> Iterator[np.ndarray]:
    """The frames of a video file, of a stream's address, or of the camera of a number.

    Yields:
        (H, W, 3) uint8 RGB.

    Raises:
        UserError: it cannot be opened, or has no frame that can be decoded.
    """
    capture, count = _capture(where), 0
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            count += 1
            yield np.ascontiguousarray(frame[..., ::-1])
    finally:
        capture.release()
    if not count:
        raise UserError(f'{where} has no frame that can be decoded')


def check_writable(path: str | os.PathLike) -> None:
    """Whether a video can be written under this name.

    Raises:
        UserError: PyAV is missing, or the file has another suffix than .mp4 and .mkv.
    """
    if Path(path).suffix.lower() not in _WRITTEN:
        raise UserError(f'cannot write the video {path}: name a file that ends in .mp4 or .mkv')
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise UserError('writing a video needs PyAV: pip install visattn-dense[video]'
                        ) from error


class VideoWriter:
    """Writes frames into an H.264 video; a context manager. The file appears at the end.

    The first frame sets the size. Frames of another size are fitted into it, on black. After an
    error there is no file, or the older one; after Ctrl-C it ends with the last frame.

    Args:
        path: the file, .mp4 or .mkv.
        fps: frames a second.

    Raises:
        UserError: see `check_writable`; or the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, fps: float = 10.) -> None:
        check_writable(path)
        import av
        self._av = av
        self._fps = Fraction(fps).limit_denominator(1001)
        self._stream: Any = None
        self._file = ExitStack()
        temporary = self._file.enter_context(written_whole(path))
        try:
            self._container = av.open(str(temporary), 'w',
                                      format=_WRITTEN[Path(path).suffix.lower()])
        except (OSError, ValueError) as error:
            raise UserError(f'cannot write the video {path}: {error}') from error

    def write(self, frame: np.ndarray) -> None:
        """Add a frame: (H, W, 3) uint8 RGB."""
        if self._stream is None:
            self._stream = self._container.add_stream('libx264', rate=self._fps)
            # H.264 with halved colours takes even sides only.
            self._size = tuple(max(2, side + side % 2) for side in frame.shape[:2])
            self._stream.height, self._stream.width = self._size
            self._stream.pix_fmt = 'yuv420p'
            self._stream.options = {'crf': '20'}
        image = self._av.VideoFrame.from_ndarray(_fitted(frame, self._size), format='rgb24')
        self._container.mux(self._stream.encode(image))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        kept = self._stream is not None and kind in (None, KeyboardInterrupt)
        with suppress(_Dropped), self._file:
            try:
                if kept:
                    self._container.mux(self._stream.encode())
            finally:
                self._container.close()
            if not kept:
                raise _Dropped


class _Dropped(Exception):
    """There is no video to keep."""


def _fitted(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = frame.shape[:2]
    if height > size[0] or width > size[1]:
        from PIL import Image
        ratio = min(size[0] / height, size[1] / width)
        frame = np.asarray(Image.fromarray(frame).resize(
            (max(1, int(width * ratio)), max(1, int(height * ratio)))))
        height, width = frame.shape[:2]
    if (height, width) == size:
        return frame
    # One column or row more is a copy of the last; a smaller picture lies on black.
    mode = 'edge' if size[0] - height < 2 and size[1] - width < 2 else 'constant'
    return np.pad(frame, ((0, size[0] - height), (0, size[1] - width), (0, 0)), mode)
