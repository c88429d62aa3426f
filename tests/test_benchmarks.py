"""python -m benchmarks: table, JSON and plot; no speed without parity; growth, limits, errors."""
import copy
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import cli, document, parity, subjects
from benchmarks.cases import FAILED, time_case
from benchmarks.forms import form_calls
from benchmarks.isolation import collect
from benchmarks.passes import Plan
from benchmarks.timing import growth_exponent, interleave
from visattn_dense.attention import LiteMLA
from visattn_dense.attention.naive import NAIVE

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device('cpu')
TINY = ['--runs', '1', '--seconds', '1', '--threads', '1']


class Sum(nn.Module):
    """An operator with a naive form that is right or wrong as `error` says."""

    def __init__(self, error: float = 0.) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class NaiveSum(Sum):
    def forward(self, x: Tensor) -> Tensor:
        return (self.weight + self.error) * x


class WrongGradient(Sum):
    """Right outputs, half the gradient for the input."""


class NaiveWrongGradient(WrongGradient):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x / 2 + x.detach() / 2)


NAIVE |= {Sum: NaiveSum, WrongGradient: NaiveWrongGradient}


def wrong_sum() -> nn.Module:
    return Sum(3e-4)


def operator(make) -> subjects.Subject:
    return subjects.Subject('cswin', 'a sum', 'operator', make, 4, 16, 'NHWC')


def run(plan: Plan) -> dict:
    merged = {}
    for part in time_case(plan):
        merged |= part
    return merged


@pytest.mark.parametrize('exponent', [.5, 1., 2.])
def test_growth_exponent_of_a_power(exponent: float):
    pixels = [224**2, 512**2, 1024**2, 2048 * 1024]
    assert growth_exponent(pixels, [3e-4 * p**exponent for p in pixels]) == pytest.approx(exponent)


def test_growth_exponent_by_hand_and_of_one_size():
    # log₂ of the times is 0, 1, 3 at log₂ of the pixels 0, 1, 2: slope 3/2.
    assert growth_exponent([1, 2, 4], [1, 2, 8]) == pytest.approx(1.5)
    assert growth_exponent([512**2], [1.]) is None


def test_rounds_alternate_and_a_call_that_does_not_fit_leaves_the_others():
    order = []

    def too_large() -> None:
        raise torch.OutOfMemoryError('out of memory')

    calls = {'a': lambda: (order.append('a'), time.sleep(.11)), 'big': too_large,
             'b': lambda: (order.append('b'), time.sleep(.11))}
    took, trouble = interleave(calls, CPU, runs=3, seconds=60)
    assert ''.join(order) == 'ab' + 'ab' + 'ba' + 'ab'
    assert {name: len(times) for name, times in took.items()} == {'a': 3, 'b': 3}
    assert trouble == {'big': 'does not fit'}


def test_other_errors_of_a_call_are_not_swallowed():
    def broken() -> None:
        raise RuntimeError('shapes do not match')

    with pytest.raises(RuntimeError, match='shapes'):
        interleave({'a': broken}, CPU, runs=1, seconds=1)


@pytest.mark.parametrize('subject', subjects.OPERATORS, ids=lambda s: s.name)
def test_operators_have_parity(subject: subjects.Subject):
    for gradients in (False, True):
        found = parity.check(subject, *subject.pair(CPU), 65, 97, CPU, gradients=gradients)
        assert found.passed and found.dtype == 'float32' and (found.height, found.width) == (65, 97)


