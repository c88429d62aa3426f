"""One launcher for mmseg's and mmdet's configs: what tools/train.py and tools/test.py call.

Exit codes: 0 done; 2 the user's input was wrong (one message on stderr, no traceback); 3 the loss
was not finite; 130 interrupted; 1 anything else, with its traceback. VISATTN_DEBUG=1 shows every
traceback.
"""
from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import os.path as osp
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_dist_info
from mmengine.registry import RUNNERS
from torch import nn

from visattn_dense.backbones import DenseBackbone
from visattn_dense.command import run
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.config import merge_options, read_config, type_name
from visattn_dense.openmmlab.datasets.check import quick_check
from visattn_dense.openmmlab.engine import checks, distributed
from visattn_dense.openmmlab.engine.closing import closing_words
from visattn_dense.openmmlab.engine.evaluation import check_checkpoint, prepare_test
from visattn_dense.openmmlab.engine.nonfinite import NonFiniteLossError
from visattn_dense.openmmlab.engine.options import test_parser, train_parser
from visattn_dense.openmmlab.engine.runner import runner_class
from visattn_dense.openmmlab.run_log import RUN_LOG

log = logging.getLogger('visattn_dense')

# What draws, for each scope.
_VISUALIZERS = {'mmseg': 'SegLocalVisualizer', 'mmdet': 'DetLocalVisualizer'}
# Defaults that mmseg explains on every run, and the name of an argument that mmengine gives to
# torch's DDP; nobody has to do anything about them.
_KNOWN_NOTICES = ('Default ``avg_non_ignore`` is False', 'The draw is False, it means that',
                  '`broadcast_buffers` is deprecated')


def train(arguments: Sequence[str] | None = None) -> int:
    """Run tools/train.py; returns its exit code."""
    return _guarded(_train, train_parser().parse_args(arguments))


def test(arguments: Sequence[str] | None = None) -> int:
    """Run tools/test.py; returns its exit code."""
    return _guarded(_test, test_parser().parse_args(arguments))


def _train(args: Namespace) -> None:
    cfg = _open(args, 'train')
    prepare = [_compile] * args.compile + [_graph] * args.graphs
    if len(prepare) > 1:
        raise UserError('--compile and --graphs exclude each other')
    if args.graphs and not torch.cuda.is_available():
        raise UserError('--graphs records CUDA graphs, and there is no GPU here')
    world_size = get_dist_info()[1]
    if args.resume is not None:
        cfg.resume = 'auto' if args.resume == 'auto' else True
        if args.resume != 'auto':
            cfg.load_from = args.resume
    if args.amp:
        _use_amp(cfg, args.amp)
    _fit_amp_to_device(cfg)
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise UserError('--auto-scale-lr needs the batch that the learning rate is made for: '
                            'add auto_scale_lr=dict(enable=False, base_batch_size=N) to the config')
        cfg.auto_scale_lr.enable = True
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.no_pictures:
        cfg.default_hooks = dict(cfg.get('default_hooks') or {}, pictures=None)
    if args.tensorboard:
        _use_tensorboard(cfg)
    if args.seed is not None or args.deterministic:
        randomness = dict(cfg.get('randomness') or {})
        randomness.update({} if args.seed is None else dict(seed=args.seed))
        randomness.update(dict(deterministic=True) if args.deterministic else {})
        cfg.randomness = randomness
    checks.check_loop(cfg)
    for message in (checks.learning_rate_message(cfg, world_size),
                    checks.accumulation_message(cfg)):
        if message:
            log.warning(message)

    def check() -> None:
        checks.check_folder(cfg.work_dir, 'the work directory', '--work-dir')
        checks.check_weights(cfg)
        checks.check_class_weights(cfg)
        quick_check(cfg)

    distributed.on_first_rank(check)
    runner = _run(cfg, 'train', *prepare)
    if runner.rank == 0:
        runner.logger.info('Done. ' + closing_words(runner, args.config, args.tensorboard))


def _test(args: Namespace) -> None:
    cfg = _open(args, 'test')

    def check() -> None:
        checks.check_folder(cfg.work_dir, 'the work directory', '--work-dir')
        check_checkpoint(args.checkpoint)
        quick_check(cfg, splits=('test',))

    distributed.on_first_rank(check)
    prepare_test(cfg, args)
    _run(cfg, 'test', *[_compile] * args.compile)


def _open(args: Namespace, task: str) -> Config:
    """The config with the command line applied, its modules registered, its processes joined."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    for message in _KNOWN_NOTICES:
        warnings.filterwarnings('ignore', message)
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options)
    checks.check_entries(cfg, task)
    cfg.launcher = args.launcher
    name = osp.splitext(osp.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join('work_dirs', name)
    if cfg.get('visualizer') and 'type' not in cfg.visualizer:
        # Lines that choose other backends need not name the kind.
        cfg.visualizer.type = _VISUALIZERS.get(cfg.get('default_scope'), 'Visualizer')
    register_scope(cfg.get('default_scope'))
    distributed.start(args.launcher, (cfg.get('env_cfg') or {}).get('dist_cfg'))
    on_cpu = not torch.cuda.is_available()
    if args.launcher != 'none' and on_cpu:
        log.warning(f'No GPU: {get_dist_info()[1]} gloo processes on the CPU.')
    if checks.count_sync_bn(cfg.model) and (args.launcher == 'none' or on_cpu):
        why = ('one process has nobody to synchronize with' if args.launcher == 'none' else
               'it needs GPUs')
        log.warning(f'SyncBN runs as BN: {why}.')
    return cfg


def register_scope(scope: str | None) -> None:
    """Enter the modules of the project that a config's `default_scope` names."""
    if scope in ('mmseg', 'mmdet'):
        utils = importlib.import_module(f'{scope}.utils')
        # The runner itself sets the scope, under its own name.
        utils.register_all_modules(init_default_scope=False)


