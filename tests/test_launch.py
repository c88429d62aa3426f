"""tools/train.py and tools/test.py: flags, messages, exit codes."""
import json
import logging
import os
import pickle
import re
import shutil
import stat
import threading
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from tests.tiny_runs import (
    ROOT,
    Done,
    run,
    run_tool,
    write_detection_run,
    write_run,
)
from visattn_dense.checkpoints import read_checkpoint
from visattn_dense.command import run as run_command
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.config import merge_options, read_config
from visattn_dense.openmmlab.engine.checks import (
    accumulation_message,
    check_loop,
    learning_rate_message,
)
from visattn_dense.openmmlab.engine.evaluation import _write_detections, augment, prepare_test
from visattn_dense.openmmlab.engine.launch import _use_amp
from visattn_dense.openmmlab.engine.options import train_parser
from visattn_dense.openmmlab.run_log import RUN_LOG

SHORT = ['--no-validate', '--cfg-options', 'train_cfg.max_iters=2']


def assert_refused(done: Done, *words: str) -> None:
    """One message, exit code 2, no traceback."""
    assert done.code == 2, done.output
    assert 'Traceback' not in done.output
    message = done.output[done.output.index('error: '):]
    assert len(message.splitlines()) <= 4, message
    for word in words:
        assert word in message


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run with --auto-scale-lr, best checkpoints and one kept checkpoint."""
    folder = tmp_path_factory.mktemp('trained')
    config = write_run(folder, '''
default_hooks['checkpoint'].update(max_keep_ckpts=1, save_best='mIoU')
custom_hooks = [dict(type='NonFiniteLossHook'), dict(type='IterationSeedHook')]
''')
    done = run('train', folder, config, '--auto-scale-lr', '--seed', '3', '--cfg-options',
               'train_cfg.max_iters=6', 'train_cfg.val_interval=2')
    assert done.code == 0, done.output
    (folder / 'output').write_text(done.output)
    return folder


def test_says_what_it_changed(trained: Path) -> None:
    output = (trained / 'output').read_text()
    assert 'SyncBN runs as BN' in output
    # Said before the run had a log file, and there all the same.
    assert 'SyncBN runs as BN' in next(trained.glob('work/*/*.log')).read_text()
    assert 'The learning rate is scaled by 0.125: the real batch is 2' in output
    log = next(trained.glob('work/*/vis_data/*.json')).read_text()
    assert json.loads(log.splitlines()[0])['lr'] == pytest.approx(1e-3 / 8)
    assert 'seed: 3' in next(trained.glob('work/*/*.log')).read_text()
    assert re.search(r'Iter\(train\) \[4/6\] .*eta: \d:\d\d:\d\d', output)


def test_messages_of_several_threads_arrive() -> None:
    MMLogger.get_current_instance()
    record = logging.makeLogRecord(dict(name='visattn_dense', levelno=logging.INFO, msg='hello'))
    RUN_LOG.handle(record)
    thread = threading.Thread(target=RUN_LOG.handle, args=(record,), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_hooks_are_there_once(trained: Path) -> None:
    hooks = re.search(r'order:\n(.*)', (trained / 'output').read_text())[1].split(', ')
    for name in ('AtomicCheckpointHook', 'NonFiniteLossHook', 'IterationSeedHook'):
        assert hooks.count(name) == 1
    assert 'CheckpointHook' not in hooks


def test_keeps_one_checkpoint_and_the_best(trained: Path) -> None:
    work = trained / 'work'
    names = sorted(path.name for path in work.glob('*.pth'))
    assert len(names) == 2 and names[0].startswith('best_mIoU_iter_') and names[1] == 'iter_6.pth'
    assert (work / 'last_checkpoint').read_text() == str(work / 'iter_6.pth')
    assert not list(work.glob('.*'))


def test_evaluates_and_paints(trained: Path, tmp_path: Path) -> None:
    done = run('test', tmp_path, trained / 'tiny.py', trained / 'work' / 'iter_6.pth',
               '--out', tmp_path / 'labels', '--show-dir', tmp_path / 'painted')
    assert done.code == 0, done.output
    result = json.loads(next((tmp_path / 'work').glob('*/*.json')).read_text())
    assert 0 <= result['mIoU'] <= 100
    assert len(list((tmp_path / 'labels').glob('*.png'))) == 8
    assert len(list((tmp_path / 'painted').rglob('*.png'))) == 8


def test_a_detectors_pictures_lie_in_the_relative_folder_that_was_named(tmp_path: Path) -> None:
    config = write_detection_run(tmp_path, images=2)
    done = run('train', tmp_path, config, '--cfg-options', 'train_cfg.max_epochs=1')
    assert done.code == 0, done.output
    done = run_tool('test.py', config, tmp_path / 'work' / 'epoch_1.pth', '--work-dir', 'tested',
                    '--show-dir', 'painted', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    painted = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob('[01].*')
                     if path.parent != tmp_path / 'data' / 'images')
    assert [(path.parent, path.stem) for path in painted] == [
        (Path('painted'), '0'), (Path('painted'), '1')]


def test_images_of_one_name_have_a_picture_each(tmp_path: Path) -> None:
    """Once as a segmentor, once as a detector: a/0.png and b/0.png."""
    painted = {}
    for kind, write in (('mmseg', write_run), ('mmdet', write_detection_run)):
        folder = tmp_path / kind
        config = write(folder, images=2)
        for name, images in (('a', '0.png'), ('b', '1.png')):
            for part in (folder / 'data').glob('*/'):
                (part / name).mkdir()
                (part / images).rename(part / name / '0.png')
        if kind == 'mmdet':
            file = folder / 'data' / 'all.json'
            coco = json.loads(file.read_text())
            for image, name in zip(coco['images'], 'ab', strict=True):
                image['file_name'] = f'{name}/0.png'
            file.write_text(json.dumps(coco))
        short = 'train_cfg.max_iters=1' if kind == 'mmseg' else 'train_cfg.max_epochs=1'
        done = run('train', folder, config, '--no-validate', '--cfg-options', short,
                   'default_hooks.checkpoint.interval=1')
        assert done.code == 0, done.output
        checkpoint = next((folder / 'work').glob('*.pth'))
        done = run('test', folder, config, checkpoint, '--show-dir', folder / 'painted')
        assert done.code == 0, done.output
        painted[kind] = sorted(str(path.relative_to(folder / 'painted'))
                               for path in (folder / 'painted').rglob('*.*'))
        before = (folder / 'data/images/a/0.png').read_bytes()
        assert_refused(run('test', folder, config, checkpoint,
                           '--show-dir', folder / 'data' / 'images'),
                       'would overwrite', 'images/a/0.png', 'name another folder')
        assert (folder / 'data/images/a/0.png').read_bytes() == before
    assert painted == {kind: ['a/0.png', 'b/0.png'] for kind in painted}


def test_outputs_that_cannot_be_written_are_refused_before_the_test(
        trained: Path, tmp_path: Path) -> None:
    config, checkpoint = trained / 'tiny.py', trained / 'work' / 'iter_6.pth'
    (tmp_path / 'file').touch()
    for option in ('--out', '--show-dir'):
        assert_refused(run('test', tmp_path, config, checkpoint, option, tmp_path / 'file'),
                       'cannot write to', f'choose another with {option}')
    labels = trained / 'data' / 'labels'
    before = (labels / '0.png').read_bytes()
    assert_refused(run('test', tmp_path, config, checkpoint, '--out', labels),
                   'would overwrite', 'labels/0.png')
    assert (labels / '0.png').read_bytes() == before


@pytest.mark.parametrize(('resize', 'scales'), [
    (dict(scale=(2048, 512)), [(1024, 256), (1536, 384), (2048, 512), (2560, 640), (3072, 768),
                               (3584, 896)]),
    (dict(scale=64), [32, 48, 64, 80, 96, 112]),
    (dict(scale_factor=2.), [1., 1.5, 2., 2.5, 3., 3.5]),
    (dict(scale_factor=(2., 1.)), [(1., .5), (1.5, .75), (2., 1.), (2.5, 1.25), (3., 1.5),
                                   (3.5, 1.75)]),
])
def test_versions_are_made_from_the_pipeline_of_the_test(resize: dict, scales: list) -> None:
    load, align, truth, pack = (dict(type=name) for name in (
        'LoadImageFromFile', 'ResizeToMultiple', 'LoadAnnotations', 'PackSegInputs'))
    steps = [load, dict(type='mmseg.Resize', keep_ratio=True, **resize), align, truth, pack]
    cfg = Config(dict(model=dict(type='EncoderDecoder'),
                      test_dataloader=dict(dataset=dict(pipeline=steps))))
    augment(cfg, detection=False)
    assert (cfg.model.type, cfg.model.module.type) == ('SegTTAModel', 'EncoderDecoder')
    first, versions = cfg.test_dataloader.dataset.pipeline
    (key,) = resize
    resized, aligned, flips, *rest = versions.transforms
    assert first == load and aligned == [align] and rest == [[truth], [pack]]
    assert [step[key] for step in resized] == scales
    assert {(step.type, step.keep_ratio) for step in resized} == {('mmseg.Resize', True)}
    assert [flip.prob for flip in flips] == [0., 1.]


def test_merged_flips_of_a_model_with_masks_are_refused_before_the_test() -> None:
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn_cswin_tiny_coco.py')
    args = Namespace(checkpoint='c.pth', show=False, show_dir=None, tta=True, out=None)
    with pytest.raises(UserError, match='mmdetection merges boxes only'):
        prepare_test(cfg, args)


def test_an_evaluation_leaves_the_config_of_the_training(trained: Path, tmp_path: Path) -> None:
    """tools/infer.py RUN and tools/report.py RUN read it."""
    work = tmp_path / 'work'
    shutil.copytree(trained / 'work', work)
    config = work / 'tiny.py'
    before = config.read_text()
    done = run('test', tmp_path, config, work / 'iter_6.pth', '--tta')
    assert done.code == 0, done.output
    assert config.read_text() == before
    (own,) = work.glob('*/tiny.py')
    assert 'SegTTAModel' in own.read_text()


def test_a_config_of_pure_python_has_every_option(tmp_path: Path) -> None:
    config = write_run(tmp_path, """
