#!/usr/bin/env python
"""Show what a model looks at from a point of an image; see docs/explain.md.

    python tools/explain.py CONFIG CHECKPOINT IMAGE [--point X,Y] [--stage N] [--out-dir DIR]
    python tools/explain.py cswin_tiny visattn://cswin_tiny_224 photo.jpg

For IMAGE NAME.EXT it writes into DIR: NAME_attention.png, NAME_field.png (effective receptive
fields), NAME_features.png; with --stage NAME_heads.png; of a BiFormer NAME_routing.png; with
--versus NAME_changes.png; with --arrays NAME.npz.
Exit codes: 0 done; 2 bad input, said in one message before anything is written.
"""
from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import _checkout  # noqa: F401  (first)
import numpy as np
from PIL import Image

from visattn_dense.atomic import written_whole
from visattn_dense.backbones import DenseBackbone, T2TViT
from visattn_dense.command import add_debug, run
from visattn_dense.errors import MissingFileError, UserError
from visattn_dense.explain import (
    explain,
    feature_colours,
    figures,
    half_area,
    receptive_fields,
    rollout,
    weight_changes,
)
from visattn_dense.explain.changes import by_depth
from visattn_dense.explain.looks import percent
from visattn_dense.explain.subject import Prepared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = {'png': 'PNG', 'jpg': 'JPEG'}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='explain.py', description='Show what a model looks at from a point of an image.')
    parser.add_argument('config', help='config file of the model, or a backbone by its name, such '
                        'as cswin_tiny (docs/timm.md)')
    parser.add_argument('checkpoint', help='its checkpoint: a file, a URL, visattn://NAME; or none '
                        'for random weights')
    parser.add_argument('image', type=Path, help='an image file')
    parser.add_argument('--point', metavar='X,Y', type=_point,
                        help='column and row in pixels of the file (default: its middle)')
    parser.add_argument('--stage', choices=['stem', '0', '1', '2', '3'],
                        help='all attentions of this stage, and all heads of its last one '
                        '(default: the last attention of each stage)')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'),
                        help='where the pictures go (default: %(default)s)')
    parser.add_argument('--versus', metavar='CHECKPOINT',
                        help='another checkpoint of the model: which layers differ')
    parser.add_argument('--only', choices=['attention', 'field', 'features'],
                        help='one picture alone: the receptive field takes the memory of training')
    parser.add_argument('--arrays', action='store_true', help='the weights too, for numpy.load')
    parser.add_argument('--format', choices=['png', 'jpg'], default='png',
                        help='of the pictures (default: %(default)s)')
    parser.add_argument('--width', type=int, metavar='PX',
                        help='scale pictures that are wider to this width')
    parser.add_argument('--short-side', type=int, metavar='N',
                        help='with the name of a backbone: resize the image (default: its own '
                        'size; a config says the size itself)')
    parser.add_argument('--device', default='cpu', help='where the model runs '
                        '(default: %(default)s)')
    add_debug(parser)
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    if '--point' in words[:-1]:
        # argparse would take a point that begins with a minus for an option.
        at = words.index('--point')
        words[at:at + 2] = [f'--point={words[at + 1]}']
    return parser.parse_args(words)


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'a point is X,Y in pixels, as 120,80; got {text!r}'
                                         ) from None
    return x, y


def open_subject(args: argparse.Namespace) -> tuple[Callable[[str], DenseBackbone], Prepared]:
    """A function from a checkpoint to the model, and the image prepared for the model."""
    if args.config.endswith('.py'):
        from visattn_dense.openmmlab.backbone import open_backbone, prepare_image
        from visattn_dense.openmmlab.config import read_config
        if args.short_side:
            raise UserError('--short-side is for a backbone by its name: the test_pipeline of a '
                            'config says the size itself')
        cfg = read_config(args.config)
        return partial(open_backbone, cfg), prepare_image(cfg, args.image)
    from visattn_dense.explain.subject import open_named, prepare
    return partial(open_named, args.config), prepare(args.image, short_side=args.short_side)


