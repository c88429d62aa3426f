"""tools/explain.py, and the commands and code of the pages that show its pictures."""
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visattn_dense.backbones import CSWin, EfficientViT
from visattn_dense.explain import explain
from visattn_dense.explain.subject import names, open_named, prepare
from visattn_dense.openmmlab.backbone import open_backbone, prepare_image
from visattn_dense.openmmlab.config import read_config
from visattn_dense.openmmlab.inference import open_segmentor
from visattn_dense.registry import BACKBONES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'docs/explain.md', *sorted((ROOT / 'docs/attention').glob('*.md'))]
CONFIGS = sorted((ROOT / 'demo/configs').glob('demo_upernet_*_scenes.py'))


@pytest.fixture(scope='module')
def main(monkeypatch_module) -> Callable[[list[str]], int]:
    """The tool's own main; it stands on tools/_checkout.py."""
    monkeypatch_module.syspath_prepend(ROOT / 'tools')
    return runpy.run_path(str(ROOT / 'tools/explain.py'))['main']


@pytest.fixture(scope='module')
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / 'photo.jpg'
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).resize((176, 128), Image.Resampling.BICUBIC).save(path)
    return path


def commands(page: Path) -> list[list[str]]:
    """The arguments of each call of the tool on a page."""
    text = page.read_text().replace('\\\n', ' ')
    return [shlex.split(line)[2:] for line in re.findall(
        r'^ *(python tools/explain\.py .*)$', text, re.M) if 'CONFIG' not in line]


def test_every_attention_has_a_picture_and_its_command():
    for page in PAGES:
        images = re.findall(r'\]\(([^)]*/explain_[^)]*\.jpg)\)', page.read_text())
        assert images and commands(page), page.name
        for image in images:
            assert (page.parent / image).stat().st_size < 80_000


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.stem)
def test_the_commands_of_the_pages_run(page: Path, main, photo: Path, tmp_path: Path, monkeypatch,
                                       capsys):
    monkeypatch.chdir(tmp_path)
    for given in commands(page):
        config, checkpoint, image, *options = given
        if config.endswith('.py'):
            backbone = open_backbone(read_config(str(ROOT / config)), 'none')
            config, checkpoint = str(ROOT / config), tmp_path / 'trained.pth'
            torch.save({'state_dict': {f'backbone.{name}': tensor for name, tensor in
                                       backbone.state_dict().items()}}, checkpoint)
        elif checkpoint.startswith('visattn://'):
            checkpoint = 'none'
        # The small picture has room for the pages' points.
        assert main([config, str(checkpoint), str(photo), *options]) == 0, capsys.readouterr().err
        written = [line for line in capsys.readouterr().out.splitlines()
                   if line.startswith('outputs/')]
        assert written and all(Path(line).stat().st_size > 1000 for line in written)
        for line in written:
            Image.open(line).verify()


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r'```python\n(import torch.*?)```', PAGES[0].read_text(), re.S)[1]
    found: dict = {}
    exec(compile(code, 'explain.md', 'exec'), found)
    assert Path('attention.png').exists()
    assert found['field'].shape == (64, 96) and found['regions'].shape == (64, 16)


