"""The table of a GPU, measured here on the CPU: everything but CUDA's graphs."""
import pytest
import torch

from benchmarks import cli, gpu_table
from benchmarks.gpu_table import Table, Work


def table(minutes: float, **options) -> Table:
    return Table(torch.device('cpu'), minutes, ('EfficientViT:b0',),
                 (Work('forward', 64, 2), Work('training', 64, 2)), steps=2, **options)


def test_correctness_then_times_then_new_sizes():
    found = table(5)
    text = '\n'.join(found.run())
    right, forward, training, sizes = found.records
    assert right['passed'] and not found.failed
    assert all(right[part] < 1e-4 for part in ('outputs', 'gradients', 'graphs', 'optimized'))
    for record, mode in ((forward, 'forward'), (training, 'training')):
        assert record['mode'] == mode
        assert all(record[who][part] > 0 for who in ('ours', 'naive')
                   for part in ('first', 'eager', 'kernels'))
    assert len(sizes['first']) == len(sizes['later']) == 2
    assert '| EfficientViT:b0 | 64 | 2 | forward |' in text
    assert sum(int(line.split('|')[2]) for line in text.splitlines()[-8:]
               if line.startswith('| ') and ' to ' in line) == 2


def test_a_wrong_backbone_gets_no_time(monkeypatch):
    monkeypatch.setattr(gpu_table.parity, 'TOLERANCE', 0.)
    found = table(5)
    text = '\n'.join(found.run())
    assert found.failed and 'WRONG: no times' in text
    assert not any('mode' in record for record in found.records)


def test_nothing_begins_late():
    found = table(0)
    assert 'not begun' in '\n'.join(found.run()) and not found.records


def test_without_a_gpu_the_message_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    assert cli.main(['--device', 'cuda', '--minutes', '4']) == 2
    assert "device 'cuda' is not available here" in capsys.readouterr().err
