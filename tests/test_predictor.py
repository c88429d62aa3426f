"""`Predictor` and tools/infer.py on segmentors and detectors of OpenMMLab."""
import io
import json
import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from tests.tiny_runs import ROOT, run, write_detection_run, write_run
from visattn_dense import Predictor
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.engine.launch import register_scope
from visattn_dense.predict.sources import open_sources
from visattn_dense.predict.video import VideoWriter

MASKS = ROOT / 'demo/configs/demo_mask_rcnn_cswin_scenes.py'


def write_weights(config: Path, path: Path) -> Path:
    """Random weights that find something: each class of a segmentor wins somewhere."""
    cfg = Config.fromfile(config)
    register_scope(cfg.default_scope)
    torch.manual_seed(3)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel()**-0.5)
    if cfg.default_scope == 'mmseg':
        with torch.no_grad():
            image = torch.randn(1, len(cfg.model.data_preprocessor.mean), 40, 43)
            size = image.shape[2:]
            logits = model.encode_decode(image, [dict(img_shape=size, ori_shape=size,
                                                      pad_shape=size)])
            model.decode_head.conv_seg.bias -= logits.mean((0, 2, 3))
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory) -> Path:
    """The folder of a run: a config and a checkpoint at its top, images in data/images."""
    folder = tmp_path_factory.mktemp('segmentor')
    write_weights(write_run(folder, images=4), folder / 'iter_8.pth')
    return folder


@pytest.fixture(scope='module')
def detector(tmp_path_factory) -> Path:
    """The same of FCOS, which finds boxes."""
    folder = tmp_path_factory.mktemp('detector')
    write_weights(write_detection_run(folder, images=3), folder / 'epoch_3.pth')
    return folder


@pytest.fixture(scope='module')
def mask_rcnn(tmp_path_factory) -> Path:
    """The same of Mask R-CNN, which finds masks."""
    folder = tmp_path_factory.mktemp('masks')
    (folder / 'masks.py').write_text(
        f"_base_ = '{MASKS}'\nmodel = dict(test_cfg=dict(rcnn=dict(score_thr=0.01)))\n")
    write_weights(folder / 'masks.py', folder / 'epoch_3.pth')
    return folder


def upstream(folder: Path, path: Path):
    """What mmseg's or mmdet's own inference gives for an image file."""
    (config,), (checkpoint,) = folder.glob('*.py'), folder.glob('*.pth')
    cfg = Config.fromfile(config)
    if cfg.default_scope == 'mmseg':
        from mmseg.apis import inference_model, init_model
        return inference_model(init_model(cfg, str(checkpoint), 'cpu'), str(path))
    from mmdet.apis import inference_detector, init_detector
    return inference_detector(init_detector(cfg, str(checkpoint), device='cpu'), str(path))


def test_a_folder_of_a_run_is_enough_for_a_segmentor(segmentor):
    predict = Predictor(segmentor)
    paths = sorted((segmentor / 'data/images').iterdir())
    alone = [next(predict(path)) for path in paths]
    together = list(predict(segmentor / 'data/images', batch_size=3, scores=True))
    for path, one, other in zip(paths, alone, together, strict=True):
        expected = upstream(segmentor, path)
        np.testing.assert_array_equal(one.labels, expected.pred_sem_seg.data[0].numpy())
        # A batch is computed in another order of sums.
        assert (one.labels != other.labels).mean() < 0.002
        np.testing.assert_allclose(other.scores, expected.seg_logits.data.softmax(0), atol=2e-3)
        assert len(one.areas()) == 3 and sum(one.areas().values()) == one.labels.size
        assert (one.path, one.size, one.model_size) == (str(path), (40, 43), (40, 43))


@pytest.mark.parametrize('kind', ['detector', 'mask_rcnn'])
def test_detectors_find_what_mmdet_finds(kind, request, segmentor):
    folder = request.getfixturevalue(kind)
    predict = Predictor(folder, device='cpu')
    path = segmentor / 'data/images/1.png'
    expected = upstream(folder, path).pred_instances
    assert len(expected) > 3
    (found,) = predict(path, conf=0.)
    order = expected.scores.argsort(descending=True, stable=True)
    np.testing.assert_allclose(found.boxes, expected.bboxes[order], atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores[order], atol=1e-5)
    np.testing.assert_array_equal(found.labels, expected.labels[order])
    if kind == 'detector':
        assert found.masks is None and found.names[0] == 'thing'
    else:
        np.testing.assert_array_equal(found.masks, expected.masks[order])
        assert found.masks.any() and found.draw().shape[1] == 160
    least = float(found.scores[2])
    (fewer,) = predict(path, conf=least, max_det=2, classes=[int(found.labels[0])])
    assert 1 <= len(fewer) <= 2 and set(fewer.labels) == {found.labels[0]}
    assert len(next(predict(path, conf=1.))) == 0


