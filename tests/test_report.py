"""tools/report.py: the numbers of the page, names from outside, the page in a browser."""
import base64
import html
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_tools

from tests.tiny_runs import ROOT, run, run_tool, write_detection_run, write_run
from visattn_dense.errors import UserError
from visattn_dense.evaluation.coco import evaluate_coco
from visattn_dense.evaluation.pairs import match_files
from visattn_dense.evaluation.segmentation import Settings
from visattn_dense.openmmlab.config import read_config
from visattn_dense.openmmlab.engine import finished
from visattn_dense.openmmlab.engine.evaluation import prepare_test
from visattn_dense.openmmlab.engine.finished import work_of_run
from visattn_dense.openmmlab.engine.launch import register_scope
from visattn_dense.openmmlab.engine.prediction_files import prediction_of, root_of
from visattn_dense.report import build, compare, detection, outlines, segmentation
from visattn_dense.report.bootstrap import Interval, resamples
from visattn_dense.report.detection import calibration
from visattn_dense.report.matching import (
    IGNORED,
    KINDS,
    RIGHT,
    PrecisionRecall,
    confusion,
    gains,
    match,
    mean_ap,
)
from visattn_dense.report.pictures import Budget, photo, small_size
from visattn_dense.visualization.colour import distinct_palette

HOSTILE = ('<img src=x onerror=alert(1)>', '</script><script>document.title="ran"</script>',
           '" onload="document.title=1', '{{script}}', 'sky')


def write_labels(root: Path, images: int = 12) -> Path:
    """pred (good), pred_b (bad), labels and images of five classes; the first image is worst."""
    rng = np.random.default_rng(3)
    for number in range(images):
        name = f'p{number}<svg onload=alert(1)>' if number == 1 else f'p{number}'
        label = np.kron(rng.integers(0, 5, (4, 5)), np.ones((9, 11))).astype(np.uint8)
        for folder, wrong in (('pred', 0.1), ('pred_b', 0.4)):
            pred = label.copy()
            noise = rng.random(label.shape) < (0.9 if number == 0 else wrong)
            pred[noise] = rng.integers(0, 5, noise.sum())
            save(root / folder / f'{name}.png', pred)
        label[:2] = 255
        save(root / 'labels' / f'{name}.png', label)
        save(root / 'images' / f'{name}.jpg', np.stack([label * 40] * 3, 2))
    (root / 'classes.txt').write_text('\n'.join(HOSTILE))
    return root


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def labels_work(root: Path, other: bool = False) -> build.Labels:
    task = segmentation.Task(HOSTILE, distinct_palette(5), Settings(5, boundary_ratio=0.02),
                             {p.stem: p for p in (root / 'images').iterdir()})
    sides = [match_files(root / name, root / 'labels') for name in ('pred', 'pred_b')]
    return build.Labels('<i>title</i>', task, sides[0], sides[1] if other else None)


def coco(rng: np.random.Generator, images: int = 12) -> tuple[dict, list[dict], list[dict]]:
    """Annotations with crowds, and the detections of a better and a worse model."""
    truth = dict(images=[dict(id=i, width=200, height=150, file_name=f'{HOSTILE[i % 5]}{i}.jpg')
                         for i in range(images)], annotations=[],
                 categories=[dict(id=3 * i, name=name) for i, name in enumerate(HOSTILE)])
    sides: tuple[list, list] = ([], [])
    for image in range(images):
        for _ in range(6):
            box = [*rng.uniform(0, 100, 2), *rng.uniform(15, 60, 2)]
            category = 3 * int(rng.integers(0, 5))
            truth['annotations'].append(dict(
                id=len(truth['annotations']) + 1, image_id=image, category_id=category, bbox=box,
                area=box[2] * box[3], iscrowd=int(rng.random() < 0.1)))
            for side, spread in zip(sides, (2, 6), strict=True):
                for _ in range(rng.integers(0, 4)):
                    moved = np.maximum(1, np.array(box) + rng.normal(0, spread, 4))
                    # Few different scores, so that many are equal.
                    side.append(dict(image_id=image, bbox=moved.tolist(), category_id=(
                        category if rng.random() < 0.8 else 3 * int(rng.integers(0, 5))),
                        score=round(float(rng.random()), 1)))
    return truth, *sides


def write_detections(root: Path) -> None:
    """truth.json and results.json of images that `write_labels` writes."""
    truth, results, _ = coco(np.random.default_rng(5))
    truth['images'] = [{**image, 'file_name': f'p{image["id"]}.jpg'} for image in truth['images']]
    (root / 'truth.json').write_text(json.dumps(truth))
    (root / 'results.json').write_text(json.dumps(results))


class Tags(HTMLParser):
    """The elements of a page: names and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))


def assert_closed(page: str) -> None:
    """One script, no handler, no address outside the page."""
    found = Tags(page).found
    assert sum(tag == 'script' for tag, _ in found) == 1
    for tag, attributes in found:
        assert not [name for name in attributes if name.startswith('on')], (tag, attributes)
        for name in ('src', 'href', 'action', 'xlink:href'):
            assert re.match(r'(data:image/|#)', attributes.get(name) or '#'), (tag, attributes)


@pytest.fixture(scope='module')
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page of each kind, with hostile names and a second model."""
    root = write_labels(tmp_path_factory.mktemp('report'))
    truth, good, bad = coco(np.random.default_rng(5))
    for name, content in (('truth', truth), ('good', good), ('bad', bad)):
        (root / f'{name}.json').write_text(json.dumps(content))
    works = {'labels': labels_work(root, other=True), 'boxes': build.Detections(
        '<i>title</i>', root / 'good.json', root / 'truth.json', other=root / 'bad.json')}
    for name, work in works.items():
        (root / f'{name}.html').write_text(
            work.report(workers=1, pictures=60, picture_bytes=10**6).html(), encoding='utf-8')
    return {name: root / f'{name}.html' for name in works}


