"""Fine-tuning on somebody's own data: the tutorial as it is printed, and what configs promise."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from PIL import Image

from tests.tiny_finetune import (
    DETECTION,
    DETECTION_KNOBS,
    KNOBS,
    SEGMENTATION,
    SMALL,
    SMALL_DETECTOR,
    TINY,
    TINY_DETECTOR,
    edited,
    write_coco,
    write_config,
    write_weights,
)
from tests.tiny_runs import ROOT, environment, run, write_run
from visattn_dense.checkpoints import read_checkpoint
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.config import merge_options
from visattn_dense.openmmlab.datasets.check import check_config
from visattn_dense.openmmlab.datasets.folder import FolderSegDataset
from visattn_dense.openmmlab.inference import preparation
from visattn_dense.predict.sources import Picture


def logged_metric(work_dir: Path, name: str) -> dict[int, float]:
    """Iteration -> what a validation of the training gave."""
    lines = (line for log in sorted(work_dir.glob('*/vis_data/scalars.json'))
             for line in log.read_text().splitlines())
    return {entry['step']: entry[name] for entry in map(json.loads, lines) if name in entry}


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.rpartition('_')[2])


@pytest.fixture(scope='module')
def walked(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The tutorial carried out: its folder, and what each command printed."""
    folder = tmp_path_factory.mktemp('tutorial')
    shutil.copytree(ROOT / 'configs', folder / 'configs')
    (folder / 'tools').symlink_to(ROOT / 'tools')
    write_weights(folder)
    text = (ROOT / 'docs/finetuning.md').read_text().split('## Boxes and instances')[0]
    blocks = re.findall(r'^```(python|bash)\n(.*?)^```', text, re.M | re.S)
    scripts = [body for kind, body in blocks if kind == 'python']
    assert len(scripts) == 2, 'the drawing of data, and the two lines of the config'
    (folder / 'shapes.py').write_text(scripts[0])
    printed = {}
    paths = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    for command in (body.strip() for kind, body in blocks if kind == 'bash'):
        done = subprocess.run(['bash', '-ec', command], cwd=folder, capture_output=True, text=True,
                              timeout=240, env=environment(PATH=paths))
        assert done.returncode == 0, f'{command}\n{done.stdout}{done.stderr}'
        printed[command.split()[1].removeprefix('tools/')] = done.stdout + done.stderr
        if command.startswith('cp '):
            copy = folder / command.split()[-1]
            lines = dict(re.findall(r'^(\w+) = (.*)$', scripts[1], re.M))
            assert set(lines) == {'data_root', 'classes'}
            copy.write_text(edited(copy.read_text(), **KNOBS, **{
                name: Config.fromstring(f'x = {value}', '.py').x
                for name, value in lines.items()}) + TINY)
    return folder, printed


def test_tutorial_checks_the_data(walked):
    output = walked[1]['check_dataset.py']
    assert output.rstrip().endswith('ok')
    assert all(name in output for name in ('background', 'disc', 'box'))


def test_tutorial_trains_from_the_given_weights_with_decayed_rates(walked):
    folder, printed = walked
    assert 'CSWin from tiny.pth: matched' in printed['train.py']
    # The evaluation logs into the same folder.
    log = ''.join(path.read_text()
                  for path in (folder / 'work_dirs/my_shapes').glob('*/*.log'))
    assert 'Layer decay 0.95: 5 layers' in log
    # mmengine's line for every parameter, and its warning for every frozen one.
    assert not re.search('paramwise_options|since its requires_grad', log)
    start = torch.load(folder / 'tiny.pth')
    saved = read_checkpoint(folder / 'work_dirs/my_shapes/iter_4.pth')
    for name, frozen in (('embed1.conv.weight', True), ('stage1.0.mlp.fc1.weight', False)):
        assert torch.equal(start[name], saved['state_dict'][f'backbone.{name}']) == frozen
    assert saved['state_dict']['decode_head.conv_seg.weight'].shape[0] == 3


