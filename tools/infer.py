#!/usr/bin/env python
"""Predict on pictures, folders, videos and cameras; see docs/inference.md.

    python tools/infer.py CONFIG CHECKPOINT SOURCES... [--out-dir DIR]
    python tools/infer.py WORK_DIR SOURCES...
    python tools/infer.py MODEL.onnx SOURCES...

SOURCES are image or video files, folders (their images, not those of folders inside), patterns
('photos/*.jpg'), lists (names.txt), http(s) addresses, or numbers of cameras. For each image
NAME.EXT it writes NAME_overlay.png into DIR, and NAME_label.png (segmentors) or NAME.json
(detectors); for each video NAME_overlay.mp4. With --native, TIFF files may be larger than memory,
and segmentors write NAME_label.tif. A file that this tool did not write is never replaced in DIR.
Exit codes: 0 done; 2 bad input, said in one message. What can be known of it is said before
anything is written; the results before a damaged picture are kept.
"""
from __future__ import annotations

import argparse
import contextlib
import glob
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import _checkout  # noqa: F401  (first)
from tqdm import tqdm

import visattn_dense  # noqa: F401  (mends and registers)
from visattn_dense.atomic import write_text_whole
from visattn_dense.command import add_debug, run
from visattn_dense.errors import FullDiskError, UserError
from visattn_dense.evaluation.report import check_outputs
from visattn_dense.openmmlab.config import add_cfg_options
from visattn_dense.predict.rasters import SUFFIXES, Raster
from visattn_dense.predict.records import JsonWriter
from visattn_dense.predict.results import Result
from visattn_dense.predict.sources import Deferred, Picture, Sources, open_sources
from visattn_dense.predict.video import VideoWriter, check_writable
from visattn_dense.predictor import EXPORTED

CLASSES = 'classes.json'


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='infer.py', usage='infer.py CONFIG CHECKPOINT SOURCES... [options]\n'
        '       infer.py WORK_DIR SOURCES... [options]\n'
        '       infer.py MODEL.onnx SOURCES... [options]',
        description='Predict on pictures, folders, videos and cameras.')
    parser.add_argument('model', help='config file of the model, with its checkpoint behind it (a '
                        'file, or a URL); or the folder of a training run; or an exported file')
    parser.add_argument('sources', nargs='+', help='image or video files, folders, quoted '
                        'patterns, lists (.txt), addresses, numbers of cameras')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'),
                        help='where the pictures go (default: %(default)s)')
    model = parser.add_argument_group('the model')
    model.add_argument('--device', help='where the model runs (default: cuda:0 if there is a GPU, '
                       'else cpu)')
    model.add_argument('--batch-size', type=int, default=1, metavar='N',
                       help='pictures of one size that the model gets at once')
    model.add_argument('--half', action='store_true', help='compute in float16; bfloat16 on a CPU')
    model.add_argument('--optimize', action='store_true', help='make the model faster on a CPU')
    model.add_argument('--tta', action='store_true', help='average over scaled and mirrored '
                       'versions, as tools/test.py --tta does')
    model.add_argument('--native', action='store_true',
                       help='compute pictures at their own size, in tiles; TIFF files of any size')
    model.add_argument('--mode', choices=['whole', 'slide', 'tiles'],
                       help='the whole image at once; windows of the resized image (segmentors); '
                       'tiles of the image itself (default: tiles with --native, else as the '
                       'config says)')
    model.add_argument('--crop', type=int, nargs=2, metavar=('H', 'W'),
                       help="windows (default: the config's crop_size; of detectors 1024 1024)")
    model.add_argument('--stride', type=int, nargs=2, metavar=('H', 'W'),
                       help='steps of the windows (default: two thirds of them, of tiles three '
                       'quarters)')
    model.add_argument('--gather', metavar='DEVICE',
                       help='where the windows of a segmentor are put together (default: cpu, '
                       'which has the memory for big images; of tiles the device of the model)')
    results = parser.add_argument_group('the results')
    results.add_argument('--conf', type=float, help='least score of an object (default: 0.3); '
                         'segmentors: least probability of a pixel (default: 0)')
    results.add_argument('--classes', nargs='+', metavar='NAME', help='names or indices to keep')
    results.add_argument('--max-det', type=int, metavar='N', help='objects of one picture, at most')
    results.add_argument('--save-json', type=Path, metavar='FILE', help='all results in one COCO '
                         'file, or one line a picture in a .jsonl file')
    results.add_argument('--save-labels', action='store_true',
                         help='labels of the frames of videos too')
    results.add_argument('--geojson', action='store_true',
                         help='polygons of TIFF files (with --native) in NAME.geojson')
    results.add_argument('--video', type=Path, metavar='FILE.mp4',
                         help='the overlays of all pictures in one video, and no overlays as PNG')
    results.add_argument('--opacity', type=float, default=0.5,
                         help='of the colours, 0 to 1 (default: %(default)s)')
    results.add_argument('--no-legend', action='store_true', help='overlays of the image size')
    add_cfg_options(parser)
    add_debug(parser)
    args = parser.parse_args(arguments)
    args.checkpoint = None
    if not Path(args.model).is_dir() and not _is_exported(args.model):
        args.checkpoint, *args.sources = args.sources
        if not args.sources and not Path(args.model).exists():
            parser.error(f'there is no file or folder {args.model}')
        if not args.sources:
            parser.error('CONFIG and CHECKPOINT are followed by at least one of SOURCES')
    return args


