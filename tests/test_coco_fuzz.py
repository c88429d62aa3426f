"""Any JSON value at any place of a COCO file or of results gives a message or works (hypothesis).

The files go through the same functions as those of users do: `annotation_faults` decides, and what
it lets pass is evaluated with every kind of AP, and loaded as training loads it. A crash of
pycocotools would end the tests with a signal.
"""
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from pycocotools import mask as rle_tools

from tests.comparing import put
from visattn_dense.errors import UserError
from visattn_dense.evaluation.coco import evaluate_coco
from visattn_dense.evaluation.coco_files import read_annotations, read_results
from visattn_dense.evaluation.coco_format import MOST_DEPTH, mask_problem, nesting, read_json
from visattn_dense.openmmlab.datasets.check_coco import check_coco
from visattn_dense.openmmlab.datasets.check_report import DatasetReport

HEIGHT, WIDTH = 30, 40
KINDS = ('bbox', 'segm', 'boundary')
POLYGON = [[4, 5, 14, 5, 14, 17, 4, 17]]
RUNS = dict(size=[HEIGHT, WIDTH], counts=[125, 12, 18, 12, 1033])
PACKED = dict(size=[HEIGHT, WIDTH],
              counts=rle_tools.frPyObjects(RUNS, HEIGHT, WIDTH)['counts'].decode())

numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2, 7, 40, 1200, 2**31 - 1, 2**31, 2**32, -2**31, 2**63, 10**30, 0.5,
                     -0.0, 1e-308, 1e9, 1e18, 1e308, float('nan'), float('inf'), float('-inf')]),
    st.integers(-50, 50), st.floats())
words = st.one_of(st.sampled_from(['', '0', '7', 'a.jpg', '\ud800', '\0', 'é', PACKED['counts'],
                                   'o' * 30, '0' * 9, '../x', '5']), st.text(max_size=12))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=8), st.lists(numbers, max_size=12),
                            st.dictionaries(st.sampled_from(['size', 'counts', 'id', 'x']), inner,
                                            max_size=3)), max_leaves=12)
quick = settings(max_examples=120, deadline=5000, database=None, derandomize=True,
                 suppress_health_check=[HealthCheck.function_scoped_fixture,
                                        HealthCheck.too_slow])


def truth() -> dict[str, Any]:
    masks = (POLYGON, RUNS, PACKED)
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', height=HEIGHT, width=WIDTH) for i in (1, 2)],
        categories=[dict(id=7, name='cat'), dict(id=9, name='dog')],
        annotations=[dict(id=at, image_id=1 + at % 2, category_id=7, bbox=[4, 5, 10, 12], area=120,
                          iscrowd=int(at == 3), segmentation=copy.deepcopy(mask))
                     for at, mask in enumerate(masks, 1)])


def results() -> list[dict[str, Any]]:
    return [dict(image_id=1 + at % 2, category_id=7, score=0.5, bbox=[4, 5, 10, 12],
                 segmentation=copy.deepcopy(mask))
            for at, mask in enumerate((POLYGON, RUNS, PACKED))]


def places(data: Any, path: tuple = ()) -> list[tuple]:
    """The paths to every value inside, and to keys that are not there."""
    found = [path]
    if isinstance(data, dict):
        for key, value in data.items():
            found += places(value, (*path, key))
        found.append((*path, 'ignore'))
    elif isinstance(data, list):
        for at, value in enumerate(data):
            found += places(value, (*path, at))
    return found


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def scores(truth_path: Path, found_path: Path) -> None:
    """Every kind of AP; each is a number from 0 to 1, NaN where there is no object."""
    data = read_annotations(truth_path)
    found = read_results(found_path, data)
    for kind in KINDS:
        for backend in ('pycocotools', None):
            try:
                metrics = evaluate_coco(data, found, kind, backend=backend).metrics()
            except UserError as error:
                assert str(error).isprintable() or '\n' in str(error)
                continue
            assert all(np.isnan(value) or 0 <= value <= 1 for value in metrics.values())


@quick
@given(path=st.sampled_from(places(truth())), value=values)
def test_annotations(tmp_path: Path, path: tuple, value: Any) -> None:
    source = write(tmp_path / 'truth.json', put(truth(), path, value))
    found = write(tmp_path / 'found.json', results())
    try:
        scores(source, found)
    except UserError as error:
        # The message can be printed and names the file.
        assert str(source) in str(error) or str(found) in str(error)
        str(error).encode()


