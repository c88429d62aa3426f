"""Replay the training passes of a module: a CUDA graph of forward and one of backward for each
shape of the input.

A training step of a backbone starts about a thousand kernels. With few images on a GPU, the host
needs longer to start them than the GPU needs to run them. A graph starts them all at once. So this
is for training at one size, such as the crops of segmentation.
"""
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from visattn_dense.ops.precision import without_autocast
from visattn_dense.ops.registered import is_traced

from .graphs import Outputs, ReplayedForward, autocast_without_cache, kept_copy, warm_up


@dataclass
class Step:
    """A recorded step. All tensors stay where they are; each replay overwrites what it gives.

    Attributes:
        forward: computes `outputs` from the input.
        outputs: of the module.
        backward: computes `found` from `grads`, after `forward` and once.
        grads: the gradient of each output; None for an output that has none.
        found: the gradient of each parameter; None where it takes no part.
        node: the node of autograd of the last forward pass, as long as it lives.
    """
    forward: Callable[[], None]
    outputs: Outputs
    backward: Callable[[], None]
    grads: tuple[Tensor | None, ...]
    found: tuple[Tensor | None, ...]
    node: Callable[[], Any] = lambda: None

    @property
    def is_free(self) -> bool:
        """Whether a forward pass overwrites nothing that a backward pass still needs."""
        node = self.node()
        return node is None or node.is_done


StepRecorder = Callable[[Callable[[], Outputs], Sequence[Tensor]], Step]
"""Records a call and its gradients of some tensors."""


def record_step_on_gpu(call: Callable[[], Outputs], parameters: Sequence[Tensor]) -> Step:
    """Record the kernels of a call, and those of its backward pass.

    Args:
        call: runs on the current stream of a CUDA device. Its inputs stay at their addresses.
        parameters: leaves whose gradients are wanted.
    """
    def backward(outputs: Outputs, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        # Other threads, such as those of data loaders and NCCL, may use CUDA meanwhile.
        with torch.autograd.set_multithreading_enabled(False):
            return torch.autograd.grad([out for out in outputs if out.requires_grad], parameters,
                                       [grad for grad in grads if grad is not None],
                                       allow_unused=True)

    def grads_of(outputs: Outputs) -> tuple[Tensor | None, ...]:
        return tuple([torch.zeros_like(out) if out.requires_grad else None for out in outputs])

    def step() -> None:
        outputs = call()
        backward(outputs, grads_of(outputs))

    # On one stream: autograd keeps the stream of a leaf as long as a graph has the leaf.
    options = dict(stream=warm_up(step), capture_error_mode='thread_local')
    graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graphs[0], **options):
        outputs = call()
    grads = grads_of(outputs)
    with torch.cuda.graph(graphs[1], pool=graphs[0].pool(), **options):
        found = backward(outputs, grads)
    return Step(graphs[0].replay, tuple([out.detach() for out in outputs]), graphs[1].replay, grads,
                found)


class ReplayedTraining(ReplayedForward):
    """The training passes of a module, by graphs where a shape comes again; see `ReplayedForward`.

    The numbers, gradients and random draws are those of a plain pass. A pass runs as usual where no
    graph can serve, as for `ReplayedForward`, and also: in evaluation mode, without gradients, with
    a gradient of the input, and while the gradients of the pass before are still to come. Gradients
    of gradients are an error of torch.

    A graph is for the parameters at their addresses: parameters that move (`.to(...)`) or are
    frozen get a new graph. Sharded parameters (FSDP) cannot be recorded.
    """

    def __init__(self, module: nn.Module, limit: int, record: StepRecorder | None = None) -> None:
        super().__init__(module, limit, record)
        self._parts: list[nn.Module] = []                    # a copy has no parts yet

    def _can_replay(self, x: Tensor) -> bool:
        return (torch.is_grad_enabled() and self.module.training and type(x) is Tensor
                and not x.requires_grad and not is_traced()
                and (self.record is not None or x.is_cuda)
                and not (x.is_cuda and torch.cuda.is_current_stream_capturing()))

    def _key(self, x: Tensor) -> tuple:
        self._parts = self._parts or list(self.module.modules())
        return (*super()._key(x), *[part.training for part in self._parts],
                *[(t.data_ptr(), t.requires_grad) for part in self._parts
                  for kept in (part._parameters, part._buffers) for t in kept.values()
                  if t is not None])

    def _recorded(self, x: Tensor) -> Callable[[Tensor], Outputs]:
        trained = [p for p in self.module.parameters() if p.requires_grad]
        if not trained:
            raise RuntimeError('no parameter has a gradient')
        leaves = {id(p): nn.Parameter(p.detach(), p.requires_grad)
                  for p in self.module.parameters()}
        given, autocast = kept_copy(x), autocast_without_cache(x)
        # Without `self`, which keeps the result: what goes frees its graphs at once.
        module = self.module
        plain = type(module).forward

        def call() -> Outputs:
            with autocast, _computing_with(module, leaves):
                return plain(module, given)

        # Nobody goes backward inside autocast.
        with without_autocast(x), _unchanged(module, x):
            step = (self.record or record_step_on_gpu)(call, [leaves[id(p)] for p in trained])
        used = [i for i, found in enumerate(step.found) if found is not None]
        step.found = tuple([step.found[i] for i in used])
        trained = [trained[i] for i in used]

        def run(x: Tensor) -> Outputs:
            if not step.is_free:
                return plain(module, x)
            given.copy_(x)
            return _Replay.apply(step, *trained)

        return run


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, *parameters: Tensor) -> Outputs:
        ctx.step, ctx.is_done = step, False
        ctx.set_materialize_grads(False)
        step.node = weakref.ref(ctx)
        step.forward()
        outputs = tuple([out.clone() for out in step.outputs])
        ctx.mark_non_differentiable(*[out for out, grad in zip(outputs, step.grads, strict=True)
                                      if grad is None])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        step = ctx.step
        if ctx.is_done:
            raise RuntimeError('a graph of a training pass goes backward once; call the backbone '
                               'again, or train without graphs')
        ctx.is_done = True
        for given, grad in zip(step.grads, grads, strict=True):
            if given is not None:
                given.zero_() if grad is None else given.copy_(grad)
        step.backward()
        # The next replay overwrites `found`, and a gradient may be accumulated until then.
        own = [torch.empty_like(found) for found in step.found]
        torch._foreach_copy_(own, list(step.found))
        return None, *own


@contextmanager
def _unchanged(module: nn.Module, x: Tensor) -> Iterator[None]:
    """What passes change besides gradients, buffers and the state of the random numbers, is
    restored at the end."""
    buffers = list(module.buffers())
    copies = [buffer.clone() for buffer in buffers]
    try:
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, copy in zip(buffers, copies, strict=True):
                buffer.copy_(copy)


@contextmanager
def _computing_with(module: nn.Module, leaves: Mapping[int, nn.Parameter]) -> Iterator[None]:
    """The module computes with other leaves in the memory of its parameters, by their ids.

    Whoever waits for the gradients of the parameters, as DistributedDataParallel does, has no part
    in a recording.
    """
    places = [(part._parameters, name, p) for part in module.modules()
              for name, p in part._parameters.items() if p is not None]
    try:
        for parameters, name, p in places:
            parameters[name] = leaves[id(p)]
        yield
    finally:
        for parameters, name, p in places:
            parameters[name] = p