test_pipeline.insert(1, dict(type=Resize, scale=(40, 40), keep_ratio=True))
test_dataloader['dataset']['pipeline'] = test_pipeline
""")
    text = config.read_text()
    for name in ('OptimWrapper', 'CheckpointHook', 'IoUMetric', 'LoadAnnotations'):
        text = text.replace(f"type='{name}'", f'type={name}')
    config.write_text("""
from mmcv.transforms import Resize
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.evaluation import IoUMetric
""" + text)
    done = run('train', tmp_path, config, '--amp', *SHORT)
    assert done.code == 0 and 'AtomicCheckpointHook' in done.output, done.output
    done = run('test', tmp_path, config, tmp_path / 'work' / 'iter_2.pth', '--tta', '--out',
               tmp_path / 'labels')
    assert done.code == 0 and len(list((tmp_path / 'labels').iterdir())) == 8, done.output
    cfg = read_config(str(config))
    augment(cfg, detection=False)
    (versions,) = (step for step in cfg.test_dataloader.dataset.pipeline if 'transforms' in step)
    assert len(versions.transforms[0]) == 6


def test_a_folder_in_the_place_of_a_config_is_named(trained: Path, tmp_path: Path) -> None:
    work = trained / 'work'
    assert_refused(run('test', tmp_path, work, work / 'iter_6.pth'),
                   f'{work} is a folder, and a config file was expected', str(work / 'tiny.py'))


@pytest.mark.parametrize('out, words', [
    ('.', 'is a folder; name the beginning of the files'), ('new/', 'is a folder'),
    ('file/results.json', 'cannot write to'), ('file/results.pkl', 'cannot write to')])
def test_a_place_for_detections_that_cannot_be_is_refused(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=words):
        _write_detections([dict(type='CocoMetric')], out)


@pytest.mark.parametrize('out', ['a', 'a.json', 'a.bbox.json', 'a.segm.json'])
def test_detections_have_the_name_that_was_given(tmp_path: Path, out: str) -> None:
    (evaluator,) = evaluators = [dict(type='CocoMetric')]
    _write_detections(evaluators, str(tmp_path / out))
    assert evaluator['outfile_prefix'] == str(tmp_path / 'a')


@pytest.mark.parametrize('averaged', [False, True], ids=['plain', 'EMAHook'])
def test_weights_are_evaluated_wherever_a_file_has_them(
        trained: Path, tmp_path: Path, averaged: bool) -> None:
    """What fits the model is what is evaluated, not the random weights beside it."""
    config = tmp_path / 'tiny.py'
    config.write_text((trained / 'tiny.py').read_text()
                      + averaged * "custom_hooks = [dict(type='EMAHook')]\n")
    weights = read_checkpoint(trained / 'work' / 'iter_6.pth')['state_dict']
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    files = dict(saved={'state_dict': weights}, bare=weights, model={'model': weights},
                 better={'state_dict': zeros, 'state_dict_ema': weights},
                 parallel={f'module.{name}': tensor for name, tensor in weights.items()})
    found = {}
    for name, contents in files.items():
        torch.save(contents, tmp_path / f'{name}.pth')
        done = run('test', tmp_path, config, tmp_path / f'{name}.pth',
                   '--work-dir', tmp_path / name)
        assert done.code == 0, done.output
        result = json.loads(next((tmp_path / name).glob('*/*.json')).read_text())
        found[name] = [result['mIoU'], result['aAcc'], result['mAcc']]
    assert found == {name: found['saved'] for name in files}


def test_evaluation_refuses_foreign_checkpoints(trained: Path, tmp_path: Path) -> None:
    config, good = trained / 'tiny.py', trained / 'work' / 'iter_6.pth'
    assert_refused(run('test', tmp_path, config, trained / 'work' / 'iter_5.pth'),
                   "Did you mean 'iter_6.pth'")
    torch.save({'state_dict': {'head.weight': torch.zeros(3)}}, tmp_path / 'other.pth')
    assert_refused(run('test', tmp_path, config, tmp_path / 'other.pth'),
                   'fits 0 of the', 'another config')
    (tmp_path / 'cut.pth').write_bytes(good.read_bytes()[:5000])
    assert_refused(run('test', tmp_path, config, tmp_path / 'cut.pth'), 'is damaged')
    with open(tmp_path / 'trap.pth', 'wb') as file:
        pickle.dump(os.system, file)
    assert_refused(run('test', tmp_path, config, tmp_path / 'trap.pth'),
                   'nothing of it was executed')


def test_one_option_moves_the_data() -> None:
    cfg = Config(dict(data_root='data/ade', model=dict(init='data/ade.pth'), train_dataloader=dict(
        dataset=dict(data_root='data/ade', ann_file='data/ade/list.txt'), sizes=[1, 2]),
        pipelines=[dict(type='Load', root='data/ade/')]))
    merge_options(cfg, {'data_root': '/mnt/x/'})
    assert cfg.train_dataloader.dataset == dict(data_root='/mnt/x', ann_file='/mnt/x/list.txt')
    assert cfg.pipelines[0].root == '/mnt/x/' and cfg.model.init == 'data/ade.pth'


def test_mmdet_by_the_same_launcher(tmp_path: Path) -> None:
    config = write_detection_run(tmp_path)
    done = run('train', tmp_path, config, '--cfg-options', 'train_cfg.max_epochs=1',
               'default_hooks.checkpoint.save_best=auto')
    assert done.code == 0, done.output
    # Not by the first class.
    assert (tmp_path / 'work' / 'best_coco_bbox_mAP_epoch_1.pth').is_file()
    done = run('test', tmp_path, config, tmp_path / 'work' / 'epoch_1.pth', '--tta',
               '--work-dir', tmp_path / 'evaluated', '--out', tmp_path / 'found')
    assert done.code == 0, done.output
    assert all(box['image_id'] is not None and len(box['bbox']) == 4
               for box in json.loads((tmp_path / 'found.bbox.json').read_text()))
    assert 'coco/bbox_mAP' in next((tmp_path / 'evaluated').glob('*/*.json')).read_text()


@pytest.mark.parametrize(('option', 'words'), [
    ('model.backbnoe.drop_path_rate=0.1', ["model has no 'backbnoe'", "'backbone'"]),
    ('modle.backbone.with_cp=True', ["'model'"]),
    ('train_dataloader.batchsize=4', ["'batch_size'"]),
    ('randomnes.seed=4', ["'randomness'"]),
    ('train_pipeline.9.prob=1', ['list of 6']),
    ('work_dir.x=1', ['has no entries']),
    ('norm_cfg.type=BN', ['norm_cfg is a variable of the config file']),
    ('train_pipeline.3.prob=1', ['train_pipeline is a variable of the config file']),
])
def test_option_typos_are_refused(tmp_path: Path, option: str, words: list[str]) -> None:
    cfg = Config.fromfile(write_run(tmp_path, "work_dir = 'here'\n"))
    key, _, value = option.partition('=')
    with pytest.raises(UserError) as refused:
        merge_options(cfg, {key: value})
    assert all(word in str(refused.value) for word in words)


def test_new_options_are_taken_and_named(tmp_path: Path, caplog) -> None:
    cfg = Config.fromfile(write_run(tmp_path))
    merge_options(cfg, {'model.backbone.with_cp': True, 'randomness.deterministic': True,
                        'find_unused_parameters': True, '+train_dataloader.batchsize': 3,
                        'train_dataloader.dataset.pipeline.3.prob': 0.0})
    assert cfg.model.backbone.with_cp and cfg.find_unused_parameters
    assert cfg.train_dataloader.batchsize == 3
    assert cfg.train_dataloader.dataset.pipeline[3].prob == 0.0
    assert len(caplog.messages) == 2 and "had no 'with_cp'" in caplog.messages[0]


def test_values_of_options_keep_their_spaces(capsys) -> None:
    parser = train_parser()

    def values(*options: str) -> list:
        return list(parser.parse_args(['tiny.py', '--cfg-options', *options]).cfg_options.values())

    assert values('data_root=/my data/a b', 'work_dir="/my runs"', 'a= 1e-3', 'b=None', 'c= True',
                  'd=(1, 2)', 'e=[x, y]', 'f=3, 4', 'g=[traffic light, "a b"]',
                  'h=[( 1, 2 ), [a b, c]]', 'i=traffic light,car', 'j=[]', 'k=/a (b)/c') == [
        '/my data/a b', '/my runs', 1e-3, None, True, (1, 2), ['x', 'y'], [3, 4],
        ['traffic light', 'a b'], [(1, 2), ['a b', 'c']], ['traffic light', 'car'], [],
        '/a (b)/c']
    with pytest.raises(SystemExit) as refused:
        values('a=[1,2')
    assert refused.value.code == 2 and 'Imbalanced brackets' in capsys.readouterr().err


@pytest.mark.parametrize(('world', 'accumulated', 'words'), [
    (8, 1, None), (4, 2, None), (2, 1, '4 times too high'), (16, 1, '2 times too low')])
def test_learning_rate_against_the_real_batch(tmp_path: Path, world: int, accumulated: int,
                                              words: str | None) -> None:
    cfg = Config.fromfile(write_run(tmp_path))
    cfg.optim_wrapper.accumulative_counts = accumulated
    message = learning_rate_message(cfg, world)
    assert message is None if words is None else words in message and '--auto-scale-lr' in message


@pytest.mark.parametrize(('checkpoint', 'named'), [
    (dict(by_epoch=False, interval=6), True), (dict(by_epoch=False, interval=8), False),
    (dict(by_epoch=False), False), (dict(by_epoch=False, interval=-1), False),
    (dict(interval=1), False)])
def test_checkpoints_between_the_batches_of_a_step(checkpoint: dict, named: bool) -> None:
    cfg = Config(dict(optim_wrapper=dict(accumulative_counts=4),
                      default_hooks=dict(checkpoint=dict(type='CheckpointHook', **checkpoint))))
    message = accumulation_message(cfg)
    assert 'every 6 iterations' in message if named else message is None


def test_learning_rate_scales_with_accumulation(tmp_path: Path) -> None:
    config = write_run(tmp_path, """