def _is_exported(model: str) -> bool:
    return Path(model).suffix.lower() in EXPORTED


def predict(args: argparse.Namespace) -> None:
    """Predict on what the command line names."""
    if not 0 <= args.opacity <= 1:
        raise UserError(f'--opacity is from 0 to 1, got {args.opacity}')
    # A number is a camera, unless there is a file of that name.
    sources = open_sources([int(name) if name.isdecimal() and not Path(name).exists() else name
                            for name in args.sources])
    maps, pictures = {}, sources
    if args.native or args.mode == 'tiles':
        maps, pictures = split_maps(sources)
    pictures.verify()
    check_options(args, maps, sources)
    # This imports torch and the models: a wrong path should not have to wait for them.
    from visattn_dense import Predictor
    predictor = Predictor(
        args.model, args.checkpoint, device=args.device, cfg_options=args.cfg_options,
        half=args.half, optimize=args.optimize, tta=args.tta, native=args.native, mode=args.mode,
        crop=args.crop and tuple(args.crop), stride=args.stride and tuple(args.stride),
        gather=args.gather)
    check_results(args, sources,
                  [*names_of(args, maps, pictures, predictor.runtime.result.end)])
    wanted = dict(batch_size=args.batch_size, conf=args.conf, classes=args.classes,
                  max_det=args.max_det)
    look = dict(opacity=args.opacity, legend=not args.no_legend)
    # A wrong option is an error here; the work begins where the results are asked for.
    results = predictor(pictures, **wanted)
    names = list(predictor.classes)
    write_text_whole(args.out_dir / CLASSES, json.dumps(dict(enumerate(names)), indent=1) + '\n')
    for name, (path, (height, width)) in maps.items():
        begun = time.monotonic()
        with tqdm(total=height, unit='row', desc=Path(path).name, disable=None) as bar:
            written = predictor.map(path, args.out_dir, name=name, geojson=args.geojson,
                                    progress=bar.update, **look, **wanted)
        seconds = time.monotonic() - begun
        print(f'{path}: {", ".join(file.name for file in written)}; {height}x{width} pixels in '
              f'{seconds:.1f} s, {height * width / seconds / 1e6:.2f} million a second')
    if maps and not pictures.parts:
        return
    tiles = getattr(predictor.runtime, 'mode', None) == 'tiles'
    begun, count, sizes = time.monotonic(), 0, set()
    files = Files(args, names, look)
    try:
        # An error of the writing must end the threads of the model too, or they end Python.
        with (contextlib.closing(results), files,
              tqdm(total=pictures.total, unit='image', disable=None) as bar):
            for count, result in enumerate(results, 1):
                files.write(result)
                bar.update()
                sizes.add((result.size, result.model_size))
                if result.frame is None:
                    height, width = result.model_size
                    tqdm.write(f'[{count}/{pictures.total or "?"}] {result.title}: '
                               f'{result.summary()} (computed {"in tiles of" if tiles else "at"} '
                               f'{height}x{width})', file=sys.stdout)
                    sys.stdout.flush()
    except UserError as error:
        if not files.done or isinstance(error, FullDiskError):
            raise
        raise UserError(f'{error}; the results of {files.done} images before are kept in '
                        f'{args.out_dir}') from error
    seconds = time.monotonic() - begun
    print(f'{args.out_dir}: {files.written()}')
    seen = ('the model saw all of them at their own size, in tiles' if tiles else
            _sizes(sizes, _is_exported(args.model)))
    print(f'{count} images in {seconds:.1f} s, {count / seconds:.1f} images/s; {seen}')