def show(args: argparse.Namespace) -> None:
    """Draw what the command line asks for."""
    if args.image.is_dir():
        raise UserError(f'{args.image} is a folder: give one image file')
    if not args.image.is_file():
        raise MissingFileError(f'no image {args.image}: there is no such file')
    for name in ('short_side', 'width'):
        if (given := getattr(args, name)) is not None and given < 1:
            raise UserError(f'--{name.replace("_", "-")} is at least 1, got {given}')
    opened, prepared = open_subject(args)
    model = opened(args.checkpoint)
    try:
        model.to(args.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device {args.device!r} is not to be had here: {error}') from error
    point = prepared.point(*args.point) if args.point else None
    made: dict[str, Figure] = {}
    arrays: dict[str, np.ndarray] = {}
    if args.only in (None, 'attention'):
        made |= attention_figures(model, prepared, point, args.stage, arrays)
    if args.only in (None, 'field'):
        fields = receptive_fields(model, prepared.image, point)
        made['field'] = figures.draw_fields(prepared.picture, point or prepared.middle, fields)
        arrays |= {f'field/{stage}': field.numpy() for stage, field in fields.items()}
    if args.only in (None, 'features'):
        colours = feature_colours(model, prepared.image)
        made['features'] = figures.draw_maps(
            prepared.picture, None,
            {f'features of stage {stage}': each for stage, each in colours.items()})
    if args.versus:
        made['changes'] = change_figure(model.cpu(), opened(args.versus),
                                        f'{Path(args.checkpoint).name} → {Path(args.versus).name}')
    write(args, made, arrays)


def attention_figures(model: DenseBackbone, prepared: Prepared, point: tuple[float, float] | None,
                      stage: str | None, arrays: dict[str, np.ndarray]) -> dict[str, Figure]:
    """The figures of the attention; prints where the weight lies, and fills `arrays`."""
    number = int(stage) if stage and stage != 'stem' else stage
    found = explain(model, prepared.image, point, stage=number, picture=prepared.picture)
    if isinstance(model, T2TViT) and stage is None:
        found = replace(found, looks=(*found.looks, rollout(model, prepared.image, point)))
    arrays |= found.arrays()
    for look in found.looks:
        area, (height, width) = half_area(look.mean), look.mean.shape
        parts = [] if area != area else [f'half of the weight on {percent(area)} of the map']
        parts += [f'{what} {percent(part)}' for what, part in look.elsewhere.items()
                  if part > 5e-4]
        print(f'{look.name} ({look.kind}, {height}x{width}, row {look.position[0]}, column '
              f'{look.position[1]}): {", ".join(parts)}')
    made = dict(attention=found.figure())
    last = found.looks[-1]
    if stage is not None and len(last.heads) > 1:
        made['heads'] = figures.draw_heads(prepared.picture, found.point, last)
    routed = [look for look in found.looks if look.rows.routing is not None]
    if routed:
        made['routing'] = figures.draw_routing(prepared.picture, found.point, routed[-1])
    return made


def change_figure(before: DenseBackbone, after: DenseBackbone, title: str) -> Figure:
    """Bars of the changes; prints the parameters that differ most."""
    changes = weight_changes(before, after)
    print('the parameters that differ most, by ‖difference‖ / ‖weights‖:')
    for change in sorted(changes, key=lambda each: -each.relative)[:8]:
        print(f'  {change.name}  {change.relative:.3g}')
    return figures.draw_changes(*by_depth(changes), title)


def write(args: argparse.Namespace, made: Mapping[str, Figure],
          arrays: Mapping[str, np.ndarray]) -> None:
    """Write the figures, and the arrays where they are asked for."""
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
        for kind, figure in made.items():
            path = args.out_dir / f'{args.image.stem}_{kind}.{args.format}'
            # As PNG, and then by Pillow: matplotlib's JPEG has no quality of its own.
            buffer = io.BytesIO()
            figure.savefig(buffer, format='png')
            with Image.open(buffer) as picture, written_whole(path) as temporary:
                picture.thumbnail((args.width or picture.width, picture.height),
                                  Image.Resampling.LANCZOS)
                picture.convert('RGB').save(temporary, format=_FORMATS[args.format], quality=80,
                                            optimize=True)
            print(path)
        if args.arrays:
            path = args.out_dir / f'{args.image.stem}.npz'
            with written_whole(path) as temporary, temporary.open('wb') as file:
                np.savez_compressed(file, **arrays)
            print(path)
    except OSError as error:
        raise UserError(f'cannot write to {args.out_dir}: {error.strerror or error}; choose '
                        'another folder with --out-dir') from error


def main(arguments: list[str] | None = None) -> int:
    return run(show, parse_args(arguments))


if __name__ == '__main__':
    sys.exit(main())
