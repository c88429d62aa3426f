"""Training runs that take seconds: eight random images, a CSWin of a few channels, no pictures."""
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable

CONFIG = '''
custom_imports = dict(imports=['visattn_dense'])
default_scope = 'mmseg'
norm_cfg = dict(type='SyncBN', requires_grad=True)
metainfo = dict(classes=('a', 'b', 'c'), palette=[[0, 0, 0], [0, 255, 0], [255, 0, 0]])
data_root = {data!r}
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3,
                           size=(32, 32), seg_pad_val=255),
    backbone=dict(type='CSWin', drop_path_rate=0.3, arch=dict(
        embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 8), stripe_widths=(1, 2, 7, 7))),
    decode_head=dict(type='FCNHead', input_transform='resize_concat', in_index=[0, 1, 2, 3],
                     in_channels=[16, 32, 64, 128], channels=8, num_convs=1, num_classes=3,
                     norm_cfg=norm_cfg, dropout_ratio=0.3,
                     loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(32, 32)), dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'), dict(type='PackSegInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
                 dict(type='PackSegInputs')]
data = dict(type='BaseSegDataset', metainfo=metainfo, data_root=data_root,
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            img_suffix='.png', seg_map_suffix='.png')
train_dataloader = dict(batch_size=2, num_workers=0,
                        sampler=dict(type='InfiniteSampler', shuffle=True),
                        dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(batch_size=1, num_workers=0,
                      sampler=dict(type='DefaultSampler', shuffle=False),
                      dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = [dict(type='PolyLR', power=1.0, begin=0, end=8, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=8, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(pictures=None,
                     logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
                     checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2,
                                     max_keep_ckpts=3))
log_processor = dict(by_epoch=False, window_size=1)
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend='nccl'))
auto_scale_lr = dict(enable=False, base_batch_size=16)
randomness = dict(seed=5)
'''

DETECTION = '''
custom_imports = dict(imports=['visattn_dense'])
default_scope = 'mmdet'
model = dict(
    type='FCOS',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3,
                           pad_size_divisor=32),
    backbone=dict(type='CSWin', drop_path_rate=0.3, arch=dict(
        embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 8), stripe_widths=(1, 2, 7, 7))),
    neck=dict(type='FPN', in_channels=[16, 32, 64, 128], out_channels=16, num_outs=5),
    bbox_head=dict(type='FCOSHead', num_classes=1, in_channels=16, feat_channels=16,
                   stacked_convs=1, norm_cfg=dict(type='GN', num_groups=4)),
    test_cfg=dict(nms_pre=50, score_thr=0.01, nms=dict(type='nms', iou_threshold=0.5),
                  max_per_img=10))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(64, 64), ratio_range=(0.7, 1.3), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                                          'scale_factor'))]
data = dict(type='CocoDataset', data_root={data!r}, ann_file='all.json',
            data_prefix=dict(img='images/'), metainfo=dict(classes=('thing',)))
train_dataloader = dict(batch_size=2, num_workers=0,
                        sampler=dict(type='DefaultSampler', shuffle=True),
                        batch_sampler=dict(type='AspectRatioBatchSampler'),
                        dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(batch_size=1, num_workers=0, drop_last=False,
                      sampler=dict(type='DefaultSampler', shuffle=False),
                      dataset=dict(pipeline=test_pipeline, test_mode=True, **data))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file={data!r} + 'all.json', metric='bbox')
test_evaluator = val_evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(pictures=None, logger=dict(type='LoggerHook', interval=1),
                     checkpoint=dict(type='CheckpointHook', interval=1))
log_processor = dict(by_epoch=True, window_size=1)
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend='nccl'))
randomness = dict(seed=5)
'''


