"""python -m visattn_dense.zoo: recognises, converts, extracts, refuses what is hostile."""
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.goldens import load_case
from tests.test_checkpoints import Hostile
from visattn_dense.backbones import EfficientViT, T2TViT
from visattn_dense.checkpoints import load_pretrained
from visattn_dense.openmmlab.schemes import release_state
from visattn_dense.registry import BACKBONES
from visattn_dense.zoo.__main__ import main
from visattn_dense.zoo.recognise import recognise
from visattn_dense.zoo.table import find_release

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def b0() -> EfficientViT:
    return EfficientViT('b0')


@pytest.fixture
def trained(b0, tmp_path) -> Path:
    """What a training run of a segmentor leaves: heads, optimizer, a wrapper's prefix."""
    state = {f'module.backbone.{name}': tensor for name, tensor in b0.state_dict().items()}
    state |= {'module.decode_head.conv_seg.weight': torch.randn(3, 16, 1, 1),
              'module.decode_head.conv_seg.bias': torch.randn(3)}
    torch.save({'meta': {'iter': 7}, 'state_dict': state,
                'optimizer': {'state': {0: {'exp_avg': torch.zeros(1000)}}}},
               tmp_path / 'trained.pth')
    return tmp_path / 'trained.pth'


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def refused(capsys, *arguments: object) -> str:
    """The one message of a command that has to fail."""
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith('error: ') and 'Traceback' not in printed.err and not printed.out
    return printed.err


@pytest.mark.parametrize('family, arch', [
    ('CSWin', 'small'), ('BiFormer', 'stl'), ('EfficientViT', 'l1'), ('FLattenCSWin', 'base'),
    ('T2TViT', 't_14'), ('T2TViT', 'c_14'), ('T2TViT', '16_ghost'), ('T2TViT', 'dense')])
def test_a_variant_is_recognised_by_names_and_shapes(family, arch):
    with torch.device('meta'):
        state = BACKBONES.get(family)(arch).state_dict()
    found = recognise(state)
    assert (family, arch) in [(candidate.family, candidate.arch) for candidate in found]
    assert all(candidate.score == 1 and candidate.family == family for candidate in found)


def test_an_official_file_is_described(tmp_path, capsys):
    torch.save({'state_dict': load_case('efficientvit_b0_128x160')[2], 'epoch': 3},
               tmp_path / 'x.pt')
    assert run('inspect', tmp_path / 'x.pt') == 0
    text = capsys.readouterr().out
    assert 'EfficientViT b0: matched 186 of 186 tensors (100.0%), layout official' in text
    assert 'beside the weights: epoch' in text


def test_a_training_checkpoint_is_described(trained, capsys):
    assert run('inspect', trained, '--json') == 0
    found = json.loads(capsys.readouterr().out)
    assert found['kind'] == 'segmentor' and found['parts'] == {'backbone': 186, 'decode_head': 2}
    assert found['others'] == ['meta', 'optimizer (0.0 MB)'] and found['format'] == 'zip'
    assert found['fits'][0]['family'] == 'EfficientViT' and found['fits'][0]['arch'] == 'b0'
    assert found['fits'][0]['prefix'] == 'module.backbone.' and found['fits'][0]['fraction'] == 1


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_timm_weights_become_ours(suffix, tmp_path, capsys):
    theirs = timm.create_model('efficientvit_b0', num_classes=10).state_dict()
    save_file(theirs, tmp_path / 'timm.safetensors')
    assert run('convert', tmp_path / 'timm.safetensors', tmp_path / f'ours{suffix}') == 0
    assert 'EfficientViT b0' in capsys.readouterr().out
    model = EfficientViT('b0')
    report = load_pretrained(model, tmp_path / f'ours{suffix}')
    assert (report.fraction, report.layout, report.unused) == (1, 'native', [])
    assert torch.equal(model.state_dict()['stem.0.conv.weight'], theirs['stem.in_conv.conv.weight'])


@pytest.mark.parametrize('arch, scale', [('7', 256 ** -.5), ('16_ghost', 384 ** -.5),
                                         ('dense', 0.)])
