"""tools/infer.py and what it stands on: the predictions are those of mmseg's own test."""
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from tests.tiny_runs import run, write_run
from visattn_dense.errors import UserError
from visattn_dense.inference import window_spans
from visattn_dense.openmmlab.engine.launch import register_scope
from visattn_dense.openmmlab.inference import open_segmentor

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / 'demo/configs/demo_upernet_cswin_scenes.py'


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A config file and a checkpoint of random weights that does not predict one class only."""
    folder = tmp_path_factory.mktemp('model')
    config = folder / 'tiny.py'
    config.write_text(f"_base_ = '{BASE}'\n"
                      "model = dict(backbone=dict(arch=dict(depths=(1, 1, 1, 1))))\n"
                      "test_pipeline = [dict(type='LoadImageFromFile'),\n"
                      "    dict(type='Resize', scale=(120, 90), keep_ratio=True),\n"
                      "    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]\n"
                      "test_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n")
    cfg = Config.fromfile(config)
    register_scope('mmseg')
    torch.manual_seed(3)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel()**-0.5)
    checkpoint = folder / 'tiny.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
    return config, checkpoint


@pytest.fixture
def photo(tmp_path) -> Path:
    """37×53 pixels: smaller than any crop, odd, not square; smooth, so that labels have shapes."""
    noise = np.random.default_rng(5).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / 'photos' / 'odd.png'
    path.parent.mkdir()
    Image.fromarray(noise).resize((53, 37), Image.Resampling.BICUBIC).save(path)
    return path


def mmseg_label(config: Path, checkpoint: Path, image: Path, **test_cfg) -> np.ndarray:
    from mmseg.apis import inference_model, init_model
    cfg = Config.fromfile(config)
    cfg.model.test_cfg = dict(test_cfg)
    cfg.model.auxiliary_head = None
    model = init_model(cfg, device='cpu')
    model.load_state_dict(torch.load(checkpoint)['state_dict'], strict=False)
    return inference_model(model, str(image)).pred_sem_seg.data[0].numpy()


def infer(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / 'tools/infer.py'), *map(str, arguments)],
                          capture_output=True, text=True)


@pytest.mark.parametrize('threshold', [None, 0.4, 0.45])
def test_a_binary_heads_own_threshold_decides_as_in_mmseg(trained, photo, tmp_path, threshold):
    """One output channel: class 1 where its sigmoid is above the head's threshold."""
    config, checkpoint = trained
    contents = torch.load(checkpoint)
    for name in ('decode_head.conv_seg.weight', 'decode_head.conv_seg.bias'):
        contents['state_dict'][name] = contents['state_dict'][name][:1].clone()
    torch.save(contents, tmp_path / 'binary.pth')
    head = dict(num_classes=2, out_channels=1) | ({} if threshold is None else
                                                  dict(threshold=threshold))
    binary = tmp_path / 'binary.py'
    binary.write_text(f"_base_ = ['{config}']\nmodel = dict(decode_head={head})\n")
    ours = open_segmentor(Config.fromfile(binary), tmp_path / 'binary.pth').label(photo)
    theirs = mmseg_label(binary, tmp_path / 'binary.pth', photo, mode='whole')
    assert 0 < (theirs == 1).mean() < 1
    assert (ours != theirs).mean() < 0.002


def test_whole_and_slide_agree_with_mmseg(trained, photo):
    config, checkpoint = trained
    whole = open_segmentor(Config.fromfile(config), checkpoint).label(photo)
    assert whole.shape == (37, 53) and whole.dtype == np.uint8
    assert len(np.unique(whole)) > 2
    np.testing.assert_array_equal(whole, mmseg_label(*trained, photo, mode='whole'))
    windows = dict(crop=(40, 52), stride=(27, 30))
    slide = open_segmentor(Config.fromfile(config), checkpoint, mode='slide', **windows)
    reference = mmseg_label(*trained, photo, mode='slide', crop_size=(40, 52), stride=(27, 30))
    # Summed in another order: a tie may fall to the other side.
    assert (slide.label(photo) == reference).mean() > 0.999
    assert (reference != whole).any(), 'windows change nothing: the case proves nothing'