optim_wrapper.update(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1),
                     paramwise_cfg=dict(norm_decay_mult=0.))
""")
    done = run('train', tmp_path, config, '--auto-scale-lr', *SHORT,
               'optim_wrapper.accumulative_counts=2')
    assert done.code == 0, done.output
    log = next(tmp_path.glob('work/*/vis_data/*.json')).read_text()
    for rate in ('lr', 'base_lr'):
        assert json.loads(log.splitlines()[0])[rate] == pytest.approx(1e-3 * 4 / 16)


def test_bad_input_is_one_message(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    assert_refused(run('train', tmp_path, tmp_path / 'tyny.py'), 'no config file', 'tiny.py')
    assert_refused(run('train', tmp_path, config, '--cfg-options', 'model.backbone.type=CSWim'),
                   "Did you mean 'CSWin'")
    assert_refused(run('train', tmp_path, config, '--cfg-options', 'model.backbone.deptz=3'),
                   'deptz')
    assert_refused(run('train', tmp_path, config, '--cfg-options',
                       'model.backbone.init_cfg.type=Pretrained',
                       'model.backbone.init_cfg.checkpoint=/nowhere/x.pth'),
                   'model.backbone.init_cfg.checkpoint', '/nowhere/x.pth')
    assert_refused(run('train', tmp_path, config, '--work-dir', config / 'work'), '--work-dir')
    assert_refused(run('train', tmp_path, config, '--cfg-options', 'nonsense'), 'KEY=VALUE')
    broken = tmp_path / 'broken.py'
    broken.write_text('model = dict(\n')
    assert_refused(run('train', tmp_path, broken), 'broken.py', 'line 1')
    broken.write_text(config.read_text().replace('train_dataloader =', 'train_dataloder ='))
    assert_refused(run('train', tmp_path, broken), 'no train_dataloader', "'train_dataloder'")
    shown = run('train', tmp_path, tmp_path / 'tyny.py', VISATTN_DEBUG='1')
    assert shown.code == 2 and 'Traceback' in shown.output


@pytest.mark.parametrize('entry', ['max_iters', 'max_epochs', 'val_interval'])
def test_a_loop_without_an_iteration_is_refused(entry: str) -> None:
    cfg = Config(dict(train_cfg={'max_iters': 8, 'val_interval': 4, entry: 0}, val_cfg=dict()))
    with pytest.raises(UserError, match=f'train_cfg.{entry} is at least 1, got 0'):
        check_loop(cfg)
    cfg.train_cfg[entry] = 1
    check_loop(cfg)


def test_without_validations_their_interval_does_not_count(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    options = ['--cfg-options', 'train_cfg.max_iters=1', 'train_cfg.val_interval=0']
    assert_refused(run('train', tmp_path, config, *options), '--no-validate')
    done = run('train', tmp_path, config, '--no-validate', *options)
    assert done.code == 0, done.output


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='a device of Linux')
def test_a_full_disk_is_one_message(capsys) -> None:
    """Where a library writes: the disk can be full in any of the files of a run."""
    assert run_command(lambda _: Path('/dev/full').write_text('x'), Namespace()) == 2
    assert capsys.readouterr().err == 'error: [Errno 28] No space left on device\n'


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    """In a worker process, and after the check before training has seen it whole."""
    config = write_run(tmp_path, '''
train_dataloader['sampler'] = dict(type='DamagingSampler')
custom_imports = dict(imports=['visattn_dense', 'tests.tiny_modules'])
''')
    done = run('train', tmp_path, config, '--cfg-options', 'train_dataloader.num_workers=2')
    assert_refused(done, str(tmp_path / 'data' / 'images' / '3.png'), 'cannot load')


def test_no_traceback_is_hidden_from_a_bug(tmp_path: Path) -> None:
    config = write_run(tmp_path, '''
custom_hooks = [dict(type='BuggyHook')]
custom_imports = dict(imports=['visattn_dense', 'tests.tiny_modules'])
''')
    done = run('train', tmp_path, config)
    assert done.code == 1 and 'Traceback' in done.output and 'ZeroDivisionError' in done.output


@pytest.mark.parametrize('name', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_usage_lines(name: str, tmp_path: Path) -> None:
    done = run_tool(f'{name}.sh', 'only_one', cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith('usage: ') and 'CONFIG' in done.stderr


def test_slurm_command(tmp_path: Path) -> None:
    """What is handed to srun; there is no slurm here."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(srun.stat().st_mode | stat.S_IEXEC)
    done = run_tool('slurm_train.sh', 'gpu', 'my job', 'a config.py', '--amp', cwd=tmp_path,
                    PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='2', SRUN_ARGS='--time=1 -x n1')
    words = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert {'--job-name=my job', '--ntasks=2', '--ntasks-per-node=2', '--gres=gpu:2',
            '--kill-on-bad-exit=1', '--time=1', '-x', 'n1'} <= set(words)
    assert Path(words[words.index('a config.py') - 1]).resolve() == ROOT / 'tools' / 'train.py'
    assert words[-3:] == ['--amp', '--launcher', 'slurm']


