"""Parts for configs under test."""
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.registry import DATA_SAMPLERS, HOOKS, MODELS, TRANSFORMS
from torch import Tensor

from visattn_dense.openmmlab.engine import PicturesHook


@HOOKS.register_module()
class BallastHook(Hook):
    """Checkpoints that are large enough to be caught being written: 96 MB more."""

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint['ballast'] = torch.zeros(24_000_000)


@HOOKS.register_module()
class PoisonHook(Hook):
    """Makes one weight of the parameter `name` infinite before iteration `at`, on one rank."""

    def __init__(self, name: str, at: int, rank: int = 0) -> None:
        self.name, self.at, self.rank = name, at, rank

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter == self.at and runner.rank == self.rank:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            model.get_parameter(self.name).data.view(-1)[0] = float('inf')


@TRANSFORMS.register_module()
class PoisonImage:
    """Makes a value of one image NaN, as a transform that divides by zero does."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, results: dict) -> dict:
        results['img'] = results['img'].astype('float32')
        if results['img_path'].endswith(self.name):
            results['img'][0, 0, 0] = float('nan')
        return results


@MODELS.register_module()
class FlakyNeck(BaseModule):
    """Passes feature maps through; one forward in four, by the dice, the last comes out NaN."""

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        spoilt = torch.where(torch.rand(()) < 0.25, torch.nan, 1.)
        return *maps[:-1], maps[-1] * spoilt


@HOOKS.register_module()
class BuggyHook(Hook):
    """A mistake in somebody's code, while training."""

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        1 / 0  # noqa: B018


@HOOKS.register_module()
class DrawnHook(Hook):
    """Writes which pictures this rank drew: drawn_RANK.json."""

    priority = 'LOWEST'

    def after_run(self, runner) -> None:
        drawn = [hook.written for hook in runner.hooks if isinstance(hook, PicturesHook)]
        Path(runner.work_dir, f'drawn_{runner.rank}.json').write_text(json.dumps(drawn))


@DATA_SAMPLERS.register_module()
class DamagingSampler(InfiniteSampler):
    """Damages image 3 once training has begun, and asks for that image only."""

    def __iter__(self) -> Iterator[int]:
        path = Path(self.dataset.get_data_info(3)['img_path'])
        path.write_bytes(path.read_bytes()[:40])
        while True:
            yield 3