def test_what_a_file_implies_is_written_down(arch, scale, tmp_path):
    """T2T-ViT files of the authors say nothing of their scale, embed_dim^-½ or, in T2T-ViT-dense,
    that of each block (0); ours do."""
    state = T2TViT(arch).state_dict()
    del state['qk_scale']
    torch.save({'state_dict_ema': state}, tmp_path / 'x.pth.tar')
    assert run('convert', tmp_path / 'x.pth.tar', tmp_path / 'ours.pth') == 0
    ours = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    assert ours['qk_scale'] == torch.tensor(scale)
    if arch == '7':
        release = find_release('t2t_vit_7')
        assert release_state(release, state)['backbone.qk_scale'] == torch.tensor(scale)


def test_conversion_keeps_heads_and_drops_the_optimizer(trained, b0, tmp_path):
    assert run('convert', trained, tmp_path / 'whole.safetensors') == 0
    whole = load_file(tmp_path / 'whole.safetensors')
    assert {name.split('.')[0] for name in whole} == {'backbone', 'decode_head'}
    assert run('convert', trained, tmp_path / 'half.pth', '--no-heads', '--dtype', 'float16') == 0
    contents = torch.load(tmp_path / 'half.pth', weights_only=True)
    assert contents.keys() == {'meta', 'state_dict'}
    assert contents['state_dict'].keys() == b0.state_dict().keys()
    assert contents['state_dict']['stem.0.conv.weight'].dtype == torch.float16
    assert load_pretrained(EfficientViT('b0'), tmp_path / 'half.pth').fraction == 1


def test_weights_that_another_precision_does_not_hold_are_refused(b0, tmp_path, capsys):
    state = b0.state_dict()
    state['stem.0.norm.running_var'] = state['stem.0.norm.running_var'] + 1e5
    torch.save(state, tmp_path / 'x.pth')
    assert run('convert', tmp_path / 'x.pth', tmp_path / 'half.pth', '--dtype', 'float16') == 2
    assert 'infinity in float16: stem.0.norm.running_var' in capsys.readouterr().err
    assert not (tmp_path / 'half.pth').exists()
    assert run('convert', tmp_path / 'x.pth', tmp_path / 'half.pth', '--dtype', 'bfloat16') == 0


def test_a_part_of_a_trained_model_is_taken_out(trained, b0, tmp_path, capsys):
    assert run('extract', trained, tmp_path / 'b.pth') == 0
    b0.load_state_dict(torch.load(tmp_path / 'b.pth', weights_only=True)['state_dict'], strict=True)
    assert run('extract', trained, tmp_path / 'h.safetensors', '--part', 'decode_head') == 0
    assert load_file(tmp_path / 'h.safetensors').keys() == {'conv_seg.weight', 'conv_seg.bias'}
    capsys.readouterr()
    message = refused(capsys, 'extract', trained, tmp_path / 'n.pth', '--part', 'decode_heads')
    assert "Did you mean 'decode_head'" in message and not (tmp_path / 'n.pth').exists()


def test_what_is_there_is_not_overwritten_unasked(trained, tmp_path, capsys):
    (tmp_path / 'out.pth').write_text('mine')
    assert '--overwrite' in refused(capsys, 'convert', trained, tmp_path / 'out.pth')
    assert (tmp_path / 'out.pth').read_text() == 'mine'
    assert run('convert', trained, tmp_path / 'out.pth', '--overwrite') == 0


@pytest.mark.parametrize('target, message', [('o.zip', 'safetensors or .pth'),
                                             ('trained.pth/o.pth', 'cannot write')])
def test_a_place_that_cannot_be_written_is_refused(target, message, trained, tmp_path, capsys):
    assert message in refused(capsys, 'convert', trained, tmp_path / target)


def test_code_is_executed_only_on_trust(b0, tmp_path, capsys):
    torch.save({'state_dict': b0.state_dict(), 'x': Hostile(tmp_path / 'executed')},
               tmp_path / 'bad.pth')
    for command in ('inspect', tmp_path / 'bad.pth'), ('convert', tmp_path / 'bad.pth',
                                                       tmp_path / 'o.pth'):
        message = refused(capsys, *command)
        assert 'nothing of it was executed' in message and '--trust' in message
        assert not (tmp_path / 'executed').exists()
    assert run('convert', tmp_path / 'bad.pth', tmp_path / 'o.pth', '--trust') == 0
    assert (tmp_path / 'executed').exists()
    assert load_pretrained(EfficientViT('b0'), tmp_path / 'o.pth').fraction == 1


