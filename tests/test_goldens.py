"""The committed golden outputs: what they are part of, and what they can tell apart."""
import re

import numpy as np
import pytest
import torch

from tests.goldens import (
    COMMITTED,
    LIMIT,
    OPTIONAL,
    assert_outputs,
    cut_case,
    load_case,
    read_case,
)
from visattn_dense.zoo import releases

CASES = sorted(COMMITTED.glob('*.npz'))
# Cases that were made for this project alone; there is no whole one.
ALONE = {'attn_dense_blocks', 'attn_ghost'}


@pytest.mark.skipif(not OPTIONAL.is_dir(), reason='needs ../shared/parity/cases')
def test_every_committed_case_is_a_part_of_the_whole_one():
    assert {path.stem for path in CASES if not (OPTIONAL / path.name).is_file()} == ALONE
    for path in CASES:
        if path.stem in ALONE:
            continue
        meta, parts = read_case(path)
        whole_meta, wholes = read_case(OPTIONAL / path.name)
        assert {key: value for key, value in meta.items() if key != 'shapes'} == whole_meta
        assert parts.keys() == wholes.keys(), path.stem
        for name, part in parts.items():
            whole = wholes[name]
            assert part.shape == whole.shape and part.values.size == min(LIMIT, whole.values.size)
            known = whole.values if part.positions is None else whole.values[part.positions]
            assert np.array_equal(part.values, known), f'{path.stem}: {name}'


def test_every_family_with_released_weights_has_a_committed_backbone():
    families = {read_case(path)[0]['family'] for path in CASES if not path.stem.startswith('attn_')}
    assert families == {release.family for release in releases().values()}


def test_the_page_names_every_case_and_no_other():
    rows = re.findall(r'^\| (`[^|]+) \|', (COMMITTED / 'README.md').read_text(), re.M)
    assert sorted(re.findall(r'`(\w+)`', ' '.join(rows))) == [path.stem for path in CASES]


def test_the_committed_cases_stay_small():
    assert sum(path.stat().st_size for path in CASES) < 2e6


def test_a_case_that_is_nowhere_is_skipped():
    with pytest.raises(pytest.skip.Exception, match='no_such_case'):
        load_case('no_such_case')


@pytest.fixture
def cut(tmp_path):
    """A whole array of three times LIMIT elements and a short one, and what is left when cut."""
    arrays = dict(long=torch.randn(3, LIMIT // 16, 16), short=torch.randn(4, 5))
    (tmp_path / 'cut').mkdir()
    np.savez(tmp_path / 'case.npz', meta='{"family": "Toy"}',
             **{name: array.numpy() for name, array in arrays.items()})
    cut_case(tmp_path / 'case.npz', tmp_path / 'cut')
    return arrays, read_case(tmp_path / 'cut' / 'case.npz')[1]


def test_a_cut_case_accepts_what_it_was_cut_from(cut):
    arrays, goldens = cut
    assert goldens['long'].values.shape == (LIMIT,) and goldens['short'].values.shape == (20,)
    assert_outputs(arrays, goldens, tolerance=1e-12)


@pytest.mark.parametrize('spoil', [
    lambda x: x.flip(0), lambda x: x * (1 + 2e-5), lambda x: x.roll(1, -1), lambda x: x * torch.nan,
    lambda x: torch.cat([x[:, :-1], x[:, -1:] + .01], 1),       # the last of 256 rows alone
], ids=['flipped', 'scaled', 'rolled', 'nan', 'one row'])
@pytest.mark.parametrize('name', ['long', 'short'])
def test_a_cut_case_refuses_another_output(cut, name, spoil):
    arrays, goldens = cut
    with pytest.raises(AssertionError, match=f'{name}: relative error'):
        assert_outputs({name: spoil(arrays[name])}, goldens)


def test_a_cut_case_refuses_another_shape(cut):
    arrays, goldens = cut
    with pytest.raises(AssertionError, match='golden'):
        assert_outputs({'long': arrays['long'].flatten(1)}, goldens)