def test_tutorial_keeps_the_best_and_evaluates_it_as_logged(walked):
    folder, printed = walked
    (best,) = (folder / 'work_dirs/my_shapes').glob('best_mIoU_iter_*.pth')
    logged = logged_metric(folder / 'work_dirs/my_shapes', 'mIoU')
    assert logged[step_of(best)] == max(logged.values())
    (tested,) = re.findall(r'Iter\(test\).* mIoU: ([\d.]+)', printed['test.py'])
    assert float(tested) == pytest.approx(logged[step_of(best)], abs=0.01)
    assert '| background |' in re.sub(' +', ' ', printed['test.py'])


def test_tutorial_predicts(walked):
    folder, _ = walked
    out = folder / 'outputs/my_shapes'
    assert json.loads((out / 'classes.json').read_text()) == {
        '0': 'background', '1': 'disc', '2': 'box'}
    for path in (folder / 'data/shapes/images/val').iterdir():
        with Image.open(out / f'{path.stem}_label.png') as label:
            assert label.size == (160, 120) and np.asarray(label).max() < 3
        assert (out / f'{path.stem}_overlay.png').is_file()


@pytest.mark.parametrize('source', [SEGMENTATION, SMALL, DETECTION, SMALL_DETECTOR],
                         ids=lambda path: path.stem)
@pytest.mark.parametrize('max_iters', [1, 2, 13, 30, 45])
def test_a_short_run_reaches_its_learning_rate(tmp_path, source, max_iters):
    """mmengine's warm-up of one iteration never ends, and its schedules need an iteration."""
    cfg = Config.fromfile(write_config(source, tmp_path, max_iters=max_iters))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.)
    schedulers = [PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer))
                  for scheduler in cfg.param_scheduler]
    rates = []
    for _ in range(max_iters):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert max(rates) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize('source', [SEGMENTATION, SMALL, DETECTION, SMALL_DETECTOR],
                         ids=lambda path: path.stem)
def test_each_choice_is_made_once(tmp_path, source):
    """Size, batch, iterations, classes and weights: one line of the config moves all of it."""
    names = ['a', 'b', 'c', 'd']
    detection = source in (DETECTION, SMALL_DETECTOR)
    size = (160, 96) if detection else (96, 160)
    cfg = Config.fromfile(write_config(source, tmp_path, classes=names, size=size, batch_size=3,
                                       max_iters=80, weights='mine.pth', data_root='there'))
    loaders = [cfg[f'{split}_dataloader'] for split in ('train', 'val', 'test')]
    assert [loader.dataset.metainfo.classes for loader in loaders] == [names] * 3
    assert [loader.dataset.data_root for loader in loaders] == ['there'] * 3
    assert cfg.train_dataloader.batch_size == 3
    assert cfg.train_cfg.max_iters == max(step.end for step in cfg.param_scheduler) == 80
    assert 80 % cfg.train_cfg.val_interval < cfg.train_cfg.val_interval <= 20
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval
    assert cfg.model.backbone.init_cfg.checkpoint == 'mine.pth'
    if detection:
        assert cfg.model.roi_head.bbox_head.num_classes == 4
        assert cfg.model.roi_head.mask_head.num_classes == 4
        palette = cfg.train_dataloader.dataset.metainfo.palette
        assert len({tuple(colour) for colour in palette}) == 4
        scales = [step.scale for loader in loaders for step in loader.dataset.pipeline
                  if 'Resize' in step.type]
        assert scales == [[(160, 57), (160, 96)], (160, 96), (160, 96)]
    else:
        heads = [cfg.model.decode_head, cfg.model.get('auxiliary_head', cfg.model.decode_head)]
        assert [head.num_classes for head in heads] == [4, 4]
        assert cfg.model.data_preprocessor.size == (96, 160)
        (crop,) = (step for step in cfg.train_dataloader.dataset.pipeline
                   if step.type == 'RandomCrop')
        assert crop.crop_size == (96, 160)
    bare = Config.fromfile(write_config(source, tmp_path / 'bare', weights=None)).model.backbone
    assert (bare.init_cfg, bare.frozen_stages) == (None, -1)


