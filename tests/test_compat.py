"""The import hook, and the mends of OpenMMLab's last releases on today's stack."""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import inspect
import json
import math
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import visattn_dense
from visattn_dense.errors import UserError, did_you_mean
from visattn_dense.openmmlab import compat
from visattn_dense.openmmlab.compat.mend import Mend
from visattn_dense.openmmlab.imports import when_imported

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip('mmengine')


def python(code: str, with_us: bool = True) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter; `with_us` imports visattn_dense first."""
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    code = f'import visattn_dense\n{code}' if with_us else code
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write modules into a folder on sys.path; their names are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(**sources: str) -> None:
        for name, source in sources.items():
            (tmp_path / f'{name}.py').write_text(source)
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_callbacks_run_once_in_order_after_the_module(modules):
    modules(late_one='value = 1')
    seen = []
    when_imported('late_one', lambda module: seen.append(('first', module.value)))
    when_imported('late_one', lambda module: seen.append(('second', module.value)))
    assert seen == []
    import late_one
    assert seen == [('first', 1), ('second', 1)]
    importlib.reload(late_one)
    assert len(seen) == 2


def test_a_module_that_is_there_is_reported_at_once(modules):
    modules(here_already='')
    module = importlib.import_module('here_already')
    seen = []
    when_imported('here_already', seen.append)
    assert seen == [module]


def test_submodules_and_their_packages(modules, tmp_path: Path):
    (tmp_path / 'pack').mkdir()
    modules(**{'pack/__init__': 'from pack.inner import value', 'pack/inner': 'value = 7'})
    seen = []
    when_imported('pack.inner', lambda module: seen.append(module.__name__))
    when_imported('pack', lambda module: seen.append((module.__name__, module.value)))
    importlib.import_module('pack')
    assert seen == ['pack.inner', ('pack', 7)]


def test_spec_and_loader_are_the_real_ones(modules):
    modules(truthful='loader = __loader__\nspec_loader = __spec__.loader\nclass Thing: pass\n')
    when_imported('truthful', lambda module: None)
    spec = importlib.util.find_spec('truthful')
    assert spec.loader.get_source('truthful').startswith('loader')
    module = importlib.import_module('truthful')
    real = importlib.machinery.SourceFileLoader
    for loader in (module.loader, module.spec_loader, module.__loader__, module.__spec__.loader):
        assert type(loader) is real
    assert type(module.__spec__) is importlib.machinery.ModuleSpec
    assert inspect.getsource(module.Thing) == 'class Thing: pass\n'
    assert isinstance(pickle.loads(pickle.dumps(module.Thing())), module.Thing)


def test_import_errors_are_untouched_and_the_next_try_counts(modules):
    modules(stumbles='raise ImportError("the real reason")')
    seen = []
    when_imported('stumbles', seen.append)
    with pytest.raises(ImportError, match='^the real reason$'):
        importlib.import_module('stumbles')
    assert seen == []
    sys.path_importer_cache.clear()
    modules(stumbles='value = "repaired, and of another length"')
    importlib.import_module('stumbles')
    assert len(seen) == 1
    when_imported('never_written', seen.append)
    with pytest.raises(ModuleNotFoundError, match="No module named 'never_written'"):
        importlib.import_module('never_written')


def test_a_module_in_the_middle_of_its_import_is_waited_for(modules):
    modules(
        outer='import asks_for_outer\nvalue = "complete"',
        asks_for_outer='from visattn_dense.openmmlab.imports import when_imported\nseen = []\n'
                       'when_imported("outer", lambda module: seen.append(module.value))')
    importlib.import_module('outer')
    assert sys.modules['asks_for_outer'].seen == ['complete']
    assert type(sys.modules['outer'].__spec__) is importlib.machinery.ModuleSpec


def test_a_failed_import_that_was_under_way_is_waited_for_again(modules):
    modules(
        outer2='import asks_for_outer2\nraise ImportError("later")',
        asks_for_outer2='from visattn_dense.openmmlab.imports import when_imported\nseen = []\n'
                        'when_imported("outer2", lambda module: seen.append(module.value))')
    with pytest.raises(ImportError, match='^later$'):
        importlib.import_module('outer2')
    assert sys.modules['asks_for_outer2'].seen == []
    modules(outer2='value = "complete at the second attempt"')
    importlib.import_module('outer2')
    assert sys.modules['asks_for_outer2'].seen == ['complete at the second attempt']


def test_callbacks_may_import_and_wait_for_more(modules):
    modules(first_of_two='value = 1', second_of_two='value = 2')
    seen = []
    when_imported('second_of_two', lambda module: seen.append(module.value))

    def callback(module):
        seen.append(module.value)
        when_imported('first_of_two', lambda again: seen.append('again'))
        importlib.import_module('second_of_two')

    when_imported('first_of_two', callback)
    importlib.import_module('first_of_two')
    assert seen == [1, 'again', 2] or seen == [1, 2, 'again']


def test_importing_the_package_loads_nothing_heavy_and_apply_may_be_repeated():
    done = python(
        'import sys\nfrom visattn_dense.openmmlab import compat\nlength = len(sys.meta_path)\n'
        'compat.apply()\nassert len(sys.meta_path) == length\n'
        'print([name for name in ("torch", "numpy", "mmengine", "mmcv") if name in sys.modules])')
    assert done.stdout.strip() == '[]', done.stderr


def test_a_mend_keeps_out_of_other_versions(modules):
    modules(mended_module='')
    called = []

    def mend(**versions: str) -> Mend:
        one = Mend('name', 'what', 'issue', versions, 'mended_module', called.append)
        assert one.status() == 'not armed'
        one.arm()
        return one

    outside, absent, inside = mend(torch='<1.0'), mend(nowhere='>=0'), mend(torch='>=1.0')
    assert inside.status() == 'waits for mended_module'
    module = importlib.import_module('mended_module')
    assert called == [module]
    assert outside.status().startswith('not needed: torch 2')
    assert absent.status() == 'not needed: nowhere is not installed'
    assert inside.status() == 'mended'


def test_a_mend_that_fails_says_so_and_lets_the_import_go_on(modules):
    modules(unmendable='value = 1')

    def repair(module):
        raise AttributeError('it has changed')

    broken = Mend('name', 'what', 'issue', {}, 'unmendable', repair)
    broken.arm()
    with pytest.warns(RuntimeWarning, match="could not mend 'name'.*it has changed"):
        assert importlib.import_module('unmendable').value == 1
    assert broken.status() == 'failed: AttributeError: it has changed'


def test_every_mend_names_its_upstream_issue_and_versions():
    for mend in compat.mends():
        assert mend.issue.startswith('https://') and mend.versions and mend.what
    names = [mend.name for mend in compat.mends()]
    assert len(names) == len(set(names))


def test_did_you_mean():
    assert did_you_mean('smal', ['tiny', 'small', 'base']) == "Did you mean 'small'?"
    assert did_you_mean('swin', ['CSWin', 'ResNet']) == "Did you mean 'CSWin'?"
    assert did_you_mean('zzz', ['a', 'b']) == 'Known: a, b.'
    assert did_you_mean('zzz', []) == ''


def test_unknown_type_names_the_near_ones_across_scopes():
    from mmengine.registry import Registry

    root = Registry('thing', scope='rootscope')
    child = Registry('thing', parent=root, scope='childscope')
    sibling = Registry('thing', parent=root, scope='siblingscope')

    class Outer:
        def __init__(self, inner: dict):
            child.build(inner)

    child.register_module(name='SegmentationHead', module=Outer)
    sibling.register_module(name='DetectionHead', module=Outer)
    root.register_module(name='Backbone', module=Outer)
    for typo, near in (('SegmentatoinHead', "'SegmentationHead'"), ('Backbon', "'Backbone'"),
                       ('DetectionHed', "'siblingscope.DetectionHead'")):
        with pytest.raises(KeyError, match=f'{typo} is not in .*Did you mean {near}') as caught:
            child.build(dict(type='SegmentationHead', inner=dict(type=typo)))
        assert str(caught.value).count('Did you mean') == 1
    # A KeyError of the class itself is nobody's business.
    with pytest.raises(KeyError) as caught:
        child.build(dict(inner=1))
    assert 'Did you mean' not in str(caught.value)


def test_config_text_is_laid_out_once(monkeypatch):
    from mmengine.config import Config
    from yapf.yapflib import yapf_api
    config = Config(dict(model=dict(type='Net', sizes=[1, 2], name='laid out once')))
    text = config.pretty_text
    with monkeypatch.context() as unmended:
        unmended.setattr('mmengine.config.config.FormatCode', yapf_api.FormatCode)
        assert config.pretty_text == text != ''
    calls = []
    lay_out = yapf_api.FormatTree
    monkeypatch.setattr(yapf_api, 'FormatTree',
                        lambda *args, **kwargs: calls.append(1) or lay_out(*args, **kwargs))
    assert config.pretty_text == text and not calls
    config.model.sizes = [3]
    assert '3' in config.pretty_text and len(calls) == 1
    # A text that is no Python is refused each time.
    config['a-b'] = 1
    for _ in range(2):
        with pytest.raises(SyntaxError, match='Failed to format'):
            _ = config.pretty_text


class Regression(nn.Module):
    """Importable by the Runner through its class; losses as mmengine wants them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            loss = self.linear(torch.stack(data)).square().mean()
        optim_wrapper.update_params(loss)
        return {'loss': loss.detach()}


