"""tools/eval_ap.py and what is behind it: pycocotools' numbers, all formats, clear refusals."""
import contextlib
import copy
import csv
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.comparing import put
from tests.tiny_runs import run_tool
from visattn_dense.errors import UserError
from visattn_dense.evaluation.coco import METRICS, default_backend, evaluate_coco
from visattn_dense.evaluation.coco_files import read_annotations, read_results

BACKENDS = ['pycocotools', pytest.param('faster-coco-eval', marks=pytest.mark.skipif(
    default_backend() != 'faster-coco-eval', reason='faster-coco-eval is not installed'))]
CATEGORIES = [dict(id=11, name='dog'), dict(id=3, name='cat'), dict(id=7, name='unicorn')]
run = partial(run_tool, 'eval_ap.py')


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def ellipse(box: list[float], size: tuple[int, int]) -> dict[str, Any]:
    """Compressed RLE of an ellipse in a box [x, y, w, h] of an image (height, width)."""
    mask = np.zeros(size, np.uint8)
    x, y, w, h = box
    cv2.ellipse(mask, ((x + w / 2, y + h / 2), (w, h), 0), 1, -1)
    rle = rle_tools.encode(np.asfortranarray(mask))
    return dict(size=rle['size'], counts=rle['counts'].decode())


def scenes() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and detections with everything that counting can trip over.

    Objects of all three sizes, crowds, images without objects, without detections and without
    either, a category without objects, equal scores, more than 100 detections on one image.
    """
    rng = np.random.default_rng(0)
    images = [dict(id=20 - i, height=170 + 7 * i, width=230 - 5 * i) for i in range(10)]
    objects, found = [], []
    for at, image in enumerate(images):
        size = image['height'], image['width']
        for _ in range(0 if at in (2, 5) else 7):
            side = rng.choice([12, 40, 110])
            box = [*rng.uniform(0, 60, 2).round(2), *(side * rng.uniform(0.7, 1.3, 2)).round(2)]
            rle = ellipse(box, size)
            kind = int(rng.choice([3, 11]))
            objects.append(dict(
                id=len(objects) + 1, image_id=image['id'], category_id=kind, bbox=box,
                segmentation=rle, area=float(rle_tools.area(rle)),
                iscrowd=int(rng.random() < 0.15)))
            if at == 4:
                continue
            for _ in range(20 if at == 7 else 2):
                near = (np.array(box) + rng.normal(0, 3, 4)).round(2).tolist()
                near = [max(near[0], 0), max(near[1], 0), max(near[2], 4), max(near[3], 4)]
                found.append(dict(
                    image_id=image['id'], category_id=kind if rng.random() < 0.9 else 7,
                    score=round(float(rng.random()), 1), bbox=near,
                    segmentation=ellipse(near, size)))
        if at == 5:
            box = [5., 6., 30., 20.]
            found.append(dict(image_id=image['id'], category_id=3, score=0.9, bbox=box,
                              segmentation=ellipse(box, size)))
    assert any(o['iscrowd'] for o in objects)
    return dict(images=images, categories=CATEGORIES, annotations=objects), found


def pycocotools_stats(truth: dict, found: list[dict], kind: str) -> np.ndarray:
    """The twelve numbers as users of pycocotools get them."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        # As the server's format for masks has it, and as mmdetection does: no boxes beside masks.
        fields = ('image_id', 'category_id', 'score', 'bbox' if kind == 'bbox' else 'segmentation')
        evaluation = COCOeval(coco, coco.loadRes([{k: d[k] for k in fields} for d in found]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def as_found(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects written as detections."""
    return [dict(image_id=a['image_id'], category_id=a['category_id'], score=1., bbox=a['bbox'],
                 segmentation=a['segmentation'])
            for a in truth['annotations'] if not a['iscrowd']]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_equal_to_pycocotools(kind: str, backend: str) -> None:
    truth, found = scenes()
    before = copy.deepcopy((truth, found))
    scores = evaluate_coco(truth, found, kind, backend=backend)
    assert (truth, found) == before
    expected = pycocotools_stats(truth, found, kind)
    assert 0.05 < expected[0] < 0.95 and (expected > -1).all()
    np.testing.assert_allclose(list(scores.metrics().values()), expected, atol=1e-12)
    assert [name for _, name, _ in scores.categories] == ['cat', 'unicorn', 'dog']
    assert sum(count for _, _, count in scores.categories) == len(as_found(truth))
    for at, (number, _, count) in enumerate(scores.categories):
        one = dict(truth, categories=[c for c in CATEGORIES if c['id'] == number], annotations=[
            a for a in truth['annotations'] if a['category_id'] == number])
        if not count:
            assert np.isnan(list(scores.metrics(at).values())).all()
            continue
        expected = pycocotools_stats(one, [d for d in found if d['category_id'] == number], kind)
        np.testing.assert_allclose(list(scores.metrics(at).values()), expected, atol=1e-12)


@pytest.mark.skipif(default_backend() != 'faster-coco-eval', reason='needs faster-coco-eval')
def test_boundary_ap_of_both_evaluators_is_the_same() -> None:
    truth, found = scenes()
    first, second = (evaluate_coco(truth, found, 'boundary', backend=backend)
                     for backend in ('pycocotools', 'faster-coco-eval'))
    np.testing.assert_allclose(first.precision, second.precision, atol=1e-12)
    np.testing.assert_allclose(first.recall, second.recall, atol=1e-12)
    # It asks for more than mask AP does.
    masks = evaluate_coco(truth, found, 'segm')
    assert 0 < first.metrics()['AP'] < masks.metrics()['AP']


@pytest.mark.parametrize('backend', BACKENDS)
def test_boundary_ap_of_one_object_is_its_boundary_iou(backend: str) -> None:
    # The image of 300x400 has a diagonal of 500: boundaries are 10 pixels wide.
    size = (300, 400)
    truth_mask, found_mask = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    truth_mask[100:200, 100:200] = 1
    found_mask[100:200, 103:203] = 1
    # Rings 10 wide, 3600 pixels each. They share two horizontal strips of 97 x 10 and two
    # vertical ones of 7 x 80.
    shared = 2 * 97 * 10 + 2 * 7 * 80
    iou = shared / (2 * 3600 - shared)
    assert 0.7 < iou < 0.75 < 97 / 103
    encoded = [rle_tools.encode(np.asfortranarray(m)) for m in (truth_mask, found_mask)]
    truth = dict(images=[dict(id=1, height=300, width=400)], categories=CATEGORIES, annotations=[
        dict(id=1, image_id=1, category_id=3, iscrowd=0, area=1e4, bbox=[100, 100, 100, 100],
             segmentation=encoded[0])])
    found = [dict(image_id=1, category_id=3, score=1., segmentation=encoded[1])]
    scores = {kind: evaluate_coco(truth, found, kind, backend=backend).metrics()['AP']
              for kind in ('segm', 'boundary')}
    # Thresholds 0.50, 0.55, ... up to the IoU are met.
    assert scores['boundary'] == pytest.approx(5 / 10)
    assert scores['segm'] == pytest.approx(9 / 10)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', ['bbox', 'segm', 'boundary'])
def test_truth_as_predictions_scores_one(kind: str, backend: str) -> None:
    truth, _ = scenes()
    metrics = evaluate_coco(truth, as_found(truth), kind, backend=backend).metrics()
    assert (metrics['AP'], metrics['AR100']) == pytest.approx((1, 1), abs=1e-9)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_real_coco_truth_scores_one(shared: Path, tmp_path: Path, split: str) -> None:
    path = shared / 'data' / 'coco' / 'annotations' / f'instances_{split}2017.json'
    if not path.is_file():
        pytest.skip('needs the COCO sample')
    found = as_found(json.loads(path.read_text()))
    out = tmp_path / 'ap.json'
    result = run(save(tmp_path / 'found.json', found), path, '--type', 'bbox', 'segm', 'boundary',
                 '--json', out)
    assert result.returncode == 0, result.stderr
    metrics = json.loads(out.read_text())['metrics']
    for kind in ('bbox', 'segm', 'boundary'):
        assert metrics[kind]['AP'] == pytest.approx(1, abs=1e-9)
        assert len(metrics[kind]['categories']) == 80


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_real_coco_disturbed_equals_pycocotools(shared: Path, kind: str, backend: str) -> None:
    path = shared / 'data' / 'coco' / 'annotations' / 'instances_val2017.json'
    if not path.is_file():
        pytest.skip('needs the COCO sample')
    truth, rng = read_annotations(path), np.random.default_rng(1)
    sizes = {image['id']: (image['height'], image['width']) for image in truth['images']}
    found = []
    for detection in as_found(truth):
        box = np.array(detection['bbox']) * rng.normal(1, 0.08, 4)
        detection['bbox'] = box.round(2).tolist()
        detection['segmentation'] = ellipse(detection['bbox'], sizes[detection['image_id']])
        detection['score'] = float(rng.random())
        found.append(detection)
    scores = evaluate_coco(truth, found, kind, backend=backend)
    np.testing.assert_allclose(list(scores.metrics().values()),
                               pycocotools_stats(truth, found, kind), atol=1e-12)


@pytest.mark.parametrize('first_id', [0, 1, 100])
def test_files_of_mmdet(first_id: int, tmp_path: Path) -> None:
    """What CocoMetric writes with outfile_prefix, scored as CocoMetric scores it."""
    from mmdet.evaluation import CocoMetric
    truth, found = scenes()
    # COCO's own evaluation takes an annotation of id 0 for no annotation.
    for number, annotation in enumerate(truth['annotations'], start=first_id):
        annotation['id'] = number
    path = save(tmp_path / 'truth.json', truth)
    metric = CocoMetric(str(path), metric=['bbox', 'segm'], outfile_prefix=str(tmp_path / 'run'))
    # Labels are indices into the categories as the annotation file lists them.
    metric.dataset_meta = dict(classes=[category['name'] for category in CATEGORIES])
    labels = {category['id']: at for at, category in enumerate(CATEGORIES)}
    for image in truth['images']:
        own = [d for d in found if d['image_id'] == image['id']][:100]
        boxes = np.array([d['bbox'] for d in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [rle_tools.decode(d['segmentation']) for d in own]
        metric.process({}, [dict(
            img_id=image['id'], ori_shape=(image['height'], image['width']), pred_instances=dict(
                bboxes=torch.from_numpy(boxes), scores=torch.tensor([d['score'] for d in own]),
                labels=torch.tensor([labels[d['category_id']] for d in own], dtype=torch.long),
                masks=torch.from_numpy(np.array(masks).reshape(
                    -1, image['height'], image['width']))))])
    with contextlib.redirect_stdout(io.StringIO()):
        expected = metric.compute_metrics(metric.results)
    out = tmp_path / 'ap.json'
    result = run(tmp_path / 'run', path, '--json', out)
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    assert report['images'] == 10
    for kind in ('bbox', 'segm'):
        for ours, theirs in zip(('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'),
                                ('', '_50', '_75', '_s', '_m', '_l'), strict=True):
            assert round(report['metrics'][kind][ours], 3) == pytest.approx(
                expected[f'{kind}_mAP{theirs}'], abs=1e-9)
    # One of the two files serves too, and holds boxes and masks.
    result = run(tmp_path / 'run.segm.json', path, '--type', 'segm')
    assert result.returncode == 0, result.stderr


def test_tool_prints_and_writes_everything(tmp_path: Path) -> None:
    truth, found = scenes()
    out = tmp_path / 'out'
    result = run(save(tmp_path / 'found.json', found), save(tmp_path / 'truth.json', truth),
                 '--classwise', '--json', out / 'ap.json', '--csv', out / 'ap.csv',
                 '--pr-csv', out / 'pr.csv')
    assert result.returncode == 0, result.stderr
    assert '10 images, 8 of them with detections' in result.stdout
    expected = evaluate_coco(truth, found, 'segm').metrics()
    rows = list(csv.DictReader((out / 'ap.csv').read_text().splitlines()))
    assert [(row['type'], row['category']) for row in rows] == [
        (kind, name) for kind in ('bbox', 'segm') for name in ('all', 'cat', 'unicorn', 'dog')]
    assert {name: float(rows[4][name]) for name in METRICS} == pytest.approx(expected)
    assert rows[6]['AP'] == ''
    points = list(csv.DictReader((out / 'pr.csv').read_text().splitlines()))
    curve = [point for point in points if (point['type'], point['category']) == ('segm', 'all')]
    assert np.mean([float(point['precision']) for point in curve]) == pytest.approx(expected['AP'])
    assert np.mean([float(point['precision']) for point in curve if point['iou'] == '0.75']
                   ) == pytest.approx(expected['AP75'])
    assert [float(point['recall']) for point in curve[:3]] == [0, 0.01, 0.02]
    assert {point['category'] for point in points} == {'all', 'cat', 'dog'}
    report = json.loads((out / 'ap.json').read_text())
    assert report['metrics']['segm']['AP'] == pytest.approx(expected['AP'])
    assert report['metrics']['bbox']['categories'][1] == {
        'id': 7, 'name': 'unicorn', 'objects': 0, **dict.fromkeys(METRICS)}
    assert report['backend'] == default_backend()
    cells, = (line.split() for line in result.stdout.splitlines()
              if line.split()[:2] == ['segm', 'all'])
    assert cells[3:] == [f'{value:.3f}' for value in expected.values()]
    assert ('note: counting with pycocotools' in result.stderr) == (
        default_backend() == 'pycocotools')


def test_every_way_to_write_a_mask(tmp_path: Path) -> None:
    truth = dict(images=[dict(id=1, height=40, width=50)], categories=CATEGORIES, annotations=[
        dict(id=1, image_id=1, category_id=3, iscrowd=0, bbox=[10, 5, 20, 15], area=300,
             segmentation=[[10, 5, 30, 5, 30, 20, 10, 20]])])
    mask = np.zeros((40, 50), np.uint8)
    mask[5:20, 10:30] = 1
    compressed = rle_tools.encode(np.asfortranarray(mask))
    flat = mask.ravel(order='F')
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]))).tolist()
    runs = np.diff([0, *edges, flat.size]).tolist()
    for written in (dict(size=[40, 50], counts=compressed['counts'].decode()),
                    dict(size=[40, 50], counts=runs), [[10, 5, 30, 5, 30, 20, 10, 20]]):
        found = [dict(image_id=1, category_id=3, score=0.5, segmentation=written)]
        path = save(tmp_path / 'found.json', found)
        scores = evaluate_coco(truth, read_results(path, truth), 'segm')
        assert scores.metrics()['AP'] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize('backend', BACKENDS)
def test_hand_made_annotations(tmp_path: Path, backend: str) -> None:
    # Ids that are words or start at 0; no iscrowd, no area.
    truth = dict(
        images=[dict(id=name, height=90, width=90) for name in ('b.jpg', 'a.jpg')],
        categories=[dict(id=0, name='leaf')],
        annotations=[dict(image_id='a.jpg', category_id=0, bbox=[1, 2, 50, 60]),
                     dict(id=0, image_id='b.jpg', category_id=0, bbox=[1, 2, 10, 9])])
    truth = read_annotations(save(tmp_path / 'truth.json', truth))
    found = [dict(image_id='a.jpg', category_id=0, score=0.5, bbox=[1, 2, 50, 60]),
             dict(image_id='b.jpg', category_id=0, score=0.7, bbox=[1, 2, 10, 9])]
    metrics = evaluate_coco(truth, found, 'bbox', backend=backend).metrics()
    assert [metrics[name] for name in ('AP', 'APs', 'APm')] == pytest.approx([1, 1, 1], abs=1e-9)
    assert np.isnan(metrics['APl'])


@pytest.mark.parametrize('backend', BACKENDS)
def test_no_detection_is_zero_and_said(tmp_path: Path, backend: str) -> None:
    truth, _ = scenes()
    result = run(save(tmp_path / 'found.json', []), save(tmp_path / 'truth.json', truth),
                 '--type', 'bbox', 'segm', '--json', tmp_path / 'ap.json', '--backend', backend)
    assert result.returncode == 0, result.stderr
    assert 'holds no detection, so every AP is 0' in result.stderr
    metrics = json.loads((tmp_path / 'ap.json').read_text())['metrics']
    assert metrics['bbox']['AP'] == metrics['segm']['AP'] == 0


def changed(found: list[dict], **values: Any) -> list[dict]:
    return [{**found[0], **values}, *found[1:]]


def without(found: list[dict], key: str) -> list[dict]:
    return [{k: v for k, v in found[0].items() if k != key}, *found[1:]]


@pytest.mark.parametrize(('spoil', 'message'), [
    (lambda f: changed(f, image_id=999), 'detections have image_id 999, which is not in the '
                                         'annotations (10 images, ids like 11, 12'),
    (lambda f: changed(f, category_id=99), 'category_id 99, which is not among the 3 categories'),
    (lambda f: [{**d, 'category_id': 1} for d in f], 'They look like class indices 0..N-1'),
    (lambda f: changed(f, score=float('nan')), 'detection 0 has the score nan'),
    (lambda f: without(f, 'score'), "detection 0 has no 'score'"),
    (lambda f: changed(f, bbox=[1, 2, 3]), 'a box is [x, y, width, height]'),
    (lambda f: [5], 'detection 0 is a int, not a dict'),
    (lambda f: {'annotations': []}, 'is an annotation file, not a list of detections'),
    (lambda f: {'bbox': []}, 'holds a dict; results are a list'),
    (lambda f: without(f, 'segmentation'), "detections have no 'segmentation' (the first is "
                                           'number 0), so there is no segm AP'),
    (lambda f: changed(f, segmentation=ellipse([1, 1, 5, 5], (20, 30))), 'is 20x30, the image'),
    (lambda f: changed(f, segmentation=dict(size=[170, 230], counts=[1, 2])), 'do not add up'),
    (lambda f: changed(f, segmentation='abc'), "is neither RLE nor polygons: 'abc'"),
])
def test_bad_results_are_one_message(tmp_path: Path, spoil: Any, message: str) -> None:
    truth, found = scenes()
    path = save(tmp_path / 'found.json', spoil(found))
    with pytest.raises(UserError) as error:
        evaluate_coco(truth, read_results(path, truth), 'segm')
    assert message in str(error.value)


def test_bad_annotations_are_one_message(tmp_path: Path) -> None:
    truth, _ = scenes()
    for part, key, message in (('images', 'height', 'entry 0 of "images" has no height'),
                               ('annotations', 'bbox', 'annotation 1 has no bbox')):
        spoiled = copy.deepcopy(truth)
        del spoiled[part][0][key]
        with pytest.raises(UserError, match=message):
            read_annotations(save(tmp_path / 'truth.json', spoiled))
    spoiled = {**truth, 'images': truth['images'][1:]}
    with pytest.raises(UserError, match='image_id 20, which is not in "images"'):
        read_annotations(save(tmp_path / 'truth.json', spoiled))
    spoiled = {**truth, 'images': truth['images'] + truth['images'][:1]}
    with pytest.raises(UserError, match='lists an id more than once: id 20 '):
        read_annotations(save(tmp_path / 'truth.json', spoiled))
    with pytest.raises(UserError, match='hold no object'):
        evaluate_coco({**truth, 'annotations': []}, [], 'bbox')


def test_tool_refuses_without_a_traceback(tmp_path: Path) -> None:
    truth, found = scenes()
    found_path, truth_path = save(tmp_path / 'f.json', found), save(tmp_path / 't.json', truth)
    broken = tmp_path / 'broken.json'
    broken.write_text('[{')
    before = found_path.read_bytes()
    for args, message in (
            ((truth_path, found_path), 'no COCO annotation file: it holds a list'),
            ((broken, truth_path), 'is no JSON'),
            ((tmp_path / 'none', truth_path), 'do not exist, nor'),
            ((tmp_path / 'run.pkl', truth_path), 'is a pickle; results are read from COCO JSON'),
            ((found_path, truth_path, '--json', found_path), 'written over or among')):
        result = run(*args)
        assert result.returncode == 2
        assert message in result.stderr and 'Traceback' not in result.stderr
    assert found_path.read_bytes() == before
    save(tmp_path / 'run.bbox.json', found)
    result = run(tmp_path / 'run', truth_path, '--type', 'boundary')
    assert result.returncode == 2 and 'there are no results for boundary' in result.stderr


def many(count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One image with `count` objects, each found, in the order of falling scores."""
    truth = dict(images=[dict(id=1, height=400, width=400)], categories=CATEGORIES, annotations=[
        dict(id=i + 1, image_id=1, category_id=3, iscrowd=0, area=64,
             bbox=[10 * (i % 40), 10 * (i // 40), 8, 8]) for i in range(count)])
    return truth, [dict(image_id=1, category_id=3, score=1 - i / 1000, bbox=a['bbox'])
                   for i, a in enumerate(truth['annotations'])]


@pytest.mark.parametrize('backend', BACKENDS)
def test_more_objects_than_coco_counts(tmp_path: Path, backend: str) -> None:
    truth, found = many(160)
    files = save(tmp_path / 'f.json', found), save(tmp_path / 't.json', truth)
    out = tmp_path / 'ap.json'
    result = run(*files, '--backend', backend, '--json', out)
    assert result.returncode == 0, result.stderr
    for what in ('objects', 'bbox detections'):
        assert f'note: 1 image with more than 100 {what} of one category' in result.stderr
    assert '--max-dets 160 counts them all' in result.stderr
    metrics = json.loads(out.read_text())['metrics']['bbox']
    assert metrics['AR100'] == pytest.approx(100 / 160)
    result = run(*files, '--backend', backend, '--json', out, '--max-dets', 160)
    assert result.returncode == 0 and 'note' not in result.stderr.replace('note: counting', '')
    report = json.loads(out.read_text())
    assert report['max_dets'] == 160
    assert report['metrics']['bbox']['AR160'] == report['metrics']['bbox']['AP'] == (
        pytest.approx(1, abs=1e-9))
    assert 'AR160' in result.stdout
    result = run(*files, '--max-dets', 3)
    assert result.returncode == 2 and 'max_dets is 3; it is from 10' in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize(('spoil', 'message'), [
    (lambda t, f: put(f, (0, 'segmentation'), [[1e18, 1, 2, 2, 3, 3]]), 'detection 0 '),
    (lambda t, f: put(f, (0, 'segmentation'), [[float('nan'), 1, 2, 2, 3, 3]]), 'detection 0 '),
    (lambda t, f: put(t, ('annotations', 3, 'segmentation'), [[1e18, 1, 2, 2, 3, 3]]),
     'annotation 4 '),
    (lambda t, f: put(t, ('annotations', 3, 'bbox'), None), 'annotation 4 has the bbox None'),
    (lambda t, f: b'[' * 200_000, '200000 deep'),
])
def test_the_tool_outlives_what_pycocotools_does_not(
        tmp_path: Path, spoil: Any, message: str) -> None:
    truth, found = scenes()
    spoiled = spoil(truth, found)
    paths = save(tmp_path / 'f.json', found), save(tmp_path / 't.json', truth)
    path = paths[1] if isinstance(spoiled, dict) else paths[0]
    path.write_bytes(spoiled if isinstance(spoiled, bytes) else json.dumps(spoiled).encode())
    result = run(*paths, '--type', 'segm')
    assert result.returncode == 2, result
    assert message in result.stderr and 'Traceback' not in result.stderr