def write_run(folder: Path, extra: str = '', images: int = 8, size: int = 40) -> Path:
    """A dataset and a config of mmseg in `folder`; `extra` is Python added to the config."""
    rng = np.random.default_rng(0)
    for kind in ('images', 'labels'):
        (folder / 'data' / kind).mkdir(parents=True, exist_ok=True)
    for number in range(images):
        image = rng.integers(0, 256, (size, size + 3, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / 'data' / 'images' / f'{number}.png')
        Image.fromarray((image[..., 0] // 86).astype(np.uint8)).save(
            folder / 'data' / 'labels' / f'{number}.png')
    config = folder / 'tiny.py'
    config.write_text(CONFIG.format(data=str(folder / 'data')) + extra)
    return config


def write_detection_run(folder: Path, extra: str = '', images: int = 6) -> Path:
    """The same for mmdet, epoch by epoch: upright and lying images, one box each."""
    rng = np.random.default_rng(1)
    (folder / 'data' / 'images').mkdir(parents=True, exist_ok=True)
    coco = dict(images=[], annotations=[], categories=[dict(id=1, name='thing')])
    for number in range(images):
        height, width = ((40, 64), (64, 40))[number % 2]
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / 'data' / 'images' / f'{number}.png')
        coco['images'].append(dict(id=number, file_name=f'{number}.png', height=height,
                                   width=width))
        coco['annotations'].append(dict(id=number, image_id=number, category_id=1, iscrowd=0,
                                        bbox=[4, 4, 24, 20], area=480))
    (folder / 'data' / 'all.json').write_text(json.dumps(coco))
    config = folder / 'tiny_det.py'
    config.write_text(DETECTION.format(data=str(folder / 'data') + '/') + extra)
    return config


@dataclass
class Done:
    """A process that has ended: its exit code (negative: the signal) and all that it printed."""

    code: int
    output: str


class Child:
    """tools/train.py or tools/test.py in a process of its own, without the seconds of importing.

    A fork server imports once; each child is forked from it. `--work-dir` defaults to
    `folder`/work, what the child prints goes to a file in `folder`.
    """

    _context = multiprocessing.get_context('forkserver')
    _context.set_forkserver_preload(['tests.tiny_runs', 'visattn_dense.openmmlab.engine.launch',
                                     'mmseg.datasets', 'mmseg.models', 'mmdet.datasets',
                                     'mmdet.models', 'distutils.core', 'tests.frozen'])

    def __init__(self, task: str, folder: Path, *arguments: str | os.PathLike,
                 **variables: str) -> None:
        self._log = folder / f'child-{time.monotonic_ns()}.log'
        words = [str(argument) for argument in arguments]
        if '--work-dir' not in words:
            words += ['--work-dir', str(folder / 'work')]
        self.process = self._context.Process(
            target=_in_child, args=(task, words, self._log, environment(**variables)))
        self.process.start()

    def kill_when(self, ready: Callable[[], bool]) -> Done:
        """SIGKILL at the moment at which `ready` answers True, or fail when it ends before."""
        while not ready():
            assert self.process.is_alive(), self.wait().output
            time.sleep(0.0005)
        self.process.kill()
        return self.wait()

    def wait(self) -> Done:
        self.process.join(240)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f'still running:\n{self._log.read_text()}')
        return Done(self.process.exitcode, self._log.read_text())


def _in_child(task: str, words: list[str], log: Path, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    with open(log, 'wb') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from visattn_dense.openmmlab.engine import launch
    sys.exit(getattr(launch, task)(words))


def run(task: str, folder: Path, *arguments: str | os.PathLike, **variables: str) -> Done:
    """A `Child` run to its end."""
    return Child(task, folder, *arguments, **variables).wait()


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', **extra}


def run_tool(*arguments: str | os.PathLike, cwd: Path | None = None, **extra: str
             ) -> subprocess.CompletedProcess:
    """Run a script of tools/ (its name first) to its end."""
    name, *rest = map(str, arguments)
    start = [PYTHON] if name.endswith('.py') else ['bash']
    return subprocess.run([*start, str(ROOT / 'tools' / name), *rest], capture_output=True,
                          text=True, timeout=300, cwd=cwd, env=environment(**extra))


def logged_losses(work_dir: Path) -> dict[int, float]:
    """Iteration -> loss, over all runs in a work directory; later runs win."""
    losses = {}
    for log in sorted(work_dir.glob('*/vis_data/*.json')):
        # A line without an end is still being written.
        for line in log.read_text().split('\n')[:-1]:
            entry = json.loads(line)
            if 'loss' in entry:
                losses[entry['step']] = entry['loss']
    return losses
