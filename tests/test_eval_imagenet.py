"""tools/eval_imagenet.py on folders of a few made images."""
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import visattn_dense.interop.timm_models  # noqa: F401  (enters the models)
from tests.tiny_runs import run_tool
from visattn_dense.errors import UserError
from visattn_dense.interop.imagenet import Images, accuracy, labelled_images
from visattn_dense.zoo.table import find_release

TOOL = Path(__file__).resolve().parents[1] / 'tools' / 'eval_imagenet.py'
MODEL = 'visattn_efficientvit_b0'
run = partial(run_tool, 'eval_imagenet.py')


def make_folder(folder: Path, classes: list[str], images: int = 3) -> Path:
    """Noise around a colour of its own for each image, in one folder for each class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(images):
            size = (120 + 10 * i, 150, 3)
            pixels = rng.integers(0, 255, 3) + rng.normal(0, 20, size)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                folder / name / f'{i}.png')
    return folder


def by_hand(model: torch.nn.Module, folder: Path, label_of: dict[str, int]) -> tuple[float, float]:
    """Top-1 and top-5 of images resized and cropped with PIL, one at a time."""
    ranks = []
    for path in sorted(folder.rglob('*.png')):
        image = Image.open(path)
        # timm rounds the shorter side down, torchvision the longer.
        short = int(224 / .95)
        width, height = image.size
        size = ((short, int(short * height / width)) if width <= height
                else (int(short * width / height), short))
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
        pixels = (pixels - (.485, .456, .406)) / (.229, .224, .225)
        with torch.no_grad():
            logits = model(torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None])[0]
        ranks.append(int((logits > logits[label_of[path.parent.name]]).sum()))
    return 100 * np.mean(np.array(ranks) < 1), 100 * np.mean(np.array(ranks) < 5)


def separating(classes: int) -> torch.nn.Module:
    """A model whose logits differ from image to image."""
    model = timm.create_model(MODEL, num_classes=classes).eval()
    # A fresh classifier says nearly the same of every image.
    torch.nn.init.normal_(model.get_classifier().weight, std=3.)
    return model


def test_the_numbers_are_those_counted_by_hand(tmp_path):
    classes = [f'class{i}' for i in range(12)]        # naturally sorted: class2 before class10
    folder = make_folder(tmp_path / 'val', classes)
    model = separating(12)
    torch.save(model.state_dict(), tmp_path / 'own.pth')
    done = run(folder, MODEL, '--checkpoint', tmp_path / 'own.pth', '--num-classes', 12,
               '--batch-size', 5, '--workers', 1, '--json', tmp_path / 'out.json')
    assert done.returncode == 0, done.stderr
    top1, top5 = by_hand(model, folder, {name: i for i, name in enumerate(classes)})
    assert 0 < top5 < 100
    out = json.loads((tmp_path / 'out.json').read_text())
    assert (out['images'], out['top1'], out['top5']) == (36, pytest.approx(top1),
                                                        pytest.approx(top5))
    assert f'top-1 {top1:.3f}  top-5 {top5:.3f}  (36 images' in done.stdout
    assert '36/36  top-1' in done.stderr and 'left' in done.stderr
    assert 'published' not in done.stdout


def test_some_classes_of_imagenet_with_the_released_file(tmp_path):
    folder = make_folder(tmp_path / 'val', ['n02123045', 'n01440764'], images=1)
    assert [label for _, label in labelled_images(folder, 1000)] == [0, 281]
    home = tmp_path / 'home'
    release = find_release('efficientvit_b1_r224_timm')
    path = home / 'hub' / 'checkpoints' / release.file
    path.parent.mkdir(parents=True)
    theirs = timm.create_model('efficientvit_b1')
    with torch.no_grad():
        theirs.head.classifier[-1].bias[281] = 1e6
    save_file(theirs.state_dict(), path)
    done = run(folder, f'visattn_efficientvit_b1.{release.name}', '--img-size', 64,
               '--crop-pct', 1, '--workers', 0, TORCH_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert 'top-1 50.000' in done.stdout
    assert 'at 64×64, crop 1; published top-1 79.39' in done.stdout


def test_counting():
    """Ranks 0, 1, 4, 5 of the right class: one in four at the first guess, three within five."""
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            return -torch.arange(8.).expand(len(x), 8) * self.scale

    batch = [(torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 4, 5]), [''] * 4)]
    seen = []
    found = accuracy(Fixed(), batch, seen.append)
    assert (found.top1, found.top5, found.images) == (25, 75, 4) and seen == [found]
    broken = Fixed()
    broken.scale.data.fill_(torch.nan)
    with pytest.raises(UserError, match='NaN'):
        accuracy(broken, batch)


@pytest.fixture
def tool(monkeypatch):
    """The tool's work, in this process: called with its arguments."""
    monkeypatch.syspath_prepend(TOOL.parent)
    spec = importlib.util.spec_from_file_location('eval_imagenet', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def main(*args: object) -> None:
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
        module.evaluate(module.parse_args())

    return main


def classes(*names: str) -> Callable[[Path], Path]:
    return lambda folder: make_folder(folder, list(names), images=1)


@pytest.mark.parametrize('make, args, message', [
    (lambda folder: None, (), 'no folder'),
    (lambda folder: folder.mkdir(), (), 'one folder for each class'),
    (classes('a', 'b'), (), '2 class folders .a, b. and the model 3'),
    (lambda folder: (classes('a', 'b', 'c')(folder) / 'b/0.png').write_bytes(b'no'), (),
     'b/0.png cannot be read'),
    (lambda folder: Image.new('RGB', (9, 9)).save(classes('a')(folder) / 'x.png'), (),
     'beside its class folders'),
    (classes('a', 'b', 'c'), ('--checkpoint', 'no.pth'), 'no.pth'),
    (classes('a', 'b', 'c'), ('--device', 'gpu'), '--device gpu'),
    (classes('a', 'b', 'c'), ('--json', '/no/where.json'), '--json'),
    (classes('a', 'b', 'c'), ('--json', '/tmp'), '--json /tmp is a folder'),
])
def test_what_does_not_fit_is_said(tool, make, args, message, tmp_path):
    make(tmp_path / 'val')
    torch.save(timm.create_model(MODEL, num_classes=3).state_dict(), tmp_path / 'own.pth')
    with pytest.raises(UserError, match=message):
        tool(tmp_path / 'val', MODEL, '--checkpoint', tmp_path / 'own.pth', '--num-classes', 3,
             '--workers', 0, '--img-size', 64, *args)


@pytest.mark.parametrize('model, message', [
    ('visattn_cswin_tny', 'visattn_cswin_tiny'),
    ('visattn_cswin_tiny.cswin_tiny_225', 'cswin_tiny_224'),
    ('visattn_biformer_stl', 'no weights'),
    ('resnet18.nobody', 'nobody'),
])
def test_an_unknown_model_is_said(tool, model, message, tmp_path):
    with pytest.raises(UserError, match=message):
        tool(make_folder(tmp_path / 'val', ['a'], 1), model)


@pytest.mark.parametrize(('option', 'number'), [('--num-classes', 0), ('--num-classes', -3),
                                               ('--crop-pct', 0), ('--crop-pct', -1),
                                               ('--crop-pct', 3)])
def test_a_number_that_means_nothing_is_refused(tool, option, number, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool(make_folder(tmp_path / 'val', ['a'], 1), MODEL, option, number)
    assert option in capsys.readouterr().err


def test_a_refusal_is_one_line(tmp_path):
    done = run(tmp_path / 'nowhere', MODEL)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr == f'error: there is no folder {tmp_path / "nowhere"}\n'


def test_a_stranger_among_the_synsets(tmp_path):
    folder = make_folder(tmp_path / 'val', ['n01440764', 'n99999999'], 1)
    with pytest.raises(UserError, match='n99999999'):
        labelled_images(folder, 1000)


def test_a_broken_file_is_told_with_its_path(tmp_path):
    (tmp_path / 'broken.png').write_bytes(b'nothing')
    image, label, fault = Images([(str(tmp_path / 'broken.png'), 2)], lambda pil: pil)[0]
    assert label == 2 and 'broken.png' in fault
