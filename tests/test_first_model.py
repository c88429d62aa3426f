"""docs/first_model.md: from a folder of photos and colour masks to a report, as it is printed."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from tests.tiny_finetune import SMALL, edited
from tests.tiny_runs import ROOT, environment

SHORT = dict(size=(32, 32), batch_size=2, max_iters=2, weights=None)
FAST = '''
for loader in (train_dataloader, val_dataloader, test_dataloader):
    loader.update(num_workers=0, persistent_workers=False)
'''
SKY, ROAD, UNKNOWN = (0x80, 0x80, 0x80), (0x80, 0x40, 0x80), (0, 0, 0)


def write_photos(folder: Path, count: int) -> None:
    """Photos of a sky above a road, and their masks in colours; one corner is not judged."""
    for kind in ('photos', 'colours'):
        (folder / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        mask = np.empty((48, 64, 3), np.uint8)
        horizon = int(rng.integers(16, 32))
        mask[:horizon], mask[horizon:], mask[:4, :4] = SKY, ROAD, UNKNOWN
        photo = np.clip(mask + rng.normal(0, 30, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(photo).save(folder / f'photos/{number:02}.jpg')
        Image.fromarray(mask).save(folder / f'colours/{number:02}.png')


@pytest.fixture(scope='module')
def walked(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The page carried out: its folder, and what each command printed."""
    folder = tmp_path_factory.mktemp('walk')
    shutil.copytree(ROOT / 'configs', folder / 'configs')
    (folder / 'tools').symlink_to(ROOT / 'tools')
    write_photos(folder / 'my_data', 12)
    text = (ROOT / 'docs/first_model.md').read_text()
    blocks = re.findall(r'^```(\w*)\n(.*?)^```', text, re.M | re.S)
    split, settings = (body for kind, body in blocks if kind == 'python')
    table = next(body for _, body in blocks if body.startswith('#'))
    (folder / 'split.py').write_text(split)
    paths = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    printed = {}
    for command in (body.strip() for kind, body in blocks if kind == 'bash'):
        done = subprocess.run(['bash', '-ec', command], cwd=folder, capture_output=True, text=True,
                              timeout=240, env=environment(PATH=paths))
        assert done.returncode == 0, f'{command}\n{done.stdout}{done.stderr}'
        printed[command] = done.stdout
        if '--find' in command:
            found = (folder / 'table.txt').read_text()
            assert {line.split()[0] for line in found.splitlines()} == {
                line.split()[0] for line in table.splitlines()}
            (folder / 'table.txt').write_text(table)
        if command.startswith('cp '):
            values = Config.fromstring(settings, '.py')
            config = folder / command.split()[-1]
            config.write_text(edited(SMALL.read_text(), data_root=values.data_root,
                                     classes=list(values.classes), **SHORT) + FAST)
    return folder, printed


def output(walked: tuple[Path, dict[str, str]], tool: str) -> str:
    return next(text for command, text in reversed(walked[1].items()) if tool in command)


def test_colours_become_the_classes_of_the_config(walked):
    folder, _ = walked
    assert "classes = ['sky', 'road']" in output(walked, 'colour_to_index')
    assert "classes = ['sky', 'road']" in (folder / 'configs/mine.py').read_text()
    names = {split: sorted(path.stem for path in (folder / f'data/mine/images/{split}').iterdir())
             for split in ('train', 'val')}
    assert names == {'train': [f'{i:02}' for i in range(10)], 'val': ['10', '11']}
    mask = np.asarray(Image.open(folder / 'data/mine/masks/val/11.png'))
    assert (mask[0, 0], mask[0, 20], mask[-1, 0]) == (255, 0, 1)


def test_the_way_ends_with_a_report(walked):
    folder, _ = walked
    assert output(walked, 'check_dataset').rstrip().endswith('ok')
    assert re.search(r'python tools/report.py \S*work_dirs/mine', output(walked, 'train.py'))
    assert (folder / 'work_dirs/mine/train_batch.jpg').is_file()
    page = (folder / 'work_dirs/mine/report.html').read_text()
    assert re.search(r'<b>[\d.]+ %</b><span>mIoU', page)
    assert 'Worst images' in page and '<td>road</td>' in page