def test_names_from_outside_stay_text(pages):
    for path in pages.values():
        page = path.read_text(encoding='utf-8')
        assert_closed(page)
        for name in (*HOSTILE[:2], '<svg onload'):
            assert name not in page
        assert '&lt;img src=x onerror=alert(1)&gt;' in page
        assert ('p1&lt;svg onload' in page) == (path.stem == 'labels')
        assert page.count("querySelectorAll('table.sortable')") == 1


def test_every_image_once_is_the_plain_score(tmp_path):
    work = labels_work(write_labels(tmp_path))
    measured = segmentation.measure(work.pairs, work.task, workers=1)
    once = segmentation.resampled(measured.areas, np.ones((1, len(work.pairs)), np.float32))
    np.testing.assert_allclose(once['IoU'][0], measured.scores.iou)
    assert once['mIoU'][0] == pytest.approx(measured.scores.miou)
    assert once['aAcc'][0] == pytest.approx(measured.scores.aacc)
    assert once['mAcc'][0] == pytest.approx(measured.scores.macc)
    edge = segmentation.resampled(measured.boundary, np.ones((1, len(work.pairs)), np.float32))
    assert edge['mIoU'][0] == pytest.approx(measured.scores.boundary_miou)
    # A resample is the score of a data set with these images.
    weights = resamples(len(work.pairs), 1, seed=4)
    again = [pair for pair, times in zip(work.pairs, weights[0], strict=True)
             for _ in range(int(times))]
    assert segmentation.resampled(measured.areas, weights)['mIoU'][0] == pytest.approx(
        segmentation.measure(again, work.task, workers=1).scores.miou)
    assert work.pairs[measured.worst_first[0]].name == 'p0'


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Accuracies of images with a known mean: about 95 of 100 intervals hold the mean."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(100):
        right = rng.binomial(100, 0.7, 60)
        areas = np.stack([right, np.full(60, 100), np.full(60, 100)], axis=1)[..., None]
        drawn = segmentation.resampled(areas, resamples(60, 400, trial))['aAcc']
        interval = Interval.of(drawn, right.mean())
        held += interval.low <= 70 <= interval.high
    assert 88 <= held <= 99


def test_an_interval_stands_around_its_score():
    """Resamples that are all too high, as those of AP are, do not lift the interval."""
    values = np.append(np.linspace(20, 40, 201), np.nan)
    assert Interval.of(values, 10.) == Interval(pytest.approx(0.5), pytest.approx(19.5))
    assert Interval.of_score(values, 5.) == Interval(0., pytest.approx(14.5))
    assert np.isnan(Interval.of_score(values, np.nan).low)


def test_a_difference_is_told_from_chance(tmp_path):
    work = labels_work(write_labels(tmp_path), other=True)
    a, b = (segmentation.measure(pairs, work.task, workers=1) for pairs in (work.pairs, work.other))

    def told(one, two) -> str:
        return str(compare.labels(one, two, work.task, Budget(0, 0)).content)

    assert 'A is better by mIoU' in told(a, b) and 'B is better by mIoU' in told(b, a)
    assert 'may be chance' in told(a, a) and '0.0 to 0.0' in told(a, a)
    fewer = segmentation.measure(work.pairs[1:], work.task, workers=1)
    with pytest.raises(UserError, match='same images: only one has p0'):
        told(a, fewer)


def test_a_difference_of_detectors_is_told_from_chance():
    truth, good, bad = coco(np.random.default_rng(5), images=40)
    task = detection.Task(truth, 'bbox')
    a, b = (detection.measure(results, task) for results in (good, bad))

    def told(one, two) -> str:
        return str(compare.detections(one, two, task, Budget(0, 0)).content)

    assert 'A is better by AP' in told(a, b) and 'B is better by AP' in told(b, a)
    assert 'may be chance' in told(a, a) and '40 equal' in told(a, a)
    ap = [f'{100 * m.scores.metrics()["AP"]:.1f}' for m in (a, b)]
    assert rows_of(told(a, b))[0][:3] == ['AP', *ap]


def test_what_only_the_second_model_finds_has_its_legend_and_its_place_in_the_filter():
    box = dict(image_id=1, bbox=[0., 0., 10., 10.])
    truth = dict(images=[dict(id=1, width=40, height=20)],
                 categories=[dict(id=i, name=name) for i, name in enumerate('ab')],
                 annotations=[dict(box, id=1, category_id=0, area=100., iscrowd=0)])
    right = dict(box, category_id=0, score=.9)
    wrong = dict(image_id=1, bbox=[20., 0., 10., 10.], category_id=1, score=.95)
    task = detection.Task(truth, 'bbox')
    a, b = (detection.measure(found, task) for found in ([right], [right, wrong]))
    page = str(compare.detections(a, b, task, Budget(9, 10**6)).content)
    assert '<article data-classes="0 1">' in page
    legend = page[page.index('class="legend"'):]
    assert re.findall('</i>(.)</span>', legend) == ['a', 'b']


@pytest.mark.parametrize('images, told', [(5, 'cannot be said of fewer than 6 images'),
                                          (6, 'B is better by mIoU')])
