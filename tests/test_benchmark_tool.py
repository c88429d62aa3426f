"""tools/benchmark.py: FLOPs with attention, latency, memory, table and JSON."""
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.flops import count_flops
from benchmarks.peak_memory import PeakMemory
from benchmarks.timing import measure
from tests.tiny_runs import ROOT, run_tool, write_detection_run, write_run
from visattn_dense import backbones
from visattn_dense.attention import (
    BiLevelRoutingAttention,
    CrossShapedWindowAttention,
    FocusedLinearAttention,
    LiteMLA,
    SelfAttention,
    TokenPerformer,
    routed_attention,
)
from visattn_dense.layers import ConvNormAct

CPU = torch.device('cpu')


def test_flops_of_attention_by_hand():
    # 2 images, 3 heads, 5 queries, 7 keys, 8 channels: q kᵀ and P v, 2 operations each.
    q, k, v = (torch.randn(2, 3, n, 8) for n in (5, 7, 7))
    found = count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert found.total == found.attention == 2 * 2 * 3 * 5 * 7 * (8 + 8)


def test_flops_of_routed_attention_by_hand():
    q, k = torch.randn(2, 9, 5, 3, 8), torch.randn(2, 9, 7, 3, 8)
    v = torch.randn(2, 9, 7, 3, 4)
    index = torch.randint(9, (2, 9, 4))
    found = count_flops(lambda: routed_attention(q, k, v, index, scale=1.))
    # Each of 2 · 9 regions: 3 heads, 5 queries, 4 · 7 keys, 8 channels of keys and 4 of values.
    assert found.total == found.attention == 2 * 2 * 9 * 3 * 5 * 28 * (8 + 4)


@pytest.mark.parametrize('module, shape', [
    (lambda: CrossShapedWindowAttention(32, 2, stripe_width=7), (2, 20, 33, 32)),
    (lambda: BiLevelRoutingAttention(32, 2, n_win=4, topk=3), (2, 20, 32, 32)),
    (lambda: SelfAttention(32, 2), (2, 5, 7, 32)),
    (lambda: LiteMLA(32, 2), (2, 32, 5, 7)),
    (lambda: FocusedLinearAttention(32, 2, native_size=(14, 14), stripe_width=3), (2, 5, 7, 32)),
    (lambda: TokenPerformer(24, 16), (2, 5, 7, 24)),
    (lambda: ConvNormAct(8, 8, 3, act='hardswish').eval(), (2, 8, 5, 7))])
def test_flops_are_the_same_on_a_gpu_that_is_not_there(module, shape):
    """The Triton operators count what the operators of torch count on another device."""
    counts = []
    for device in ('meta', 'cuda'):
        with FakeTensorMode(), torch.device(device), torch.no_grad():
            attn, x = module(), torch.empty(shape)
            counts.append(count_flops(lambda attn=attn, x=x: attn(x)))
    assert counts[0].total == counts[1].total


@pytest.mark.parametrize('name, arch, options, gmacs', [
    ('CSWin', 'tiny', {}, 24.6), ('CSWin', 'small', {}, 38.7),
    ('BiFormer', 'small', dict(n_win=8), 27.7)])
def test_backbones_at_512_have_the_multiplications_of_the_official_code(
        name: str, arch: str, options: dict, gmacs: float):
    # Without memory or time: the counter needs shapes only.
    model = getattr(backbones, name)(arch, **options).eval().to('meta')
    with torch.inference_mode():
        found = count_flops(lambda: model(torch.zeros(1, 3, 512, 512, device='meta')))
    assert found.total / 2e9 == pytest.approx(gmacs, abs=0.06)


def test_efficientvit_b2_has_the_multiplications_of_the_official_code():
    model = backbones.EfficientViT('b2').eval()
    with torch.inference_mode():
        found = count_flops(lambda: model(torch.zeros(1, 3, 256, 256)))
    # 8.0 G at 512; this backbone's attention is linear, so a quarter of the pixels is a quarter.
    assert found.total / 2e9 == pytest.approx(8.0 / 4, rel=0.01)


def test_latency_counts_runs_and_stops_in_time():
    calls = []
    took = measure(lambda: calls.append(1), CPU, warmup=2, runs=5)
    assert len(calls) == 7 and took.runs == 5
    assert 0 <= took.least <= took.p50 <= took.p90 <= took.p99
    assert measure(lambda: None, CPU, warmup=1, runs=10**6, seconds=0.).runs == 1
    with pytest.raises(ValueError, match='at least 1 run'):
        measure(lambda: None, CPU, runs=0)


