"""tools/export.py, and what runs its files without torch and OpenMMLab."""
import ast
import importlib.util
import itertools
import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

from tests.test_detection import TINY
from tests.test_predictor import write_weights
from tests.tiny_runs import ROOT, write_detection_run, write_run
from visattn_dense import Predictor
from visattn_dense.errors import UserError
from visattn_dense.inference.exported import without_guards
from visattn_dense.openmmlab.export import (
    AveragePool,
    Graph,
    make_card,
    sample_images,
    trace,
    write,
)
from visattn_dense.openmmlab.inference import open_segmentor
from visattn_dense.openmmlab.parity import compare
from visattn_dense.ops.choose import use_implementation
from visattn_dense.predict.card import Card
from visattn_dense.predict.exported import decide, nearest
from visattn_dense.predict.fitting import prepare
from visattn_dense.predict.resizing import resize
from visattn_dense.predict.sources import open_sources
from visattn_dense.predict.stream import Options

MISSING = [name for name in ('onnx', 'onnxruntime', 'onnxscript')
           if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f'the extra "export" lacks {MISSING}')
CARD = Card(classes=['a', 'b'], palette=[[0, 0, 0], [1, 1, 1]], mean=[10., 20., 30.],
            std=[2., 4., 8.], steps=[])


def export(*arguments) -> int:
    """The exit code of tools/export.py, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools'))
        tool = runpy.run_path(str(ROOT / 'tools/export.py'))
    return tool['main'](list(map(str, arguments)))


def run_listing(*arguments) -> subprocess.CompletedProcess:
    """The program of docs/deployment.md that uses a file without this project."""
    page = (ROOT / 'docs/deployment.md').read_text(encoding='utf-8')
    (listing,) = (block for block in page.split('```python\n')[1:] if 'import json' in block)
    return subprocess.run([sys.executable, '-c', listing.partition('```')[0], *arguments],
                          capture_output=True, text=True)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder of a run, with its model as model.onnx at the size of its images."""
    folder = tmp_path_factory.mktemp('run')
    write_weights(write_run(folder, images=3), folder / 'iter_8.pth')
    if not MISSING:
        assert export(folder, '--size', '40x43', '--out', folder / 'model.onnx',
                      '--license', 'CC-BY-4.0') == 0
    return folder


@needs_onnx
def test_the_file_needs_neither_torch_nor_openmmlab(folder, tmp_path):
    picture = np.random.default_rng(2).integers(0, 256, (70, 93, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / 'picture.png')
    code = f"""
import sys
for name in ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmseg', 'mmdet', 'cv2'):
    sys.modules[name] = None
from visattn_dense import Predictor
predict = Predictor({str(folder / 'model.onnx')!r})
for result in predict([{str(tmp_path / 'picture.png')!r}, {str(folder / 'data/images/0.png')!r}],
                      scores=True):
    result.save({str(tmp_path / 'out')!r})
    print(result.name, result.scores.shape)
print(*predict.classes, predict.palette, predict.runtime.card.license)
"""
    done = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        'picture (3, 70, 93)', '0 (3, 40, 43)', 'a b c [[0, 0, 0], [0, 255, 0], [255, 0, 0]] '
        'CC-BY-4.0']
    (expected,) = Predictor(folder, device='cpu')(folder / 'data/images/0.png')
    found = np.array(Image.open(tmp_path / 'out/0_label.png'))
    assert (found == expected.labels).mean() > 0.999
    assert len(np.unique(found)) == 3


@needs_onnx
def test_options_work_on_the_file(folder):
    path = folder / 'data/images/1.png'
    predict, reference = Predictor(folder / 'model.onnx'), Predictor(folder, device='cpu')
    for options in (dict(conf=0.5), dict(classes=['b'])):
        (found,), (expected,) = predict(path, **options), reference(path, **options)
        assert (found.labels == expected.labels).mean() > 0.995
        assert (expected.labels == 255).any() and (expected.labels != 255).any()
    with pytest.raises(UserError, match='half belong to the export'):
        Predictor(folder / 'model.onnx', half=True)