def test_few_images_have_no_interval(tmp_path, images, told):
    """B is better on each image; the second class is in the first image alone."""
    for folder, wrong in (('labels', 0), ('a', 5), ('b', 4)):
        for i in range(images):
            values = np.repeat(np.array([0, int(i == 0)], np.uint8), 10)
            values[:wrong] = values[10:10 + wrong] = 2
            save(tmp_path / folder / f'{i}.png', values[None])
    task = segmentation.Task('abc', distinct_palette(3), Settings(3), {})
    a, b = (segmentation.measure(match_files(tmp_path / side, tmp_path / 'labels'), task, workers=1)
            for side in 'ab')
    content = str(compare.labels(a, b, task, Budget(0, 0)).content)
    assert told in content
    many, one, none = rows_of(content.split('IoU of each class')[1])[:3]
    assert many[-1] == ('yes' if images == 6 else '–')
    assert one[-2:] == none[-2:] == ['–', '–']
    cards, sections = segmentation.sections(a, task, Budget(0, 0))
    assert ('–' in cards[0][2]) == (images < 6)
    assert [row[2] == '–' for row in rows_of(str(sections[0].content))] == [images < 6, True, True]


def rows_of(table: str) -> list[list[str]]:
    """The cells of each row of a table, without the heading."""
    body = table.split('<tbody>')[1]
    return [re.findall(r'<t[dh][^>]*>(.*?)</t[dh]>', row) for row in body.split('<tr')[1:]]


def test_what_is_confused_is_counted_by_hand(tmp_path):
    """Ten pixels of sky, three taken for road; four of road, one for car and one for no class."""
    label = np.array([[0] * 10 + [1] * 4 + [255]], np.uint8)
    pred = np.array([[0] * 7 + [1] * 3 + [1, 1, 2, 255] + [2]], np.uint8)
    for folder, values in (('labels', label), ('pred', pred)):
        save(tmp_path / folder / 'a.png', values)
    task = segmentation.Task(('sky', 'road', 'car'), distinct_palette(3), Settings(3), {})
    page = build.Labels('t', task, match_files(tmp_path / 'pred', tmp_path / 'labels')).report(
        workers=1, pictures=0, picture_bytes=0)
    parts = {section.title: str(section.content) for section in page.sections}
    assert rows_of(parts['Classes that are confused']) == [
        ['sky', 'road', '3', '30.0', '60.0'], ['road', 'car', '1', '25.0', '20.0'],
        ['road', '(no class)', '1', '25.0', '20.0']]
    assert rows_of(parts['Confusion matrix']) == [
        ['sky', '70', '30', '', ''], ['road', '', '50', '25', '25'], ['car', '', '', '', '']]


def test_images_that_changed_most_come_first(tmp_path):
    work = labels_work(write_labels(tmp_path), other=True)
    a, b = (segmentation.measure(pairs, work.task, workers=1) for pairs in (work.pairs, work.other))
    content = str(compare.labels(a, b, work.task, Budget(0, 0)).content)
    rows = rows_of(content.split('Images that changed most')[1])
    change = np.abs(b.image_scores - a.image_scores)
    names = [html.escape(work.pairs[i].name) for i in np.argsort(-change, kind='stable')]
    assert [row[0] for row in rows] == names
    # The first image is equally bad for both models.
    assert names.index('p0') > 6 and '12 worse' not in content


@pytest.mark.parametrize('seed', range(3))
def test_matching_is_that_of_coco(seed):
    truth, results, _ = coco(np.random.default_rng(seed))
    metrics = evaluate_coco(truth, results, 'bbox').metrics()
    matches = match(truth, results, 'bbox')
    assert matches.ignored.any() and metrics['AP'] > 0.05
    assert mean_ap(matches) == pytest.approx(metrics['AP'], abs=1e-12)
    assert mean_ap(matches, 1) == pytest.approx(metrics['AP50'], abs=1e-12)
    masks = [{**{k: v for k, v in item.items() if k != 'bbox'}, 'segmentation': outline(item)}
             for item in results]
    truth['annotations'] = [{**item, 'segmentation': outline(item)}
                            for item in truth['annotations']]
    assert mean_ap(match(truth, masks, 'segm')) == pytest.approx(
        evaluate_coco(truth, masks, 'segm').metrics()['AP'], abs=1e-12)


