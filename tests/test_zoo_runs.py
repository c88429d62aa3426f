"""'visattn://NAME' in real runs of the tools, with a folder on loopback as the mirror."""
import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from tests.test_efficientvit_seg import official_backbone, official_head
from tests.test_zoo import as_mmseg0
from tests.tiny_runs import run, run_tool, write_run
from visattn_dense.backbones import EfficientViT, T2TViT
from visattn_dense.errors import UserError
from visattn_dense.zoo import find_release

T2T = 'visattn://t2t_vit_7'
T2T_CONFIG = '''
model['backbone'] = dict(type='T2TViT', arch='7')
model['decode_head']['in_channels'] = [256] * 4
# What is saved is what it began with.
optim_wrapper['optimizer']['lr'] = 0.
'''
ONE_STEP = ['--no-validate', '--cfg-options', 'train_cfg.max_iters=1',
            'model.backbone.init_cfg.type=Pretrained', f'model.backbone.init_cfg.checkpoint={T2T}']

SEG = 'visattn://efficientvit_seg_b0_cityscapes'
SEG_CONFIG = '''
model['backbone'] = dict(type='EfficientViT', arch='b0')
model['decode_head'] = dict(type='EfficientViTSegHead', in_channels=[32, 64, 128], width=32,
                            depth=1, final_expand=4, num_classes=3)
'''


class Handler(SimpleHTTPRequestHandler):
    def log_request(self, *args: object) -> None:
        self.server.requests.append((self.path, self.headers.get('Range')))

    def log_message(self, *args: object) -> None:
        """Not into the test's output."""


class Mirror:
    """A server of the files in `folder`; `requests` are the paths and ranges it was asked for."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=folder))
        self._server.requests = self.requests = []
        self.folder, self.url = folder, f'http://127.0.0.1:{self._server.server_port}'
        threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': .01},
                         daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror, in the environment of this process and of those that it starts; an empty cache."""
    server = Mirror(tmp_path / 'mirror')
    monkeypatch.setenv('VISATTN_MIRROR', f'{server.url}/')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    yield server
    server.stop()


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / 'hub' / 'checkpoints'


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def write_t2t(folder: Path) -> dict[str, torch.Tensor]:
    """T2T-ViT-7 as its authors save it, with random weights; the backbone's, as named here."""
    state = {name: torch.randn_like(tensor) for name, tensor in T2TViT('7').state_dict().items()
             if not re.fullmatch('|'.join(T2TViT.fresh), name)}
    first = re.compile(r'(tokens_to_token\.attention\d\.mlp)\.fc')
    theirs = {first.sub(r'\1.', name).replace('mlp.1.', 'mlp.0.') if first.match(name) else name:
              tensor for name, tensor in state.items()}
    assert len(theirs.keys() - state.keys()) == 8
    head = {'head.weight': torch.randn(1000, 256), 'head.bias': torch.randn(1000)}
    torch.save({'state_dict_ema': theirs | head}, folder / find_release(T2T).file)
    return state


def test_training_begins_with_the_released_weights(mirror, cache, tmp_path):
    expected = write_t2t(mirror.folder)
    # The file implies the scale of the attention.
    expected['qk_scale'] = torch.tensor(256 ** -.5)
    config, file = write_run(tmp_path, T2T_CONFIG), find_release(T2T).file
    first = run_tool('train.py', config, '--work-dir', tmp_path / 'first', *ONE_STEP)
    assert first.returncode == 0, first.stderr
    assert mirror.requests == [(f'/{file}', None)]
    assert names(cache) == {file, f'{file}.origin.json'}
    mirror.stop()
    second = run('train', tmp_path, config, '--work-dir', tmp_path / 'second', *ONE_STEP)
    assert second.code == 0, second.output
    for work in ('first', 'second'):
        saved = torch.load(tmp_path / work / 'iter_1.pth', weights_only=False)['state_dict']
        for name, tensor in expected.items():
            assert torch.equal(saved[f'backbone.{name}'], tensor), name