@pytest.mark.parametrize('source', [SEGMENTATION, SMALL], ids=lambda path: path.stem)
def test_augmented_tests_see_the_scale_of_the_test(tmp_path, source):
    """However large the photo is: half up to 1.75 times of the short side of the test."""
    cfg = Config.fromfile(write_config(source, tmp_path, size=(96, 96)))
    Image.new('RGB', (600, 400)).save(tmp_path / 'photo.png')
    whole, augmented = (preparation(cfg, tta=tta)(Picture('photo', str(tmp_path / 'photo.png')))
                        for tta in (False, True))
    assert [tuple(version.shape[1:]) for version in whole.inputs] == [(96, 144)]
    sides = [min(version.shape[1:]) for version in augmented.inputs]
    assert sides == [side for side in (48, 72, 96, 120, 144, 168) for _ in range(2)]


@pytest.mark.parametrize('path', [SEGMENTATION, DETECTION, SMALL_DETECTOR],
                         ids=lambda path: path.stem)
def test_one_option_moves_all_data(path):
    cfg = Config.fromfile(path)
    merge_options(cfg, dict(data_root='/elsewhere'))
    roots = {cfg[f'{split}_dataloader'].dataset.data_root for split in ('train', 'val', 'test')}
    assert roots == {'/elsewhere'}
    assert cfg.val_evaluator.get('ann_file') in (None, '/elsewhere/annotations/val.json')
    assert cfg.test_evaluator.get('ann_file') in (None, '/elsewhere/annotations/val.json')


def test_detector_is_fine_tuned(tmp_path):
    for split, count in (('train', 6), ('val', 2)):
        write_coco(tmp_path / 'parts', split, count)
    write_weights(tmp_path)
    config = write_config(
        DETECTION, tmp_path, TINY_DETECTOR, data_root=str(tmp_path / 'parts'),
        classes=['upright', 'lying'], **dict(DETECTION_KNOBS, weights=str(tmp_path / 'tiny.pth')))
    assert [report.problems for report in check_config(Config.fromfile(config))] == [[], []]
    trained = run('train', tmp_path, config)
    assert trained.code == 0, trained.output
    (best,) = (tmp_path / 'work').glob('best_coco_bbox_mAP_iter_*.pth')
    tested = run('test', tmp_path, config, best)
    assert tested.code == 0, tested.output
    logged = logged_metric(tmp_path / 'work', 'coco/bbox_mAP')
    assert sorted(logged) == [2, 4]
    (result,) = re.findall(r'Iter\(test\).*coco/bbox_mAP: ([\d.]+)', tested.output)
    assert float(result) == pytest.approx(logged[step_of(best)], abs=1e-4)


def averaged(steps: int, patience: int = 9) -> str:
    """The hooks of the config, for runs of `steps` iterations with a validation after each."""
    hooks = Config.fromfile(SEGMENTATION).custom_hooks
    hooks[1].patience = patience
    return f'''
custom_imports['imports'] += ['visattn_dense.openmmlab.engine',
                              'visattn_dense.openmmlab.engine.early_stop']
custom_hooks = {[dict(hook) for hook in hooks]}
train_cfg.update(max_iters={steps}, val_interval=1)
default_hooks['checkpoint'].update(interval=1, max_keep_ckpts=-1)
'''


