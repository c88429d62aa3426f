#!/usr/bin/env python
"""Top-1 and top-5 accuracy of a classifier on a folder of images: the first check of a backbone.

    python tools/eval_imagenet.py imagenet/val visattn_cswin_tiny
    python tools/eval_imagenet.py imagenet/val visattn_cswin_tiny --checkpoint cswin_tiny_224.pth

MODEL is any model name of timm, also this project's visattn_FAMILY_ARCH; docs/timm.md says more.
Progress goes to stderr, the result to stdout. Exit code: 0, or 2 with one message for bad input.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import _checkout  # noqa: F401  (first)

from visattn_dense.command import add_debug, run
from visattn_dense.errors import UserError, did_you_mean


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Top-1 and top-5 accuracy of a classifier.')
    parser.add_argument('folder', type=Path, help='images, in one folder for each class')
    parser.add_argument('model', help="a model of timm: 'visattn_cswin_tiny', or with the name of "
                        "a released file 'visattn_cswin_tiny.cswin_tiny_224'")
    parser.add_argument('--checkpoint', metavar='FILE', help='weights in place of released ones')
    parser.add_argument('--num-classes', type=int, help='of the checkpoint; default: of the '
                        'released weights')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--workers', type=int, default=min(8, os.cpu_count() or 1),
                        help='processes that read images (default %(default)s)')
    parser.add_argument('--device', help='default: cuda where there is one, else cpu')
    parser.add_argument('--img-size', type=int, help='side of the images in pixels; default: the '
                        "model's")
    parser.add_argument('--crop-pct', type=float, help='part of the shorter side that is kept; '
                        "default: the model's")
    parser.add_argument('--json', metavar='FILE', type=Path, help='write the result there too')
    add_debug(parser)
    args = parser.parse_args()
    if args.batch_size < 1 or args.workers < 0 or args.img_size is not None and args.img_size < 1:
        parser.error('--batch-size and --img-size are at least 1, --workers at least 0')
    if args.num_classes is not None and args.num_classes < 1:
        parser.error(f'--num-classes is at least 1, got {args.num_classes}')
    if args.crop_pct is not None and not 0 < args.crop_pct <= 1:
        parser.error(f'--crop-pct is above 0 and at most 1, got {args.crop_pct:g}')
    return args


def build(args: argparse.Namespace):
    """The model with its weights."""
    import timm

    import visattn_dense.interop.timm_models  # noqa: F401  (enters the models)
    name = args.model.split('.')[0]
    if not timm.is_model(name):
        raise UserError(f'timm has no model {name!r}. '
                        f'{did_you_mean(name, timm.list_models("visattn_*"))}')
    if args.checkpoint and not Path(args.checkpoint).is_file():
        raise UserError(f'there is no checkpoint {args.checkpoint}')
    overlay = {}
    if args.checkpoint:
        overlay = dict(file=args.checkpoint)
    if args.num_classes:
        overlay['num_classes'] = args.num_classes
    try:
        model = timm.create_model(args.model, pretrained=True, pretrained_cfg_overlay=overlay)
    except RuntimeError as error:
        raise UserError(f'{args.model}: {error}') from error
    if not getattr(model, 'num_classes', 0):
        raise UserError(f'{args.model} has no classifier')
    return model


def published(model) -> str:
    """The authors' figure for these weights in words; '' if there is none."""
    from visattn_dense.zoo.table import releases
    cfg = model.pretrained_cfg
    release = releases().get(cfg.get('tag') or '')
    if release is None or cfg.get('file') or release.metric != 'top-1' or release.value is None:
        return ''
    return f'; published top-1 {release.value:g}'


def evaluate(args: argparse.Namespace) -> None:
    import torch
    from timm.data import create_transform, resolve_data_config
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from visattn_dense.atomic import write_text_whole
    from visattn_dense.interop.imagenet import Accuracy, Images, accuracy, labelled_images
    if not args.folder.is_dir():
        raise UserError(f'there is no folder {args.folder}')
    if args.json and not args.json.absolute().parent.is_dir():
        raise UserError(f'--json {args.json}: there is no such folder')
    if args.json and args.json.is_dir():
        raise UserError(f'--json {args.json} is a folder: name a file in it')
    model = build(args)
    samples = labelled_images(args.folder, model.num_classes)
    wanted = {key: value for key, value in (('img_size', args.img_size),
                                            ('crop_pct', args.crop_pct)) if value is not None}
    data = resolve_data_config(wanted, model=model)
    try:
        device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {args.device}: {error}') from error
    loader = DataLoader(Images(samples, create_transform(**data, is_training=False)),
                        args.batch_size, num_workers=args.workers,
                        pin_memory=device.type == 'cuda')
    # A terminal shows a moving line; a log file gets a line every ten seconds.
    with tqdm(total=len(samples), mininterval=0.2 if sys.stderr.isatty() else 10.,
              bar_format='{n_fmt}/{total_fmt}  {desc}{remaining} left') as line:
        def report(so_far: Accuracy) -> None:
            line.set_description_str(f'top-1 {so_far.top1:.2f}  top-5 {so_far.top5:.2f}  ', False)
            line.update(so_far.images - line.n)

        found = accuracy(model, loader, report)
    height, width = data['input_size'][1:]
    print(f'top-1 {found.top1:.3f}  top-5 {found.top5:.3f}  ({found.images} images, {args.model} '
          f'at {height}×{width}, crop {data["crop_pct"]:g}{published(model)})')
    if args.json:
        write_text_whole(args.json, json.dumps(dict(
            model=args.model, images=found.images, top1=found.top1, top5=found.top5,
            img_size=[height, width], crop_pct=data['crop_pct']), indent=1) + '\n')


if __name__ == '__main__':
    sys.exit(run(evaluate, parse_args()))
