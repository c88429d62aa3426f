"""`optimize_for_inference` packs what is faster packed on this machine, and remembers that."""
import copy
import json
import logging
import time

import pytest
import torch
from torch import nn

from visattn_dense.attention import TokenPerformer
from visattn_dense.layers import (
    FusedMBConv,
    MBConv,
    Mlp,
    Residual,
    SoftSplit,
    TransformerBlock,
    optimize,
    optimize_for_inference,
)
from visattn_dense.layers.packed import Native
from visattn_dense.ops import measured, native


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder; what this process remembers is that folder's alone."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('VISATTN_MEASURE')
    measured._remembered.cache_clear()
    yield tmp_path / 'visattn_dense'
    measured._remembered.cache_clear()


class Call:
    """Work that needs a known time, and counts how often it ran."""

    def __init__(self, milliseconds):
        self.seconds, self.count = milliseconds / 1000, 0

    def __call__(self):
        self.count += 1
        time.sleep(self.seconds)


@pytest.mark.parametrize(('milliseconds', 'expected'), [
    ((2, 30, 40), 'usual'), ((30, 2, 40), 'other'), ((30, 40, 2), 'plain'),
    ((20, 20, 20), 'usual'), ((40, 21, 20), 'other'), ((22, 23, 21), 'usual')])
def test_the_fastest_is_taken_and_the_usual_one_where_there_is_no_difference(
        cache, milliseconds, expected):
    calls = [Call(each) for each in milliseconds]
    assert measured.fastest('work', ('usual', 'other', 'plain'), calls) == expected


def test_a_choice_outlives_the_process(cache):
    def choose(*milliseconds):
        calls = [Call(each) for each in milliseconds]
        return measured.fastest('work', ('a', 'b'), calls), sum(call.count for call in calls)

    assert choose(20, 1)[0] == 'b'
    assert choose(1, 20) == ('b', 0)                        # remembered, nothing runs
    measured._remembered.cache_clear()                      # as in another process
    assert choose(1, 20) == ('b', 0)
    file, = cache.iterdir()
    assert json.loads(file.read_text()) == {'work: a or b': 'b'}
    # A damaged file, or a name of another version: measured again.
    for text in ('{"wor', '[]', '{"work: a or b": "gone"}'):
        file.write_text(text)
        measured._remembered.cache_clear()
        assert choose(1, 20)[0] == 'a'
        assert json.loads(file.read_text()) == {'work: a or b': 'a'}


def test_a_cache_that_cannot_be_written_costs_nothing_else(cache):
    cache.write_text('a file where the folder would be')
    assert measured.fastest('work', ('a', 'b'), [Call(20), Call(1)]) == 'b'


def test_another_number_of_threads_is_measured_anew(cache):
    threads = torch.get_num_threads()
    measured.fastest('work', ('a', 'b'), [Call(20), Call(1)])
    try:
        torch.set_num_threads(threads + 1)
        assert measured.fastest('work', ('a', 'b'), [Call(1), Call(20)]) == 'a'
    finally:
        torch.set_num_threads(threads)


def test_nothing_is_measured_on_request(cache, monkeypatch):
    monkeypatch.setenv('VISATTN_MEASURE', '0')
    calls = [Call(20), Call(1)]
    assert measured.fastest('work', ('a', 'b'), calls) == 'a'
    assert [call.count for call in calls] == [0, 0] and not cache.exists()