def test_heads_arrays_and_changes_are_written(main, photo: Path, tmp_path: Path, capsys):
    torch.manual_seed(5)
    torch.save(EfficientViT('b0').state_dict(), tmp_path / 'other.pth')
    out = tmp_path / 'out'
    assert main(['efficientvit_b0', 'none', str(photo), '--stage', '2', '--arrays', '--only',
                 'attention', '--versus', str(tmp_path / 'other.pth'), '--short-side', '64',
                 '--out-dir', str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        'photo_attention.png', 'photo_heads.png', 'photo_changes.png', 'photo.npz'}
    arrays = np.load(out / 'photo.npz')
    name = 'stages.2.2.context_module.main'
    total = arrays[name].sum((1, 2)) + arrays[f'{name}/elsewhere/epsilon']
    assert total == pytest.approx(np.ones(8))
    assert 'stages.2.1.context_module.main (LiteMLA, 4x6, row 2, column 3)' in (
        capsys.readouterr().out)


@pytest.mark.parametrize('arguments, message', [
    (['cswin_tiny', 'none', 'missing.jpg'], 'no image missing.jpg'),
    (['cswin_tiny', 'none', '.'], '. is a folder: give one image file'),
    (['cswin_tinny', 'none', 'PHOTO'], "Did you mean 'cswin_tiny'"),
    (['no_config.py', 'none', 'PHOTO'], 'no_config.py'),
    (['cswin_tiny', 'missing.pth', 'PHOTO'], 'missing.pth'),
    (['efficientvit_b0', 'none', 'PHOTO', '--point', '900,3'], '900,3 (x, y) is outside'),
    (['efficientvit_b0', 'none', 'PHOTO', '--point', '-1,5'], '-1,5 (x, y) is outside'),
    (['efficientvit_b0', 'none', 'PHOTO', '--stage', '0'], 'these have: 2, 3'),
    (['efficientvit_b0', 'none', 'PHOTO', '--width', '0'], '--width is at least 1'),
    (['efficientvit_b0', 'none', 'TEXT'], 'cannot be read as an image'),
    (['efficientvit_b0', 'none', 'PHOTO', '--device', 'cuda:99'], "device 'cuda:99'"),
    (['CONFIG', 'none', 'TEXT'], 'cannot be read as an image'),
    (['CONFIG', 'none', 'PHOTO', '--short-side', '64'], 'test_pipeline')])
def test_bad_input_ends_with_one_message(main, photo: Path, tmp_path: Path, monkeypatch, capsys,
                                         arguments: list[str], message: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.jpg').write_text('no image')
    known = {'PHOTO': str(photo), 'TEXT': 'text.jpg', 'CONFIG': str(CONFIGS[0])}
    before = set(tmp_path.iterdir())
    assert main([known.get(a, a) for a in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and 'Traceback' not in said
    assert set(tmp_path.iterdir()) == before


def test_a_config_prepares_what_its_segmentor_gets(photo: Path, tmp_path: Path):
    """The same pixels as mmseg's pipeline and preprocessor, and the same maps as its backbone."""
    config = tmp_path / 'resized.py'
    config.write_text(f"_base_ = '{ROOT / 'demo/configs/demo_upernet_cswin_scenes.py'}'\n"
                      "test_pipeline = [dict(type='LoadImageFromFile'),\n"
                      "    dict(type='Resize', scale=(128, 96), keep_ratio=True),\n"
                      "    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]\n"
                      "test_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n")
    cfg = read_config(str(config))
    backbone = open_backbone(cfg, 'none')
    from mmengine.registry import MODELS, DefaultScope
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    model.backbone.load_state_dict(backbone.state_dict())
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'whole.pth')
    segmentor = open_segmentor(cfg, tmp_path / 'whole.pth')
    seen = []
    handle = segmentor.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args))
    segmentor.label(photo)
    handle.remove()
    prepared = prepare_image(cfg, photo)
    assert prepared.picture.shape == (93, 128, 3) and prepared.file_size == (128, 176)
    torch.testing.assert_close(prepared.image, seen[0][0][..., :93, :128])
    # A pixel of the file at its place in the smaller image.
    assert prepared.point(87.5, 63.5) == pytest.approx((63.5, 46))
    loaded = open_backbone(cfg, tmp_path / 'whole.pth')
    looks = explain(loaded, prepared.image).looks
    assert [look.stage for look in looks] == [0, 1, 2, 3]


def test_every_published_variant_has_its_name():
    assert names()['cswin_tiny'] == ('CSWin', 'tiny')
    assert len(names()) == sum(len(cls.archs) for cls in BACKBONES.values())
    assert isinstance(open_named('visattn_CSWin_tiny', 'none'), CSWin)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path):
    picture = Image.new('RGB', (40, 20), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / 'turned.jpg', exif=exif)
    prepared = prepare(tmp_path / 'turned.jpg')
    assert prepared.file_size == (40, 20) and prepared.picture.shape == (40, 20, 3)
    assert prepared.image[0, :, 0, 0].tolist() == pytest.approx([2.2, -2.0, -1.8], abs=.1)


def test_of_sixteen_bits_the_upper_eight_count(tmp_path: Path):
    values = np.linspace(0, 65535, 40 * 20).reshape(20, 40).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / 'grey.png')
    prepared = prepare(tmp_path / 'grey.png')
    np.testing.assert_array_equal(prepared.picture, np.repeat((values >> 8)[..., None], 3, -1))


def test_the_picture_of_all_families_names_the_net_that_is_missing(tmp_path, monkeypatch, capsys):
    from demo import families
    monkeypatch.chdir(tmp_path)
    assert families.main(['photo.jpg', '--point', '3,4']) == 2
    assert 'no work_dirs/demo/run/iter_*.pth' in capsys.readouterr().err