def runner(folder: Path, max_iters: int, resume: bool = False, load_from: str | None = None):
    """A Runner with all that a checkpoint can hold: EMA, AMP, schedulers, logged values."""
    from mmengine.runner import Runner

    return Runner(
        model=Regression(), work_dir=str(folder), resume=resume, load_from=load_from,
        experiment_name=f'{folder.name}_{max_iters}_{resume}',
        train_dataloader=dict(
            batch_size=2, num_workers=0, dataset=[torch.ones(3) * i for i in range(4)],
            sampler=dict(type='InfiniteSampler')),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(
            type='AdamW', lr=0.1)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2),
            dict(type='PolyLR', by_epoch=False, begin=2, end=9)],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)),
        custom_hooks=[dict(type='EMAHook')], default_scope='mmengine', log_level='ERROR')


def load(path: Path) -> dict:
    from mmengine.runner.checkpoint import CheckpointLoader
    return CheckpointLoader.load_checkpoint(str(path))


def test_training_resumes_from_a_real_checkpoint(tmp_path: Path):
    runner(tmp_path, 3).train()
    saved = load(tmp_path / 'iter_3.pth')
    assert saved['message_hub']['log_scalars']['train/loss'].data[0].shape == (3,)
    again = runner(tmp_path, 5, resume=True)
    again.train()
    assert again.iter == 5 and (tmp_path / 'iter_5.pth').is_file()
    assert again.message_hub.log_scalars['train/loss'].data[0].shape == (5,)
    # Without the mend, torch refuses the same file: the mend is what lets mmengine read it.
    done = python(
        'import pickle, mmengine.runner\n'
        'from mmengine.runner.checkpoint import CheckpointLoader\n'
        f'path = {str(tmp_path / "iter_3.pth")!r}\n'
        'try:\n    CheckpointLoader.load_checkpoint(path)\n'
        'except pickle.UnpicklingError as error:\n'
        '    assert "HistoryBuffer" in str(error)\nelse:\n    raise SystemExit("not refused")\n'
        'import visattn_dense\nCheckpointLoader.load_checkpoint(path)\n', with_us=False)
    assert done.returncode == 0, done.stderr