def test_all_sources_of_a_picture_give_one_result(segmentor):
    """A file, its bytes, the array, OpenCV's array, the tensor, Pillow's image."""
    predict = Predictor(segmentor)
    path = segmentor / 'data/images/0.png'
    array = np.array(Image.open(path))
    sources = [path, path.read_bytes(), io.BytesIO(path.read_bytes()), array, Image.open(path),
               torch.from_numpy(array).permute(2, 0, 1)]
    results = [*predict(sources), *predict(array[..., ::-1], channels='bgr')]
    assert len(results) == 7
    for result in results:
        np.testing.assert_array_equal(result.labels, results[0].labels)
        np.testing.assert_array_equal(result.image, array)
    (wrong,) = predict(array[..., ::-1])
    assert (wrong.labels != results[0].labels).any(), 'the order of colours matters'


@pytest.mark.parametrize('loader', ["color_type='grayscale'", "color_type='unchanged'",
                                    "imdecode_backend='pillow'", 'to_float32=True'])
def test_an_array_becomes_what_the_configs_loader_makes_of_a_file(segmentor, tmp_path, loader):
    config = tmp_path / 'x.py'
    config.write_text(
        f"_base_ = '{segmentor / 'tiny.py'}'\n"
        "test_pipeline = [\n"
        f"    dict(type='LoadImageFromFile', {loader}), dict(type='PackSegInputs')]\n"
        "test_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n"
        + ("model = dict(data_preprocessor=dict(mean=[127.5], std=[127.5]),\n"
           "             backbone=dict(in_channels=1))\n" if 'grayscale' in loader else ''))
    weights = (write_weights(config, tmp_path / 'x.pth') if 'grayscale' in loader else
               segmentor / 'iter_8.pth')
    predict = Predictor(config, weights)
    path = segmentor / 'data/images/0.png'
    file, array = predict([path, np.array(Image.open(path))])
    np.testing.assert_array_equal(file.labels, array.labels)
    np.testing.assert_array_equal(file.image, array.image)
    assert file.image.shape == (40, 43, 3)