def _use_amp(cfg: Config, dtype: str) -> None:
    """Mixed precision in `dtype`; 'auto' is bfloat16 where the GPU computes in it."""
    kind = type_name({'type': 'OptimWrapper', **cfg.optim_wrapper})
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f'--amp goes with optim_wrapper.type OptimWrapper, the config has {kind!r}')
    on_gpu = torch.cuda.is_available()
    if dtype == 'float16' and not on_gpu:
        raise UserError('--amp float16 needs a GPU: CPUs compute in bfloat16, by --amp alone')
    if dtype == 'auto' and on_gpu and kind == 'OptimWrapper':
        # Emulated bfloat16 is slower than float16.
        dtype = 'bfloat16' if torch.cuda.get_device_capability()[0] >= 8 else 'float16'
    if dtype != 'auto':
        cfg.optim_wrapper.dtype = dtype
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    # bfloat16 has float32's range: its gradients need no scale.
    cfg.optim_wrapper.setdefault('loss_scale', 1. if dtype == 'bfloat16' else 'dynamic')


def _fit_amp_to_device(cfg: Config) -> None:
    if type_name(cfg.optim_wrapper) == 'AmpOptimWrapper' and not torch.cuda.is_available():
        # CPUs have no float16; that mmengine lets AMP run on them at all is compat's doing.
        cfg.optim_wrapper.dtype = 'bfloat16'
        log.warning('Mixed precision on the CPU is bfloat16.')


def _use_tensorboard(cfg: Config) -> None:
    if importlib.util.find_spec('tensorboard') is None:
        raise UserError('--tensorboard needs the package tensorboard: '
                        "pip install 'visattn-dense[tensorboard]'")
    visualizer = cfg.get('visualizer') or ConfigDict(type='Visualizer', name='visualizer')
    backends = list(visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])
    if not any(type_name(backend) == 'TensorboardVisBackend' for backend in backends):
        visualizer.vis_backends = [*backends, dict(type='TensorboardVisBackend')]
    cfg.visualizer = visualizer


def _run(cfg: Config, task: str, *prepare: Callable[[nn.Module], None]) -> Any:
    """Build the runner, `prepare` its model, let it train or test, and return it.

    What fails before the first batch is an error of the config, of which the last cause is enough.
    """
    kind = cfg.get('runner_type')
    base = RUNNERS.get(kind) if isinstance(kind, str) else kind
    if kind and base is None:
        raise UserError(f'runner_type {kind!r} is not registered')
    runner = None
    try:
        runner = runner_class(base).from_cfg(cfg)
        RUN_LOG.hand_over()
        for change in prepare:
            change(runner.model)
        getattr(runner, task)()
        return runner
    except (UserError, NonFiniteLossError):
        raise
    except Exception as error:
        if runner is not None and getattr(runner, 'started', True):
            if message := (checks.unused_parameters_message(runner.model, str(error))
                           or checks.lone_value_message(runner.model, error)):
                raise UserError(message) from error
            raise
        raise UserError(f'{checks.root_cause(error)}\n(The {task} run of {cfg.filename} could not '
                        'be built. VISATTN_DEBUG=1 shows the traceback.)') from error


def _compile(model: nn.Module) -> None:
    for backbone in _backbones(model, '--compile'):
        backbone.compile_blocks()


def _graph(model: nn.Module) -> None:
    for backbone in _backbones(model, '--graphs'):
        backbone.graph_training()


def _backbones(model: nn.Module, option: str) -> list[DenseBackbone]:
    backbones = [part for part in model.modules() if isinstance(part, DenseBackbone)]
    if not backbones:
        raise UserError(f'{option} goes with a backbone of visattn_dense, and the model has none')
    return backbones


def _guarded(task: Callable[[Namespace], None], args: Namespace) -> int:
    """Run `task`; errors become messages and exit codes."""
    rank = distributed.rank_from_environment(args.launcher)

    def guarded(args: Namespace) -> None:
        try:
            task(args)
        except Exception:
            if rank:
                # An error of the config comes to every rank, and rank 0 speaks for all: its
                # launcher ends this process meanwhile. An error of this rank alone is reported.
                time.sleep(5)
            raise

    log.setLevel(logging.INFO)
    RUN_LOG.keep()
    code = run(guarded, args, log_to=RUN_LOG, codes={NonFiniteLossError: 3},
               message=checks.message_of, who=f' (rank {rank})' if rank else '',
               stopped='interrupted; --resume goes on from the last checkpoint')
    if code == 0:
        distributed.stop()
    elif code != 130 and args.launcher != 'none':
        # A regular exit waits for the process group, whose other members wait for this one.
        sys.stderr.flush()
        os._exit(code)
    return code