def test_checkpoints_written_under_numpy_1_load(tmp_path: Path):
    from mmengine.logging import HistoryBuffer

    path = tmp_path / 'legacy.pth'
    torch.save({'message_hub': {'log_scalars': {'loss': HistoryBuffer([1.5], [1])}}}, path,
               _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for old, new in ((b'numpy._core', b'numpy.core'), (b'numpy.core', b'numpy._core')):
        path.write_bytes(data.replace(old, new))
        contents = load(path)
        assert contents['message_hub']['log_scalars']['loss'].current() == 1.5


class Attack:
    """A pickle that calls `function(*arguments)` when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_malicious_checkpoints_are_not_executed(tmp_path: Path):
    from mmengine.logging import HistoryBuffer
    from mmengine.runner import load_checkpoint

    mark = tmp_path / 'executed'
    command = f'touch {mark}'
    attacks = {
        'system': Attack(os.system, command),
        'eval': Attack(eval, f'__import__("os").system({command!r})'),
        'getattr': Attack(getattr, HistoryBuffer, '__init__'),
        'getattr-globals': Attack(getattr, HistoryBuffer.update, '__globals__'),
        'getattr-module': Attack(getattr, torch.Tensor, '__reduce__'),
        'subprocess': Attack(subprocess.call, ['touch', str(mark)]),
    }
    for name, attack in attacks.items():
        path = tmp_path / f'{name}.pth'
        torch.save({'state_dict': {}, 'meta': {}, 'message_hub': attack}, path)
        with pytest.raises(UserError, match='nothing of it was executed'):
            load_checkpoint(Regression(), str(path))
        with pytest.raises(UserError, match='nothing of it was executed'):
            runner(tmp_path / name, 1, resume=True, load_from=str(path)).train()
        assert not mark.exists(), name


def test_operators_are_found_without_pkgutil_find_loader():
    done = python(
        'import pkgutil\n'
        'vars(pkgutil).pop("find_loader", None)\n'
        'from mmcv.utils.ext_loader import check_ops_exist\n'
        'from mmengine.utils.dl_utils.misc import mmcv_full_available\n'
        'assert check_ops_exist() and mmcv_full_available()\n')
    assert done.returncode == 0, done.stderr


def test_youtube_vis_is_evaluated(tmp_path: Path):
    """Two frames with one object each that is found, and one that is missed."""
    import numpy as np
    from mmdet.evaluation.functional import YTVIS, YTVISeval
    from pycocotools import mask

    def track(identity: int, left: int) -> dict:
        frames = []
        for _ in range(2):
            pixels = np.zeros((20, 30), np.uint8, order='F')
            pixels[4:14, left:left + 10] = 1
            frames.append({'size': [20, 30], 'counts': mask.encode(pixels)['counts'].decode()})
        return dict(id=identity, video_id=1, category_id=1, iscrowd=0, segmentations=frames,
                    areas=[100, 100], bboxes=[[left, 4, 10, 10]] * 2, width=30, height=20)

    truth = tmp_path / 'truth.json'
    truth.write_text(json.dumps(dict(
        videos=[dict(id=1, width=30, height=20, length=2)], annotations=[track(1, 0), track(2, 18)],
        categories=[dict(id=1, name='thing')])))
    ground = YTVIS(str(truth))
    found = dict(track(1, 0), score=0.9)
    evaluation = YTVISeval(ground, ground.loadRes([found]), 'segm')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    # Precision 1 up to half of the recall: 51 of the 101 points.
    assert evaluation.stats[0] == pytest.approx(51 / 101)


def test_removed_numpy_names_are_those_of_one_module_only(modules):
    import numpy as np

    from visattn_dense.openmmlab.compat.repairs.numpy_names import give_removed_names

    modules(says_old_names=(
        'import numpy as np\ndef old():\n    return np.float, np.object, np.int\n'
        'def present():\n    return np.testing, np.float32, np.linalg.norm\n'))
    import says_old_names
    with pytest.raises(AttributeError):
        says_old_names.old()
    give_removed_names(says_old_names)
    assert says_old_names.old() == (float, object, int)
    assert says_old_names.present() == (np.testing, np.float32, np.linalg.norm)
    with pytest.raises(AttributeError, match='no_such_name'):
        _ = says_old_names.np.no_such_name
    assert not hasattr(np, 'float')


def test_every_module_of_openmmlab_that_says_a_removed_numpy_name_is_mended():
    import numpy as np

    removed = {**np.__former_attrs__, **getattr(np, '__expired_attributes__', {}), 'long': ''}
    removed = {name for name in removed if name not in vars(np)}
    guilty = set()
    for package in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
        spec = importlib.util.find_spec(package)
        if spec is None:
            continue
        folder = Path(spec.origin).parent
        for path in folder.rglob('*.py'):
            text = path.read_text(encoding='utf-8')
            said = {ast.unparse(node) for node in ast.walk(ast.parse(text))
                    if isinstance(node, ast.Attribute)} if 'np.' in text else set()
            if said & {f'np.{name}' for name in removed}:
                guilty.add('.'.join([package, *path.relative_to(folder).with_suffix('').parts]))
    assert guilty
    for name in guilty:
        assert importlib.import_module(name).np.float is float, name


def test_amp_runs_on_this_machine_without_a_warning():
    from mmengine.optim import AmpOptimWrapper

    layer = nn.Linear(3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter('error', FutureWarning)
        wrapper = AmpOptimWrapper(
            dtype='bfloat16', optimizer=torch.optim.SGD(layer.parameters(), lr=0.1))
    before = layer.weight.detach().clone()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    layer.to(device)
    with wrapper.optim_context(layer):
        out = layer(torch.ones(2, 3, device=device))
        loss = out.sum()
    assert out.dtype == torch.bfloat16
    wrapper.update_params(loss)
    torch.testing.assert_close(layer.weight.detach().cpu(), before - 0.2)


def test_class_weights_leave_ignored_pixels_as_they_are():
    """By hand; weights of 1 change nothing; the sum does not overflow in float16."""
    pytest.importorskip('mmseg')
    from mmseg.models.losses import CrossEntropyLoss
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, 7)
    label = torch.randint(0, 3, (2, 5, 7))
    label[:, 0, :3] = 255
    weights = torch.tensor([1., 2., 2.5])
    known = label != 255
    each = weights[label[known]]
    total = -(each * logits.log_softmax(1).movedim(1, -1)[known].gather(
        1, label[known][:, None])[:, 0]).sum()
    for alone, count in ((False, each.sum() + 6), (True, each.sum())):
        loss = CrossEntropyLoss(class_weight=weights.tolist(), avg_non_ignore=alone)
        torch.testing.assert_close(loss(logits, label, ignore_index=255), total / count)
        plain, ones = (CrossEntropyLoss(class_weight=weight, avg_non_ignore=alone)(
            logits, label, ignore_index=255) for weight in (None, [1., 1., 1.]))
        torch.testing.assert_close(ones, plain)
    with torch.autocast('cpu', torch.float16):
        loss = CrossEntropyLoss(class_weight=[1., 1., 1.])(
            torch.zeros(1, 3, 300, 300, dtype=torch.float16),
            torch.zeros(1, 300, 300, dtype=torch.long), ignore_index=255)
    assert loss.item() == pytest.approx(math.log(3), rel=1e-3)


def test_notices_about_openmmlabs_own_code_are_silent_and_others_are_not():
    done = python(
        'import warnings, torch, mmseg.models, mmdet.models\n'
        'from mmengine.logging import print_log\n'
        'from mmengine.fileio import FileClient\n'
        'FileClient.infer_client(uri="/tmp")\n'
        'mmseg.models.builder.build_loss(dict(type="DiceLoss"))\n'
        'from mmdet.models.layers import ChannelAttention\n'
        'ChannelAttention(4)(torch.ones(1, 4, 2, 2))\n'
        'torch.cuda.amp.autocast(enabled=False)\n'
        'warnings.warn("something of the user")\n')
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert 'something of the user' in text and text.count('torch.cuda.amp.autocast(args') == 1
    for silent in ('FileClient', 'HardDiskBackend', 'build_loss'):
        assert silent not in text


def test_version_is_a_string():
    assert visattn_dense.__version__.count('.') == 2