def test_a_photo_is_turned_as_in_training(segmentor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(segmentor / 'data/images/0.png').save(tmp_path / 'x.png', exif=exif)
    (file, image) = Predictor(segmentor)([tmp_path / 'x.png', Image.open(tmp_path / 'x.png')])
    assert file.size == image.size == (43, 40)
    np.testing.assert_array_equal(file.labels, image.labels)
    np.testing.assert_array_equal(file.labels,
                                  upstream(segmentor, tmp_path / 'x.png').pred_sem_seg.data[0])


def test_pixels_and_classes_that_are_not_wanted_are_ignored(segmentor):
    predict = Predictor(segmentor)
    path = segmentor / 'data/images/0.png'
    (full,), (sure,), (two,) = (predict(path, scores=True), predict(path, conf=0.45),
                                predict(path, classes=['a', 2]))
    best = full.scores.max(0)
    np.testing.assert_array_equal(sure.labels == 255, best.astype(np.float32) < 0.45)
    assert 0 < (sure.labels == 255).mean() < 1
    np.testing.assert_array_equal(two.labels, np.where(full.labels == 1, 255, full.labels))
    assert set(two.areas()) == {0, 2}


def test_half_and_optimize_give_nearly_the_same(segmentor):
    path = segmentor / 'data/images/0.png'
    (plain,), (half,), (fast,) = (Predictor(segmentor, **options)(path, scores=True) for options in
                                  ({}, dict(half=True), dict(optimize=True)))
    assert np.abs(plain.scores - fast.scores).max() < 2e-3
    assert 0 < np.abs(plain.scores - half.scores).max() < 0.1


@pytest.mark.parametrize('kind', ['detector', 'mask_rcnn'])
def test_detectors_in_half_find_nearly_the_same(kind, request, segmentor):
    folder, path = request.getfixturevalue(kind), segmentor / 'data/images/1.png'
    (plain,), (half,) = (Predictor(folder, half=half)(path, conf=0.) for half in (False, True))
    assert len(half) > 3 and np.abs(plain.scores[:3] - half.scores[:3]).max() < 0.05
    assert (plain.scores[:3] != half.scores[:3]).any()
    assert (half.masks is None) == (kind == 'detector')


def test_test_time_augmentation_is_that_of_the_test(segmentor, tmp_path):
    """The average of a picture and its mirror; with Resize, what tools/test.py --tta finds."""
    path = segmentor / 'data/images/2.png'
    array = np.array(Image.open(path))
    plain, tta = Predictor(segmentor), Predictor(segmentor, tta=True)
    (one,), (mirrored,), (mean,) = (plain(path, scores=True), plain(array[:, ::-1], scores=True),
                                    tta(path, scores=True))
    expected = (one.scores.astype(np.float32) + mirrored.scores[..., ::-1]) / 2
    np.testing.assert_allclose(mean.scores, expected, atol=2e-3)
    extra = "\ntest_pipeline.insert(1, dict(type='Resize', scale=(60, 50), keep_ratio=True))\n"
    config = write_run(tmp_path, extra, images=2)
    weights = segmentor / 'iter_8.pth'
    done = run('test', tmp_path, config, weights, '--tta', '--out', tmp_path / 'tested')
    assert done.code == 0, done.output
    for result in Predictor(config, weights, tta=True)(tmp_path / 'data/images'):
        theirs = np.array(Image.open(tmp_path / f'tested/{result.name}.png'))
        assert (result.labels != theirs).mean() < 0.002


def test_detectors_with_test_time_augmentation(detector, mask_rcnn):
    (found,) = Predictor(detector, tta=True)(detector / 'data/images/0.png', conf=0.)
    assert len(found) > 3
    with pytest.raises(UserError, match='finds masks too'):
        Predictor(mask_rcnn, tta=True)


def test_native_leaves_out_the_resizing(mask_rcnn, segmentor):
    path = segmentor / 'data/images/1.png'
    (resized,), (native,) = (Predictor(mask_rcnn, native=native)(path, conf=0.)
                             for native in (False, True))
    assert resized.model_size == (192, 206) and native.model_size == native.size == (40, 43)
    assert native.boxes.max() <= 43


def test_a_size_that_the_pipeline_does_not_take_is_one_message(mask_rcnn):
    with pytest.raises(UserError, match='pipeline fail on 1x5000 pixels'):
        list(Predictor(mask_rcnn)(np.zeros((1, 5000, 3), np.uint8)))


def test_padding_of_the_preprocessor_is_cut_off(segmentor, tmp_path):
    config = tmp_path / 'x.py'
    config.write_text(
        f"_base_ = '{segmentor / 'tiny.py'}'\n"
        "model = dict(data_preprocessor=dict(test_cfg=dict(size_divisor=32)))\n")
    shutil.copy(segmentor / 'iter_8.pth', tmp_path)
    path = segmentor / 'data/images/1.png'
    (ours,) = Predictor(tmp_path)(path)
    theirs = upstream(tmp_path, path).pred_sem_seg.data[0].numpy()
    np.testing.assert_array_equal(ours.labels, theirs)


def test_pictures_are_prepared_as_the_test_data(segmentor, tmp_path):
    """An option changes the pipeline of the data, not the variable that it was made with."""
    cfg = Config.fromfile(segmentor / 'tiny.py')
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=(32, 24)))
    cfg.dump(tmp_path / 'tiny.py')
    shutil.copy(segmentor / 'iter_8.pth', tmp_path)
    (result,) = Predictor(tmp_path, device='cpu')(segmentor / 'data/images/0.png')
    assert result.model_size == (24, 32) and result.size == (40, 43)


def test_the_best_checkpoint_of_a_run_comes_first(segmentor, tmp_path):
    shutil.copy(segmentor / 'tiny.py', tmp_path)
    with pytest.raises(UserError, match='has no checkpoint'):
        Predictor(tmp_path)
    weights = torch.load(segmentor / 'iter_8.pth')
    for number, name in enumerate(['best_mIoU_iter_4.pth', 'iter_8.pth']):
        weights['state_dict']['decode_head.conv_seg.bias'][:] = torch.eye(3)[number] * 100
        torch.save(weights, tmp_path / name)
    (result,) = Predictor(tmp_path)(segmentor / 'data/images/0.png')
    assert set(result.areas()) == {0}
    shutil.copy(segmentor / 'tiny.py', tmp_path / 'second.py')
    with pytest.raises(UserError, match='2 config files'):
        Predictor(tmp_path)


