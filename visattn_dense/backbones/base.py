"""The common base of the backbones: variants as data, freezing, checkpointing, pretraining.

A backbone takes (B, C, H, W) of any H and W. It returns a tuple of maps, one for each entry of
`out_indices`, finest first, at the strides of `strides`. A backbone is a plain torch module:
OpenMMLab only builds the module through the registry, and the module also works without OpenMMLab.
"""
import copy
import inspect
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import FunctionType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from visattn_dense.checkpoints import Layout, MatchReport, load_pretrained
from visattn_dense.errors import UnknownArgumentError, UserError, did_you_mean
from visattn_dense.layers.block import Handover, accepts_handover
from visattn_dense.layers.graphs import Replayable
from visattn_dense.layers.half_weights import half_weights
from visattn_dense.layers.plain import is_called_plainly
from visattn_dense.layers.training_graphs import ReplayedTraining

_CAST_TOGETHER = 8
"""Blocks whose weights are cast together inside autocast: one launch takes 64 tensors."""

# What other projects call an argument, and what a user does here.
_ELSEWHERE = {
    'in_chans': 'call it in_channels', 'img_channels': 'call it in_channels',
    'drop_path': 'call it drop_path_rate',
    'use_checkpoint': 'call it with_cp', 'use_chk': 'call it with_cp',
    'grad_checkpointing': 'call it with_cp',
    'pretrained': "give init_cfg=dict(type='Pretrained', checkpoint=...), or call load_pretrained",
    'img_size': 'leave it out: any image size works',
    'num_classes': 'a backbone has no classifier; docs/timm.md has the models that have one',
    'global_pool': 'a backbone has no classifier; docs/timm.md has the models that have one',
}