@quick
@given(path=st.sampled_from(places(results())), value=values)
def test_results(tmp_path: Path, path: tuple, value: Any) -> None:
    source = write(tmp_path / 'truth.json', truth())
    found = write(tmp_path / 'found.json', put(results(), path, value))
    try:
        scores(source, found)
    except UserError as error:
        assert str(found) in str(error)
        str(error).encode()


@quick
@given(path=st.sampled_from(places(truth())), value=values)
def test_check_and_training_agree(tmp_path: Path, path: tuple, value: Any) -> None:
    write(tmp_path / 'truth.json', put(truth(), path, value))
    settings = dict(data_root=str(tmp_path), ann_file='truth.json', pipeline=[], lazy_init=True,
                    data_prefix=dict(img=''), metainfo=dict(classes=('cat', 'dog')))
    report = DatasetReport('train', 'fuzz', classes=('cat', 'dog'))
    check_coco(CocoDataset(**settings), True, report, quick=False)
    # Images are not there; classes and the need of masks are the config's business.
    own = [problem for problem in report.problems if problem.blocks
           and str(tmp_path / 'truth.json') in f'{problem.what} {problem.files}'
           and not any(word in str(problem) for word in (
               'do not exist', 'classes of the config', 'stand in another order',
               'without a segmentation',
               'not one usable box', 'no images are listed', 'no annotations to learn'))]
    dataset = CocoDataset(**settings)
    if own:
        with pytest.raises(UserError):
            dataset.full_init()
        return
    dataset.full_init()
    used = sum(len(dataset[at]['instances']) for at in range(len(dataset)))
    if not any('classes of the config' in str(problem) for problem in report.problems):
        assert used == sum(report.counts.values())


@quick
@given(mask=st.one_of(
    values, st.lists(st.lists(numbers, max_size=14), max_size=3),
    st.fixed_dictionaries(dict(size=st.just([HEIGHT, WIDTH]), counts=st.one_of(
        st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=14), values,
        st.lists(st.integers(0, 1300), max_size=6)))))
)
def test_masks_that_pass_can_be_drawn(mask: Any) -> None:
    mask = json.loads(json.dumps(mask))
    problem = mask_problem(mask, HEIGHT, WIDTH)
    if problem is not None:
        assert problem.encode()
        return
    if isinstance(mask, dict) and isinstance(mask['counts'], str):
        drawn = rle_tools.decode(mask)
    else:
        drawn = rle_tools.decode(rle_tools.merge(rle_tools.frPyObjects(
            [polygon for polygon in mask if len(polygon) >= 6], HEIGHT, WIDTH))
            if isinstance(mask, list) else rle_tools.frPyObjects(mask, HEIGHT, WIDTH))
    assert drawn.shape == (HEIGHT, WIDTH) and set(np.unique(drawn)) <= {0, 1}


@quick
@given(bits=st.binary(min_size=HEIGHT * WIDTH // 8, max_size=HEIGHT * WIDTH // 8))
def test_every_real_mask_passes(bits: bytes) -> None:
    drawn = np.unpackbits(np.frombuffer(bits, np.uint8)).reshape(HEIGHT, WIDTH)
    packed = rle_tools.encode(np.asfortranarray(drawn))
    assert mask_problem(packed, HEIGHT, WIDTH) is None
    text = dict(size=packed['size'], counts=packed['counts'].decode())
    assert mask_problem(text, HEIGHT, WIDTH) is None
    # One character more or less is another mask, or none.
    assert mask_problem(dict(text, counts=text['counts'] + '1'), HEIGHT, WIDTH)
    assert mask_problem(dict(text, counts=text['counts'][:-1]), HEIGHT, WIDTH)


@quick
@given(value=values, depth=st.integers(0, 3 * MOST_DEPTH))
def test_nesting_is_counted_before_anything_is_parsed(
        tmp_path: Path, value: Any, depth: int) -> None:
    def deep(inner: Any) -> int:
        if isinstance(inner, list | dict):
            inside = inner.values() if isinstance(inner, dict) else inner
            return 1 + max(map(deep, inside), default=0)
        return 0
    value = [value, '[[', '\\"[', {'}{"\\': ']'}]
    for _ in range(depth):
        value = [value] if depth % 2 else dict(a=value)
    text = json.dumps(value, ensure_ascii=depth % 3 > 0).encode(errors='replace')
    assert nesting(text) == deep(value)
    path = tmp_path / 'any.json'
    path.write_bytes(text)
    if deep(value) > MOST_DEPTH:
        with pytest.raises(UserError, match='deep in one another'):
            read_json(path, 'annotations')
    else:
        read_json(path, 'annotations')