@pytest.mark.parametrize('call, message', [
    (lambda folder: Predictor(folder / 'tiny.py'), 'name a checkpoint too'),
    (lambda folder: Predictor(folder, device='nowhere'), 'not to be had here'),
    (lambda folder: Predictor(folder, mode='slide', gather='foo'), "device 'foo' is not to be"),
    (lambda folder: Predictor(folder, half=True, optimize=True, device='cpu'), 'exclude'),
    (lambda folder: Predictor(folder)('none.jpg'), 'no such file'),
    (lambda folder: Predictor(folder)(folder / 'data/images', classes=['d']), "no class 'd'"),
    (lambda folder: Predictor(folder)(folder / 'data/images', conf=50), 'from 0 to 1, got 50'),
    (lambda folder: Predictor(folder)(folder / 'data/images', batch_size=0), 'at least 1'),
])
def test_wrong_input_is_one_message_at_once(segmentor, call, message):
    with pytest.raises(UserError, match=message):
        call(segmentor)


def test_averaged_windows_are_for_segmentors(detector):
    with pytest.raises(UserError, match="use mode 'tiles'"):
        Predictor(detector, mode='slide')


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
@pytest.mark.parametrize('source', ['generator', 'video'])
def test_memory_stays_where_it_is_over_many_frames(segmentor, tmp_path, source):
    """500 frames; results that somebody keeps would take 170 MB."""
    config = tmp_path / 'small.py'
    config.write_text(
        f"_base_ = '{segmentor / 'tiny.py'}'\n"
        "test_pipeline = [dict(type='LoadImageFromFile'),\n"
        "    dict(type='Resize', scale=(32, 32)), dict(type='PackSegInputs')]\n"
        "test_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n")
    coarse = np.random.default_rng(0).integers(0, 200, (16, 16, 3), np.uint8)
    frame = np.array(Image.fromarray(coarse).resize((288, 288)))
    frames = (frame + np.uint8(number % 50) for number in range(600))
    if source == 'video':
        pytest.importorskip('av')
        with VideoWriter(tmp_path / 'clip.mp4') as video:
            for picture in frames:
                video.write(picture)
        frames = tmp_path / 'clip.mp4'
    used = []
    for number, result in enumerate(Predictor(config, segmentor / 'iter_8.pth')(frames), 1):
        assert result.labels.shape == (288, 288)
        if number in (100, 600):
            status = Path('/proc/self/status').read_text()
            used.append(int(re.search(r'VmRSS:\s+(\d+) kB', status)[1]) / 1000)
    assert number == 600 and used[1] - used[0] < 40, used


# The command

@dataclass
class Command:
    """tools/infer.py in this process."""

    main: Callable[[list[str]], int]
    capsys: pytest.CaptureFixture

    def __call__(self, *arguments: object) -> str:
        """What it prints; it has to succeed."""
        code = self.main([str(argument) for argument in arguments])
        printed = self.capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    def refused(self, *arguments: object) -> str:
        """The one message of a command that refuses its input."""
        code = self.main([str(argument) for argument in arguments])
        said = self.capsys.readouterr().err
        assert code == 2 and said.startswith('error: ') and said.count('\n') == 1, said
        return said