def outline(item: dict) -> list:
    x, y, w, h = map(float, item['bbox'])
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def test_a_resample_of_detections_is_the_score_of_these_images():
    truth, results, _ = coco(np.random.default_rng(9), images=5)
    # Of equal scores, the order would decide.
    results = [{**item, 'score': item['score'] + i / 1e6} for i, item in enumerate(results)]
    weights = np.array([2, 0, 1, 0, 3])
    found = PrecisionRecall(match(truth, results, 'bbox')).ap(weights)
    copies = dict(truth, images=[], annotations=[])
    again = []
    for image, times in enumerate(weights):
        for copy in range(times):
            to = 10 * image + copy
            copies['images'].append({**truth['images'][image], 'id': to})
            copies['annotations'] += [{**item, 'image_id': to, 'id': 1000 * to + item['id']}
                                      for item in truth['annotations'] if item['image_id'] == image]
            again += [{**item, 'image_id': to} for item in results if item['image_id'] == image]
    expected = PrecisionRecall(match(copies, again, 'bbox')).ap()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_kinds_of_errors_and_what_mending_adds():
    """By hand: three objects of class a, one of class b; one detection of each kind."""
    def box(x: float, width: float = 10.) -> list[float]:
        return [x, 0., width, 10.]

    truth = dict(images=[dict(id=1, width=200, height=20)],
                 categories=[dict(id=1, name='a'), dict(id=2, name='b')],
                 annotations=[dict(id=i + 1, image_id=1, category_id=category, bbox=box(x),
                                   area=100., iscrowd=0)
                              for i, (category, x) in enumerate([(1, 0), (1, 30), (1, 60), (2, 90)])
                              ])
    results = [dict(image_id=1, category_id=category, bbox=where, score=score)
               for category, where, score in [
                   (1, box(0), 0.9), (1, box(1), 0.8), (1, box(34), 0.7), (1, box(90), 0.6),
                   (1, box(150), 0.5), (2, box(34), 0.4)]]
    matches = match(truth, results, 'bbox')
    assert [KINDS[k] if k >= 0 else k for k in matches.kind] == [
        RIGHT, 'duplicate', 'localisation', 'classification', 'background', 'both']
    # The second object has a localisation error, the last a classification error.
    assert matches.missed.tolist() == [False, False, True, False]
    # AP50 of a: 34 of 101 recalls at precision 1; of b: 0.
    before = 34 / 101 / 2
    assert mean_ap(matches, 1) == pytest.approx(before)
    added = gains(matches)
    # Recall 2/3: the second hit comes third, at precision 2/3.
    assert added['localisation'] == pytest.approx(33 * 2 / 3 / 101 / 2)
    # b finds its only object, first of its detections: the other one has a lower score.
    assert added['classification'] == pytest.approx(0.5)
    assert added['missed'] == pytest.approx((51 - 34) / 101 / 2)
    assert added['duplicate'] == added['background'] == added['both'] == pytest.approx(0)


@pytest.mark.parametrize('score', [None, 0.5])
@pytest.mark.filterwarnings('error')
def test_a_model_that_finds_nothing_has_a_page_without_warnings(tmp_path, score):
    truth, results, _ = coco(np.random.default_rng(5), images=3)
    found = [] if score is None else [{**item, 'bbox': [190., 140., 5., 5.], 'score': score}
                                      for item in results]
    for name, content in (('truth', truth), ('results', found)):
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    page = build.Detections('t', tmp_path / 'results.json', tmp_path / 'truth.json').report(
        workers=1, pictures=9, picture_bytes=10**6)
    assert page.cards[0][:2] == ('AP', '0.0')
    errors = rows_of(str(next(s for s in page.sections if s.title == 'Errors').content))
    # Without the missed objects there is none left, so there is no AP to gain.
    assert errors[-1][:2] == ['missed', '–']
    assert [row[1] for row in errors[:-1]] == ['0.0'] * 5


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_confusion_counted_by_hand(kind):
    """Two classes; objects and detections are squares in a row, their IoU is easy to see."""
    def item(category: int, x: float, **more: object) -> dict:
        box = dict(image_id=1, category_id=category, bbox=[float(x), 0., 10., 10.], area=100.)
        return {**box, 'segmentation': outline(box), **more}

    truth = dict(
        images=[dict(id=1, width=300, height=20), dict(id=2, width=300, height=20)],
        categories=[dict(id=1, name='a'), dict(id=2, name='b')],
        annotations=[item(*where, id=at + 1, iscrowd=crowd) for at, (*where, crowd) in enumerate([
            (1, 0, 0), (1, 30, 0), (1, 60, 0), (2, 90, 0), (2, 120, 0), (1, 200, 1)])])
    results = [item(*where, score=score) for *where, score in [
        (1, 0, 0.9),      # a, right
        (1, 1, 0.8),      # a again: no object is left, background
        (2, 31, 0.7),     # the second a, taken for b
        (1, 91, 0.95),    # b: the other detection overlaps it more
        (2, 90, 0.6),     # b, right
        (2, 128, 0.6),    # IoU 0.11: background, and b is missed
        (1, 200, 0.5),    # in a crowd: does not count
        (1, 60, 0.2),     # the third a, below the threshold
        (2, 260, 0.6)]]   # background
    matches = match(truth, results, kind)
    background = [[1, 1, 1], [0, 1, 1], [2, 2, 0]]
    assert confusion(matches, 0.5).tolist() == background
    # Without a threshold the third a is found, and no detection more is of the background.
    assert confusion(matches, 0.).tolist() == [[2, 1, 0], [0, 1, 1], [2, 2, 0]]
    # An image without objects and detections changes nothing; of equal IoU the own class comes
    # first.
    twins = match(truth, [item(2, 0, score=0.9), item(1, 0, score=0.3)], kind)
    assert confusion(twins, 0.).tolist() == [[1, 0, 2], [0, 0, 2], [0, 1, 0]]


def test_what_is_confused_is_a_share_of_all_objects_of_a_class():
    """Of four objects, one is taken for the other class and three are not detected."""
    def item(category: int, x: float, **more: object) -> dict:
        return dict(image_id=1, category_id=category, bbox=[x, 0., 10., 10.], area=100., **more)

    truth = dict(images=[dict(id=1, width=300, height=20)],
                 categories=[dict(id=1, name='a'), dict(id=2, name='b')],
                 annotations=[item(1, 30. * at, id=at + 1) for at in range(4)])
    task = detection.Task(truth, 'bbox')
    measured = detection.measure([item(2, 1., score=0.9)], task)
    _, table = str(detection._confusion(measured, task)).split('Classes that are confused')
    assert rows_of(table) == [['a', 'b', '1', '25.0', '100.0']]


