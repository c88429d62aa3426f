"""benchmarks --host: passes on a GPU whose kernels do nothing."""
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cli, plan, subjects
from benchmarks.no_gpu import library, passes
from benchmarks.options import Size
from visattn_dense.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

# Launches of a forward pass that the project aims at. GiB above the weights for each kind of pass,
# as they were on 29 November 2026; commit 130a67d needed up to 2.0 GiB more.
AIMS = {'CSWin:small': (600, .406, 6.288, 1.320, 6.973),
        'BiFormer:small': (500, .328, 5.000, 1.034, 5.746),
        'FLattenCSWin:tiny': (500, .313, 3.464, .845, 4.102),
        'EfficientViT:b2': (350, .422, 4.182, .764, 4.566),
        'EfficientViT:l2': (350, .563, 5.876, 1.306, 6.524),
        'T2TViT:14': (250, .476, 3.787, 1.292, 4.970)}
# Of a training step by graphs: both graphs, the loss, and copies of outputs and gradients.
GRAPHS_LAUNCHES = 60


@pytest.fixture
def suited(tmp_path):
    """The environment; skip where gcc or the headers are missing."""
    try:
        return library.environment(tmp_path, 0)
    except UserError as error:
        pytest.skip(str(error))


def test_prepared_launches_are_those_of_triton(suited):
    run = subprocess.run([sys.executable, '-m', 'tests.same_launches'], cwd=ROOT, env=suited,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    many, *kernels = run.stdout.split()
    assert int(many) > 1000
    assert kernels == [
        'asker_count_kernel', 'asker_list_kernel', 'backward_kernel', 'batch_statistics_kernel',
        'convolve_kernel', 'focus_gradient_kernel', 'forward_kernel', 'gelu_backward_kernel',
        'key_gradient_kernel', 'merge_statistics_kernel', 'norm_act_gradient_kernel',
        'norm_act_kernel', 'norm_act_sums_kernel', 'output_kernel', 'part_sum_kernel',
        'product_kernel', 'query_gradient_kernel', 'statistics_kernel', 'sum_rows_kernel',
        'summary_kernel', 'top_regions_kernel', 'weight_gradient_kernel']
    assert 'UserWarning' not in run.stderr       # Triton warns of options that nobody has chosen


def test_few_launches_and_no_more_memory_than_before(suited):
    """Launches of torch and Triton themselves, and torch's own allocator; see also test_plan."""
    found = {}
    for name, size in ((tuple(n for n in AIMS if 'FLatten' not in n), 1024),
                       (('FLattenCSWin:tiny',), 896)):
        rows = list(passes.table(list(name), {Size(size, size): 4}))[2:]
        of_rows = list(itertools.product(name, passes.KINDS))
        for (backbone, kind), row in zip(of_rows, rows, strict=True):
            cells = [cell.strip() for cell in row.strip('|').split('|')]
            assert cells[3] == kind
            found[backbone, kind] = int(cells[4]), float(cells[7])
    for name, (launches, *peaks) in AIMS.items():
        counted = found[name, 'forward'][0]
        assert counted <= launches, name
        assert found[name, 'graphs'][0] <= GRAPHS_LAUNCHES, name
        size = Size(896, 896) if 'FLatten' in name else Size(1024, 1024)
        planned = plan.cost(subjects.backbone(name).make, 4, size).launches
        assert planned <= counted <= 1.1 * planned, (name, planned, counted)
        for kind, peak in zip(passes.KINDS, peaks, strict=True):
            # The allocator rounds sizes.
            assert found[name, kind][1] <= peak + .01, (name, kind)


RECORDED = """
import os, sys, torch
from visattn_dense.layers.training_graphs import ReplayedTraining

class Scaled(torch.nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        factors = dict(nothing=1., copied=torch.ones(4, device='cuda' if done else 'cpu').cuda(),
                       read=float(y.detach().sum()) if sys.argv[1] == 'read' else 0.)
        return y * factors[sys.argv[1]],

done = sys.argv[1] != 'copied'
model = Scaled(4, 4).cuda().train()
model.forward = ReplayedTraining(model, 1)
for _ in range(3):
    model(torch.zeros(2, 4, device='cuda'))[0].sum().backward()
print(len(model.forward._graphs), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize('what, graphs', [('nothing', 1), ('copied', 0), ('read', 0)])
def test_a_step_that_waits_for_the_host_is_not_recorded(suited, what, graphs):
    """The runtime refuses in a recording what CUDA refuses."""
    run = subprocess.run([sys.executable, '-c', RECORDED, what], cwd=ROOT, env=suited,
                         capture_output=True, text=True)
    assert run.stdout.split() == [str(graphs)], run.stderr
    assert ('no graph of Scaled' in run.stderr) != bool(graphs)


def test_the_command(suited, capsys):
    assert cli.main(['--host', '--backbones', 'EfficientViT:b0', '--sizes', '64x96']) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith('| backbone | size | batch | pass | launches | host, ms |')
    assert [row.split(' | ')[3] for row in rows] == list(passes.KINDS)


def test_an_unknown_backbone_is_named(capsys):
    assert cli.main(['--host', '--backbones', 'EfficientViT:b99']) == 2
    assert 'b99' in capsys.readouterr().err


@pytest.mark.parametrize('missing', ['gcc', 'CUDA'])
def test_what_is_missing_is_named(missing, tmp_path, monkeypatch):
    if missing == 'gcc':
        monkeypatch.setenv('PATH', str(tmp_path))
    else:
        monkeypatch.setattr(torch.version, 'cuda', None)
    with pytest.raises(UserError, match='needs Linux, gcc, and a torch for CUDA'):
        library.environment(tmp_path, 0)


def test_a_pass_that_breaks_is_an_error(suited, monkeypatch):
    monkeypatch.setattr(sys, 'executable', '/bin/false')
    with pytest.raises(UserError, match='ended with 1'):
        list(passes.table(['EfficientViT:b0'], {Size(64, 96): 1}))
