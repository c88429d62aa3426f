"""The data check of segmentation configs and its command line: every fault names file and fix."""
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from tests.tiny_runs import run_tool
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.datasets.check import check_config, quick_check

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared' / 'data'
PREFIX = dict(img_path='images/training', seg_map_path='annotations/training')


def image_path(root: Path, name: str) -> Path:
    return root / 'images/training' / f'{name}.jpg'


def label_path(root: Path, name: str) -> Path:
    return root / 'annotations/training' / f'{name}.png'


def save_label(root: Path, name: str, values: list[int], size: tuple[int, int] = (32, 24)) -> None:
    width, height = size
    pixels = np.resize(np.array(values), (height, width))
    dtype = np.uint8 if pixels.max() < 256 else np.uint16
    Image.fromarray(pixels.astype(dtype)).save(label_path(root, name))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four image/label pairs in the ADEChallengeData2016 layout, without a fault."""
    root = tmp_path / 'ADEChallengeData2016'
    for folder in PREFIX.values():
        (root / folder).mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name in 'abcd':
        pixels = noise.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image_path(root, name))
        save_label(root, name, [0, 1, 2, 149])
    return root


def config(root: Path, *, num_classes: int = 150, wrap: Callable[[dict], dict] | None = None,
           **dataset) -> Config:
    leaf = dict(type='ADE20KDataset', data_root=str(root), data_prefix=PREFIX) | dataset
    return Config(dict(
        default_scope='mmseg',
        model=dict(decode_head=dict(type='UPerHead', num_classes=num_classes),
                   auxiliary_head=[dict(type='FCNHead', num_classes=num_classes)]),
        train_dataloader=dict(dataset=wrap(leaf) if wrap else leaf)))


def problems(cfg: Config) -> str:
    return '\n'.join(str(problem) for report in check_config(cfg) for problem in report.problems)


def test_clean_data_are_measured(root: Path) -> None:
    report, = check_config(config(root))
    assert not report.problems
    assert (report.images, report.read) == (4, 4)
    assert report.size_summary()['median'] == [32, 24]
    histogram = report.histogram()
    # Values 0, 1, 2, 149 in equal parts: 0 is ignored and the others move down by one.
    assert histogram['(ignored)'] == histogram['wall'] == histogram['building'] == 25
    assert histogram['clock'] == 25
    assert histogram['flag'] == 0
    quick_check(config(root))


@pytest.mark.parametrize('wrap', [
    lambda leaf: dict(type='RepeatDataset', times=3, dataset=leaf),
    lambda leaf: dict(type='ConcatDataset', datasets=[leaf]),
    lambda leaf: dict(type='RepeatDataset', times=3,
                      dataset=dict(type='ConcatDataset', datasets=[leaf])),
    lambda leaf: [leaf],
])
def test_wrapped_datasets_are_found(root: Path, wrap: Callable[[dict], dict]) -> None:
    save_label(root, 'b', [1, 200])
    report, = check_config(config(root, wrap=wrap))
    assert report.images == 4
    assert 'b.png (value 200)' in str(report.problems[0])


def test_a_dataset_may_name_its_library(root: Path) -> None:
    cfg = config(root, _scope_='mmseg')
    cfg.default_scope = 'mmdet'
    assert not problems(cfg)


def test_same_dataset_of_two_splits_is_checked_once(root: Path) -> None:
    cfg = config(root)
    cfg.val_dataloader = cfg.test_dataloader = cfg.train_dataloader
    assert [report.split for report in check_config(cfg)] == ['train']


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


FAULTS = {
    'image without a label': (
        lambda root: label_path(root, 'b').unlink(), {}, 'b.jpg', 'remove the image'),
    'label without an image': (
        lambda root: save_label(root, 'left', [1, 2]), {}, 'left.png', 'remove the label'),
    'truncated image': (
        lambda root: truncate(image_path(root, 'c')), {}, 'c.jpg', 'copy the file again'),
    'truncated label': (
        lambda root: truncate(label_path(root, 'c')), {}, 'c.png', 'copy the file again'),
    'text instead of an image': (
        lambda root: image_path(root, 'a').write_text('<html>404</html>'), {}, 'a.jpg',
        'copy the file again'),
    'sizes differ': (
        lambda root: save_label(root, 'd', [1, 2], (31, 24)), {}, 'd.png 31x24',
        'pair the right files'),
    'colour label': (
        lambda root: Image.new('RGB', (32, 24), (9, 80, 7)).save(label_path(root, 'a')), {},
        'a.png (mode RGB)', 'ADEChallengeData2016'),
    'three equal channels': (
        lambda root: Image.new('RGB', (32, 24), (9, 9, 9)).save(label_path(root, 'a')), {},
        'a.png', 'getchannel(0)'),
    'colour label of another dataset': (
        lambda root: Image.new('RGBA', (32, 24)).save(label_path(root, 'a')),
        dict(type='BaseSegDataset'), 'a.png (mode RGBA)', 'class index'),
    'forgotten reduce_zero_label': (
        lambda root: save_label(root, 'b', [0, 7, 150]), dict(reduce_zero_label=False),
        'b.png (value 150)', 'reduce_zero_label=True'),
    'full ADE20K values': (
        lambda root: save_label(root, 'b', [0, 151, 180]), {}, 'b.png (values 151, 180)',
        'rather than ADEChallengeData2016'),
    '16 bit label that would wrap around': (
        lambda root: save_label(root, 'b', [1, 257]),
        dict(type='BaseSegDataset', metainfo=dict(classes=[f'c{i}' for i in range(300)])),
        'b.png (value 257)', 'reads labels as 8 bit'),
    'value out of range': (
        lambda root: save_label(root, 'b', [1, 180]), dict(type='BaseSegDataset'),
        'b.png (value 180)', 'write 255 where a pixel has no class'),
    'all labels constant': (
        lambda root: [save_label(root, name, [3]) for name in 'abcd'], {},
        'a.png (values 3)', 'seg_map_path'),
    'binary mask of 0 and 255': (
        lambda root: [save_label(root, name, [0, 255]) for name in 'abcd'],
        dict(type='BaseSegDataset'), 'a.png (values 0, 255)', 'Save it as 0/1'),
    'wrong image suffix': (
        lambda root: None, dict(img_suffix='.png'), 'images/training', "img_suffix='.jpg'"),
    'no image at all': (
        lambda root: [image_path(root, name).unlink() for name in 'abcd'], {},
        'there is no file in the folder of the images', 'images/training/*.jpg'),
    'no image of many suffixes': (
        lambda root: [image_path(root, name).rename(image_path(root, name).with_suffix('.gif'))
                      for name in 'abcd'],
        dict(type='FolderSegDataset', metainfo=dict(classes=['a', 'b'])),
        "no file ends in '.jpg' or '.jpeg' or '.png'", "img_suffix='.gif'"),
    'empty list of images': (
        lambda root: (root / 'list.txt').write_text(''), dict(ann_file='list.txt'),
        'the list of the images is empty', 'list.txt'),
    'reduce_zero_label set twice': (
        lambda root: None,
        dict(pipeline=[dict(type='LoadAnnotations', reduce_zero_label=False)]),
        'ADE20KDataset', 'set it in the dataset only'),
    'ignore_index set twice': (
        lambda root: None, dict(ignore_index=0), 'ignore_index of the dataset is 0',
        'give both the same value'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_fault_names_file_and_fix(root: Path, fault: str) -> None:
    spoil, dataset, file, fix = FAULTS[fault]
    spoil(root)
    found = problems(config(root, **dataset))
    assert file in found
    assert fix in found


def test_palette_labels_are_fine_unless_opencv_decodes_them(root: Path) -> None:
    label = Image.open(label_path(root, 'a')).convert('P')
    label.putdata([0, 1, 2, 3] * (32 * 24 // 4))
    label.save(label_path(root, 'a'))
    assert not problems(config(root))
    opencv = [dict(type='LoadAnnotations', imdecode_backend='cv2')]
    found = problems(config(root, pipeline=opencv))
    assert 'a.png' in found and "imdecode_backend='pillow'" in found


def test_every_head_must_have_the_classes_of_the_dataset(root: Path) -> None:
    found = problems(config(root, num_classes=19))
    for head in ('model.decode_head', 'model.auxiliary_head[0]'):
        assert f'{head}.num_classes is 19' in found
        assert f'set {head}.num_classes=150' in found


def test_padding_and_metric_ignore_what_the_heads_ignore(root: Path) -> None:
    cfg = config(root, ignore_index=7)
    cfg.model.decode_head.ignore_index = cfg.model.auxiliary_head[0].ignore_index = 7
    cfg.model.data_preprocessor = dict(type='SegDataPreProcessor', size=(32, 32))
    cfg.val_dataloader = dict(dataset=dict(cfg.train_dataloader.dataset, test_mode=True, indices=2))
    cfg.val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    found = problems(cfg)
    assert 'model.decode_head.ignore_index is 7, and images are padded with labels of 255' in found
    assert 'set model.data_preprocessor.seg_pad_val=7' in found
    assert 'ignore_index of the val dataset is 7, of its IoUMetric 255' in found
    with pytest.raises(UserError, match='seg_pad_val=7'):
        quick_check(cfg)
    cfg.model.data_preprocessor.seg_pad_val = cfg.val_evaluator.ignore_index = 7
    assert 'ignore_index' not in problems(cfg)


def test_missing_folder_says_source_and_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        quick_check(config(tmp_path / 'nothing'))
    message = str(error.value)
    assert str(tmp_path / 'nothing/images/training') in message
    assert 'ADEChallengeData2016.zip' in message and 'annotations/training/*.png' in message


def test_data_root_one_level_off_is_named(root: Path) -> None:
    found = problems(config(root.parent))
    assert f"set data_root='{root}'" in found


def test_full_ade20k_download_is_recognised(tmp_path: Path) -> None:
    (tmp_path / 'images/ADE/training').mkdir(parents=True)
    found = problems(config(tmp_path))
    assert 'rather than ADEChallengeData2016' in found and '150 classes' in found


def test_split_file_limits_the_check_and_names_missing_images(root: Path) -> None:
    (root / 'train.txt').write_text('a\nc\nzebra\n')
    report, = check_config(config(root, ann_file='train.txt'))
    assert report.read == 2
    assert 'zebra.jpg' in str(report.problems[0])
    assert len(report.problems) == 1


@pytest.mark.parametrize(('dataset', 'said', 'fix'), [
    (dict(type='ADE20Dataset'), "'ADE20Dataset'", "Did you mean 'ADE20KDataset'"),
    (dict(metainfo=dict(classes=('wall', 'buildin'))), "'buildin'", "'building'"),
    (dict(metainfo=dict(classes='wall')), "'wall'", "classes=('wall', )"),
    (dict(data_rot='x'), 'data_rot', 'correct the dataset in the config'),
])
def test_config_mistakes_are_named(root: Path, dataset: dict, said: str, fix: str) -> None:
    found = problems(config(root, **dataset))
    assert said in found and fix in found


def test_quick_check_opens_first_and_last_and_passes_lesser_faults(root: Path) -> None:
    for index in range(60):
        name = f'm{index:03d}'
        image_path(root, name).write_bytes(image_path(root, 'a').read_bytes())
        save_label(root, name, [1, 2, 3])
    save_label(root, 'orphan', [1, 2])
    with pytest.warns(UserWarning, match=r'orphan\.png'):
        quick_check(config(root))
    report, = check_config(config(root), quick=True)
    assert report.images == 64 and report.read < 20
    save_label(root, 'm059', [1, 222])
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r'm059\.png \(value 222\)'):
        quick_check(config(root))


def test_quick_check_leaves_absent_splits_alone(root: Path) -> None:
    quick_check(config(root), splits=('val', 'test'))
    with pytest.raises(UserError, match='no val_dataloader'):
        check_config(config(root), ['val'])


check = partial(run_tool, 'check_dataset.py')


def test_command_line(root: Path, tmp_path: Path) -> None:
    path = tmp_path / 'config.py'
    config(tmp_path / 'elsewhere').dump(path)
    option = f'train_dataloader.dataset.data_root={root}'
    good = check(path, '--cfg-options', option)
    assert good.returncode == 0, good.stderr
    assert good.stdout.endswith('ok\n')
    save_label(root, 'b', [1, 200])
    bad = check(path, '--split', 'train', '--json', '--cfg-options', option)
    assert bad.returncode == 1, bad.stderr
    answer = json.loads(bad.stdout)
    assert not answer['ok']
    assert 'b.png (value 200)' in answer['datasets'][0]['problems'][0]['files'][0]
    absent = check(tmp_path / 'no.py')
    assert absent.returncode == 2
    assert 'no config file' in absent.stderr and 'no.py' in absent.stderr
    assert 'Traceback' not in absent.stderr
    slip = check(path, '--cfg-options', 'data_root')
    assert slip.returncode == 2
    assert 'KEY=VALUE pairs, got data_root' in slip.stderr and 'Traceback' not in slip.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason='shared data are not here')
def test_real_ade20k_images_are_clean() -> None:
    assert not problems(config(SHARED / 'ade20k_sample'))
