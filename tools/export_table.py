#!/usr/bin/env python
"""Measure what can be exported, and write the table in docs/deployment.md.

    python tools/export_table.py                          # the table, from docs/exports.json
    python tools/export_table.py --measure                # all that is not measured; two hours
    python tools/export_table.py --measure CSWin/UPerNet/any

What is measured is FAMILY/HEAD/SIZE; parts at the end may be left out. It exports a tiny model with
random weights in all formats, and compares the files with the model at three sizes (one for a fixed
size).
"""
from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import _checkout  # noqa: F401  (first)
import numpy as np
import torch

import visattn_dense  # noqa: F401  (mends and registers)
from visattn_dense.atomic import write_text_whole
from visattn_dense.errors import UserError
from visattn_dense.predict.exported import Exported

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / 'docs' / 'deployment.md', ROOT / 'docs' / 'exports.json'
BEGIN = '<!-- exports: python tools/export_table.py writes from here -->\n'
END = '<!-- exports: to here -->\n'

_CROSS = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 8),
              stripe_widths=(1, 2, 7, 7))
FAMILIES = {
    'CSWin': dict(type='CSWin', arch=_CROSS),
    'FLatten-CSWin': dict(type='FLattenCSWin', arch=_CROSS),
    'BiFormer': dict(type='BiFormer', n_win=4, topks=(1, 2, 4, -2), head_dim=16, arch=dict(
        embed_dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), mlp_ratio=2, overlapping=True)),
    'EfficientViT': dict(type='EfficientViT', arch='b0'),
    'T2T-ViT': dict(type='T2TViT', arch='7'),
}
HEADS = {'UPerNet': 'upernet', 'Semantic FPN': 'semantic_fpn', 'EfficientViT head':
         'efficientvit_seg', 'RetinaNet': 'retinanet_fpn', 'Mask R-CNN': 'mask_rcnn_fpn',
         'Cascade Mask R-CNN': 'cascade'}
FORMATS = {'onnx': '.onnx', 'torch-export': '.pt2'}
SIZES = {'fixed': (96, 128), 'any': None}
# Of segmentors (True) and detectors, whose configs pad to multiples of 32; the file was traced at
# another size.
OTHER_SIZES = {True: [(64, 64), (97, 135), (192, 250)], False: [(64, 64), (96, 160), (192, 256)]}


def model_config(family: str, head: str) -> dict:
    """The project's config of a head, made narrow, on a tiny backbone of a family."""
    from mmengine.config import Config
    from mmengine.registry import MODELS
    file = HEADS[head]
    path = ('cascade_mask_rcnn_cswin_tiny_coco' if file == 'cascade' else f'_base_/models/{file}')
    cfg = Config(Config.fromfile(ROOT / f'configs/{path}.py').model.to_dict())
    backbone = dict(FAMILIES[family])
    if file == 'retinanet_fpn':
        backbone['out_indices'] = (1, 2, 3)
    channels = list(MODELS.build(dict(backbone)).out_channels)
    cfg.backbone = backbone
    cfg.pop('auxiliary_head', None)
    if 'neck' in cfg:
        cfg.neck.update(in_channels=channels, out_channels=16)
    if file == 'upernet':
        cfg.decode_head.update(in_channels=channels, channels=16, num_classes=5)
    elif file == 'semantic_fpn':
        cfg.decode_head.update(in_channels=[16] * 4, channels=16, num_classes=5)
    elif file == 'efficientvit_seg':
        cfg.decode_head.update(in_channels=channels[1:], width=16, depth=1, num_classes=5)
    elif file == 'retinanet_fpn':
        cfg.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=3)
    else:
        cfg.rpn_head.update(in_channels=16, feat_channels=16)
        roi, narrow = cfg.roi_head, dict(in_channels=16, num_classes=3)
        roi.bbox_roi_extractor.out_channels = roi.mask_roi_extractor.out_channels = 16
        roi.mask_head.update(narrow, num_convs=1, conv_out_channels=16)
        for one in roi.bbox_head if isinstance(roi.bbox_head, list) else [roi.bbox_head]:
            one.update(narrow, fc_out_channels=32)
            if 'conv_out_channels' in one:
                one.update(conv_out_channels=16)
        cfg.test_cfg.rpn.update(nms_pre=100, max_per_img=50)
    return cfg.to_dict()


def build(family: str, head: str) -> torch.nn.Module:
    """The model, with random weights that find something."""
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, DefaultScope

    from visattn_dense.openmmlab.engine.launch import register_scope
    scope = 'mmseg' if HEADS[head] in ('upernet', 'semantic_fpn', 'efficientvit_seg') else 'mmdet'
    register_scope(scope)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        cfg = Config(dict(model=model_config(family, head))).model
        model = revert_sync_batchnorm(MODELS.build(cfg)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel()**-0.5)
    return model


