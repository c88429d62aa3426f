"""Let mmengine read checkpoints through this project's reader, which runs nothing of a file.

mmengine hands a local file to torch.load, whose protection refuses mmengine's own training
checkpoints, and a file from the network to `torch.utils.model_zoo.load_url`, which has no
protection. `visattn_dense.checkpoints.read_checkpoint` reads both, and gives plain values for what
`Runner.save_checkpoint` writes. Two entries need a word more:

- the history of each logged scalar is an object, of the class HistoryBuffer. Its numbers are
  checked, and the object is built from them here;
- `meta['config']`, text that checkpoints of 2022 and before hold: `Runner.resume` would run it as
  Python code. It is left out.
"""
from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

from visattn_dense.errors import UserError

_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'


def read_by_one_reader(checkpoint: ModuleType) -> None:
    """Enter the reader into mmengine's table of schemes, for files and for http(s) addresses.

    Args:
        checkpoint: `mmengine.runner.checkpoint`.
    """
    def load_from_local(filename: str, map_location: Any = None) -> Any:
        from visattn_dense.checkpoints import read_checkpoint
        return _placed(_for_mmengine(read_checkpoint(filename)), map_location)

    def load_from_http(filename: str, map_location: Any = None, model_dir: str | None = None,
                       progress: bool | None = None) -> Any:
        from visattn_dense.checkpoints.download import download
        name = urlparse(filename).path.rpartition('/')[2]
        path = None if model_dir is None else f'{model_dir}/{name}'
        return load_from_local(str(download(filename, path, progress=progress)), map_location)

    checkpoint.load_from_local, checkpoint.load_from_http = load_from_local, load_from_http
    checkpoint.CheckpointLoader.register_scheme('', load_from_local, force=True)
    checkpoint.CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)


def _for_mmengine(contents: Any) -> Any:
    """What mmengine's runner expects in place of what the reader gives."""
    from mmengine.logging import print_log

    from visattn_dense.checkpoints.pickled import check_names
    state = contents.get('state_dict', contents) if isinstance(contents, dict) else contents
    if not isinstance(state, dict):
        raise UserError(f'the checkpoint holds a {type(state).__name__} where a state dict belongs')
    check_names(state)
    meta = contents.get('meta')
    if isinstance(meta, dict) and meta.pop('config', None) is not None:
        print_log('Left out of the checkpoint: meta.config, which would be run as Python code.',
                  'current')
    hub = contents.get('message_hub')
    scalars = hub.get('log_scalars') if isinstance(hub, dict) else None
    for name, value in list(scalars.items()) if isinstance(scalars, dict) else ():
        if getattr(value, 'kind', None) == _HISTORY:
            scalars[name] = _history(value)
    return contents


def _history(attributes: dict[str, Any]) -> Any:
    """The history of a logged scalar from its attributes; None where those are no history."""
    import numpy as np
    from mmengine.logging import HistoryBuffer
    log, count = attributes.get('_log_history'), attributes.get('_count_history')
    length = attributes.get('max_length', attributes.get('_max_length'))
    arrays = isinstance(log, np.ndarray) and isinstance(count, np.ndarray)
    if not (arrays and log.ndim == 1 and log.shape == count.shape
            and type(length) is int and len(log) <= length < 1 << 48):
        return None
    out = HistoryBuffer(max_length=length)
    out._log_history, out._count_history = log, count
    return out


def _placed(contents: Any, where: Any) -> Any:
    """The contents with their tensors on the device that torch.load's `map_location` names."""
    if where is None or callable(where) or str(where) == 'cpu':
        return contents
    return _mapped(contents, lambda tensor: tensor.to(where if not isinstance(where, dict) else
                                                      where.get('cpu', 'cpu')))


def _mapped(value: Any, move: Callable[[Any], Any]) -> Any:
    if hasattr(value, 'untyped_storage'):
        return move(value)
    if isinstance(value, dict):
        for key, inner in value.items():
            value[key] = _mapped(inner, move)
    elif isinstance(value, list):
        value[:] = [_mapped(inner, move) for inner in value]
    return value