def test_rows_and_columns_of_the_confusion_add_up():
    truth, results, _ = coco(np.random.default_rng(8), images=30)
    matches = match(truth, results, 'bbox')
    counts = confusion(matches, 0.5)
    objects = np.bincount(matches.object_category, minlength=5)
    counted = matches.category[(matches.score >= 0.5) & (matches.kind != IGNORED)]
    assert counts[:-1].sum(axis=1).tolist() == objects.tolist()
    assert counts[:, :-1].sum(axis=0).tolist() == np.bincount(counted, minlength=5).tolist()
    assert counts[:-1, :-1].trace() > counts[:-1, :-1].sum() / 2 and counts[-1, -1] == 0


def test_an_outline_is_the_mask():
    """Filled again, the path is the mask: two parts and a hole."""
    pixels = np.zeros((60, 90), np.uint8)
    pixels[5:40, 10:50] = 1
    pixels[15:30, 20:40] = 0
    pixels[45:55, 60:85] = 1
    path = outlines.outline(rle_tools.encode(np.asfortranarray(pixels)))
    polygons = [np.array([[float(v) for v in point.split(',')] for point in part.split()])
                for part in path.replace('z', '').split('M')[1:]]
    assert len(polygons) == 3
    drawn = np.zeros_like(pixels)
    cv2.fillPoly(drawn, [np.round(polygon - 0.5).astype(int) for polygon in polygons], 1)
    both, either = (drawn & pixels).sum(), (drawn | pixels).sum()
    assert both / either > 0.9
    # A large mask has its path in pixels of the image all the same.
    large = np.kron(pixels, np.ones((20, 20), np.uint8))
    numbers = [float(v) for v in re.findall(r'[\d.]+', outlines.outline(
        rle_tools.encode(np.asfortranarray(large))))]
    assert max(numbers) == pytest.approx(85 * 20, abs=20)
    assert outlines.outline(rle_tools.encode(np.zeros((9, 9), np.uint8, 'F'))) == ''


def test_names_do_not_cover_each_other():
    box = np.array([20., 30., 10., 10.])
    items = [outlines.Drawn(box + [shift, 0, 0, 0], 'person 87') for shift in range(6)]
    found = outlines.places(items, 10., (200, 100))
    kept = [place for place in found if place]
    assert found[0] and 2 <= len(kept) < len(items)
    lines = sorted(y for _, y in kept)
    assert np.diff(lines).min() >= 10.
    assert all(0 <= x < 200 and 8 <= y <= 100 for x, y in kept)
    # Far apart, each name stands above its box.
    apart = [outlines.Drawn(box + [90 * i, 0, 0, 0], 'car') for i in range(2)]
    assert [y for _, y in outlines.places(apart, 10., (200, 100))] == [28., 28.]


def test_masks_are_drawn_where_the_model_gives_masks(tmp_path):
    """mmdetection's two files: boxes are scored, masks are seen; each object has its own tone."""
    truth = dict(images=[dict(id=1, width=60, height=30, file_name='p.jpg')],
                 categories=[dict(id=1, name='a')], annotations=[])
    results = []
    for number, x in enumerate((0, 20, 40)):
        box = dict(image_id=1, category_id=1, bbox=[float(x), 5., 15., 15.], area=225.)
        truth['annotations'].append({**box, 'id': number + 1, 'iscrowd': 0,
                                     'segmentation': outline(box)})
        results.append({**box, 'score': 0.9 - number / 10})
    masks = [{**item, 'segmentation': outline(item)} for item in results]
    for name, content in (('truth', truth), ('r.bbox', results), ('r.segm', masks),
                          ('other.bbox', results[::-1]), ('other.segm', masks)):
        (tmp_path / f'{name}.json').write_text(json.dumps(content))

    def drawn(name: str, **options: str) -> list[dict]:
        page = build.Detections('t', tmp_path / name, tmp_path / 'truth.json', **options).report(
            workers=1, pictures=9, picture_bytes=10**6).html()
        return [attributes for tag, attributes in Tags(page).found
                if 'mask' in attributes.get('class', '').split()]

    shown = drawn('r')
    assert len(shown) == 9, 'truth, prediction, difference'
    assert len({item['style'] for item in shown if 'style' in item}) == 3
    assert len(drawn('r', kind='segm')) == 9
    # Boxes alone, or two files that do not belong together: no masks, of the truth neither.
    (tmp_path / 'boxes.json').write_text(json.dumps(results))
    assert drawn('boxes.json') == drawn('other') == []


def test_a_fingerprint_follows_the_data_and_not_its_place(tmp_path):
    def told(work: build.Work) -> str:
        facts = str(work.report(workers=1, pictures=0, picture_bytes=0).sections[-1].content)
        return re.search(r'fingerprint of the data</td><td[^>]*>(.*?)</td>', facts)[1]

    here = labels_work(write_labels(tmp_path / 'here', images=3))
    there = labels_work(write_labels(tmp_path / 'there', images=3))
    assert told(here) == told(there)
    assert told(here).endswith('(SHA-256 of the names and contents of 3 label files)')
    label = np.asarray(Image.open(tmp_path / 'there/labels/p2.png')).copy()
    label[5, 5] = (label[5, 5] + 1) % 5
    save(tmp_path / 'there/labels/p2.png', label)
    assert told(here) != told(there)
    truth, results, _ = coco(np.random.default_rng(5), images=3)
    (tmp_path / 'results.json').write_text(json.dumps(results))
    for name, width in (('a', 200), ('b', 200), ('c', 201)):
        truth['images'][0]['width'] = width
        (tmp_path / f'{name}.json').write_text(json.dumps(truth))
    a, b, c = (told(build.Detections('t', tmp_path / 'results.json', tmp_path / f'{name}.json'))
               for name in 'abc')
    assert a == b != c and 'annotation file' in a