def recompressed(path: Path, out: Path) -> None:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))


def overlapping(path: Path, out: Path) -> None:
    """Every record of the directory points at the largest one: stored, and larger than the file."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    for match in list(re.finditer(b'PK\x01\x02', bytes(data))):
        at = match.start()
        data[at + 20:at + 28] = largest.file_size.to_bytes(4, 'little') * 2
        data[at + 42:at + 46] = largest.header_offset.to_bytes(4, 'little')
    out.write_bytes(data)


@pytest.mark.parametrize('bomb', [recompressed, overlapping])
def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(bomb, tmp_path, capsys):
    torch.save({'w': torch.zeros(1_000_000)}, tmp_path / 'plain.pth')
    bomb(tmp_path / 'plain.pth', tmp_path / 'bomb.pth')
    assert 'unpack to' in refused(capsys, 'inspect', tmp_path / 'bomb.pth')


def test_a_tensor_larger_than_its_file_is_refused(tmp_path, capsys):
    torch.save({'w': torch.zeros(1).expand(100_000, 100_000)}, tmp_path / 'huge.pth')
    message = refused(capsys, 'inspect', tmp_path / 'huge.pth')
    assert 'claims 40,000,000,000 bytes' in message
    torch.save({'w': torch.sparse_coo_tensor([[0]], [1.], (10**12,), check_invariants=False)},
               tmp_path / 'sparse.pth')
    assert 'weights are dense' in refused(capsys, 'inspect', tmp_path / 'sparse.pth')


@pytest.mark.parametrize('keep', [0, 100, -100])
@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_a_truncated_file_is_refused(keep, suffix, b0, tmp_path, capsys):
    path = tmp_path / f'cut{suffix}'
    (save_file if suffix == '.safetensors' else torch.save)(b0.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    assert f'cut{suffix} is damaged' in refused(capsys, 'inspect', path)


def test_nan_is_shown_and_not_converted(b0, tmp_path, capsys):
    state = b0.state_dict()
    state['stem.0.conv.weight'][0] = torch.nan
    torch.save(state, tmp_path / 'nan.pth')
    assert run('inspect', tmp_path / 'nan.pth') == 0
    assert 'NaN or infinity in 1 tensors: stem.0.conv.weight' in capsys.readouterr().out
    assert 'NaN' in refused(capsys, 'convert', tmp_path / 'nan.pth', tmp_path / 'o.pth')


def test_other_precisions_are_named(b0, tmp_path, capsys):
    state = {name: tensor.half() if 'conv' in name else tensor
             for name, tensor in b0.state_dict().items()}
    torch.save(state, tmp_path / 'half.pth')
    assert run('inspect', tmp_path / 'half.pth') == 0
    assert re.search(r'float16 \(\d+\).*converted from float16: \d+ tensors',
                     capsys.readouterr().out, re.DOTALL)


@pytest.mark.parametrize('contents, message', [
    ({'epoch': 3}, 'the keys epoch'), ({'model': {'layer.weight': torch.ones(2)}}, 'none of the'),
])
def test_what_cannot_be_converted_says_what_it_is(contents, message, tmp_path, capsys):
    torch.save(contents, tmp_path / 'x.pth')
    assert message in refused(capsys, 'convert', tmp_path / 'x.pth', tmp_path / 'o.pth')
    assert os.listdir(tmp_path) == ['x.pth']


def test_the_zoo_is_listed(capsys):
    assert run('zoo') == 0
    assert 'visattn://t2t_vit_14_384' in capsys.readouterr().out
    assert "'cswin_base_384'" in refused(capsys, 'download', 'cswin_bas_384')


def test_the_tool_is_the_same_program(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/convert_checkpoint.py'), 'inspect', 'nowhere/x.pth'],
        cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and 'the folder nowhere does not exist' in done.stderr
    assert 'Traceback' not in done.stderr
