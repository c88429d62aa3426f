"""Stop at the first non-finite loss, before it reaches the weights, and name its source."""
from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_world_size, is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from torch import Tensor, nn

from visattn_dense.errors import few
from visattn_dense.openmmlab.engine.seeding import derive_seed, seed_process


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite. The message names the module and the images."""


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Checks the loss of every iteration between backward and the optimizer's step.

    In a normal iteration the hook copies one flag to the host, asynchronously during the backward
    pass. In a distributed run the flag is first reduced over the ranks. Only after a non-finite
    loss does the hook run the batch once more, with the same seeds and precision and with a hook on
    every module. No rank has taken the step, so the weights are still those that gave the loss.

    Only the loss is checked. A loss scaler handles infinite gradients itself.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        wrapped = runner.optim_wrapper
        for wrapper in wrapped.values() if isinstance(wrapped, OptimWrapperDict) else [wrapped]:
            if isinstance(wrapper, OptimWrapper):
                self._watch(runner, wrapper)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        self._batch, self._checked = data_batch, False

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Mapping | None = None) -> None:
        # A model with a train_step of its own may step without update_params. Then the check is too
        # late for the weights, but in time for the checkpoint.
        if not self._checked and outputs:
            values = [value.detach().float().sum() for value in tensors_in(outputs)]
            if values and _Flag(torch.stack(values)).is_set():
                raise NonFiniteLossError(describe(runner, self._batch))
        self._batch = None

    def _watch(self, runner, wrapper: OptimWrapper) -> None:
        update_params, step = wrapper.update_params, wrapper.step
        pending: list[_Flag] = []

        def check() -> None:
            if pending and pending.pop().is_set():
                raise NonFiniteLossError(describe(runner, self._batch))

        @functools.wraps(update_params)
        def checked_update_params(loss: Tensor, *args, **kwargs) -> None:
            self._checked = True
            pending[:] = [_Flag(loss)]
            update_params(loss, *args, **kwargs)
            check()

        # mmengine's schedulers look for the mark of their step counter on it.
        @functools.wraps(step)
        def checked_step(*args, **kwargs) -> None:
            check()
            step(*args, **kwargs)

        wrapper.update_params, wrapper.step = checked_update_params, checked_step


class _Flag:
    """A flag, copied to the host: whether the loss of any rank is non-finite."""

    def __init__(self, loss: Tensor) -> None:
        flag = (~torch.isfinite(loss.detach()).all()).to(torch.uint8)
        if is_distributed() and get_world_size() > 1:
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        self._event = None
        if flag.is_cuda:
            self._flag = torch.empty((), dtype=flag.dtype, pin_memory=True)
            self._flag.copy_(flag, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._flag = flag

    def is_set(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._flag)


def describe(runner, data_batch: Any) -> str:
    """A report on a non-finite loss, from all ranks. Every rank has to call this function."""
    texts = all_gather_object(_describe_rank(runner, data_batch))
    reports = [f'rank {rank}: {text}' if len(texts) > 1 else text
               for rank, text in enumerate(texts) if text]
    head = f'the loss is not finite at iteration {runner.iter + 1}'
    saved = runner.message_hub.get_info('last_ckpt')
    tail = f'Last checkpoint: {saved or "none"}; no weight has been changed since this loss.'
    return '\n'.join([head, *(reports or ['the batch run again gave a finite loss']), tail])


def _describe_rank(runner, data_batch: Any) -> str:
    """The report of this rank; '' where the batch run again gives finite values."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    # The seed of IterationSeedHook: the same dropout as in the loss.
    seed_process(derive_seed(runner.seed, runner.rank, runner.iter))
    with _first_nonfinite(model) as found, torch.no_grad(), \
            runner.optim_wrapper.optim_context(runner.model):
        data = model.data_preprocessor(data_batch, training=True)
        losses = model._run_forward(data, mode='loss')
    bad_losses = [name for name, value in losses.items() if not all_finite(value)]
    if not found and not bad_losses:
        return ''
    lines = []
    if bad_images := _bad_images(data_batch):
        lines.append('first non-finite values: in the images themselves, '
                     f'{few(bad_images)}; look at these files and at train_pipeline')
    elif found:
        lines.append(f'first non-finite output: module {found[0]}')
    else:
        lines.append('every module gave finite outputs; what is not finite is computed from them')
    weights = [name for name, value in model.named_parameters() if not all_finite(value)]
    if weights:
        lines.append(f'weights that are not finite: {few(weights)}')
    lines.append(f'losses that are not finite: {few(bad_losses)}')
    lines.append(f'images of the batch: {few(image_names(data_batch), 64)}')
    return '\n  '.join(lines)


@contextmanager
def _first_nonfinite(model: nn.Module) -> Iterator[list[str]]:
    """Checks the output of every module; gives a list with the first non-finite one."""
    found: list[str] = []

    def check(name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        # A module ends before the module around it, so the first one found is the innermost.
        if not found and not all_finite(output):
            got = 'finite' if all_finite(inputs) else 'non-finite'
            found.append(f'{name} ({type(module).__name__}), from {got} inputs')

    handles = [module.register_forward_hook(functools.partial(check, name or '(the model)'))
               for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from tensors_in(item)


def all_finite(value: Any) -> bool:
    """Whether every floating-point tensor in `value` is finite throughout."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(value)
               if tensor.is_floating_point())


def image_names(data_batch: Any) -> list[str]:
    """The files of a batch's images, if its data samples name them."""
    samples = data_batch.get('data_samples', []) if isinstance(data_batch, Mapping) else []
    names = []
    for number, sample in enumerate(samples):
        meta = getattr(sample, 'metainfo', {})
        names.append(str(meta.get('img_path') or meta.get('ori_filename') or f'number {number}'))
    return names or ['unknown (the batch has no data samples)']


def _bad_images(data_batch: Any) -> list[str]:
    """The files of the images that are not finite before the model computes with them."""
    inputs = data_batch.get('inputs') if isinstance(data_batch, Mapping) else None
    images = list(inputs) if isinstance(inputs, (Tensor, list, tuple)) else []
    names = image_names(data_batch)
    return [names[number] if number < len(names) else f'number {number}'
            for number, image in enumerate(images) if not all_finite(image)]