def test_calibration_of_scores_that_tell_the_truth_and_of_scores_that_boast():
    truth, results, _ = coco(np.random.default_rng(2), images=30)
    matches = match(truth, results, 'bbox')
    known = matches.kind != IGNORED
    share = float((matches.kind[known] == RIGHT).mean())
    honest = replace(matches, score=np.full(len(matches.score), share))
    boasting = replace(matches, score=np.full(len(matches.score), 1.))
    assert calibration(honest)[3] == pytest.approx(0, abs=1e-9)
    assert calibration(boasting)[3] == pytest.approx(1 - share)


def test_pictures_stay_within_their_bounds(tmp_path):
    work = labels_work(write_labels(tmp_path))
    few = work.report(workers=1, pictures=9, picture_bytes=10**6).html()
    assert sum(tag == 'img' for tag, _ in Tags(few).found) == 8
    none = work.report(workers=1, pictures=100, picture_bytes=10).html()
    assert 'data:image' not in none and 'Worst images' not in none


def picture_of(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(',')[1]))))


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp'])
@pytest.mark.parametrize('turn', [1, 3, 6, 8])
@pytest.mark.parametrize('size', [(800, 400), (400, 800), (30, 40), (400, 400)], ids=str)
def test_a_photo_keeps_its_shape(tmp_path, size, turn, suffix):
    """Upright, lying, square; turned by the camera or not; smaller than in the page or larger."""
    picture = Image.new('RGB', size)
    exif = Image.Exif()
    exif[0x0112] = turn
    picture.save(tmp_path / f'p.{suffix}', exif=exif)
    address, told = photo(tmp_path / f'p.{suffix}')
    assert told == (size[::-1] if turn > 4 else size)
    assert picture_of(address).shape[1::-1] == small_size(*told)


def test_a_photo_of_sixteen_bits_is_not_white(tmp_path):
    values = np.linspace(0, 65535, 40 * 20).reshape(20, 40).astype(np.uint16)
    save(tmp_path / 'p.png', values)
    shown = picture_of(photo(tmp_path / 'p.png')[0])[..., 0]
    assert np.abs(shown.astype(int) - (values >> 8)).max() < 12