@pytest.mark.parametrize('kind', [list, tuple])
def test_the_windows_of_the_config_have_its_steps(trained, kind):
    config, checkpoint = trained
    cfg = Config.fromfile(config)
    cfg.model.test_cfg = dict(mode='slide', crop_size=kind((40, 52)), stride=kind((27, 30)))
    for crop, stride in ((None, (27, 30)), ((40, 52), (27, 30)), ((40, 48), (26, 32))):
        assert open_segmentor(cfg, checkpoint, crop=crop).stride == stride


def test_a_window_larger_than_the_image_is_the_whole_image(trained, photo):
    config, checkpoint = trained
    cfg = Config.fromfile(config)
    slide = open_segmentor(cfg, checkpoint, mode='slide', crop=(512, 512)).label(photo)
    np.testing.assert_array_equal(slide, open_segmentor(cfg, checkpoint).label(photo))


@pytest.mark.parametrize('length, crop, stride', [(1, 5, 3), (5, 5, 3), (6, 5, 5), (23, 7, 3)])
def test_windows_cover_without_leaving_the_image(length, crop, stride):
    spans = window_spans(length, crop, stride)
    assert set().union(*(range(*span) for span in spans)) == set(range(length))
    assert all(end - start == min(crop, length) for start, end in spans)
    assert len(spans) == len(set(spans))


def test_steps_larger_than_the_window_are_refused(trained):
    config, checkpoint = trained
    with pytest.raises(UserError, match='leave gaps'):
        open_segmentor(Config.fromfile(config), checkpoint, crop=(8, 8), stride=(9, 8))


def test_command_line_writes_overlays_and_labels(trained, photo, tmp_path):
    grey = photo.parent / 'grey.jpg'
    Image.open(photo).convert('L').save(grey)
    twin = photo.parent / 'odd.bmp'
    Image.open(photo).save(twin)
    (photo.parent / 'notes.txt').write_text('no image')
    done = infer(*trained, photo.parent, photo.parent / '*.jpg', '--out-dir', tmp_path / 'out',
                 '--mode', 'slide', '--no-legend', '--device', 'cpu')
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / 'out').iterdir()}
    assert written == {'classes.json', 'grey_label.png', 'grey_overlay.png', 'odd_label.png',
                       'odd_overlay.png', 'odd_png_label.png', 'odd_png_overlay.png'}
    label = np.asarray(Image.open(tmp_path / 'out/odd_label.png'))
    names = json.loads((tmp_path / 'out/classes.json').read_text())
    assert label.shape == (37, 53) and set(map(str, np.unique(label))) <= set(names)
    assert names['0'] == 'building' and len(names) == 19
    assert Image.open(tmp_path / 'out/odd_overlay.png').size == (53, 37)


@pytest.mark.parametrize('wrong, message', [
    ('missing.jpg', 'missing.jpg'), ('none-*.jpg', 'no image matches'), ('empty', 'no images'),
    ('broken.jpg', 'broken.jpg is no image'),
])
def test_bad_images_are_one_message_before_anything_is_written(trained, photo, tmp_path, capsys,
                                                               monkeypatch, wrong, message):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken.jpg').write_bytes(b'not a picture')
    command = runpy.run_path(str(ROOT / 'tools/infer.py'))['main']
    code = command([*map(str, trained), str(photo), str(tmp_path / wrong),
                    '--out-dir', str(tmp_path / 'out')])
    assert code == 2
    said = capsys.readouterr().err
    assert said.startswith('error: ') and message in said and said.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_a_folder_that_is_not_there_is_named(photo, tmp_path):
    done = infer(tmp_path / 'run', photo)
    assert done.returncode == 2 and done.stderr.endswith(
        f'error: there is no file or folder {tmp_path}/run\n')