def check_options(args: argparse.Namespace, maps: dict[str, Map], sources: Sources) -> None:
    """Refuse places of files, and options, that do not fit to the sources.

    Raises:
        UserError: a file that cannot be written, or is read; an option that would do nothing.
    """
    if args.video:
        check_writable(args.video)
    for option, asked in (('--save-json', args.save_json), ('--video', args.video)):
        if maps and asked:
            raise UserError(f'{option} takes pictures that fit into memory, and '
                            f'{next(iter(maps.values())).path} is read in tiles: leave the option '
                            'out, or the TIFF files')
    if args.geojson and not maps:
        raise UserError('--geojson is for TIFF files, with --native; there is none')
    models = [path for path in (args.model, args.checkpoint) if path and Path(path).is_file()]
    # Of a run, all checkpoints and configs: which of them are read is not known here.
    models += [path for ending in ('py', 'pth') for path in Path(args.model).glob(f'*.{ending}')]
    check_outputs([args.save_json, args.video, args.out_dir / CLASSES],
                  inputs=[*sources.files, *models])


def check_results(args: argparse.Namespace, sources: Sources, names: list[str]) -> None:
    """Refuse to write over what this tool did not write, or two results into one file.

    Args:
        names: of the files in `--out-dir`.

    Raises:
        UserError: such a file.
    """
    folder = args.out_dir.resolve()
    planned = [folder / name for name in names]
    named = [path.resolve() for path in (args.save_json, args.video) if path]
    twice = [path for path, times in Counter(planned + named).items() if times > 1]
    if twice:
        raise UserError(f'two results would be written to {twice[0]}: choose another name for the '
                        'picture, or for the file of --save-json or --video')
    ours = _has_results(folder)
    if ours and folder not in {Path(file).parent.resolve() for file in sources.files}:
        return
    for path in planned:
        if os.path.lexists(path) and not (ours and path.name == CLASSES):
            raise UserError(f'{path} is there already, and may be no result of this tool: choose '
                            'another folder with --out-dir')


