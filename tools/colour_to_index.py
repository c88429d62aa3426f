#!/usr/bin/env python
"""Turn masks that hold colours into label PNGs that hold class indices.

    python tools/colour_to_index.py MASKS --find table.txt          # which colours are there?
    python tools/colour_to_index.py MASKS LABELS --table table.txt  # convert

The first command writes a line for each colour. Give each colour the name of its class, in the
order of the indices; colours of one name become one class, and the name - stands for pixels that
are not judged. The second command is lossless: if the table lacks a colour, the command stops and
names the colour. Exit code: 0, or 2 with one message.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import _checkout  # noqa: F401  (first)
import numpy as np
from tqdm import tqdm

from visattn_dense.atomic import write_text_whole, written_whole
from visattn_dense.command import add_debug, run
from visattn_dense.errors import UserError
from visattn_dense.evaluation.colours import (
    MOST_COLOURS,
    read_codes,
    read_table,
    shown,
    to_index,
)
from visattn_dense.evaluation.report import check_outputs
from visattn_dense.files import list_files
from visattn_dense.visualization import write_label

_SUFFIXES = ('.png', '.bmp', '.tif', '.tiff', '.gif', '.webp', '.jpg', '.jpeg')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Colour masks to label PNGs of class indices.')
    parser.add_argument('masks', help='folder of colour masks; subfolders are searched too')
    parser.add_argument('labels', nargs='?', help='new folder for the label PNGs')
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument('--find', metavar='FILE', help='write a table of the colours in the masks')
    ways.add_argument('--table', metavar='FILE', help='"#rrggbb name" for each class, in order')
    parser.add_argument('--nearest', type=float, default=0., metavar='DISTANCE',
                        help='take the nearest colour of the table, at most this far away in '
                             'steps of 0..255 (for JPEG masks and blurred edges); prints how many '
                             'pixels')
    add_debug(parser)
    return parser.parse_args()


def find(masks: str, files: list[str], out: str) -> None:
    """Write the colours of all masks, most frequent first."""
    check_outputs([out], inputs=[masks])
    counts: Counter[int] = Counter()
    for name in tqdm(files, unit='mask', disable=None):
        codes, pixels = np.unique(read_codes(os.path.join(masks, name)), return_counts=True)
        counts.update(dict(zip(codes.tolist(), pixels.tolist(), strict=True)))
        if len(counts) > MOST_COLOURS:
            raise UserError(f'the masks up to {name} hold {len(counts)} colours: photographs, '
                            'JPEG, or masks with blurred edges. Write the table by hand, and '
                            'convert with --nearest')
    write_text_whole(out, ''.join(f'{shown(code)} class {i}\n'
                                  for i, (code, _) in enumerate(counts.most_common())))
    total = sum(counts.values())
    for code, pixels in counts.most_common(40):
        print(f'{shown(code)}  {100 * pixels / total:6.2f} %')
    print(f'{len(counts)} colours in {len(files)} masks; the table is {out}. Name the classes '
          'there')


def convert(args: argparse.Namespace, files: list[str]) -> None:
    """Write a label PNG for each mask. If one mask does not fit, write none."""
    if not args.labels:
        raise UserError('name the new folder for the label PNGs')
    if not 0 <= args.nearest <= 442:
        raise UserError(f'--nearest {args.nearest}: the distance is from 0 to 442')
    table = read_table(args.table)
    places = {name: Path(args.labels, name).with_suffix('.png') for name in files}
    if len(set(places.values())) < len(places):
        raise UserError(f'{args.masks} holds masks whose names differ only in their ending')
    check_outputs(places.values(), inputs=[args.masks, args.table])
    faults, moved, pixels = [], 0, 0
    # Everything is read before anything is written: a folder is converted whole or not at all.
    for write in (False, True):
        for name in tqdm(files, unit='mask', disable=None):
            codes = read_codes(os.path.join(args.masks, name))
            try:
                label, other = to_index(codes, table, args.nearest)
            except UserError as error:
                faults.append(f'{name}: {error}')
                continue
            if write:
                with written_whole(places[name]) as temporary:
                    write_label(temporary, label)
                moved, pixels = moved + other, pixels + codes.size
        if faults:
            raise UserError(f'{len(faults)} of {len(files)} masks do not fit the table, nothing is '
                            'written:\n  ' + '\n  '.join(faults[:5])
                            + ('\n  ...' if len(faults) > 5 else '')
                            + '\nAdd the colours to the table, or see --nearest')
    print(f'{len(files)} label PNGs of {len(table.names)} classes in {args.labels}')
    print(f'{moved} of {pixels} pixels had a colour that is not in the table and took the nearest '
          'one' if moved else 'lossless: every colour stands in the table')
    print(f'For the config: classes = {list(table.names)}')


def main(args: argparse.Namespace) -> None:
    if not Path(args.masks).is_dir():
        raise UserError(f'there is no folder of masks {args.masks}')
    files = [name for name in list_files(args.masks) if name.lower().endswith(_SUFFIXES)]
    if not files:
        raise UserError(f'{args.masks} holds no masks ({", ".join(_SUFFIXES)})')
    if args.find:
        find(args.masks, files, args.find)
    else:
        convert(args, files)


if __name__ == '__main__':
    sys.exit(run(main, parse_args()))