def test_averaged_weights_are_what_is_validated_and_saved(tmp_path):
    config = write_run(tmp_path, averaged(4) + "optim_wrapper['optimizer'].update(lr=0.02)\n")
    done = run('train', tmp_path, config)
    assert done.code == 0, done.output
    files = [read_checkpoint(tmp_path / f'work/iter_{step}.pth') for step in (1, 2, 3, 4)]
    name = 'backbone.stage1.0.mlp.fc1.weight'
    average = files[0]['ema_state_dict'][f'module.{name}']
    for seen, file in enumerate(files[1:], start=1):
        trained = file['ema_state_dict'][f'module.{name}']
        average = average.lerp(trained, 10 / (10 + seen))
        assert not torch.allclose(file['state_dict'][name], trained)
        torch.testing.assert_close(file['state_dict'][name], average)
    resumed = run('train', tmp_path, config, '--resume', tmp_path / 'work/iter_2.pth',
                  '--work-dir', tmp_path / 'resumed')
    assert resumed.code == 0, resumed.output
    again = read_checkpoint(tmp_path / 'resumed/iter_4.pth')
    for part in ('state_dict', 'ema_state_dict'):
        torch.testing.assert_close(again[part], files[3][part], rtol=0, atol=0)
    validated = re.findall(r'Iter\(val\).* mIoU: ([\d.]+)', done.output)
    results = {}
    for kind in ('average', 'trained'):
        file = dict(files[3])
        if kind == 'trained':
            file['state_dict'] = {key: file['ema_state_dict'][f'module.{key}']
                                  for key in file['state_dict']}
        torch.save(file, tmp_path / f'{kind}.pth')
        tested = run('test', tmp_path, config, tmp_path / f'{kind}.pth')
        assert tested.code == 0, tested.output
        (results[kind],) = re.findall(r'Iter\(test\).* mIoU: ([\d.]+)', tested.output)
    assert results['average'] == validated[3] != results['trained']


def test_training_ends_when_the_metric_stands_still_also_when_resumed(tmp_path):
    config = write_run(tmp_path, averaged(3, patience=4)
                       + "optim_wrapper['optimizer'].update(lr=0., weight_decay=0.)\n"
                       + "model['decode_head']['norm_cfg'] = dict(type='GN', num_groups=2)\n")
    assert run('train', tmp_path, config).code == 0
    # iter_3 knows the validations 1 and 2: the second was the first in vain. 6 is the fourth after
    # the best, as 3 is judged only once.
    done = run('train', tmp_path, config, '--resume', '--cfg-options', 'train_cfg.max_iters=12')
    assert done.code == 0, done.output
    assert 'did not improve' in done.output
    steps = {int(path.stem.split('_')[1]) for path in (tmp_path / 'work').glob('iter_*.pth')}
    assert max(steps) == 6


def test_images_of_any_format_find_their_masks(tmp_path):
    for kind in ('images/train', 'masks/train/more'):
        (tmp_path / kind).mkdir(parents=True)
    (tmp_path / 'images/train/more').mkdir()
    for name in ('a.jpg', 'b.PNG', 'c.v2.jpeg', 'more/d.tif', 'notes.txt', '.hidden.jpg'):
        (tmp_path / 'images/train' / name).touch()
    options = dict(data_root=str(tmp_path), metainfo=dict(classes=['x', 'y']),
                   data_prefix=dict(img_path='images/train', seg_map_path='masks/train'))
    dataset = FolderSegDataset(**options)
    found = {Path(item['img_path']).name: Path(item['seg_map_path']).relative_to(tmp_path)
             for item in map(dataset.get_data_info, range(len(dataset)))}
    assert found == {'a.jpg': Path('masks/train/a.png'), 'b.PNG': Path('masks/train/b.png'),
                     'c.v2.jpeg': Path('masks/train/c.v2.png'),
                     'd.tif': Path('masks/train/more/d.png')}
    assert len(dataset.metainfo['palette']) == 2
    # A list file has names without suffix; each known suffix is tried for them too.
    (tmp_path / 'train.txt').write_text('a\nb\nc.v2\nmore/d\nabsent\n')
    listed = FolderSegDataset(**options, ann_file='train.txt')
    names = [Path(item['img_path']).name
             for item in map(listed.get_data_info, range(len(listed)))]
    assert names == ['a.jpg', 'b.PNG', 'c.v2.jpeg', 'd.tif', 'absent.jpg']
    (tmp_path / 'images/train/a.png').touch()
    with pytest.raises(UserError, match=r'a\.jpg and .*a\.png would share the mask a\.png'):
        FolderSegDataset(**options)


@pytest.mark.parametrize('classes, words', [
    (None, 'at least two; got None'), (['crack'], r"the background's too.* got \['crack'\]"),
    ('crack', "got 'crack'"), (['a', 'b', 'a'], 'names a more than once')])
def test_class_names_that_cannot_be_meant_are_refused(classes, words):
    with pytest.raises(UserError, match=words):
        FolderSegDataset(metainfo=dict(classes=classes), lazy_init=True)
