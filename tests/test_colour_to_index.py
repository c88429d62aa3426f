"""tools/colour_to_index.py: colours to indices without loss, or a clear word about it."""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny_runs import run_tool
from visattn_dense.visualization import colourise

COLOURS = [(128, 64, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]


def masks(root: Path) -> dict[str, np.ndarray]:
    """Two colour masks, one in a subfolder and one with a palette; returns their indices."""
    rng = np.random.default_rng(0)
    truth = {name: rng.integers(0, 4, (13, 17)) for name in ('a', 'sub/b')}
    (root / 'masks/sub').mkdir(parents=True)
    Image.fromarray(colourise(truth['a'], COLOURS)).save(root / 'masks/a.png')
    Image.fromarray(colourise(truth['sub/b'], COLOURS)).quantize(8).save(root / 'masks/sub/b.png')
    (root / 'table.txt').write_text('#804000 road\n0, 0, 255 sky\n255 255 255 wall\n#000000 -\n')
    return truth


def test_colours_become_indices_and_come_back(tmp_path):
    truth = masks(tmp_path)
    done = run_tool('colour_to_index.py', 'masks', 'labels', '--table', 'table.txt', cwd=tmp_path)
    assert done.returncode == 0 and 'lossless' in done.stdout, done.stderr
    for name, values in truth.items():
        label = np.asarray(Image.open(tmp_path / f'labels/{name}.png'))
        np.testing.assert_array_equal(label, np.where(values == 3, 255, values))
    # A table that was found converts too, and gives the colours back.
    done = run_tool('colour_to_index.py', 'masks', '--find', 'found.txt', cwd=tmp_path)
    assert done.returncode == 0 and '4 colours in 2 masks' in done.stdout, done.stderr
    done = run_tool('colour_to_index.py', 'masks', 'again', '--table', 'found.txt', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [tuple(bytes.fromhex(line[1:7]))
             for line in (tmp_path / 'found.txt').read_text().splitlines()]
    label = np.asarray(Image.open(tmp_path / 'again/a.png'))
    np.testing.assert_array_equal(colourise(label, found), colourise(truth['a'], COLOURS))


def test_what_would_be_lost_is_said(tmp_path):
    masks(tmp_path)
    picture = np.array(Image.open(tmp_path / 'masks/a.png'))
    picture[0, :5] = (130, 66, 1)
    Image.fromarray(picture).save(tmp_path / 'masks/a.png')
    done = run_tool('colour_to_index.py', 'masks', 'labels', '--table', 'table.txt', cwd=tmp_path)
    assert done.returncode == 2 and '#824201 (5 pixels)' in done.stderr
    assert not list((tmp_path / 'labels').rglob('*.png'))
    done = run_tool('colour_to_index.py', 'masks', 'labels', '--table', 'table.txt', '--nearest',
                    '4', cwd=tmp_path)
    assert done.returncode == 0 and '5 of 442 pixels' in done.stdout, done.stderr
    assert (np.asarray(Image.open(tmp_path / 'labels/a.png'))[0, :5] == 0).all()


def test_colours_of_one_name_are_one_class(tmp_path):
    from visattn_dense.evaluation.colours import read_table
    # The mark at the beginning is that of editors on Windows.
    (tmp_path / 'table.txt').write_text('#010000 car\n#020000 road\n#030000 car\n#040000 -\n'
                                        '#050000 -\n#060000 sky\n', encoding='utf-8-sig')
    table = read_table(tmp_path / 'table.txt')
    assert table.names == ['car', 'road', 'sky']
    assert table.values.tolist() == [0, 1, 0, 255, 255, 2]


def test_grey_values_above_255_are_no_colours(tmp_path):
    from visattn_dense.errors import UserError
    from visattn_dense.evaluation.colours import read_codes
    for name, top in (('small.png', 255), ('large.png', 300)):
        Image.fromarray(np.array([[0, top]], np.uint16)).save(tmp_path / name)
    assert read_codes(tmp_path / 'small.png').tolist() == [[0, 0xffffff]]
    with pytest.raises(UserError, match='grey values up to 300'):
        read_codes(tmp_path / 'large.png')


@pytest.mark.parametrize('table, message', [
    ('#80400 road\n', 'line 1'), ('#804000 road\n128 64 0 sky\n', 'a second time'),
    ('300 0 0 road\n', 'line 1'), ('#000000 -\n', 'names no class'), (None, 'cannot be read')])
def test_a_bad_table_is_one_message(tmp_path, table, message):
    from visattn_dense.errors import UserError
    from visattn_dense.evaluation.colours import read_table
    if table is not None:
        (tmp_path / 'table.txt').write_text(table)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / 'table.txt')
