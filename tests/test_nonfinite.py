"""A loss that is not finite stops the run before it spoils the weights, and says whence it came."""
import re
from pathlib import Path

import torch

from tests.tiny_runs import Child, free_port, logged_losses, run, write_run

POISON = '''
custom_imports = dict(imports=['visattn_dense', 'tests.tiny_modules'])
custom_hooks = [dict(type='PoisonHook', name='{name}', at=5, rank={rank})]
'''
FLAKY = '''
custom_imports = dict(imports=['visattn_dense', 'tests.tiny_modules'])
model['neck'] = dict(type='FlakyNeck')
'''


def saved_weights(path: Path) -> list[torch.Tensor]:
    return list(torch.load(path, weights_only=False)['state_dict'].values())


def test_names_the_first_module_and_the_images(tmp_path: Path) -> None:
    name = 'backbone.stage3.0.mlp.fc1.weight'
    config = write_run(tmp_path, POISON.format(name=name, rank=0))
    done = run('train', tmp_path, config)
    assert done.code == 3, done.output
    message = done.output[done.output.index('error: '):]
    assert 'the loss is not finite at iteration 6' in message
    module = name.rpartition('.')[0]
    assert f'first non-finite output: module {module} (Linear), from finite inputs' in message
    assert f'weights that are not finite: {name}' in message
    assert len(re.findall(r'data/images/\d\.png', message)) == 2
    assert 'Traceback' not in done.output
    # What was written before is whole and clean, and nothing was written after.
    work = tmp_path / 'work'
    assert f'Last checkpoint: {work / "iter_4.pth"}' in message
    assert sorted(path.name for path in work.glob('*.pth')) == ['iter_2.pth', 'iter_4.pth']
    assert all(tensor.isfinite().all() for tensor in saved_weights(work / 'iter_4.pth'))


def test_random_failure_is_reproduced(tmp_path: Path) -> None:
    """The batch runs again with the same random numbers, or this NaN would not come back."""
    config = write_run(tmp_path, FLAKY)
    # The dice of another seed may never fall; these fall within eight iterations.
    done = run('train', tmp_path, config, '--amp')
    assert done.code == 3, done.output
    assert 'first non-finite output: module neck (FlakyNeck), from finite inputs' in done.output


def test_infinite_gradients_of_loss_scaling_are_no_reason_to_stop(tmp_path: Path) -> None:
    config = write_run(tmp_path, "default_hooks['checkpoint']['interval'] = 1\n")
    done = run('train', tmp_path, config, '--amp', '--no-validate', '--cfg-options',
               'optim_wrapper.loss_scale.init_scale=3e38', 'train_cfg.max_iters=2',
               'model.decode_head.loss_decode.loss_weight=100.')
    assert done.code == 0, done.output
    assert len(logged_losses(tmp_path / 'work')) == 2
    first, second = (torch.load(tmp_path / 'work' / f'iter_{step}.pth', weights_only=False)
                     for step in (1, 2))
    assert second['optimizer']['loss_scaler']['scale'] < 2e38
    assert torch.equal(first['state_dict']['decode_head.conv_seg.bias'],
                       second['state_dict']['decode_head.conv_seg.bias'])


def test_every_rank_stops(tmp_path: Path) -> None:
    """Rank 1 has the trouble; both ranks leave, and rank 0 says what rank 1 found."""
    name = 'backbone.stage2.0.norm1.weight'
    config = write_run(tmp_path, POISON.format(name=name, rank=1))
    port = str(free_port())
    ranks = [Child('train', tmp_path, config, '--launcher', 'pytorch', RANK=str(rank),
                   LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                   MASTER_PORT=port) for rank in range(2)]
    first, second = (rank.wait() for rank in ranks)
    assert (first.code, second.code) == (3, 3), first.output + second.output
    assert 'rank 1: first non-finite output: module backbone.stage2.0.norm1' in first.output


def test_an_image_that_is_not_finite_is_named_first(tmp_path: Path) -> None:
    config = write_run(tmp_path, """
custom_imports = dict(imports=['visattn_dense', 'tests.tiny_modules'])
train_pipeline.insert(-1, dict(type='PoisonImage', name='3.png'))
""")
    done = run('train', tmp_path, config)
    assert done.code == 3, done.output
    message = done.output[done.output.index('error: '):]
    first = message.splitlines()[1]
    assert 'first non-finite values: in the images themselves' in first
    assert 'data/images/3.png' in first and 'data_preprocessor' not in message