@pytest.fixture
def infer(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    return Command(runpy.run_path(str(ROOT / 'tools/infer.py'))['main'], capsys)


def test_the_command_on_a_detector_and_a_video(detector, tmp_path, infer):
    pytest.importorskip('av')
    with VideoWriter(tmp_path / 'clip.mp4', 5) as video:
        for number in range(4):
            video.write(np.full((40, 64, 3), 50 * number, np.uint8))
    printed = infer(detector, detector / 'data/images', tmp_path / 'clip.mp4', '--out-dir',
                    tmp_path / 'out', '--save-json', tmp_path / 'all.json', '--conf', '0',
                    '--max-det', '2', '--batch-size', '2')
    written = {path.name for path in (tmp_path / 'out').iterdir()}
    assert written == {'classes.json', 'clip_overlay.mp4',
                       *(f'{i}{end}' for i in range(3) for end in ('_overlay.png', '.json'))}
    assert '(computed at 40x64)' in printed
    assert re.search(r'^7 images in [\d.]+ s, [\d.]+ images/s; the model saw all of them at their '
                     r'own size', printed, re.M)
    data = json.loads((tmp_path / 'all.json').read_text())
    assert len(data['images']) == 7 and len(data['annotations']) == 14
    assert len(json.loads((tmp_path / 'out/0.json').read_text())['objects']) == 2
    (about,) = {(frame.fps, frame.rgb().shape)
                for frame in open_sources(tmp_path / 'out/clip_overlay.mp4')}
    assert about == (5, (40, 64, 3))


def test_the_command_says_that_pictures_are_shrunk(mask_rcnn, tmp_path, infer):
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(tmp_path / 'x.png')
    printed = infer(mask_rcnn, tmp_path / 'x.png', '--out-dir', tmp_path / 'out')
    assert 'saw 300x400 pixels shrunk to 192x256' in printed and '--native' in printed


def test_tiles_are_said_to_keep_the_size(segmentor, tmp_path, infer):
    Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(tmp_path / 'x.png')
    printed = infer(segmentor, tmp_path / 'x.png', '--native', '--crop', '64', '64', '--out-dir',
                    tmp_path / 'out')
    assert 'in tiles of 64x64' in printed and 'at their own size, in tiles' in printed
    assert 'shrunk' not in printed


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / 'photos'
    folder.mkdir()
    Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(folder / 'a.jpg')
    (folder / 'a.json').write_text('{"version": "5.0", "shapes": []}')
    return folder


@pytest.mark.parametrize('options, message', [
    (['--out-dir', 'photos'], 'a.json is there already'),
    (['--out-dir', 'mine'], 'classes.json is there already'),
    (['--out-dir', 'truth'], 'a_overlay.png is there already'),
    (['--save-json', 'photos/a.jpg'], 'over or among what is read'),
    (['--save-json', 'run/epoch_3.pth'], 'over or among what is read'),
    (['--save-json', 'photos'], 'is a folder'), (['--save-json', 'photos/a.json/x'], 'x cannot be'),
    (['--save-json', 'new/a.json', '--out-dir', 'new'], 'two results'),
    (['--video', 'x.gif'], 'ends in .mp4'), (['--geojson'], '--geojson is for TIFF files'),
    (['--out-dir', 'photos/a.jpg'], 'over or among what is read'),
])
def test_no_file_is_lost_that_the_command_did_not_write(detector, photos, tmp_path, infer,
                                                        monkeypatch, options, message):
    (config,), (checkpoint,) = detector.glob('*.py'), detector.glob('*.pth')
    for name, content in (('mine/classes.json', '["a"]'), ('truth/a_overlay.png', 'mine'),
                          ('run/epoch_3.pth', checkpoint.read_bytes())):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert message in infer.refused(config, 'run/epoch_3.pth', 'photos', *options)
    assert tree(tmp_path) == before


@pytest.mark.parametrize('ending', ['py', 'pth'])
def test_no_file_of_a_run_is_lost(detector, photos, infer, ending):
    (file,) = detector.glob(f'*.{ending}')
    before = tree(detector)
    assert 'over or among what is read' in infer.refused(detector, photos, '--save-json', file)
    assert tree(detector) == before


def test_results_may_lie_beside_the_sources_and_replace_older_results(detector, segmentor, photos,
                                                                      tmp_path, infer):
    for _ in range(2):
        infer(detector, photos, '--out-dir', tmp_path / 'out')
    before = tree(photos)
    infer(segmentor, photos, '--out-dir', photos)
    after = tree(photos)
    assert {name: after[name] for name in before} == before
    assert {*after} == {*before, 'a_overlay.png', 'a_label.png', 'classes.json'}
    # The labels may have been corrected by hand since then.
    assert 'is there already' in infer.refused(segmentor, photos / 'a.jpg', '--out-dir', photos)
    # A detector writes classes.json itself.
    shutil.copy(photos / 'a.jpg', tmp_path / 'classes.jpg')
    assert 'two results' in infer.refused(detector, tmp_path / 'classes.jpg', '--out-dir',
                                          tmp_path / 'out')


def test_a_video_is_not_written_over_its_source(segmentor, tmp_path, infer):
    pytest.importorskip('av')
    with VideoWriter(tmp_path / 'mine.mp4') as video:
        video.write(np.zeros((40, 64, 3), np.uint8))
    before = tree(tmp_path)
    said = infer.refused(segmentor, tmp_path / 'mine.mp4', '--video', tmp_path / 'mine.mp4',
                         '--out-dir', tmp_path)
    assert 'over or among what is read' in said
    shutil.copy(tmp_path / 'mine.mp4', tmp_path / 'mine_overlay.mp4')
    said = infer.refused(segmentor, tmp_path / 'mine.mp4', '--out-dir', tmp_path)
    assert 'mine_overlay.mp4 is there already' in said
    assert tree(tmp_path) == before | {'mine_overlay.mp4': before['mine.mp4']}


@pytest.mark.parametrize('bad', ['cut', 'floats'])
def test_a_damaged_picture_keeps_the_results_before_it(segmentor, tmp_path, infer, bad):
    """What only a decoder notices: the head of the file is right."""
    (tmp_path / 'in').mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8))
    for name in 'abcdefg':
        image.save(tmp_path / 'in' / f'{name}.jpg')
    if bad == 'cut':
        data = (tmp_path / 'in/g.jpg').read_bytes()
        (tmp_path / 'in/g.jpg').write_bytes(data[:len(data) // 2])
    else:
        (tmp_path / 'in/g.jpg').unlink()
        image.convert('F').save(tmp_path / 'in/g.tif')
    said = infer.refused(segmentor, tmp_path / 'in', '--out-dir', tmp_path / 'out', '--save-json',
                         tmp_path / 'all.json')
    assert '/g.' in said and 'results of 6 images before are kept' in said
    assert len(json.loads((tmp_path / 'all.json').read_text())['images']) == 6
    assert len([*(tmp_path / 'out').glob('?_label.png')]) == 6
    # An older file is no worse than one without pictures.
    infer.refused(segmentor, tmp_path / f'in/g.{"jpg" if bad == "cut" else "tif"}', '--out-dir',
                  tmp_path / 'out', '--save-json', tmp_path / 'all.json')
    assert len(json.loads((tmp_path / 'all.json').read_text())['images']) == 6


def test_the_command_takes_an_exported_model(segmentor, tmp_path, infer):
    model = tmp_path / 'none.onnx'
    images = [*(segmentor / 'data/images').iterdir()]
    for chosen in (images[:1], images[:2]):
        assert f'there is no file {model}' in infer.refused(model, *chosen, '--out-dir',
                                                            tmp_path / 'out')
    assert 'tta belong to the export' in infer.refused(model, images[0], '--tta', '--out-dir',
                                                       tmp_path / 'out')


def test_the_commands_of_the_page(segmentor, tmp_path, infer, monkeypatch):
    """docs/inference.md, its shell commands and its Python, in a folder that has what they name."""
    pytest.importorskip('av')
    shutil.copytree(segmentor, tmp_path / 'work_dirs/mine')
    shutil.copytree(segmentor / 'data/images', tmp_path / 'photos')
    Image.open(segmentor / 'data/images/0.png').save(tmp_path / 'photo.jpg')
    with VideoWriter(tmp_path / 'clip.mp4') as video:
        video.write(np.zeros((40, 64, 3), np.uint8))
    pytest.importorskip('rasterio')
    pytest.importorskip('tifffile').imwrite(
        tmp_path / 'map.tif', np.zeros((300, 280, 3), np.uint8), photometric='rgb', tile=(64, 64))
    monkeypatch.chdir(tmp_path)
    page = (ROOT / 'docs/inference.md').read_text()
    blocks = re.findall(r'^```(sh|python)\n(.*?)^```$', page, re.M | re.S)
    assert {kind for kind, _ in blocks} == {'sh', 'python'}
    for kind, block in blocks:
        if kind == 'python':
            exec(block, {})
        for line in block.splitlines() if kind == 'sh' else ():
            python, tool, *arguments = shlex.split(line)
            assert (python, tool) == ('python', 'tools/infer.py')
            infer(*arguments)
    assert (tmp_path / 'outputs/clip_overlay.mp4').stat().st_size
    assert json.loads((tmp_path / 'all.json').read_text())['annotations']
    assert (tmp_path / 'out/photo_overlay.png').exists()
    assert {path.name for path in (tmp_path / 'maps').iterdir()} >= {
        'map_label.tif', 'map_overlay.png', 'map.geojson', 'photo_label.png'}