@pytest.mark.skipif(sys.platform == 'win32', reason='the limit is one of POSIX')
def test_a_full_disk_is_one_message(trained, tmp_path):
    """Files of at most 30 kB stand for the disk: no overlay fits. 30 pictures keep the model at
    work while the writing fails."""
    import resource
    (tmp_path / 'photos').mkdir()
    noise = np.random.default_rng(5).integers(0, 256, (30, 150, 200, 3), np.uint8)
    for i, image in enumerate(noise):
        Image.fromarray(image).save(tmp_path / f'photos/{i}.png')
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/infer.py'), *map(str, trained), tmp_path / 'photos',
         '--out-dir', tmp_path / 'out', '--device', 'cpu'], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000)))
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"error: [Errno 27] File too large: '{tmp_path}/out/0_overlay.png'\n"
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['classes.json']


def test_a_checkpoint_of_another_model_is_refused(trained, photo, tmp_path):
    config, checkpoint = trained
    state = torch.load(checkpoint)['state_dict']
    torch.save({f'other.{i}': tensor for i, tensor in enumerate(state.values())},
               tmp_path / 'other.pth')
    for name, message in (('other.pth', 'another config'), ('absent.pth', 'absent.pth')):
        with pytest.raises((UserError, FileNotFoundError), match=message):
            open_segmentor(Config.fromfile(config), tmp_path / name)


@pytest.mark.parametrize('mode', ['whole', 'slide'])
@pytest.mark.parametrize('binary', [False, True])
def test_infer_gives_the_label_maps_that_test_writes(binary, mode, tmp_path):
    """tools/test.py --out and tools/infer.py, file by file."""
    head = "model['decode_head'].update(out_channels=1, num_classes=2, threshold=0.45)\n"
    classes = "metainfo.update(classes=('a', 'b'), palette=[(0, 0, 0), (0, 255, 0)])\n"
    windows = "model['test_cfg'] = dict(mode='slide', crop_size=(24, 32), stride=(16, 20))\n"
    config = write_run(tmp_path, (head + classes if binary else '')
                       + (windows if mode == 'slide' else ''), images=2)
    if binary:
        for path in (tmp_path / 'data/labels').iterdir():
            Image.fromarray(np.minimum(np.array(Image.open(path)), 1)).save(path)
    register_scope('mmseg')
    torch.manual_seed(3)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(Config.fromfile(config).model)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel()**-0.5)
    # Noise excites one class everywhere. Without the means of the logits each class wins somewhere.
    image = torch.from_numpy(np.array(Image.open(tmp_path / 'data/images/0.png'))).permute(2, 0, 1)
    with torch.no_grad():
        logits = model.eval().encode_decode((image[None] - 127.5) / 127.5, [dict(
            img_shape=image.shape[1:], ori_shape=image.shape[1:], pad_shape=image.shape[1:])])
        model.decode_head.conv_seg.bias -= logits.mean((0, 2, 3))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'x.pth')
    done = run('test', tmp_path, config, tmp_path / 'x.pth', '--out', tmp_path / 'tested')
    assert done.code == 0, done.output
    images = sorted((tmp_path / 'data/images').iterdir())
    inferred = infer(config, tmp_path / 'x.pth', *images, '--out-dir', tmp_path / 'inferred',
                     '--device', 'cpu')
    assert inferred.returncode == 0, inferred.stderr
    for image in images:
        theirs = np.array(Image.open(tmp_path / 'tested' / image.name))
        ours = np.array(Image.open(tmp_path / 'inferred' / f'{image.stem}_label.png'))
        assert len(np.unique(theirs)) > 1
        # Windows are summed in another order: a tie may fall to the other side.
        assert (ours != theirs).mean() <= (0.001 if mode == 'slide' else 0)