def test_the_sides_have_the_same_weights_and_other_forwards():
    ours, naive = subjects.OPERATORS[0].pair(CPU)
    for a, b in zip(ours.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    classes = {type(module) for module in naive.modules()}
    assert classes & set(NAIVE.values()) and not classes & set(NAIVE)


def test_no_speed_without_parity():
    found = run(Plan(operator(wrong_sum), 64, 64, runs=1, threads=1))
    assert not found['parity']['passed']
    assert found['parity']['error'] == pytest.approx(3e-4, rel=1e-2)
    assert found['trouble'] == {'forward': FAILED, 'training': FAILED}
    assert 'forward' not in found and 'training' not in found


def test_no_training_speed_without_parity_of_gradients():
    found = run(Plan(operator(WrongGradient), 64, 64, runs=1, threads=1))
    assert found['parity']['passed'] and not found['gradient_parity']['passed']
    assert 'ours' in found['forward'] and 'training' not in found
    assert found['training_trouble'] == {'training': FAILED}


def test_nan_and_another_shape_are_no_parity():
    a = torch.ones(3)
    assert parity.relative_error(a, a) == 0
    for other in (torch.tensor([1., float('nan'), 1.]), torch.ones(1), torch.ones(3, 1)):
        assert parity.relative_error(other, a) > 1
    assert parity.relative_error((a, 1.5 * a), (a, a)) == pytest.approx(.5)


def test_failed_parity_shows_in_the_table_and_in_the_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subjects, 'OPERATORS', (operator(wrong_sum), operator(Sum)))
    code = cli.main(['--backbones', '--sizes', '64', *TINY, '--out', str(tmp_path / 'b.md')])
    captured = capsys.readouterr()
    assert code == 1 and 'parity failed' in captured.err
    wrong, right = [line for line in (tmp_path / 'b.md').read_text().splitlines()
                    if re.match(r'\| a sum \| 64×64 \| 0\.00', line)]
    times = [[row.split('|')[i].strip() for i in (4, 5, 9, 10)] for row in (wrong, right)]
    assert times[0] == ['parity failed'] * 4 and all(float(cell) > 0 for cell in times[1])


def test_table_json_and_plot(tmp_path: Path):
    out = tmp_path / 'results/bench.md'
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks', '--backbones', 'EfficientViT:b0', '--no-operators',
         '--sizes', '64', '96x64', *TINY, '--out', str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table, report = out.read_text(), json.loads(out.with_suffix('.json').read_text())
    assert table in done.stdout
    assert {'torch', 'numpy'} <= report['versions'].keys()
    assert report['environment']['commit'] in table and report['environment']['device'] in table
    assert f' with {torch.backends.cpu.get_cpu_capability()}' in report['environment']['device']
    assert [(r['height'], r['width']) for r in report['records']] == [(64, 64), (96, 64)]
    for record in report['records']:
        assert record['parity']['passed'] and not record['trouble']
        assert set(record['memory']) == {
            f'{mode}, {side}' for mode in ('forward', 'training') for side in ('ours', 'naive')}
        for taken in record['memory'].values():
            assert taken['mib'] >= taken['idle_mib'] > 50
        ours = record['forward']['ours']
        assert ours['fraction'] == pytest.approx(
            2e3 * record['macs'] / ours['ms'] / record['flops_per_s'])
        ratio = ours['ms'] / record['forward']['naive']['ms']
        row = next(line.split('|') for line in table.splitlines() if line.startswith(
            f'| {record["name"]} | {record["height"]}×{record["width"]} | '))
        assert float(row[4]) == pytest.approx(ours['ms'], rel=.006)
        assert float(row[6]) == pytest.approx(ratio, abs=.006)
    optimized = report['records'][0]['forms']['optimized']
    assert optimized['difference'] < 1e-4 and optimized['fraction'] > 0
    assert '## Growth' in table and '2/2/2/2' in table
    picture = out.parent / 'img/bench.png'
    assert f'](img/{picture.name})' in table
    assert picture.read_bytes().startswith(b'\x89PNG') and picture.stat().st_size > 10_000