def test_a_layer_that_is_faster_plain_stays(monkeypatch, caplog):
    model, x = Mlp(6, 12).eval(), torch.randn(3, 6)
    asked = []

    def fastest(what, names, calls):
        asked.append((what, [tuple(call().shape) for call in calls]))
        return 'plain' if 'in_features=6' in what else names[0]

    monkeypatch.setattr(optimize, 'fastest', fastest)
    with torch.no_grad(), caplog.at_level(logging.INFO, 'visattn_dense'):
        expected = model(x)
        optimize_for_inference(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    form = 'NativeLinear' if native.available() else 'PackedLinear'
    assert type(model.fc1) is nn.Linear and type(model.fc2).__name__ == form
    assert isinstance(model.act, nn.GELU)
    assert '1 Linear' in caplog.text and f'1 {form}' in caplog.text
    # Every form does the whole work: the layer with the activation after it.
    assert 'gelu' in asked[0][0] and 'float32' in asked[0][0]
    assert all(len(set(shapes)) == 1 for _, shapes in asked)


def test_measuring_changes_no_result(cache):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Hardswish(),
                          nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU(),
                          nn.Conv2d(8, 16, 1), nn.GELU()).eval()
    x = torch.randn(2, 3, 18, 22)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(optimize_for_inference(model)(x), expected, rtol=1e-4, atol=1e-5)
    names = {'NativeConv2d', 'PackedConv2d', 'PackedDepthwiseConv', 'PackedPointwiseConv', 'plain'}
    choices, = (json.loads(file.read_text()) for file in cache.glob('fastest-*.json'))
    assert len(choices) == 3 and set(choices.values()) <= names


@pytest.mark.skipif(not native.available(), reason='no compiled kernels')
@pytest.mark.parametrize('choice', ['fused', 'apart'])
def test_layers_are_fused_where_this_is_faster(monkeypatch, choice):
    asked = []

    def fastest(what, names, calls):
        if names[-1] != 'apart':
            return names[0]
        asked.append([call() for call in calls])
        return names[0 if choice == 'fused' else -1]

    monkeypatch.setattr(optimize, 'fastest', fastest)
    block = TransformerBlock(6, nn.Identity()).eval()
    with torch.no_grad():
        optimize_for_inference(block)
    (fused, apart), = asked
    torch.testing.assert_close(fused, apart, rtol=1e-5, atol=1e-5)
    assert (type(block.mlp) is Mlp) == (choice == 'apart')


@pytest.mark.skipif(not native.available() or native.tiles(),
                    reason='kernels, and a processor without AMX, are needed')
@pytest.mark.parametrize('make', [
    lambda: nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 5)),
    lambda: TransformerBlock(6, nn.Linear(6, 6)),
    lambda: nn.Sequential(nn.Conv2d(7, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 1)),
    lambda: Residual(MBConv(7, 7), shortcut=True), lambda: Residual(FusedMBConv(7, 7)),
    lambda: TokenPerformer(63, 8, split=SoftSplit(3, 2, 1))],
    ids=['linear', 'block', 'convolutions', 'mobile', 'fused mobile', 'split'])
def test_bfloat16_layers_by_the_float32_kernels(monkeypatch, make):
    """Without instructions for bfloat16 products they are the fastest; they round once."""
    def fastest(what, names, calls):
        assert names[0] == 'apart' or names[0].startswith('Packed')     # as without a measurement
        assert calls[0]().dtype == torch.bfloat16
        return next((name for name in names if name.startswith('Native')), names[0])

    monkeypatch.setattr(optimize, 'fastest', fastest)
    model = make().eval()
    for tensor in model.parameters():
        nn.init.uniform_(tensor, -.2, .4)
    model.bfloat16()
    exact, x = copy.deepcopy(model).float(), torch.randn(2, 7, 9, 6).bfloat16()
    with torch.no_grad():
        out = optimize_for_inference(model)(x)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), exact(x.float()), rtol=.02, atol=.02)
    assert any(isinstance(module, Native) for module in model.modules())


@pytest.mark.skipif(not native.suits_tiles(160**2), reason='a processor with AMX is needed')
def test_tiles_are_taken_where_this_is_faster(monkeypatch, caplog):
    asked, x = [], torch.randn(3, 160)

    def fastest(what, names, calls):
        asked.extend(names)
        return choice

    monkeypatch.setattr(optimize, 'fastest', fastest)
    for choice in ('NativeLinear in tiles', 'NativeLinear'):
        layer = nn.Sequential(nn.Linear(160, 160)).eval()
        with torch.no_grad(), caplog.at_level(logging.INFO, 'visattn_dense'):
            expected = layer(x)
            torch.testing.assert_close(optimize_for_inference(layer)(x), expected, rtol=1e-5,
                                       atol=1e-5)
        assert layer[0].form == choice and f'1 {choice}' in caplog.text
    assert asked[:2] == ['NativeLinear', 'NativeLinear in tiles']