class DenseBackbone(nn.Module, Replayable):
    """Base of the backbones. A subclass builds its stages, then calls `self.freeze_stages()` last.

    Args:
        out_indices: which of the four stages (0–3) are returned, in this order. Stages after the
            last returned stage are not built, so under DDP every parameter gets a gradient.
        out_channels: channels of all four stages.
        frozen_stages: −1 trains everything, 0 freezes the stem, n freezes the stem and n stages.
        norm_eval: keep BatchNorm in evaluation mode (running statistics fixed) while training.
        with_cp: recompute each block's activations in backward instead of keeping them
            (non-reentrant checkpointing: works under DDP and with frozen stages).
        init_cfg: mmengine's initialisation config, a list of such configs, or None. To load a
            checkpoint: dict(type='Pretrained', checkpoint=PATH_OR_URL, prefix=None,
            min_matched=0.95); see `visattn_dense.checkpoints.load_pretrained`.

    Attributes:
        out_channels: channels of each returned map.
        strides: input pixels for each position of each returned map.
        stage_channels, stage_strides: the same for all four stages, whichever are returned.
    """

    archs: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """The published variants, by name."""
    layouts: ClassVar[Mapping[str, Layout]] = {}
    """For each other naming of tensors in checkpoints, a function that gives the names here."""
    fresh: ClassVar[tuple[str, ...]] = ()
    """Patterns (regular expressions) of tensors that an ImageNet checkpoint does not hold."""

    def __new__(cls, *args: Any, **kwargs: Any) -> 'DenseBackbone':
        # Before Python's own check of the arguments, which knows no other project's words.
        _check_keywords(cls, kwargs)
        return super().__new__(cls)

    def __init__(self, *, out_indices: Sequence[int], out_channels: Sequence[int],
                 frozen_stages: int = -1, norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 strides: Sequence[int] = (4, 8, 16, 32)) -> None:
        super().__init__()
        stages = len(out_channels)
        if (not out_indices or len(set(out_indices)) < len(out_indices)
                or not all(0 <= i < stages for i in out_indices)):
            raise UserError(f'out_indices are distinct stages of 0..{stages - 1}, '
                            f'got {tuple(out_indices)}')
        if not -1 <= frozen_stages <= stages:
            raise UserError(f'frozen_stages is -1 (none), 0 (the stem) or up to {stages} (all '
                            f'stages), got {frozen_stages}')
        self.out_indices = tuple(out_indices)
        self.stage_channels, self.stage_strides = tuple(out_channels), tuple(strides)
        self.out_channels = tuple(out_channels[i] for i in out_indices)
        self.strides = tuple(strides[i] for i in out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.init_cfg = copy.deepcopy(init_cfg)
        self.is_init = False

    @classmethod
    def resolve_arch(cls, arch: str | Mapping[str, Any]) -> dict[str, Any]:
        """The dimensions of `arch`.

        Args:
            arch: a name of `archs`, or a mapping with the same entries.

        Raises:
            UserError: unknown name, or entries missing or unknown. The message has similar names.
        """
        if isinstance(arch, str):
            if arch.lower() not in cls.archs:
                raise UserError(f'{cls.__name__} has no arch {arch!r}. '
                                f'{did_you_mean(arch, cls.archs)}')
            return dict(cls.archs[arch.lower()])
        known = {key for variant in cls.archs.values() for key in variant}
        needed = set.intersection(*(set(variant) for variant in cls.archs.values()))
        for key in arch:
            if key not in known:
                raise UserError(f'{cls.__name__}: arch has no entry {key!r}. '
                                f'{did_you_mean(key, known)}')
        if missing := needed - set(arch):
            raise UserError(f'{cls.__name__}: an arch given as a dict also needs '
                            f'{", ".join(sorted(missing))}; got {", ".join(arch) or "nothing"}')
        return dict(arch)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to what an image classifier pools: the last map (B, C', H/32, W/32)."""
        return self(x)[-1]

    def stage_modules(self) -> list[list[nn.Module]]:
        """The modules of the stem, then of each stage with its output norm. Used for freezing."""
        raise NotImplementedError

    def layer_groups(self) -> list[list[nn.Module | nn.Parameter]]:
        """The modules and parameters at each depth: the stem at 0, then one depth for each block.

        The downsampling before a later stage has the depth of the stage's first block, as in
        ConvNeXt. Output norms and upsampling are in no group, because ImageNet checkpoints do not
        have them, or have only the last norm.
        """
        raise NotImplementedError

    def layer_depths(self) -> dict[str, int]:
        """Parameter name -> depth.

        A parameter in no group has the depth of the heads, which is the number of groups. BEiT and
        ConvNeXt also train such parameters at the learning rate of the heads.
        """
        groups = self.layer_groups()
        depths = {}
        for depth, group in enumerate(groups):
            for part in group:
                parameters = [part] if isinstance(part, nn.Parameter) else part.parameters()
                depths.update((id(parameter), depth) for parameter in parameters)
        return {name: depths.get(id(parameter), len(groups))
                for name, parameter in self.named_parameters()}

    def adapt_tensor(self, name: str, tensor: Tensor) -> Tensor | None:
        """Fit a checkpoint's tensor to this model's shape (position tables and the like).

        Args:
            name: the parameter or buffer, in this model's naming.
            tensor: the checkpoint's tensor; its shape differs from this model's.

        Returns:
            The tensor in this model's shape, or None if there is no correct way.
        """
        return None

    def on_loaded(self, report: MatchReport) -> None:
        """Called after `load_pretrained`, to set what the checkpoint implies without a tensor."""

    def run_blocks(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """One block after another, with the weights of several cast in one launch inside autocast.

        For training, and where something watches a block, the weights of each block are cast alone.
        With `with_cp`, backward computes the activations of each block again. Else, where a
        `TransformerBlock` follows another, the last sum of the first and norm1 of the second are
        one operator (`Handover`). They stay two while torch.compile traces: its graphs need not
        watch for hooks.
        """
        blocks = list(blocks)
        if self.with_cp and self.training:
            for block in blocks:
                x = self._run_again(block, x)
            return x
        traced = torch.compiler.is_compiling()
        norms = [None if traced or not accepts_handover(block) else block.norm1 for block in blocks]
        entries = list(zip(blocks, norms, [*norms, None][1:], strict=True))
        handover = Handover()
        alone = traced or torch.is_grad_enabled() or not all(map(is_called_plainly, blocks))
        together = 1 if alone else _CAST_TOGETHER
        for first in range(0, len(blocks), together):
            with half_weights(blocks[first:first + together], x):
                for block, norm1, following in entries[first:first + together]:
                    handover.following = following
                    # A block without an entry in `norms` knows x alone.
                    x = block(x) if norm1 is None else block(x, handover)
        return x

    def run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        """One block by `run_blocks`."""
        return self.run_blocks([block], x)

    def _run_again(self, block: nn.Module, x: Tensor) -> Tensor:
        """block(x), which backward computes again."""
        def run(x: Tensor) -> Tensor:
            with half_weights([block], x):
                return block(x)

        norms = [m for m in block.modules()
                 if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
        # The second computation would count the batch twice in the statistics of these norms.
        # torch.compile accepts no context_fn.
        if not norms or torch.compiler.is_compiling():
            return checkpoint(run, x, use_reentrant=False)

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), _statistics_kept(norms)

        return checkpoint(run, x, use_reentrant=False, context_fn=contexts)

    def compile_blocks(self, **options: Any) -> None:
        """Compile the repeated blocks, each on its own: blocks that differ in their weights alone
        share a graph, so the first pass is short. Names and tensors stay as they are.

        The graphs of the first image size have fixed sizes. A second size adds graphs for every
        size.

        Args:
            options: of `torch.compile`. On a CPU, inductor's `options` that are left out are those
                of `_cpu_options`, unless there is a `mode`.
        """
        if (options.get('backend', 'inductor') == 'inductor' and not options.get('mode')
                and all(weight.device.type == 'cpu' for weight in self.parameters())):
            options['options'] = _cpu_options() | (options.get('options') or {})
        # Stages, widths, image sizes, training and evaluation have a graph each.
        limit = 'recompile_limit' if hasattr(torch._dynamo.config, 'recompile_limit') else (
            'cache_size_limit')
        setattr(torch._dynamo.config, limit, max(64, getattr(torch._dynamo.config, limit)))
        compiled: dict[tuple, Callable[..., Any]] = {}
        for block in self.repeated_blocks():
            kind = type(block), *(tuple(weight.shape) for weight in block.parameters())
            if kind not in compiled:
                name = f'{type(block).__name__}_{len(compiled)}'
                compiled[kind] = torch.compile(_call_named(name), **options)
            # What nn.Module.compile sets, too.
            block._compiled_call_impl = partial(compiled[kind], block)

    def graph_training(self, shapes: int = 2) -> None:
        """Replay training passes by CUDA graphs, where a shape of the images comes again.

        For training at one size: the host starts two graphs in the place of a thousand kernels. The
        numbers stay those of plain passes. See `layers.training_graphs.ReplayedTraining`.

        Args:
            shapes: for how many shapes a graph is kept, with the memory of the activations.

        Raises:
            UserError: `with_cp` is set.
        """
        if self.with_cp:
            raise UserError('with_cp computes activations again, which a CUDA graph of a training '
                            'step cannot record; choose one of the two')
        self.forward = ReplayedTraining(self, shapes)

    def repeated_blocks(self) -> list[nn.Module]:
        """The modules that are alone at their depth in `layer_groups`, without the stem."""
        return [group[-1] for group in self.layer_groups()[1:] if isinstance(group[-1], nn.Module)]

    def freeze_stages(self) -> None:
        """Turn off gradients and training mode of the frozen stages."""
        for modules in self.stage_modules()[:self.frozen_stages + 1]:
            for module in modules:
                module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'DenseBackbone':
        """Like torch's `train`, but frozen stages stay in evaluation mode; with `norm_eval`, so do
        all BatchNorms."""
        super().train(mode)
        self.freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @staticmethod
    def _initialize(model: nn.Module, cfgs: Sequence[Mapping[str, Any]]) -> None:
        """Run mmengine's initialisers. mmengine's own function replaces this one on its import."""
        raise UserError(f'init_cfg type {cfgs[0]["type"]!r} is an initialiser of mmengine: '
                        'import mmengine.model before init_weights()')

    def init_weights(self) -> None:
        """Initialise as `init_cfg` says. mmengine calls this once, before training."""
        cfgs = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else self.init_cfg or []
        cfgs = [cfg for cfg in cfgs if cfg]
        pretrained = [cfg for cfg in cfgs if cfg['type'] == 'Pretrained']
        others = [cfg for cfg in cfgs if cfg['type'] != 'Pretrained']
        if others:
            self._initialize(self, others)
        for cfg in pretrained:
            load_pretrained(self, **{key: value for key, value in cfg.items() if key != 'type'})
        self.is_init = True


def _cpu_options() -> dict[str, Any]:
    """Options of inductor that make the compilation for a CPU shorter."""
    import torch._inductor.config as config
    if config.cpp.vec_isa_ok is None and platform.machine() in ('x86_64', 'AMD64'):
        # Inductor compiles a test program for each vector unit of the processor, one after another,
        # to find a compiler from before AVX-512. A compiler for torch's C++17 is newer. The tests
        # of still newer instructions (bfloat16, AMX) stay.
        return {'cpp.vec_isa_ok': True}
    return {}


def _call(block: nn.Module, *args: Any) -> Any:
    return block._call_impl(*args)


def _call_named(name: str) -> Callable[..., Any]:
    """`_call` under another name.

    torch.compile remembers sizes by the name of a function. A size that changes from call to call
    becomes a symbol, and a graph with symbols takes ten times as long to trace. Under one name, the
    sizes would change from stage to stage in the first pass.
    """
    return FunctionType(_call.__code__.replace(co_name=name), globals(), name)


@contextmanager
def _statistics_kept(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """While the block runs, BatchNorms normalise as in training but keep their running statistics.
    """
    # Without running statistics, the norms would save other tensors than in the first pass.
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in before:
        norm.momentum = 0.
        norm.num_batches_tracked = count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked = count


def groups_by_depth(stages: Iterable[tuple[nn.Module, Iterable[nn.Module]]]
                    ) -> list[list[nn.Module | nn.Parameter]]:
    """`DenseBackbone.layer_groups` of a pyramid.

    Args:
        stages: for each stage the module before it (the stem before the first) and its blocks.
    """
    groups: list[list[nn.Module | nn.Parameter]] = []
    for i, (entry, blocks) in enumerate(stages):
        own: list[list[nn.Module | nn.Parameter]] = [[block] for block in blocks]
        if i == 0:
            groups.append([entry])
        else:
            own[0].insert(0, entry)
        groups += own
    return groups


def check_image(x: Tensor) -> None:
    """`x` is a batch of images.

    Raises:
        UserError: it has another number of dimensions than (B, C, H, W), or H or W is 0.
    """
    if x.ndim != 4:
        single = ': add the batch dimension with image[None]' if x.ndim == 3 else ''
        raise UserError('a backbone takes a batch of images (B, C, H, W), got a tensor of shape '
                        f'{tuple(x.shape)}{single}')
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise UserError(f'an image of {x.shape[2]}x{x.shape[3]} has no pixels')


def _check_keywords(cls: type, given: Iterable[str]) -> None:
    """Every keyword is an argument of `cls`.

    Raises:
        UserError: one is none; the message gives this project's word for it, or the near ones.
    """
    parameters = inspect.signature(cls.__init__).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [name for name in parameters if name != 'self']
    for name in given:
        if name not in known:
            raise UnknownArgumentError(f'{cls.__name__} has no argument {name!r}: '
                                       f'{_ELSEWHERE.get(name) or did_you_mean(name, known)}')


def pad_to_minimum(x: Tensor, size: int) -> Tensor:
    """Zero-pad an image smaller than `size` at the bottom and right: (B, C, H, W) in and out."""
    pad_h, pad_w = max(0, size - x.shape[2]), max(0, size - x.shape[3])
    return F.pad(x, (0, pad_w, 0, pad_h)) if pad_h or pad_w else x
