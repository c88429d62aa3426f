"""'visattn://NAME' wherever mmengine takes a checkpoint: `load_from`, init_cfg, load_checkpoint."""
from types import ModuleType
from typing import Any

from visattn_dense.checkpoints.matching import StateDict, match_state_dict, unwrap
from visattn_dense.checkpoints.reading import read_checkpoint
from visattn_dense.zoo.convert import implied_buffers, native_state
from visattn_dense.zoo.table import SCHEME, Release, find_release


def register(checkpoint: ModuleType) -> None:
    """Enter the scheme into mmengine's table.

    Args:
        checkpoint: the module mmengine.runner.checkpoint.
    """
    checkpoint.CheckpointLoader.register_scheme(SCHEME, load_from_visattn, force=True)


def load_from_visattn(filename: str, map_location: Any = None) -> dict[str, Any]:
    """What mmengine gets for 'visattn://NAME': tensors on the CPU, in this project's names.

    A classifier's tensors stand under their own names, for a bare backbone, and under 'backbone.',
    for a whole model.

    Raises:
        UserError: see `Release.fetch` and `read_checkpoint`.
    """
    release = find_release(filename)
    state = release_state(release, unwrap(read_checkpoint(release.fetch())))
    bare = {} if release.kind == 'segmentor' else {
        name.removeprefix('backbone.'): tensor for name, tensor in state.items()}
    return {'meta': {'release': release.name}, 'state_dict': {**state, **bare}}


def release_state(release: Release, state: StateDict) -> StateDict:
    """A released file's tensors as those of a whole model here: 'backbone.', 'decode_head.'."""
    import torch
    with torch.device('meta'):
        backbone = release.build()
    _, report = match_state_dict(backbone, state, layouts=backbone.layouts, fresh=backbone.fresh,
                                 adapt=backbone.adapt_tensor)
    whole = release.kind == 'segmentor'
    named = native_state(state, report, backbone.layouts, heads=whole)
    inside = 'backbone.' if whole else ''
    named |= {inside + name: buffer
              for name, buffer in implied_buffers(backbone, report).items()}
    return named if whole else {f'backbone.{name}': tensor for name, tensor in named.items()}