@needs_onnx
def test_a_file_of_other_weights_is_a_fault(folder):
    segmentor = open_segmentor(Config.fromfile(folder / 'tiny.py'), folder / 'iter_8.pth')
    runtime = Predictor(folder / 'model.onnx').runtime
    pictures = open_sources(str(folder / 'data/images'))
    assert compare(segmentor, runtime, pictures).fault() is None
    with torch.no_grad():
        segmentor.model.decode_head.conv_seg.bias[0] += 0.3
    assert 'the largest difference is 0.3' in compare(segmentor, runtime, pictures).fault()
    with torch.no_grad():
        segmentor.model.decode_head.conv_seg.bias[0] = float('nan')
    assert compare(segmentor, runtime, pictures).fault()


@needs_onnx
def test_what_is_no_exported_model_is_refused(folder, tmp_path):
    (tmp_path / 'junk.onnx').write_bytes(b'junk')
    with pytest.raises(UserError, match='does not load in onnxruntime'):
        Predictor(tmp_path / 'junk.onnx')
    with pytest.raises(UserError, match='there is no file'):
        Predictor(tmp_path / 'none.onnx')
    import onnx
    model = onnx.load(folder / 'model.onnx')
    del model.metadata_props[:]
    onnx.save(model, tmp_path / 'bare.onnx')
    with pytest.raises(UserError, match='no model that tools/export.py wrote'):
        Predictor(tmp_path / 'bare.onnx')


def test_a_detector_that_the_export_does_not_know_is_refused_in_one_message(tmp_path, capsys):
    config = write_detection_run(tmp_path)
    weights = write_weights(config, tmp_path / 'epoch_1.pth')
    assert export(config, weights) == 2
    assert 'The FCOSHead of this detector' in capsys.readouterr().err
    assert export(config, weights, '--int8', tmp_path) == 2
    assert '--int8 is for segmentors' in capsys.readouterr().err


@pytest.mark.parametrize('family', TINY)
def test_a_traced_backbone_has_no_transposition_that_older_exporters_lack(family: str):
    with DefaultScope.overwrite_default_scope('mmdet'), use_implementation(
            'reference', operator='routed_attention'), torch.no_grad():
        backbone = MODELS.build(deepcopy(TINY[family])).eval()
        program = torch.export.export(backbone, (torch.randn(1, 3, 64, 96),), strict=False)
    found = {str(node.target).split('.')[1] for node in program.graph.nodes
             if str(node.target).startswith('aten.')}
    assert 'transpose' in found or 'permute' in found
    assert not found & {'mT', 'mH', 'numpy_T', 'matrix_H', 'adjoint'}


def tool_of_the_table() -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools'))
        return runpy.run_path(str(ROOT / 'tools/export_table.py'))


def test_the_table_pairs_the_objects_of_a_file_with_those_of_the_model():
    """NMS may exchange one object, and objects of nearly equal scores may change places."""
    tool, generator = tool_of_the_table(), torch.Generator().manual_seed(0)
    expected = [torch.rand(60, *shape, generator=generator) for shape in ((4,), (), (5, 5))]
    changed = [part.flip(0) * (1 + 1e-6) for part in expected]
    case = ([torch.zeros(1, 3, 32, 32)], expected)

    def outcome(found: list) -> str:
        runtime = SimpleNamespace(compute=lambda image: [part.numpy() for part in found])
        return tool['compared'](runtime, [case])

    assert float(outcome(changed)) < 3e-6
    assert outcome([part[1:] for part in changed]).endswith('; 1 of 60 objects differ')
    assert outcome([part[2:] for part in changed]) == 'differs by inf'
    changed[1][7] = float('nan')
    assert outcome(changed).endswith('; 1 of 60 objects differ')
    assert outcome([expected[0], expected[1].flip(0), expected[2]]).startswith('differs by ')


