"""Weights of whatever origin arrive, or a clear failure does. Nothing in a file is executed."""
import argparse
import functools
import http.server
import os
import pickle
import subprocess
import sys
import threading
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch

from visattn_dense.backbones import CSWin, T2TViT
from visattn_dense.checkpoints import load_pretrained, match_state_dict, read_checkpoint, unwrap
from visattn_dense.errors import UserError

ARCH = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4), stripe_widths=(1, 2, 7, 7))
OFFICIAL = {'embed1.conv.': 'stage1_conv_embed.0.', 'embed1.norm.': 'stage1_conv_embed.2.',
            'embed2.': 'merge1.', 'embed3.': 'merge2.', 'embed4.': 'merge3.', '.attn.': '.'}


def model() -> CSWin:
    return CSWin(ARCH)


def official(state: dict) -> dict:
    """The same tensors under the authors' names, without output norms, with a classifier."""
    out = {}
    for name, tensor in state.items():
        if name.startswith('norm'):
            continue
        for ours, theirs in OFFICIAL.items():
            name = name.replace(ours, theirs)
        out[name] = tensor
    return out | {'norm.weight': torch.ones(128), 'norm.bias': torch.zeros(128),
                  'head.weight': torch.zeros(10, 128), 'head.bias': torch.zeros(10)}


WRAPPERS = {
    'bare': lambda s: s,
    'state_dict': lambda s: {'state_dict': s, 'epoch': 3},
    'state_dict_ema': lambda s: {'state_dict_ema': s, 'state_dict': {'a.b': torch.zeros(1)}},
    'model': lambda s: {'model': s, 'optimizer': {'state': {}}, 'args': argparse.Namespace(lr=1)},
    'module.': lambda s: {'state_dict': {f'module.{k}': v for k, v in s.items()}},
    'segmentor': lambda s: {'meta': {}, 'state_dict': OrderedDict(
        {f'backbone.{k}': v for k, v in s.items()}
        | {'decode_head.conv_seg.weight': torch.zeros(150, 512, 1, 1)})},
    'ddp segmentor': lambda s: {'state_dict': {f'module.backbone.{k}': v for k, v in s.items()}},
}


@pytest.mark.parametrize('names', ['native', 'official'])
@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_every_wrapper_loads_whole(wrapper, names, tmp_path):
    source, target = model(), model()
    state = source.state_dict() if names == 'native' else official(source.state_dict())
    torch.save(WRAPPERS[wrapper](state), tmp_path / 'weights.pth')
    report = load_pretrained(target, tmp_path / 'weights.pth')
    assert report.fraction == 1 and report.layout == names
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], tensor, msg=name)


def test_legacy_torch_format_and_safetensors_load(tmp_path):
    from safetensors.torch import save_file
    state = model().state_dict()
    torch.save(state, tmp_path / 'old.pth.tar', _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / 'new.safetensors')
    for file in ('old.pth.tar', 'new.safetensors'):
        assert load_pretrained(model(), tmp_path / file).fraction == 1


def test_the_report_says_what_was_matched(tmp_path, caplog):
    torch.save(official(model().state_dict()), tmp_path / 'x.pth')
    report = str(load_pretrained(model(), tmp_path / 'x.pth'))
    assert 'matched 78 of 78 tensors (100.0%), layout official' in report
    assert 'head.weight' in report and 'norm1.weight' in report


@pytest.mark.parametrize('damage, message', [
    (lambda s: {k: v for k, v in s.items() if not k.startswith('stage3')}, 'stage3.0.norm1.weight'),
    (lambda s: {f'blocks.{k.replace("stage", "layer")}': v for k, v in s.items()}, 'missing'),
    (lambda s: {k: v[..., None] if k.startswith('stage2') else v for k, v in s.items()},
     'wrong shape'),
])
def test_a_file_that_does_not_fit_fails_and_changes_nothing(damage, message, tmp_path):
    target = model()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    torch.save(damage({k: v + 1 for k, v in target.state_dict().items()}), tmp_path / 'x.pth')
    with pytest.raises(UserError, match='does not fit CSWin') as error:
        load_pretrained(target, tmp_path / 'x.pth')
    assert message in str(error.value) and '95%' in str(error.value)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_min_matched_can_be_lowered_knowingly(tmp_path):
    state = {k: v for k, v in model().state_dict().items() if not k.startswith('stage4')}
    torch.save(state, tmp_path / 'x.pth')
    assert .5 < load_pretrained(model(), tmp_path / 'x.pth', min_matched=.5).fraction < .95