@pytest.mark.parametrize('given, port', [
    (dict(MASTER_PORT='4001'), '4001'), (dict(PORT='4002'), '4002'),
    (dict(MASTER_PORT='4001', PORT='4002'), '4001')])
def test_every_launcher_takes_the_port_and_the_environment(given: dict, port: str,
                                                           tmp_path: Path) -> None:
    """What is handed to Python and to srun. PORT is the former name of MASTER_PORT."""
    shown = '#!/bin/sh\nprintf "%s\\n" "$0" "$@" "MASTER_PORT=$MASTER_PORT"\n'
    for script in (tmp_path / 'bin' / 'python', tmp_path / 'srun'):
        script.parent.mkdir(exist_ok=True)
        script.write_text(shown)
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
    options = dict(given, VISATTN_VENV=str(tmp_path), PATH=f'{tmp_path}:{os.environ["PATH"]}')
    done = run_tool('dist_train.sh', 'config.py', '2', **options)
    words = done.stdout.splitlines()
    assert words[0] == str(tmp_path / 'bin' / 'python') and f'--master-port={port}' in words
    done = run_tool('slurm_train.sh', 'gpu', 'job', 'config.py', **options)
    words = done.stdout.splitlines()
    assert str(tmp_path / 'bin' / 'python') in words and f'MASTER_PORT={port}' in words