def test_peak_memory_sees_what_was_freed_again():
    with PeakMemory(CPU) as idle:
        pass
    with PeakMemory(CPU) as busy:
        torch.ones(100 * 2**18).sum()
    assert busy.mib - idle.mib > 80


@pytest.fixture(scope='module')
def tool():
    """tools/benchmark.py as a module."""
    path = list(sys.path)
    sys.path.insert(0, str(ROOT / 'tools'))
    spec = importlib.util.spec_from_file_location('benchmark_tool', ROOT / 'tools/benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def table_rows(output: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')]
            for line in output.splitlines() if re.match(r'\|\s+\d', line)]


@pytest.mark.parametrize('kind', ['segmentor', 'detector'])
def test_table_and_json_agree(kind: str, tool, tmp_path: Path, capsys):
    config = (write_run if kind == 'segmentor' else write_detection_run)(tmp_path)
    out = tmp_path / 'results/tiny.json'
    code = tool.main([str(config), '--sizes', '64', '64x96', '--runs', '3', '--warmup', '1',
                      '--batch', '2', '--device', 'cpu', '--out', str(out)])
    output = capsys.readouterr().out
    assert code == 0
    report = json.loads(out.read_text())
    rows = table_rows(output)
    assert [row[0] for row in rows] == ['64×64', '64×96']
    assert out.with_suffix('.md').read_text() in output
    for row, result in zip(rows, report['results'], strict=True):
        assert result['flops'] == 2 * result['macs'] > result['attention_flops'] > 0
        assert result['latency_ms']['runs'] == 3 and result['peak_mib'] > 0
        assert result['images_per_s'] == pytest.approx(2e3 / result['latency_ms']['mean'])
        assert float(row[2]) == pytest.approx(result['flops'] / 1e9, abs=0.006)
    first, second = report['results']
    assert second['flops'] > 1.2 * first['flops']
    assert report['parameters']['total'] == sum(
        count for name, count in report['parameters'].items() if name != 'total')


def test_compiled_backbone_in_bfloat16(tool, tmp_path: Path):
    # One block: compiling takes longer than all the rest.
    assert tool.main([
        str(write_run(tmp_path)), '--sizes', '32', '--runs', '1', '--warmup', '1', '--part',
        'backbone', '--compile', '--dtype', 'bfloat16', '--device', 'cpu', '--out',
        str(tmp_path / 'b.json'), '--cfg-options', 'model.backbone.out_indices=[0]']) == 0
    report = json.loads((tmp_path / 'b.json').read_text())
    assert [report[key] for key in ('form', 'part', 'dtype')] == ['compiled', 'backbone',
                                                                  'bfloat16']
    assert set(report['parameters']) == {'total'}
    assert report['results'][0]['attention_flops'] > 0


def test_optimized_model(tool, tmp_path: Path):
    reports = []
    for words in ([], ['--optimize']):
        out = tmp_path / f'{len(words)}.json'
        assert tool.main([str(write_run(tmp_path)), '--sizes', '64', '--runs', '1', '--warmup', '0',
                          '--device', 'cpu', '--out', str(out), *words]) == 0
        reports.append(json.loads(out.read_text()))
    assert [report['form'] for report in reports] == ['eager', 'optimized']
    assert tool.parse_args(['config.py', '--optimise']).form == 'optimized'
    # Counted before anything is packed: packed layers are operators that no counter knows.
    assert reports[0]['results'][0]['flops'] == reports[1]['results'][0]['flops']


@pytest.mark.parametrize('words, message', [
    (['absent.py'], 'no config file absent.py'),
    (['CONFIG', '--dtype', 'float16', '--device', 'cpu'], '--dtype bfloat16'),
    (['CONFIG', '--runs', '0'], '--runs'),
    (['CONFIG', '--device', 'nowhere'], "device 'nowhere'"),
    (['CONFIG', '--cfg-options', 'model.backbone'], 'KEY=VALUE'),
    (['CONFIG', '--checkpoint', 'absent.pth'], 'absent.pth'),
    (['CONFIG', '--sizes', '512x'], '512x')])
def test_bad_input_is_one_message(words: list[str], message: str, tmp_path: Path, tool, capsys):
    config = str(write_run(tmp_path))
    words = [config if word == 'CONFIG' else word for word in words]
    try:
        code = tool.main([*words, '--out', str(tmp_path / 'o.json')])
    except SystemExit as stopped:
        # argparse itself.
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and 'Traceback' not in error
    assert not (tmp_path / 'o.json').exists()


def test_runs_as_a_script(tmp_path: Path):
    done = run_tool('benchmark.py', tmp_path / 'absent.py')
    assert done.returncode == 2 and done.stderr.startswith('error: no config file')