def test_the_table_of_the_page_is_that_of_the_measurements():
    tool = tool_of_the_table()
    page = tool['PAGE'].read_text(encoding='utf-8')
    results = json.loads(tool['RESULTS'].read_text())
    assert tool['page'](page, results) == page
    assert set(results) <= set(itertools.chain(*(keys for _, keys, _ in tool['cells']())))
    (measured,) = tool['measure']('CSWin', 'Semantic FPN', 'fixed', ['torch-export'])
    assert float(measured) < 1e-3


class Last(nn.Module):
    """A segmentor without a head: the coarsest map of a backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def encode_decode(self, inputs: torch.Tensor, metas: list) -> torch.Tensor:
        return self.backbone(inputs)[-1]


def test_a_program_for_any_size_resizes_the_positions():
    """T2T-ViT: also if one side, or both, have the size of the training."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = Last(MODELS.build(deepcopy(TINY['T2TViT']))).eval()
    program, _ = trace(SimpleNamespace(model=model), CARD, None)
    loaded = without_guards(program)
    # Also where maps have one place: torch has noted that each side is longer than 1.
    for size in ((4, 4), (6, 40), (64, 64), (224, 97), (224, 224)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(loaded(image), model.encode_decode(image, []))


class Wide(nn.Module):
    """A segmentor that needs 24 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 24)

    def encode_decode(self, inputs: torch.Tensor, metas: list) -> torch.Tensor:
        return self.layer(inputs)


class Undecided(nn.Module):
    """A segmentor that computes something else below 20 pixels."""

    def encode_decode(self, inputs: torch.Tensor, metas: list) -> torch.Tensor:
        return inputs[:, :2] if inputs.shape[2] < 20 else inputs[:, 1:]


@pytest.mark.parametrize('segmentor, side', [(Wide(), 24), (Undecided(), 20)])
def test_a_file_for_any_size_states_its_smallest_side_and_refuses_smaller_pictures(
        tmp_path, segmentor: nn.Module, side: int):
    """Where the program of the smallest image is not that of the model, torch's bound stays."""
    model = SimpleNamespace(model=segmentor)
    program, inputs = trace(model, CARD, None)
    card = write(program, inputs, CARD, tmp_path / 'm.pt2', to='torch-export', size=None)
    predict = Predictor(tmp_path / 'm.pt2')
    assert predict.runtime.card.smallest_side == card.smallest_side == side
    small = np.zeros((side - 1, 40, 3), np.uint8)
    with pytest.raises(UserError, match=f'from {side}x{side} pixels on, .* {side - 1}x40: enlarge'):
        next(predict(small))
    image = torch.randn(1, 3, side, 40)
    (found,) = predict.runtime.compute(image.numpy())
    np.testing.assert_allclose(found, Graph(model, CARD)(image).detach(), atol=1e-5)


def test_t2t_in_half_is_precise_beside_padding():
    """The exponentials of the performer multiply the rounding of its input."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = SimpleNamespace(model=Last(MODELS.build(deepcopy(TINY['T2TViT']))).eval())
    for parameter in model.model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel()**-0.5)
    full, half = Graph(model, CARD), Graph(model, CARD, half=True)
    for _ in range(4):
        image = F.pad(torch.randn(1, 3, 96, 64), (0, 64))
        with torch.no_grad():
            expected, found = full(image), half(image)
        assert (found - expected).abs().max() < 0.005 * expected.abs().max()


def test_a_small_epsilon_stays_in_the_file(tmp_path):
    """The optimizer takes a term of at most 1e-8 for 0: then 0 / 0 where no key is positive."""
    class Normalised(nn.Module):
        def forward(self, x):
            total = x.sum(-1, keepdim=True)
            return torch.cat([x / (total + 1e-15), x / (1e-8 + total), x / (total - 1e-9)])

    x = torch.stack([torch.zeros(4), torch.full((4,), 2e-9), torch.ones(4)])[None]
    program = torch.export.export(Normalised(), (x,), strict=False)
    write(program, dict(image=x), CARD, tmp_path / 'm.onnx', to='onnx', size=(3, 4))
    found, = Predictor(tmp_path / 'm.onnx').runtime.compute(x.numpy())
    np.testing.assert_allclose(found, Normalised()(x), rtol=1e-5)


@pytest.mark.parametrize('size', [(7, 11), (31, 17), (40, 40), (20, 1)])
def test_resizing_is_that_of_opencv_and_of_torch(size):
    import cv2
    array = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    for method, flag in (('bilinear', cv2.INTER_LINEAR), ('bicubic', cv2.INTER_CUBIC)):
        expected = cv2.resize(array, size[::-1], interpolation=flag).astype(int)
        assert np.abs(resize(array, size, method=method) - expected).max() <= 1
    floats = array.astype(np.float32)
    for align in (False, True):
        expected = F.interpolate(torch.from_numpy(floats).permute(2, 0, 1)[None], size,
                                 mode='bilinear', align_corners=align)[0].permute(1, 2, 0)
        np.testing.assert_allclose(resize(floats, size, align_corners=align), expected, atol=2e-3)


@pytest.mark.parametrize('scale', [1, 2, 3, 6])
def test_pooling_by_products_is_adaptive_pooling(scale):
    x = torch.randn(2, 3, 13, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(AveragePool(scale)(x), nn.AdaptiveAvgPool2d(scale)(x))


def test_a_head_that_upsamples_by_a_factor_is_traced_for_any_size():
    """Semantic FPN's head: mmseg computes its sizes by `int`, which a trace would fix."""
    from mmseg.models.utils import Upsample

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = Upsample(scale_factor=2, mode='bilinear', align_corners=False)

        def encode_decode(self, inputs, metas):
            return self.up(inputs)

    model = SimpleNamespace(model=Doubled())
    program, _ = trace(model, CARD, None)
    loaded = without_guards(program)
    for size in ((64, 64), (33, 47), (208, 272)):
        image = torch.randn(1, 3, *size)
        expected = model.model.encode_decode(image, [])
        assert torch.equal(loaded(image), expected)
        assert torch.equal(Graph(model, CARD).eval()(image), expected)


def test_pictures_are_fitted_and_padded_with_the_mean():
    card = replace(CARD, steps=[dict(do='fit', size=[20, 30]), dict(do='pad', size=[20, 30])])
    inputs, content = prepare(np.full((80, 40, 3), (12, 24, 38), np.uint8), card)
    assert inputs.shape == (1, 3, 20, 30) and content == (20, 10)
    assert np.unique(inputs[..., :10]) == 1 and not inputs[..., 10:].any()
    card = replace(CARD, channels='bgr', pre_and_post=True, steps=[
        dict(do='resize', scale=[64, 16], keep_ratio=True), dict(do='multiple', of=32)])
    inputs, content = prepare(np.full((32, 100, 3), (1, 2, 3), np.uint8), card)
    assert inputs.shape == (1, 32, 64, 3) and content == (32, 64)
    assert inputs[0, 0, 0].tolist() == [3, 2, 1]


def test_one_channel_decides_by_its_threshold():
    logits = np.array([[[-2., 0.], [1., 3.]]], np.float32)
    labels, confidence, scores = decide(logits, (2, 2), replace(CARD, threshold=0.6),
                                        Options(conf=0.1, scores=True))
    assert labels.tolist() == [[0, 0], [1, 1]] and scores.shape == (2, 2, 2)
    np.testing.assert_allclose(confidence, [[0.881, 0.5], [0.731, 0.953]], atol=1e-3)
    np.testing.assert_array_equal(nearest(labels, (4, 2)), [[0, 0], [0, 0], [1, 1], [1, 1]])


@needs_onnx
def test_the_page_shows_the_use_without_this_project(folder):
    photo = folder / 'data/images/0.png'
    done = run_listing(folder / 'model.onnx', photo)
    assert done.returncode == 0, done.stderr
    (expected,) = Predictor(folder / 'model.onnx')(photo)
    counts = {name: int((expected.labels == i).sum()) for i, name in enumerate('abc')}
    assert ast.literal_eval(done.stdout) == {name: n for name, n in counts.items() if n}


@needs_onnx
def test_the_listing_of_the_page_shrinks_photos_as_the_predictor_does(folder, tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (160, 172, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'large.png')
    runtime = Predictor(folder / 'model.onnx').runtime
    (picture,) = open_sources(tmp_path / 'large.png')
    labels = runtime.compute(runtime.prepare(picture).inputs)[0][0].argmax(0)
    done = run_listing(folder / 'model.onnx', tmp_path / 'large.png')
    assert done.returncode == 0, done.stderr
    found = ast.literal_eval(done.stdout)
    # A grey level between two may be rounded to either.
    for i, name in enumerate('abc'):
        assert abs(found.get(name, 0) - int((labels == i).sum())) <= 0.01 * labels.size


@needs_onnx
@pytest.mark.parametrize('name, options', [
    ('whole.onnx', ['--with-pre-and-post']), ('model.pt2', ['--to', 'torch-export'])])
def test_other_forms_of_the_file_give_the_same_labels(folder, name, options):
    assert export(folder, '--size', '40x43', '--out', folder / name, *options) == 0
    photo = folder / 'data/images/0.png'
    (expected,) = Predictor(folder, device='cpu')(photo)
    (found,) = Predictor(folder / name)(photo)
    assert (found.labels == expected.labels).mean() > 0.999


def test_a_step_that_a_file_for_any_size_cannot_describe_is_refused(folder):
    cfg = Config.fromfile(folder / 'tiny.py')
    segmentor = open_segmentor(cfg, folder / 'iter_8.pth')
    step = dict(type='Resize', scale=(30, 20), keep_ratio=True)
    cfg.test_dataloader.dataset.pipeline.insert(1, step)
    assert make_card(cfg, segmentor, size=None).steps[0]['scale'] == [30, 20]
    step['backend'] = 'pillow'
    with pytest.raises(UserError, match='cannot describe the step'):
        make_card(cfg, segmentor, size=None)


def test_a_data_set_of_several_has_no_pictures_for_the_comparison(folder, monkeypatch):
    cfg = Config.fromfile(folder / 'tiny.py')
    assert [path.name for path in sample_images(cfg, 2)] == ['0.png', '1.png']
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[cfg.test_dataloader.dataset])
    monkeypatch.chdir(folder)
    assert list(sample_images(cfg, 2)) == []


def test_a_model_whose_preprocessor_pads_is_compared(folder, tmp_path):
    config = tmp_path / 'x.py'
    config.write_text(
        f"_base_ = '{folder / 'tiny.py'}'\n"
        "model = dict(data_preprocessor=dict(test_cfg=dict(size_divisor=32)))\n")
    path, photo = tmp_path / 'x.pt2', folder / 'data/images/0.png'
    assert export(config, folder / 'iter_8.pth', '--to', 'torch-export', '--size', 'dynamic',
                  '--out', path) == 0
    (expected,) = Predictor(config, folder / 'iter_8.pth', device='cpu')(photo)
    (found,) = Predictor(path)(photo)
    assert (found.labels == expected.labels).mean() > 0.999


def test_wrong_places_and_pictures_are_said_before_the_model_is_traced(folder, tmp_path, capsys):
    nothing = ('--int8', tmp_path / 'nowhere', '--out', tmp_path / 'small.onnx')
    assert export(folder, *nothing) == 2
    assert 'no image' in capsys.readouterr().err and not list(tmp_path.iterdir())
    (tmp_path / 'taken.pt2').mkdir()
    assert export(folder, '--to', 'torch-export', '--out', tmp_path / 'taken.pt2') == 2
    assert 'taken.pt2 is a folder' in capsys.readouterr().err


@needs_onnx
def test_a_file_in_8_bits_gives_nearly_the_same(folder, tmp_path):
    import onnx
    photos = folder / 'data/images'
    small = tmp_path / 'small.onnx'
    assert export(folder, '--size', '40x43', '--out', small, '--int8', photos) == 0
    layers = [node.op_type for node in onnx.load(small).graph.node]
    assert layers.count('DequantizeLinear') > 10
    agreeing = [(few.labels == many.labels).mean() for few, many in zip(
        Predictor(small)(photos), Predictor(folder / 'model.onnx')(photos), strict=True)]
    assert len(agreeing) == 3 and min(agreeing) > 0.9
    # 8 bits are for ONNX files of segmentors.
    assert export(folder, '--to', 'torch-export', '--int8', photos, '--out', tmp_path / 'x') == 2


@needs_onnx
def test_the_first_commands_of_the_page(folder, tmp_path, capsys):
    page = (ROOT / 'docs/deployment.md').read_text(encoding='utf-8')
    block = page.split('```sh\n')[1].partition('```')[0]
    photo = folder / 'data/images/0.png'
    (config,) = folder.glob('*.py')
    named = {'work_dirs/mine': folder, 'CONFIG': config, 'CHECKPOINT': folder / 'iter_8.pth',
             'photo.jpg': photo, 'model.onnx': tmp_path / 'any.onnx'}
    written = []
    for line in block.splitlines():
        python, tool, *arguments = shlex.split(line)
        assert (python, tool) == ('python', 'tools/export.py')
        if '--out' not in arguments:
            arguments += ['--out', tmp_path / 'fixed.onnx']
        arguments = [named.get(each, each) for each in arguments]
        assert export(*arguments) == 0
        written.append(Predictor(arguments[arguments.index('--out') + 1]))
    told = capsys.readouterr().out
    assert 'inputs of 512x512' in told and 'inputs from 4x4 on' in told
    assert [next(iter(model(photo))).labels.shape for model in written] == [
        Image.open(photo).size[::-1]] * 2


def headers_of_onnxruntime() -> Path | None:
    """A folder with the headers for C++: Debian's package libonnxruntime-dev has them, or
    ONNXRUNTIME_INCLUDE names it. The wheel has the library alone."""
    places = [Path('/usr/include/onnxruntime'), Path('/usr/local/include/onnxruntime')]
    if named := os.environ.get('ONNXRUNTIME_INCLUDE'):
        places.insert(0, Path(named))
    return next((place for place in places if (place / 'onnxruntime_cxx_api.h').is_file()), None)


@needs_onnx
@pytest.mark.skipif(shutil.which('g++') is None or headers_of_onnxruntime() is None,
                    reason='needs g++ and the headers of onnxruntime (ONNXRUNTIME_INCLUDE)')
def test_the_listing_in_cpp_gives_the_same_labels(folder, tmp_path):
    """A picture that fills the model, one beside which there is padding, and refusals."""
    import onnxruntime
    page = (ROOT / 'docs/deployment.md').read_text(encoding='utf-8').split('### C++')[1]
    listing, commands = (page.split(f'```{kind}\n')[1].partition('```')[0]
                         for kind in ('cpp', 'sh'))
    (tmp_path / 'segment.cpp').write_text(listing)
    (library,) = Path(onnxruntime.__file__).parent.glob('capi/libonnxruntime.so.*')
    (tmp_path / 'ort/lib').mkdir(parents=True)
    for name in ('libonnxruntime.so', 'libonnxruntime.so.1'):
        (tmp_path / 'ort/lib' / name).symlink_to(library)
    (tmp_path / 'ort/include').symlink_to(headers_of_onnxruntime())
    model = tmp_path / 'model.onnx'
    assert export(folder, '--size', '40x43', '--out', model, '--with-pre-and-post') == 0
    build, use = map(shlex.split, commands.splitlines())
    done = subprocess.run([*build, '-Wall', '-Werror'], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    photo = Image.open(folder / 'data/images/0.png').convert('RGB')
    for picture in (photo, photo.crop((0, 0, 30, 40))):
        picture.save(tmp_path / 'picture.ppm')
        done = subprocess.run(use, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and '["a", "b", "c"]' in done.stdout, done.stderr
        (expected,) = Predictor(model)(picture)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'labels.pgm')),
                                      expected.labels)
    photo.resize((99, 20)).save(tmp_path / 'picture.ppm')
    done = subprocess.run(use, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and 'at most 43x40' in done.stderr
    shutil.copy(folder / 'model.onnx', model)
    done = subprocess.run(use, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and '--with-pre-and-post' in done.stderr
