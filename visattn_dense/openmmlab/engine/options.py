"""The command lines of tools/train.py and tools/test.py."""
from __future__ import annotations

import argparse

from visattn_dense.command import add_debug
from visattn_dense.openmmlab.config import add_cfg_options


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: the config\'s '
                        'work_dir, else ./work_dirs/NAME_OF_CONFIG)')
    add_cfg_options(parser)
    parser.add_argument('--compile', action='store_true', help="compile the backbone's blocks by "
                        'torch.compile: the first steps take a minute, later ones are faster')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='how the processes of a distributed run were started')
    # torch.distributed.launch passes it; torchrun and srun set the environment instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    add_debug(parser)


def train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='train.py', description='Train a segmentor or detector')
    parser.add_argument('config', help='config file')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='auto|PATH',
                        help='go on from the newest checkpoint in the work directory that loads, '
                        'or from PATH (a file, or another work directory)')
    parser.add_argument('--amp', nargs='?', const='auto', choices=['auto', 'bfloat16', 'float16'],
                        help='automatic mixed precision: bfloat16 where the GPU has it and on '
                        'CPUs, else float16 with loss scaling')
    parser.add_argument('--graphs', action='store_true', help='replay the passes of the backbone '
                        'as CUDA graphs: for training at one image size with few images on a GPU')
    parser.add_argument('--no-validate', action='store_true', help='no validation during training')
    parser.add_argument('--no-pictures', action='store_true', help='write no pictures into the '
                        'work directory (curve.png, val_ITER.jpg, labels.png, train_batch.jpg)')
    parser.add_argument('--tensorboard', action='store_true',
                        help='write the curves for TensorBoard too; needs the extra `tensorboard`')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate by the real batch / '
                        'auto_scale_lr.base_batch_size')
    parser.add_argument('--seed', type=int, help='random seed (default: the config\'s, else drawn)')
    parser.add_argument('--deterministic', action='store_true',
                        help='deterministic GPU kernels: slower, repeatable')
    _common(parser)
    return parser


def test_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='test.py', description='Evaluate a segmentor or detector')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='write predictions: a folder of label PNGs (mmseg); '
                        'OUT.bbox.json and OUT.segm.json, or a .pkl file (mmdet)')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='write painted predictions here')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per image with --show')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    _common(parser)
    return parser