def _has_results(folder: Path) -> bool:
    """This tool has written to the folder."""
    try:
        names = json.loads((folder / CLASSES).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return isinstance(names, dict) and [*names] == [str(i) for i in range(len(names))]


def names_of(args: argparse.Namespace, maps: dict[str, Map], pictures: Sources, end: str
             ) -> Iterator[str]:
    """The files that will be written to `--out-dir`, without new labels of frames.

    Args:
        end: of the names of label files.
    """
    yield CLASSES
    for name in maps:
        yield from (f'{name}_overlay.png', name + end.replace('.png', '.tif'))
        if args.geojson:
            yield f'{name}.geojson'
    for part in pictures.parts:
        frames = isinstance(part, Deferred) and part.frames
        if not args.video:
            yield f'{part.name}_overlay.{"mp4" if frames else "png"}'
        if not frames:
            yield part.name + end
        elif args.save_labels:
            yield from (path.name for path in
                        args.out_dir.glob(f'{glob.escape(part.name)}_*{end}'))


class Map(NamedTuple):
    """A TIFF file that need not fit into memory. size: (H, W) in pixels."""

    path: str
    size: tuple[int, int]


def split_maps(sources: Sources) -> tuple[dict[str, Map], Sources]:
    """The TIFF files, which need not fit into memory, by the names of their results; the others.

    Raises:
        UserError: a TIFF file that cannot be read in tiles.
    """
    maps, others = {}, []
    for part in sources.parts:
        if isinstance(part, Picture) and Path(part.path).suffix.lower() in SUFFIXES:
            with Raster(part.path) as raster:
                # A codec that is missing shows at the first tile.
                raster.read(((0, 1), (0, 1)))
                maps[part.name] = Map(part.path, raster.size)
        else:
            others.append(part)
    total = None if sources.total is None else sources.total - len(maps)
    return maps, Sources(others, total, sources.files)


def _sizes(sizes: set[tuple[tuple[int, int], tuple[int, int]]], exported: bool) -> str:
    """At which size the model saw the pictures."""
    shrunk = [(size, seen) for size, seen in sizes if any(map(int.__lt__, seen, size))]
    if not shrunk:
        return 'the model saw all of them at their own size or enlarged'
    size, seen = max(shrunk)
    return (f'the model saw {size[0]}x{size[1]} pixels shrunk to {seen[0]}x{seen[1]}, '
            + ('as it was exported' if exported else
               'as the config says: --native keeps the size'))


class Files:
    """The files of the results, written by a thread of their own; a context manager."""

    def __init__(self, args: argparse.Namespace, names: list[str], look: dict[str, Any]) -> None:
        self.args, self.names, self.look = args, names, look
        self.kinds: dict[str, None] = {}
        self.waiting: deque[Future] = deque()
        self.done = 0
        self.video: VideoWriter | None = None
        self.stem = ''

    def __enter__(self) -> Files:
        self.stack = contextlib.ExitStack().__enter__()
        self.videos = self.stack.enter_context(contextlib.ExitStack())
        self.json = self.args.save_json and self.stack.enter_context(
            JsonWriter(self.args.save_json, self.names))
        self.pool = ThreadPoolExecutor(1)
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        try:
            while self.waiting:
                self._wait()
        # An error of the writing is also an error for the files that are still open.
        except BaseException:
            self.pool.shutdown(cancel_futures=True)
            self.stack.__exit__(*sys.exc_info())
            raise
        self.pool.shutdown()
        # Where a later picture failed, the results before it are whole.
        self.stack.__exit__(*(None, None, None) if self.done else (kind, *rest))

    def write(self, result: Result) -> None:
        """Have a result written; waits while four others are to be written first."""
        while len(self.waiting) > 4:
            self._wait()
        self.waiting.append(self.pool.submit(self._write, result))

    def _wait(self) -> None:
        # A failed one stays the first, and fails again at the end.
        self.waiting[0].result()
        self.waiting.popleft()
        self.done += 1

    def written(self) -> str:
        """What there is to find in the folder."""
        return '; '.join(self.kinds)

    def _write(self, result: Result) -> None:
        args = self.args
        if args.video or result.frame is not None:
            self._film(result)
        else:
            result.save_overlay(args.out_dir, **self.look)
            self.kinds['NAME_overlay.png to look at'] = None
        if result.frame is None or args.save_labels:
            path = result.save_labels(args.out_dir)
            self.kinds['NAME_label.png with class indices from 0, named in classes.json'
                       if path.suffix == '.png' else
                       'NAME.json with boxes, scores and masks'] = None
        if self.json:
            self.json.write(result)

    def _film(self, result: Result) -> None:
        # The legend has another height in each frame: a video has none.
        frame = result.draw(**{**self.look, 'legend': False})
        stem = '' if self.args.video else result.name.rpartition('_')[0]
        if self.video is None or stem != self.stem:
            # Close the video before this one.
            self.videos.close()
            path = self.args.video or self.args.out_dir / f'{stem}_overlay.mp4'
            path.parent.mkdir(parents=True, exist_ok=True)
            self.video = self.videos.enter_context(VideoWriter(path, result.fps or 10))
            self.stem = stem
            self.kinds[f'{path.name} to look at'] = None
        self.video.write(frame)


def main(arguments: list[str] | None = None) -> int:
    return run(predict, parse_args(arguments))


if __name__ == '__main__':
    sys.exit(main())
