"""Render the labelled street scenes of the demos: python -m demo.scenes ROOT."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2

from demo.runner import exit_code
from demo.scenes import contact_sheet, render_scene, scene_seed, write_dataset
from visattn_dense.command import add_debug
from visattn_dense.errors import UserError


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='python -m demo.scenes', description=__doc__)
    parser.add_argument('root', type=Path, help='folder for ade/ and coco/')
    parser.add_argument('--train', type=int, default=160, help='training scenes (%(default)s)')
    parser.add_argument('--val', type=int, default=40, help='validation scenes (%(default)s)')
    parser.add_argument('--size', type=int, nargs=2, default=(192, 256), metavar=('H', 'W'),
                        help='pixels (192 256)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--sheet', type=Path, metavar='PNG',
                        help='also write the first scenes with labels and outlines')
    add_debug(parser)
    return parser.parse_args(arguments)


def render(args: argparse.Namespace) -> None:
    """Write the data set, and the sheet where there is to be one."""
    size = tuple(args.size)
    rendered = write_dataset(args.root, args.train, args.val, size, args.seed)
    print(f'{args.root}: {args.train} training and {args.val} validation scenes '
          f'({"rendered" if rendered else "already there"})')
    if args.sheet is not None:
        scenes = [render_scene(scene_seed(args.seed, 'train', i), size)
                  for i in range(min(12, args.train))]
        args.sheet.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(args.sheet), contact_sheet(scenes, columns=2)[..., ::-1]):
            raise UserError(f'could not write {args.sheet}')
        print(args.sheet)


if __name__ == '__main__':
    sys.exit(exit_code(render, parse_args()))