POOLED = """
model['decode_head'] = dict(
    type='PSPHead', in_channels=128, in_index=3, channels=8, pool_scales=({scale}, 2),
    num_classes=3, norm_cfg=norm_cfg, loss_decode=dict(type='CrossEntropyLoss'))
train_dataloader['batch_size'] = 1
train_cfg.update(max_iters=1, val_interval=9)
"""


def test_batch_norm_of_one_value_is_refused_before_the_start(tmp_path: Path) -> None:
    """torch raises in the first iteration; the message names module and remedy before it."""
    config = write_run(tmp_path, POOLED.format(scale=1))
    done = run('train', tmp_path, config)
    assert_refused(done, 'BatchNorm in decode_head.psp_modules.0', 'batch_size=2', "type='GN'")
    larger = ['--cfg-options', 'train_dataloader.batch_size=2']
    assert run('train', tmp_path, config, *larger).code == 0
    # One image that is left over, which only its batch shows: three images in batches of two.
    (tmp_path / 'rest').mkdir()
    rest = write_run(tmp_path / 'rest', POOLED.format(scale=1)
                     + "train_cfg['max_iters'] = 2\n"
                     "train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=False)\n",
                     images=3)
    assert_refused(run('train', tmp_path / 'rest', rest, *larger), 'BatchNorm in decode_head',
                   'drop_last=True')


