"""Train two iterations with and without --compile: the losses and the names are the same.

    python -m tests.campaigns.compiled_training

Compiles a small CSWin with inductor: two minutes on two cores.
"""
import tempfile
from pathlib import Path

from tests.tiny_runs import logged_losses, run, write_run
from visattn_dense.checkpoints import read_checkpoint

SHORT = ['--no-validate', '--cfg-options', 'train_cfg.max_iters=2']


def main() -> None:
    losses, names = [], []
    for option in ((), ('--compile',)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            done = run('train', folder, write_run(folder), *option, *SHORT)
            assert done.code == 0, done.output
            losses.append(logged_losses(folder / 'work'))
            names.append(list(read_checkpoint(folder / 'work/iter_2.pth')['state_dict']))
    print('losses without and with --compile:', *losses)
    assert names[0] == names[1]
    assert all(abs(a - b) < 1e-3 * abs(a) for a, b in zip(*losses, strict=True))
    print('equal')


if __name__ == '__main__':
    main()
