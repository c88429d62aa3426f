#!/usr/bin/env python
"""Write a trained model as one file, and compare the file with the model; docs/deployment.md.

    python tools/export.py CONFIG CHECKPOINT --to onnx --size 512x512
    python tools/export.py WORK_DIR --to onnx --size dynamic --out model.onnx
    python tools/export.py WORK_DIR --to onnx --int8 data/photos

Exit codes: 0 done; 1 the file computes something else than the model, and stays for inspection;
2 bad input, or a model that cannot be exported.
"""
from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import _checkout  # noqa: F401  (first)

import visattn_dense  # noqa: F401  (mends and registers)
from visattn_dense.command import add_debug, run
from visattn_dense.errors import UserError
from visattn_dense.evaluation.report import check_outputs
from visattn_dense.openmmlab.config import add_cfg_options, merge_options, read_config


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='export.py', description='Write a trained segmentor or '
                                     'detector as one file, and compare the file with the model.')
    parser.add_argument('model', help='config file, or the folder of a training run')
    parser.add_argument('checkpoint', nargs='?', help='file or URL; not for the folder of a run')
    parser.add_argument('--to', choices=['onnx', 'torch-export', 'aoti'], default='onnx',
                        help='onnx needs no torch, aoti is compiled for this machine '
                        '(default: %(default)s)')
    parser.add_argument('--size', type=_size, metavar='HxW|dynamic', default=(),
                        help='of the input, into which pictures are fitted; dynamic: any size '
                        "(default: 512x512; of detectors, the scale of the config's test pipeline)")
    parser.add_argument('--half', action='store_true', help='compute in float16')
    parser.add_argument('--int8', nargs='+', metavar='SOURCE', help='compute in 8 bits, with '
                        'ranges from these pictures; onnx files of segmentors only')
    parser.add_argument('--with-pre-and-post', action='store_true', help='the file takes pixels '
                        'and segmentors give labels: normalisation and decision are inside')
    parser.add_argument('--out', type=Path, help="the new file (default: the config's name)")
    parser.add_argument('--license', default='not stated',
                        help='of the weights; goes into the file')
    parser.add_argument('--images', nargs='+', metavar='SOURCE', help='pictures for the comparison '
                        "(default: three of the config's test data)")
    add_cfg_options(parser)
    add_debug(parser)
    return parser.parse_args(arguments)


def _size(text: str) -> tuple[int, int] | None:
    if text == 'dynamic':
        return None
    match = re.fullmatch(r'(\d{1,5})x(\d{1,5})', text)
    if match is None or not all(32 <= int(side) for side in match.groups()):
        raise argparse.ArgumentTypeError(f'{text!r} is neither dynamic nor HxW, from 32x32 on')
    return tuple(map(int, match.groups()))


def export_model(args: argparse.Namespace) -> int:
    """Write the file, open the file, compare."""
    from visattn_dense.openmmlab import export
    from visattn_dense.openmmlab.engine.run_folder import checkpoint_of, config_of
    from visattn_dense.openmmlab.inference import open_model
    from visattn_dense.openmmlab.parity import compare
    from visattn_dense.predict.sources import open_sources
    from visattn_dense.predictor import Predictor
    if Path(args.model).is_dir():
        folder = args.model
        args.model = str(config_of(folder))
        args.checkpoint = args.checkpoint or checkpoint_of(folder)
    elif args.checkpoint is None:
        raise UserError(f'{args.model} is no folder of a training run: name a checkpoint too')
    if args.int8 and (args.to != 'onnx' or args.half):
        raise UserError('--int8 is for --to onnx, without --half')
    cfg = read_config(args.model)
    merge_options(cfg, args.cfg_options)
    detects = cfg.get('default_scope') == 'mmdet'
    if args.int8 and detects:
        raise UserError('--int8 is for segmentors: of detectors nobody has measured what 8 bits '
                        'change')
    suffix = export.FORMATS[args.to]
    out = args.out or Path(Path(args.model).stem + suffix)
    if out.suffix != suffix:
        raise UserError(f'--to {args.to} writes files named *{suffix}, got --out {out}')
    sources = args.images or [str(path) for path in export.sample_images(cfg, 3)]
    if not sources:
        raise UserError("the config's test data is not here: name pictures for the comparison with "
                        '--images')
    pictures, ranges = open_sources(sources), open_sources(args.int8 or [])
    pictures.verify()
    ranges.verify()
    check_outputs([out])
    size = args.size if args.size != () else export.config_size(cfg) if detects else (512, 512)
    model = open_model(cfg, args.checkpoint)
    card = export.make_card(cfg, model, size=size, license=args.license,
                            pre_and_post=args.with_pre_and_post)
    card = export.export(model, card, out, to=args.to, size=size, half=args.half)
    if args.int8:
        from visattn_dense.openmmlab.int8 import quantize
        card = quantize(out, card, ranges)
    takes = f'inputs of {size[0]}x{size[1]}' if size else (
        f'inputs from {card.smallest_side}x{card.smallest_side} on')
    print(f'{out}: {out.stat().st_size / 2**20:.1f} MiB, {takes}, {len(card.classes)} classes, '
          f'license of the weights: {card.license}')
    runtime = Predictor(out).runtime
    if detects:
        from visattn_dense.openmmlab.parity_detection import compare_detectors
        parity = compare_detectors(model, runtime, pictures, args.half)
        fault = parity.fault(args.half)
    else:
        parity = compare(model, runtime, pictures)
        fault = parity.fault(args.half, bool(args.int8))
    print(parity.report())
    if fault:
        print(f'error: {out} does not compute what the model computes: {fault}', file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    return run(export_model, parse_args(arguments))


if __name__ == '__main__':
    sys.exit(main())