def test_float16_on_a_cpu_is_refused(tmp_path: Path) -> None:
    done = run('train', tmp_path, write_run(tmp_path), '--amp', 'float16')
    assert done.code == 2 and '--amp float16 needs a GPU' in done.output


@pytest.mark.parametrize(('given', 'scale'), [({}, 1.), (dict(loss_scale=512.), 512.)])
def test_amp_keeps_the_loss_scale_of_the_config(given: dict, scale: float) -> None:
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', **given)))
    _use_amp(cfg, 'bfloat16')
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=scale)


def test_compile_leaves_the_checkpoint_as_it_is(tmp_path: Path, monkeypatch) -> None:
    """The option reaches the blocks. Compiling itself takes minutes, so torch is told to leave it
    out here; tests/campaigns/compiled_training.py compiles."""
    monkeypatch.setenv('TORCHDYNAMO_DISABLE', '1')
    done = run('train', tmp_path, write_run(tmp_path), '--compile', *SHORT)
    assert done.code == 0, done.output
    names = read_checkpoint(tmp_path / 'work/iter_2.pth')['state_dict']
    assert 'backbone.stage1.0.norm1.weight' in names and not any('_orig_mod' in n for n in names)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('options, words', [
    (['--graphs'], 'there is no GPU'), (['--graphs', '--compile'], 'exclude each other')])
def test_graphs_that_cannot_be_are_refused(tmp_path: Path, options: list, words: str) -> None:
    assert_refused(run('train', tmp_path, write_run(tmp_path), *options), words)
    assert not (tmp_path / 'work').exists()


def test_compile_needs_a_backbone_of_ours(tmp_path: Path) -> None:
    config = write_run(tmp_path, "model['backbone'] = dict(type='ResNet', depth=18)\n"
                       "model['decode_head']['in_channels'] = [64, 128, 256, 512]\n")
    done = run('train', tmp_path, config, '--compile', *SHORT)
    assert done.code == 2 and '--compile goes with a backbone of visattn_dense' in done.output