def called(monkeypatch, *arguments: str) -> int:
    """tools/report.py in this process; its exit code."""
    monkeypatch.syspath_prepend(ROOT / 'tools')
    monkeypatch.setattr(sys, 'argv', ['report.py', *arguments])
    spec = importlib.util.spec_from_file_location('report_tool', ROOT / 'tools/report.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.run(tool.write, tool.parse_args())


def test_commands_of_the_page_about_reports(tmp_path, monkeypatch):
    """docs/report.md, its commands, in a folder that has what they name."""
    write_run(tmp_path, extra='train_cfg.update(max_iters=2)\n')
    done = run('train', tmp_path, tmp_path / 'tiny.py', '--work-dir', tmp_path / 'work_dirs/tiny')
    assert done.code == 0, done.output
    # The best checkpoint comes before the newest.
    run_folder = tmp_path / 'work_dirs/tiny'
    (run_folder / 'iter_2.pth').rename(run_folder / 'best_mIoU_iter_1.pth')
    (run_folder / 'iter_9.pth').write_bytes(b'')
    write_labels(tmp_path)
    (tmp_path / 'pred').rename(tmp_path / 'predictions')
    (tmp_path / 'pred_b').rename(tmp_path / 'predictions_b')
    write_detections(tmp_path)
    (tmp_path / 'truth.json').rename(tmp_path / 'annotations.json')
    text = (ROOT / 'docs/report.md').read_text()
    commands = re.findall(r'^python tools/(report\.py .*)$', text, re.M)
    assert len(commands) == 4
    # What needs torch in a process of its own; the others here.
    done = run_tool(*commands[0].split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    for command in commands[1:]:
        assert called(monkeypatch, *command.split()[1:]) == 0
    page = (run_folder / 'report.html').read_text()
    assert_closed(page)
    for word in ('Training', 'fingerprint of the data', 'best_mIoU_iter_1.pth', 'EncoderDecoder'):
        assert word in page
    # The speed is that of the test: one image in a batch.
    log = (run_folder / 'report/best_mIoU_iter_1/test.log').read_text()
    seconds = float(re.findall(r'Iter\(test\).*mIoU.* time: ([\d.]+)', log)[0])
    speed = float(re.search(r'speed of the prediction</td><td[^>]*>([\d.]+) images/s', page)[1])
    assert speed == pytest.approx(1 / seconds, rel=0.02)
    # The test tool's own mIoU is the headline.
    log = (run_folder / 'report/best_mIoU_iter_1/test.log').read_text()
    miou = float(re.search(r'mIoU: ([\d.]+)', log)[1])
    shown = float(re.search(r'<b>([\d.]+) %</b><span>mIoU</span>', page)[1])
    # The test tool writes two digits, the page one.
    assert shown == pytest.approx(miou, abs=0.056)
    assert 'data:image/jpeg' in (tmp_path / 'detection.html').read_text()
    assert 'Comparison' in (tmp_path / 'compared.html').read_text()


def test_a_detector_is_scored_on_its_own_classes(tmp_path, monkeypatch, capsys):
    """A category that the model does not know counts as little as in CocoMetric."""
    from mmdet.evaluation import CocoMetric
    write_detection_run(tmp_path / 'run')
    path = tmp_path / 'run/data/all.json'
    truth = json.loads(path.read_text())
    found = [dict(image_id=item['image_id'], category_id=1, bbox=item['bbox'], score=0.9)
             for item in truth['annotations']]
    truth['categories'].insert(0, dict(id=0, name='other'))
    truth['annotations'] += [{**item, 'id': item['id'] + 100, 'category_id': 0}
                             for item in truth['annotations']]
    path.write_text(json.dumps(truth))
    (tmp_path / 'made.bbox.json').write_text(json.dumps(found))
    (tmp_path / 'run/epoch_1.pth').write_bytes(b'')
    monkeypatch.setattr(finished, 'predictions_of', lambda *_: str(tmp_path / 'made'))
    page = finished.work_of_run(str(tmp_path / 'run')).report(
        workers=1, pictures=9, picture_bytes=10**6)
    assert not capsys.readouterr().out
    cards = {label: value for label, value, _ in page.cards}
    metric = CocoMetric(str(path), metric='bbox')
    metric.dataset_meta = dict(classes=('thing',))
    for item in found:
        x, y, w, h = item['bbox']
        metric.process({}, [dict(img_id=item['image_id'], ori_shape=(64, 64), pred_instances=dict(
            bboxes=torch.tensor([[x, y, x + w, y + h]]), scores=torch.tensor([0.9]),
            labels=torch.tensor([0])))])
    assert metric.compute_metrics(metric.results)['bbox_mAP'] == 1
    assert cards['AP'] == '100.0' and cards['objects'] == '6'
    assert page.subtitle.endswith('1 classes.') and 'other' not in page.classes.values()


def test_images_of_one_name_in_two_folders(tmp_path, capsys):
    """A prediction for each: the page says what the test says, also after new images have come."""
    write_twins(tmp_path, extra='train_cfg.update(max_iters=2)\n')
    run_folder = tmp_path / 'work'
    done = run('train', tmp_path, tmp_path / 'tiny.py', '--work-dir', run_folder)
    assert done.code == 0, done.output

    def shown() -> tuple[float, float, build.Labels]:
        """mIoU of the page and of the test."""
        work = work_of_run(str(run_folder), boundary=False)
        page = work.report(workers=1, pictures=0, picture_bytes=0)
        log = (run_folder / 'report/iter_2/test.log').read_text()
        return (float(page.cards[0][1].split()[0]), float(re.search(r'mIoU: ([\d.]+)', log)[1]),
                work)

    miou, tested, work = shown()
    assert miou == pytest.approx(tested, abs=0.056)
    assert [pair.name for pair in work.pairs] == ['a/0', 'a/1', 'b/0', 'b/1']
    assert all(pair.name in pair.label and pair.name in pair.prediction
               and f'{pair.name}.png' in work.task.images[pair.name] for pair in work.pairs)
    assert 'predicting' in capsys.readouterr().err
    assert shown()[:2] == (miou, tested) and 'predicting' not in capsys.readouterr().err
    # New images are predicted; what is missing otherwise is named.
    for kind in ('images', 'labels'):
        shutil.copy(tmp_path / 'data' / kind / 'a/0.png', tmp_path / 'data' / kind / 'b/2.png')
    miou, tested, work = shown()
    assert miou == pytest.approx(tested, abs=0.056) and len(work.pairs) == 5
    Path(work.pairs[0].prediction).unlink()
    with pytest.raises(UserError, match=r'1 of 5 test images have no .*a/0.png\nRemove .*made.js'):
        shown()
    # A second run is on the same images.
    other = tmp_path / 'other'
    shutil.copytree(run_folder, other, ignore=shutil.ignore_patterns('report'))
    config = other / 'tiny.py'
    config.write_text(config.read_text() + "test_dataloader['dataset'].update(indices=3)\n")
    with pytest.raises(UserError, match='different test images: only one has b/1, b/2'):
        work_of_run(str(run_folder), other=str(other))
    assert not (other / 'report').exists()


def test_a_metric_that_writes_by_name_alone_is_refused(tmp_path):
    cfg = read_config(str(write_twins(tmp_path, extra=(
        "test_evaluator = dict(type='CityscapesMetric')\n"))))
    register_scope('mmseg')
    args = SimpleNamespace(checkpoint='c.pth', show=False, show_dir=None, tta=False, out='out')
    with pytest.raises(UserError, match=r'below .*data/images have the same name, and Cityscapes'):
        prepare_test(cfg, args)


def write_twins(root: Path, extra: str) -> Path:
    """`write_run` with the images a/0, a/1, b/0 and b/1."""
    config = write_run(root, extra=extra, images=4)
    for kind in ('images', 'labels'):
        for number in range(4):
            path = root / 'data' / kind / f'{number}.png'
            path.parent.joinpath('ab'[number // 2]).mkdir(exist_ok=True)
            path.rename(path.parent / 'ab'[number // 2] / f'{number % 2}.png')
    return config


@pytest.mark.parametrize('images, root, names', [
    (['x/a/0.png', 'x/b/1.png'], None, ['0', '1']),
    (['x/a/0.png', 'x/b/0.png', 'x/b/1.png'], 'x', ['a/0', 'b/0', 'b/1']),
    (['x/a/0.png', 'y/0.png'], '', ['x/a/0', 'y/0']),
    (['x/0.png', 'x/a/0.png'], 'x', ['0', 'a/0']),
    (['x/0.png', 'x/0.png'], None, ['0', '0']),
    (['x/0.b.png', 'x/0.c.png'], None, ['0.b', '0.c'])])
def test_predictions_keep_folders_where_names_are_equal(images, root, names):
    found = root_of(images)
    assert found == (None if root is None else str(Path(root).absolute()))
    assert [prediction_of(image, found) for image in images] == names
    with pytest.raises(UserError, match='0.jpg and .*0.png would have the same prediction'):
        root_of([*images, 'z/0.png', 'z/0.jpg'])


@pytest.mark.parametrize('arguments, message', [
    ([], 'give RUN, or both --predictions and --truth'),
    (['--predictions', 'pred', '--truth', 'labels'], 'say what the classes are'),
    (['nowhere'], 'there is no folder nowhere'),
    (['pred', '--truth', 'labels'], 'not both'),
    (['--predictions', 'pred', '--truth', 'labels', '--num-classes', '5', '--images', 'labels/x'],
     'there is no folder of images labels/x'),
    (['--predictions', 'pred', '--truth', 'labels', '--num-classes', '5', '--out', 'pred/x.html'],
     'give a place outside'),
    (['--predictions', 'pred', '--truth', 'labels', '--num-classes', '5', '--images', 'twins'],
     'twins/a/p0.png and twins/b/p0.png have the same name'),
    (['--predictions', 'results.json', '--truth', 'truth.json', '--images', 'labels'],
     'no photograph of the annotations is in labels, like p0.jpg'),
    (['--predictions', 'results.json', '--truth', 'truth.json', '--images', 'nowhere'],
     'no photograph of the annotations is in nowhere'),
])
def test_bad_input_gets_one_message(tmp_path, monkeypatch, capsys, arguments, message):
    write_labels(tmp_path, images=2)
    write_detections(tmp_path)
    for name in 'ab':
        save(tmp_path / f'twins/{name}/p0.png', np.zeros((9, 9), np.uint8))
    monkeypatch.chdir(tmp_path)
    assert called(monkeypatch, *arguments) == 2
    told = capsys.readouterr()
    assert message in told.err and not told.out


BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
               None)
# Clicks, and what the reader then sees, as the title of the page.
_CLICKS = """
const seen = {};
const table = document.querySelectorAll('#s1 table.sortable')[0];
const column = () => [...table.tBodies[0].rows].map(row => row.cells[1].dataset.value);
seen.before = column();
const head = table.tHead.rows[0].cells[1];
head.firstElementChild.click(); seen.down = column(); seen.sort = head.getAttribute('aria-sort');
head.firstElementChild.click(); seen.up = column();
const filter = document.getElementById('filter');
filter.value = '4'; filter.dispatchEvent(new Event('change'));
seen.rows = [...table.tBodies[0].rows].filter(row => row.offsetParent).map(
  row => row.cells[0].textContent);
seen.wrong = [...document.querySelectorAll('article')].filter(item => item.offsetParent
  && !item.dataset.classes.split(' ').includes('4')).length;
filter.value = ''; filter.dispatchEvent(new Event('change'));
seen.all = [...table.tBodies[0].rows].filter(row => row.offsetParent).length;
const paper = () => getComputedStyle(document.body).backgroundColor;
const first = paper(); document.getElementById('theme').click(); seen.themes = first !== paper();
seen.wide = document.documentElement.scrollWidth > innerWidth;
document.title = 'SEEN' + JSON.stringify(seen);
"""


def dumped(path: Path, *flags: str) -> tuple[str, str]:
    """The document after its scripts ran in a headless browser, and the console's lines."""
    done = subprocess.run(
        [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', *flags,
         f'--user-data-dir={path.parent / "profile"}', '--dump-dom', path.as_uri()],
        capture_output=True, text=True, timeout=120)
    return done.stdout, '\n'.join(line for line in done.stderr.splitlines() if 'CONSOLE' in line)


@pytest.mark.skipif(BROWSER is None, reason='no Chromium here')
@pytest.mark.parametrize('kind', ['labels', 'boxes'])
def test_in_a_browser(pages, kind):
    page = pages[kind].read_text(encoding='utf-8')
    document, console = dumped(pages[kind])
    assert '<title>&lt;i&gt;title&lt;/i&gt;</title>' in document and not console
    # A script that came in all the same does not run.
    intruder = pages[kind].with_name(f'intruder-{kind}.html')
    intruder.write_text(page.replace('</body>', '<script>document.title = "ran"</script></body>'))
    document, console = dumped(intruder)
    assert '<title>ran' not in document and 'Content Security Policy' in console
    clicked = pages[kind].with_name(f'clicked-{kind}.html')
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', page)
    clicked.write_text(free.replace('</body>', f'<script>{_CLICKS}</script></body>'))
    document, console = dumped(clicked, '--window-size=500,900')
    assert not console
    seen = json.loads(re.search(r'<title>SEEN(.*?)</title>', document)[1])
    values = [float(value) for value in seen['before']]
    assert [float(v) for v in seen['down']] == sorted(values, reverse=True)
    assert [float(v) for v in seen['up']] == sorted(values) and seen['sort'] == 'descending'
    assert seen['rows'] == ['sky'] and seen['wrong'] == 0 and seen['all'] == 5
    assert seen['themes'] and not seen['wide']