def test_a_released_segmentor_is_tested_by_its_name(mirror, tmp_path):
    backbone = official_backbone(EfficientViT('b0'))
    head = official_head(in_channels=(32, 64, 128), width=32, depth=1, final_expand=4,
                         num_classes=3)
    file = mirror.folder / find_release(SEG).file
    torch.save({'state_dict': {**{f'backbone.{name}': tensor for name, tensor in backbone.items()},
                               **{f'head.{name}': tensor for name, tensor in head.items()}}}, file)
    config = write_run(tmp_path, SEG_CONFIG)
    named = run_tool('test.py', config, SEG, '--work-dir', tmp_path / 'work')
    assert named.returncode == 0, named.stderr
    assert mirror.requests == [(f'/{file.name}', None)]
    # Another seed: what a file left at random would differ.
    given = run('test', tmp_path, config, file, '--cfg-options', 'randomness.seed=6')
    assert given.code == 0, given.output
    assert metrics(named.stdout) == metrics(given.output)
    # More than one class is found: the numbers depend on the images.
    assert sum(accuracy > 0 for accuracy in metrics(named.stdout)[1:6:2]) > 1


def test_a_upernet_of_mmsegmentation_0_is_tested_by_its_path(tmp_path):
    config = write_run(tmp_path)
    trained = run('train', tmp_path, config, '--work-dir', tmp_path / 'work', '--no-validate')
    assert trained.code == 0, trained.output
    ours, theirs = tmp_path / 'work/iter_8.pth', tmp_path / 'theirs.pth'
    state = as_mmseg0(torch.load(ours, weights_only=False)['state_dict'])
    torch.save({'meta': {'mmseg_version': '0.11.0'}, 'state_dict': state}, theirs)
    outputs = [run('test', tmp_path, config, file, '--work-dir', tmp_path / file.stem)
               for file in (ours, theirs)]
    assert [done.code for done in outputs] == [0, 0], outputs[1].output
    assert metrics(outputs[0].output) == metrics(outputs[1].output)
    assert 'has names of its own' in outputs[1].output
    assert 'has names of its own' not in outputs[0].output


def metrics(output: str) -> list[float]:
    """As they are printed: IoU and accuracy of each of the three classes, then their means."""
    classes = re.findall(r'^\|\s+[abc]\s+\|\s+([\d.]+)\s+\|\s+([\d.]+)\s+\|', output, re.M)
    means = re.findall(r'aAcc: ([\d.]+)\s+mIoU: ([\d.]+)\s+mAcc: ([\d.]+)', output)
    assert len(classes) == 3 and len(means) == 1, output
    return [float(number) for row in (*classes, *means) for number in row]


def test_a_dead_link_ends_a_training_with_one_message(mirror, cache, tmp_path):
    config, release = write_run(tmp_path, T2T_CONFIG), find_release(T2T)
    done = run_tool('train.py', config, '--work-dir', tmp_path / 'work', *ONE_STEP)
    assert done.returncode == 2 and 'Traceback' not in done.stdout + done.stderr
    message, = done.stderr.splitlines()
    assert message.startswith(f'error: could not download {mirror.url}/{release.file} (HTTP ')
    assert ' 404' in message
    assert message.endswith(f'by hand from {release.url} and put it at {cache / release.file}')
    assert mirror.requests == [(f'/{release.file}', None)] and not names(cache)


def test_a_file_of_a_mirror_is_the_published_one_afterwards(mirror, cache, monkeypatch):
    write_t2t(mirror.folder)
    release = find_release(T2T)
    path = release.fetch()
    record = json.loads((cache / f'{release.file}.origin.json').read_text())
    assert record['url'] == release.url and record['mirror'] == f'{mirror.url}/{release.file}'
    monkeypatch.delenv('VISATTN_MIRROR')
    assert release.fetch() == path and len(mirror.requests) == 1


def test_a_mirror_may_have_what_has_no_address(mirror, cache):
    release = find_release('biformer_small')
    assert release.url is None
    torch.save({'model': {'w': torch.zeros(1)}}, mirror.folder / release.file)
    assert release.fetch() == cache / release.file


def test_a_part_from_another_server_is_not_gone_on_with(mirror, cache):
    write_t2t(mirror.folder)
    release = find_release(T2T)
    cache.mkdir(parents=True)
    (cache / f'{release.file}.part').write_bytes(b'half of another file')
    (cache / f'{release.file}.part.json').write_text(json.dumps(
        {'url': release.url, 'validator': 'Sat, 21 Nov 2026 12:00:00 GMT'}))
    release.fetch()
    assert mirror.requests == [(f'/{release.file}', None)]


def test_a_folder_is_no_mirror(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('VISATTN_MIRROR', '/mnt/weights')
    with pytest.raises(UserError, match="VISATTN_MIRROR is .* got '/mnt/weights'.* TORCH_HOME"):
        find_release(T2T).fetch()