def test_macs_of_an_operator_by_hand():
    # 1×1 to 3·64; depthwise 5×5 and 1×1 in groups of 16 of those; attention; 1×1 of 2·64 to 64.
    subject = subjects.Subject('efficientvit', 'small', 'operator', partial(LiteMLA, 64, 4), 64, 16)
    macs = run(Plan(subject, 96, 160, runs=1, threads=1))['macs']
    width, d = 3 * 64, 16
    per_position = 64 * width + 25 * width + d * width + 2 * 64 * 64
    # v kᵀ, its product with q, and the denominator: 2 scales of 4 heads.
    per_position += 2 * 4 * (2 * d * d + d)
    assert macs == per_position * 6 * 10


@pytest.mark.parametrize('form', ['optimized', 'channels_last', 'bfloat16'])
def test_forms_compute_the_same(form: str):
    plan = Plan(subjects.backbone('EfficientViT:b0'), 64, 96, threads=1)
    x = plan.input()
    with torch.inference_mode():
        expected = plan.subject.ours(CPU)(x)
    call, dtype = form_calls(form, plan, x)
    assert parity.relative_error(call(), expected) < parity.FORM_TOLERANCE[dtype]


def counting(seconds: float, size: int) -> Iterator[dict[str, int]]:
    yield dict(before=1)
    time.sleep(seconds)
    yield dict(elements=torch.zeros(size).numel())


@pytest.mark.parametrize('seconds, size, limit, trouble', [
    (0., 10, None, None), (60., 10, None, 'took more than 3 s'),
    (0., 2**32, 3 * 2**30, 'does not fit in 3.0 GiB'), (0., -1, None, 'RuntimeError: ')])
def test_a_process_that_ends_early_keeps_what_it_found(seconds, size, limit, trouble):
    # The first process waits for the server's imports.
    assert collect(counting, 0., 1, seconds=60, memory=None) == (dict(before=1, elements=1), None)
    found, reason = collect(counting, seconds, size, seconds=3, memory=limit)
    assert found['before'] == 1 and ('elements' in found) == (trouble is None)
    assert reason is None if trouble is None else reason.startswith(trouble)


def test_limits_are_no_failures_and_a_breakdown_is():
    record = dict(name='x', height=64, width=64, saturating=False, graph=False, trouble=dict(
        a='does not fit in 3.0 GiB', b='took more than 3 s', c='not begun within 1 minutes'))
    assert document.failures([record]) == []
    broken = copy.deepcopy(record)
    broken['trouble']['times'] = 'TypeError: no'
    assert document.failures([record, broken]) == ['x at 64×64, times: TypeError: no']


def test_what_is_not_begun_in_time_is_listed(tmp_path: Path, capsys):
    out = tmp_path / 'b.md'
    assert cli.main(['--families', 'cswin', '--sizes', '64', *TINY, '--minutes', '1e-9', '--out',
                     str(out)]) == 0
    assert 'CSWin tiny, 64×64' in out.read_text().split('## Not measured')[1]


@pytest.mark.parametrize('words, message', [
    (['--families', 'cswim'], 'cswin'),
    (['--backbones', 'CSwin:tiny'], 'CSWin'),
    (['--backbones', 'CSWin:tinny'], "'tiny'"),
    (['--backbones', '--no-operators'], 'nothing is left'),
    (['--sizes', '512', '63'], "'63'"),
    (['--sizes', 'big'], 'HEIGHTxWIDTH'),
    (['--device', 'nowhere'], "'nowhere'"),
    (['--device', 'cuda:99'], "'cuda:99'"),
    (['--dtype', 'float16'], 'bfloat16'),
    (['--runs', '0'], '--runs'),
    (['--memory', '-1'], '--memory'),
    (['--out', 'table.txt'], 'table.txt')])
def test_bad_input_is_one_message(words: list[str], message: str, tmp_path: Path, capsys,
                                  monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and message in error and len(error.splitlines()) == 1
    assert not any(tmp_path.rglob('*'))


def test_a_place_that_cannot_be_written_is_one_message(tmp_path: Path, capsys):
    (tmp_path / 'file').write_text('')
    assert cli.main(['--out', str(tmp_path / 'file/b.md')]) == 2
    assert '--out' in capsys.readouterr().err
