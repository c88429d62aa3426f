#!/usr/bin/env python
"""Segment images: overlays to look at, and class indices as PNGs; see docs/inference.md.

    python tools/infer.py CONFIG CHECKPOINT IMAGES... [--out-dir DIR] [--mode slide]

IMAGES are files, folders (their images, not those of folders inside) or patterns ('photos/*.jpg').
For each NAME.EXT it writes NAME_overlay.png and NAME_label.png into DIR.
Exit codes: 0 done; 2 bad input, said in one message before anything is written.
"""
from __future__ import annotations

import argparse
import glob
import json
import sys
from pathlib import Path

import _checkout  # noqa: F401  (first)
import numpy as np
from PIL import Image

import visattn_dense  # noqa: F401  (mends and registers)
from visattn_dense.command import add_debug, run
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.config import add_cfg_options, merge_options, read_config

_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm'}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='infer.py', description='Segment images: overlays and class indices as PNGs.')
    parser.add_argument('config', help='config file of the model')
    parser.add_argument('checkpoint', help='its checkpoint: a file, or a URL')
    parser.add_argument('images', nargs='+', help='image files, folders, or quoted patterns')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'),
                        help='where the pictures go (default: %(default)s)')
    parser.add_argument('--mode', choices=['whole', 'slide'],
                        help="the whole image at once, or windows (default: the config's)")
    parser.add_argument('--crop', type=int, nargs=2, metavar=('H', 'W'),
                        help="windows of --mode slide (default: the config's crop_size)")
    parser.add_argument('--stride', type=int, nargs=2, metavar=('H', 'W'),
                        help='steps of the windows (default: two thirds of them)')
    parser.add_argument('--gather', default='cpu', metavar='DEVICE',
                        help='where the windows are put together (default: %(default)s, which '
                        'has the memory for big images)')
    parser.add_argument('--device', help='where the model runs (default: cuda:0 if there is a GPU, '
                        'else cpu)')
    parser.add_argument('--opacity', type=float, default=0.5,
                        help='of the colours, 0 to 1 (default: %(default)s)')
    parser.add_argument('--no-legend', action='store_true', help='overlays of the image size')
    add_cfg_options(parser)
    add_debug(parser)
    return parser.parse_args(arguments)


def find_images(arguments: list[str]) -> list[Path]:
    """The files that `arguments` name, each once and in their order.

    Raises:
        UserError: something is not there, is a folder without images, or is no image.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
            if not inside:
                raise UserError(f'the folder {path} holds no images '
                                f'({", ".join(sorted(_SUFFIXES))})')
            found += inside
        elif path.is_file():
            found.append(path)
        elif glob.has_magic(argument):
            matches = sorted(Path(p) for p in glob.glob(argument, recursive=True))
            matches = [p for p in matches if p.suffix.lower() in _SUFFIXES]
            if not matches:
                raise UserError(f'no image matches {argument}')
            found += matches
        else:
            raise UserError(f'no image {path}: there is no such file or folder')
    found = list(dict.fromkeys(found))
    for path in found:
        try:
            with Image.open(path) as image:
                image.verify()
        # Pillow's decoders raise SyntaxError and others, according to the format.
        except Exception as error:
            raise UserError(f'{path} is no image, or is damaged: {error}') from error
    return found


def name_outputs(images: list[Path]) -> list[str]:
    """A name for the outputs of each image: its stem, with more of it where two are alike."""
    names: list[str] = []
    for path in images:
        choices = [path.stem, path.name.replace('.', '_'), f'{path.parent.name}_{path.stem}']
        choices += [f'{path.stem}_{i}' for i in range(2, len(images) + 2)]
        names.append(next(name for name in choices if name not in names))
    return names


def segment(args: argparse.Namespace) -> None:
    """Segment the images that the command line names."""
    if not 0 <= args.opacity <= 1:
        raise UserError(f'--opacity is from 0 to 1, got {args.opacity}')
    images = find_images(args.images)
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options)
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write to {args.out_dir}: {error.strerror}; choose another '
                        'folder with --out-dir') from error
    # These import torch and the models: a wrong path should not have to wait for them.
    import mmcv
    import torch

    from visattn_dense.openmmlab.inference import open_segmentor
    from visattn_dense.visualization import overlay, write_label
    device = args.device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
    segmentor = open_segmentor(
        cfg, args.checkpoint, device=device, mode=args.mode, crop=args.crop and tuple(args.crop),
        stride=args.stride and tuple(args.stride), gather=args.gather)
    names = list(segmentor.classes)
    (args.out_dir / 'classes.json').write_text(json.dumps(dict(enumerate(names)), indent=1) + '\n')
    for number, (path, name) in enumerate(zip(images, name_outputs(images), strict=True), 1):
        label = segmentor.label(path)
        # The reader of the pipeline: it turns a photograph as its EXIF entry says.
        picture = mmcv.imread(path, channel_order='rgb')
        painted = overlay(picture, label, segmentor.palette, opacity=args.opacity,
                          names=None if args.no_legend else names)
        write_label(args.out_dir / f'{name}_label.png', label)
        Image.fromarray(painted).save(args.out_dir / f'{name}_overlay.png')
        top = np.bincount(label.ravel(), minlength=len(names)).argsort()[::-1][:3]
        shares = [f'{names[i]} {(label == i).mean():.0%}' for i in top if (label == i).any()]
        print(f'[{number}/{len(images)}] {path}: {", ".join(shares)}', flush=True)
    print(f'{args.out_dir}: NAME_overlay.png to look at; NAME_label.png with class indices from 0, '
          'named in classes.json')


def main(arguments: list[str] | None = None) -> int:
    return run(segment, parse_args(arguments))


if __name__ == '__main__':
    sys.exit(main())