@pytest.mark.parametrize(('file', 'arch'), [('14', 't_14'), ('14', 'c_14'), ('t_14', '14')])
def test_a_part_of_another_arch_is_not_left_random(file, arch, tmp_path):
    """The tokens of T2T-ViT are less than 5 % of the tensors, and everything passes them."""
    torch.save(T2TViT(file).state_dict(), tmp_path / 'x.pth')
    target = T2TViT(arch)
    with pytest.raises(UserError, match='no tensor of tokens_to_token.*would start at random'):
        load_pretrained(target, tmp_path / 'x.pth')
    assert load_pretrained(target, tmp_path / 'x.pth', min_matched=.9).fraction > .9


def test_missing_batch_counters_do_not_count():
    target = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    state = {k: v for k, v in target.state_dict().items() if 'num_batches' not in k}
    _, report = match_state_dict(target, state, layouts={})
    assert report.fraction == 1 and report.fresh == ['0.num_batches_tracked']


@pytest.mark.parametrize('channels', [1, 2, 4, 9])
def test_the_first_convolution_is_adapted_to_other_images(channels, tmp_path):
    """As timm: the sum for one channel; in turn, scaled by 3 over their number, for several."""
    source, target = model(), CSWin(ARCH, in_channels=channels)
    torch.save(official(source.state_dict()), tmp_path / 'x.pth')
    report = load_pretrained(target, tmp_path / 'x.pth')
    assert report.fraction == 1 and list(report.adapted) == ['embed1.conv.weight']
    kernel = source.embed1.conv.weight
    expected = (kernel.sum(1, keepdim=True) if channels == 1 else
                torch.stack([kernel[:, i % 3] for i in range(channels)], 1) * 3 / channels)
    torch.testing.assert_close(target.embed1.conv.weight, expected)
    # Equal planes: the response is that to a grey picture in three channels.
    grey = torch.randn(1, 1, 32, 32)
    if channels in (1, 9):
        torch.testing.assert_close(
            target.embed1.conv(grey.expand(-1, channels, -1, -1)),
            source.embed1.conv(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_other_kernels_are_not_bent(tmp_path):
    """Weights of grey images do not become weights of colour images, nor 3×3 kernels 7×7."""
    for name, shape in (('embed1.conv.weight', (16, 1, 7, 7)),
                        ('embed1.conv.weight', (16, 3, 3, 3)),
                        ('embed2.conv.weight', (32, 3, 3, 3))):
        torch.save(model().state_dict() | {name: torch.zeros(shape)}, tmp_path / 'x.pth')
        report = load_pretrained(model(), tmp_path / 'x.pth')
        assert list(report.mismatched) == [name]


def test_weights_of_224_serve_the_stripes_of_384(tmp_path):
    source, target = model(), CSWin(dict(ARCH, stripe_widths=(1, 2, 12, 12)))
    torch.save(official(source.state_dict()), tmp_path / 'x.pth')
    report = load_pretrained(target, tmp_path / 'x.pth')
    assert report.fraction == 1 and not report.adapted


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_said(dtype, tmp_path):
    source, target = model(), model()
    torch.save({k: v.to(dtype) for k, v in source.state_dict().items()}, tmp_path / 'x.pth')
    report = load_pretrained(target, tmp_path / 'x.pth')
    assert f'converted from {str(dtype)[6:]}: 86 tensors' in str(report)
    for name, tensor in target.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, source.state_dict()[name].to(dtype).float())


@pytest.mark.parametrize('dtype', [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_other_kinds_of_numbers_are_refused(dtype, tmp_path):
    torch.save({k: v.to(dtype) for k, v in model().state_dict().items()}, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=f'{str(dtype)[6:]} in the file, float32 here'):
        load_pretrained(model(), tmp_path / 'x.pth')


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    target = model()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    state = {k: v + 1 for k, v in target.state_dict().items()}
    state['stage4.0.mlp.fc2.bias'][3] = value
    torch.save(state, tmp_path / 'x.pth')
    with pytest.raises(UserError, match='NaN or infinity in stage4.0.mlp.fc2.bias'):
        load_pretrained(target, tmp_path / 'x.pth')
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_the_averaged_weights_of_a_training_run_are_taken(tmp_path):
    """mmengine's EMAHook saves them as the state dict, beside what scripts leave in a file."""
    from mmengine.hooks import EMAHook
    from mmengine.logging import HistoryBuffer
    raw, averaged = model(), model()
    hook = EMAHook()
    hook.src_model, hook.ema_model = raw, torch.nn.Module()
    hook.ema_model.module = averaged
    contents = {'state_dict': raw.state_dict(), 'meta': {'iter': 3},
                'message_hub': {'log_scalars': {'train/loss': HistoryBuffer([1., 2.], [1, 1])}}}
    hook.before_save_checkpoint(None, contents)
    torch.save(contents, tmp_path / 'iter_3.pth')
    target = model()
    load_pretrained(target, tmp_path / 'iter_3.pth')
    assert torch.equal(target.stage1[0].attn.qkv.weight, averaged.stage1[0].attn.qkv.weight)


def test_a_file_that_torch_wrote_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'weight': torch.ones(3)}, tmp_path / 'x.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / 'x.pth')['weight'], torch.ones(3))


def test_arrays_without_numbers_are_read(tmp_path):
    """Protocol 2 writes their bytes by another name than those of other arrays."""
    torch.save({'weight': torch.ones(1), 'boxes': np.zeros((0, 4))}, tmp_path / 'x.pth')
    assert read_checkpoint(tmp_path / 'x.pth')['boxes'].shape == (0, 4)


def test_training_checkpoints_are_read_without_openmmlab_imported_before(tmp_path):
    from mmengine.logging import HistoryBuffer
    torch.save({'state_dict': model().state_dict(), 'hub': HistoryBuffer([1.], [1])},
               tmp_path / 'iter_3.pth')
    code = ('import sys; from visattn_dense.checkpoints import read_checkpoint, unwrap; '
            f'print(len(unwrap(read_checkpoint({str(tmp_path / "iter_3.pth")!r}))))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '86'


def test_settings_of_other_frameworks_are_passed_over(tmp_path, monkeypatch):
    """A yacs config, which several authors save beside their weights, is neither built nor run."""
    yacs, config = types.ModuleType('yacs'), types.ModuleType('yacs.config')
    exec('class CfgNode(dict): pass', vars(config))  # yacs itself need not be installed
    node = config.CfgNode(a=1)
    node.nested = config.CfgNode(b=2)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'yacs', yacs)
        patch.setitem(sys.modules, 'yacs.config', config)
        torch.save({'model': model().state_dict(), 'config': node}, tmp_path / 'x.pth')
    assert load_pretrained(model(), tmp_path / 'x.pth').fraction == 1
    assert type(read_checkpoint(tmp_path / 'x.pth')['config']) is not config.CfgNode


MEMORY = """
import sys
from pathlib import Path
import torch
from visattn_dense.backbones import CSWin
from visattn_dense.checkpoints import load_pretrained

def resident(key):
    for line in open('/proc/self/status'):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

shape = dict(num_heads=(2, 2, 4, 4), stripe_widths=(1, 2, 7, 7))
large = dict(shape, embed_dim=128, depths=(1, 1, 4, 2))
small = dict(shape, embed_dim=8, depths=(1, 1, 1, 1))
folder = Path(sys.argv[1])
if len(sys.argv) > 2:
    for name, arch in dict(small=small, large=large).items():
        torch.save({'state_dict_ema': CSWin(arch).state_dict()}, folder / f'{name}.pth')
else:
    # Whatever loading imports is in memory before the measurement begins.
    load_pretrained(CSWin(small), folder / 'small.pth')
    before = resident('VmRSS')
    report = load_pretrained(CSWin(large), folder / 'large.pth')
    print(report.fraction, resident('VmHWM') - before)
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_loading_needs_little_more_memory_than_the_model(tmp_path):
    """Model and load together, at their peak, at most 1.3 times the file."""
    command = [sys.executable, '-c', MEMORY, tmp_path]
    subprocess.run([*command, 'save'], check=True)
    # Without the allocator's habit of keeping freed memory for each thread.
    settings = dict(os.environ, OMP_NUM_THREADS='1', MALLOC_MMAP_THRESHOLD_='65536')
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    fraction, grown = done.stdout.split()
    size = (tmp_path / 'large.pth').stat().st_size
    assert float(fraction) == 1 and size > 1e8
    assert int(grown) < 1.3 * size


class Hostile:
    """A pickle that would create a file when it is built."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('legacy', [False, True])
def test_code_in_a_file_is_refused_and_not_executed(legacy, tmp_path):
    torch.save({'state_dict': model().state_dict(), 'x': Hostile(tmp_path / 'executed')},
               tmp_path / 'bad.pth', _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match='nothing of it was executed') as error:
        load_pretrained(model(), tmp_path / 'bad.pth')
    assert 'mkdir' in str(error.value)
    assert not (tmp_path / 'executed').exists()


def test_a_plain_pickle_is_refused(tmp_path):
    (tmp_path / 'bad.pth').write_bytes(pickle.dumps(Hostile(tmp_path / 'executed')))
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / 'bad.pth')
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('keep', [0, 10, 1000])
def test_a_truncated_file_is_named(keep, tmp_path):
    torch.save(model().state_dict(), tmp_path / 'whole.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:keep])
    with pytest.raises(UserError, match='cut.pth is damaged'):
        read_checkpoint(tmp_path / 'cut.pth')


def test_a_missing_file_names_the_near_ones(tmp_path):
    (tmp_path / 'cswin_tiny_224.pth').touch()
    with pytest.raises(FileNotFoundError, match='cswin_tiny_224.pth'):
        read_checkpoint(tmp_path / 'cswin_tiny_24.pth')
    with pytest.raises(FileNotFoundError, match='does not exist'):
        read_checkpoint(tmp_path / 'nowhere' / 'x.pth')


@pytest.mark.parametrize('contents, found', [([1, 2], 'a list'), ({'epoch': 3}, 'epoch')])
def test_contents_without_weights_are_described(contents, found):
    with pytest.raises(UserError, match=found):
        unwrap(contents)


@pytest.fixture
def server(tmp_path):
    """A real HTTP server on loopback that serves tmp_path/www; its address."""
    (tmp_path / 'www').mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler,
                                directory=str(tmp_path / 'www'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


def test_a_url_is_downloaded_once(server, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    source = model()
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'www' / 'w.pth')
    target = CSWin(ARCH, init_cfg=dict(type='Pretrained', checkpoint=f'{server}/w.pth'))
    target.init_weights()
    assert torch.equal(target.state_dict()['stage1.0.attn.qkv.weight'],
                       source.state_dict()['stage1.0.attn.qkv.weight'])
    (tmp_path / 'www' / 'w.pth').unlink()
    assert load_pretrained(model(), f'{server}/w.pth').fraction == 1


def test_a_dead_link_says_where_to_put_the_file(server, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    with pytest.raises(UserError, match='404.*by hand.*gone.pth'):
        read_checkpoint(f'{server}/gone.pth')
    assert not list((tmp_path / 'cache').rglob('*gone*'))
