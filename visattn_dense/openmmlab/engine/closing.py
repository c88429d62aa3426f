"""The last lines of a training: where its pictures are, and what to do next."""
from __future__ import annotations

import shlex
from pathlib import Path

from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from visattn_dense.openmmlab.engine.pictures import PicturesHook


def closing_words(runner: Runner, config: str, tensorboard: bool = False) -> str:
    """Pictures of the run, and the commands that test, report and predict.

    Args:
        runner: after its training.
        config: file of the training's config; the work directory holds a copy with all options.
        tensorboard: whether the run wrote for TensorBoard.
    """
    work_dir = Path(runner.work_dir)
    lines = []
    names = sorted(name for hook in runner.hooks if isinstance(hook, PicturesHook)
                   for name in hook.written)
    sheets = sorted((name for name in names if name.startswith('val_')), key=len)
    if names:
        shown = [name for name in names if name not in sheets[:-1]]
        lines.append(f'Pictures in {work_dir}: {", ".join(shown)}'
                     + (f' and {len(sheets) - 1} before it' if len(sheets) > 1 else ''))
    if tensorboard:
        lines.append(f'Curves in the browser: tensorboard --logdir {_quoted(work_dir)}')
    checkpoint = _checkpoint(runner)
    if checkpoint is not None:
        copy = work_dir / Path(config).name
        chosen = f'{_quoted(copy if copy.is_file() else config)} {_quoted(checkpoint)}'
        lines += ['Next:',
                  f'  python tools/test.py {chosen}',
                  f'  python tools/report.py {_quoted(work_dir)}',
                  f'  python tools/infer.py {chosen} IMAGES --out-dir outputs']
    return '\n'.join(lines)


def _checkpoint(runner: Runner) -> Path | None:
    """The best checkpoint of a run, or else the last."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    best = [getattr(hook, 'best_ckpt_path', None),
            *(getattr(hook, 'best_ckpt_path_dict', None) or {}).values()]
    found = [path for path in (*best, getattr(hook, 'last_ckpt', None))
             if path and Path(path).is_file()]
    return Path(found[0]) if found else None


def _quoted(path: str | Path) -> str:
    return shlex.quote(str(path))