def measure(family: str, head: str, size: str, formats: Sequence[str] = tuple(FORMATS)
            ) -> dict[str, str]:
    """What came out, for each format: the largest difference over the largest value, or why there
    is no file. One trace serves all formats."""
    from visattn_dense.openmmlab.detection_graph import DetectionGraph
    from visattn_dense.openmmlab.export import Graph, trace, write
    from visattn_dense.predict.card import Card
    from visattn_dense.predictor import Predictor
    model = SimpleNamespace(model=build(family, head))
    segments = hasattr(model.model, 'decode_head')
    classes = ['a', 'b', 'c', 'd', 'e'][:5 if segments else 3]
    task = 'segmentation' if segments else 'detection' if head == 'RetinaNet' else 'instances'
    card = Card(classes=classes, palette=[[0, 0, 0]] * len(classes), mean=[0.] * 3, std=[1.] * 3,
                steps=[], task=task, thresholds=dict(score=0.05, nms=0.5, mask=0.5))
    graph = (Graph(model, card) if segments else DetectionGraph(model.model, card)).eval()
    try:
        program, inputs = trace(model, card, SIZES[size])
    except UserError as error:
        return dict.fromkeys(formats, str(error))
    cases = []
    for shape in [SIZES['fixed']] if SIZES[size] else OTHER_SIZES[segments]:
        image = torch.randn(1, 3, *shape)
        given = [image] if segments else [image, torch.tensor([shape[0] - 6, shape[1] - 11])]
        with torch.no_grad():
            expected = graph(*given)
        cases.append((given, [expected] if segments else list(expected)))
    outcomes = {}
    for to in formats:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'model' + FORMATS[to])
            try:
                write(program, inputs, card, path, to=to, size=SIZES[size])
            except UserError as error:
                outcomes[to] = str(error)
            else:
                outcomes[to] = compared(Predictor(path).runtime, cases)
    return outcomes


def compared(runtime: Exported, cases: Sequence[tuple[list[torch.Tensor], list[torch.Tensor]]]
             ) -> str:
    """The largest difference of a file on pairs of inputs and expected outputs, or its failure."""
    worst = 0.
    for inputs, expected in cases:
        at = 'at {}x{}'.format(*inputs[0].shape[2:])
        try:
            found = runtime.compute(*(part.numpy() for part in inputs))
        # The runtimes raise errors of many kinds.
        except Exception as error:
            # Without the temporary folder: the same text in every run.
            origin = Path(runtime.origin)
            reason = str(error).splitlines()[0].replace(str(origin), origin.name)
            return f'the file fails {at}: {reason}'
        for one, other in zip(found, expected, strict=True):
            if one.shape != tuple(other.shape):
                return f'the file gives {one.shape} {at}, the model {tuple(other.shape)}'
            if one.size:
                other = other.numpy().astype(np.float64)
                # A maximum of Python forgets NaN.
                worst = float(np.maximum(worst, np.abs(one - other).max() / np.abs(other).max()))
    return f'{worst:.0e}' if worst < 1e-3 else f'differs by {worst:.0e}'


def table(results: dict[str, str]) -> str:
    """The table of docs/deployment.md, and the reasons below it."""
    reasons: dict[str, int] = {}

    def cell(key: str) -> str:
        outcome = results.get(key)
        if outcome is None:
            return 'not tried'
        if len(outcome) < 8:
            return outcome
        return f'no ({reasons.setdefault(outcome, len(reasons) + 1)})'

    columns = [(to, size) for to in FORMATS for size in SIZES]
    lines = ['| family | head | ' + ' | '.join(f'{to}, {size} size' for to, size in columns) + ' |',
             '|---|---|' + '---|' * len(columns)]
    for family in FAMILIES:
        for head in HEADS:
            cells = ' | '.join(cell(f'{family}/{head}/{to}/{size}') for to, size in columns)
            lines.append(f'| {family} | {head} | {cells} |')
    notes = [f'{number}. {reason}' for reason, number in reasons.items()]
    return '\n'.join(['', *lines, '', *notes, *([''] if notes else []), ''])


def page(text: str, results: dict[str, str]) -> str:
    """`text` of docs/deployment.md with the present table."""
    before, rest = text.split(BEGIN)
    return f'{before}{BEGIN}{table(results)}{END}{rest.split(END)[1]}'


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='export_table.py', description='Measure what can be '
                                     'exported, and write the table in docs/deployment.md.')
    parser.add_argument('--measure', nargs='*', metavar='CELL', help='measure FAMILY/HEAD/SIZE '
                        'again; without one, all that is not measured')
    args = parser.parse_args(arguments)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    every = itertools.product(FAMILIES, HEADS, SIZES)
    for family, head, size in [] if args.measure is None else every:
        keys = {to: f'{family}/{head}/{to}/{size}' for to in FORMATS}
        wanted = f'{family}/{head}/{size}'.startswith(tuple(args.measure)) if args.measure else (
            not set(keys.values()) <= set(results))
        if not wanted:
            continue
        outcomes = measure(family, head, size)
        results.update((keys[to], outcome) for to, outcome in outcomes.items())
        print(f'{family}/{head}/{size}: {outcomes}', flush=True)
        write_text_whole(RESULTS, json.dumps(dict(sorted(results.items())), indent=1) + '\n')
    write_text_whole(PAGE, page(PAGE.read_text(encoding='utf-8'), results))
    print(f'wrote {PAGE}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
