"""The rooms of the package: the page that names them, and the names from before they moved."""
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from visattn_dense.former import MOVED

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'architecture.md'


def run_python(*arguments: str, **options) -> str:
    """The output of a fresh interpreter that ends without an error."""
    done = subprocess.run([sys.executable, *arguments], text=True, capture_output=True, cwd=ROOT,
                          **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_architecture_page_names_every_room_and_no_other():
    named = re.findall(r'^\| `(visattn_dense/[^`]+)` \| \S.*\. \|$', PAGE.read_text(), re.M)
    package = ROOT / 'visattn_dense'
    folders = {f'{file.parent.relative_to(ROOT)}/' for file in package.rglob('*/__init__.py')}
    files = {str(file.relative_to(ROOT)) for file in package.glob('*.py')}
    assert len(named) == len(set(named))
    assert set(named) == folders | files - {'visattn_dense/__init__.py'}


@pytest.mark.parametrize('former, today', MOVED.items())
def test_a_former_name_is_the_thing_of_today(former: str, today: str):
    assert pkgutil.resolve_name(former) is pkgutil.resolve_name(today)


def test_what_lies_in_a_moved_package_is_there_once():
    assert run_python('-c', """
from visattn_dense.engine.layer_decay import LayerDecayConstructor as former
import visattn_dense.openmmlab.engine.layer_decay as today
import visattn_dense.engine.layer_decay
print(former is today.LayerDecayConstructor, visattn_dense.engine.layer_decay is today)
""") == 'True True'


def test_a_config_from_before_finds_what_it_names(tmp_path: Path):
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['visattn_dense', 'visattn_dense.engine', "
                      "'visattn_dense.datasets'], allow_failed_imports=False)\n")
    assert run_python('-c', f"""
from mmengine.config import Config
Config.fromfile({str(config)!r})
from mmengine.registry import HOOKS, RUNNERS
from mmseg.registry import DATASETS
print(*(registry.get(name).__module__ for registry, name in (
    (RUNNERS, 'DenseRunner'), (HOOKS, 'EarlyStopHook'), (DATASETS, 'CamVidDataset'))))
""").split() == ['visattn_dense.openmmlab.engine.runner',
                 'visattn_dense.openmmlab.engine.early_stop',
                 'visattn_dense.openmmlab.datasets.camvid']


@pytest.mark.parametrize('module', ['visattn_dense.checkpoints', 'visattn_dense.zoo'])
def test_the_command_answers_under_both_names(module: str):
    assert 'visattn://cswin_tiny_224' in run_python('-m', module, 'zoo')


def test_a_name_that_never_was_is_refused_as_usual():
    with pytest.raises(ModuleNotFoundError, match=r"'visattn_dense\.engine\.no_such_file'"):
        importlib.import_module('visattn_dense.engine.no_such_file')
    with pytest.raises(ImportError, match='no_such_name'):
        from visattn_dense.checkpoints import no_such_name  # noqa: F401


def test_a_release_loads_by_name_with_torch_alone(tmp_path: Path, monkeypatch):
    from visattn_dense.backbones import EfficientViT
    from visattn_dense.zoo import find_release

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    release = find_release('visattn://efficientvit_b0_r224_timm')
    release.path.parent.mkdir(parents=True)
    save_file(EfficientViT('b0').state_dict(), release.path)
    assert run_python('-c', """
import sys
from visattn_dense.backbones import EfficientViT
from visattn_dense.checkpoints import load_pretrained
print(load_pretrained(EfficientViT('b0'), 'visattn://efficientvit_b0_r224_timm').fraction)
print(sorted({'mmengine', 'mmcv', 'mmseg', 'mmdet'} & sys.modules.keys()))
""").split('\n') == ['1.0', '[]']


def test_init_cfg_may_name_an_initialiser_of_mmengine():
    assert run_python('-c', """
import visattn_dense
from mmengine.registry import MODELS
model = MODELS.build(dict(
    type='CSWin', arch=dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4),
                            stripe_widths=(1, 2, 7, 7)),
    init_cfg=dict(type='Constant', layer='Linear', val=.25)))
model.init_weights()
print(*{m.weight.unique().item() for m in model.modules() if type(m).__name__ == 'Linear'})
""") == '0.25'
    assert 'import mmengine.model' in run_python('-c', """
from visattn_dense.backbones import EfficientViT
try:
    EfficientViT('b0', init_cfg=dict(type='Kaiming', layer='Conv2d')).init_weights()
except ValueError as error:
    print(error)
""")
