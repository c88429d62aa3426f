"""tools/eval_miou.py and what is behind it: the numbers, the conventions, and clear refusals."""
import csv
import json
import os
import tracemalloc
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_runs import run_tool
from visattn_dense.errors import UserError
from visattn_dense.evaluation import segmentation
from visattn_dense.evaluation.boundary import boundary_distance, boundary_region
from visattn_dense.evaluation.dataset_files import read_classes
from visattn_dense.evaluation.pairs import match_files, read_index_map
from visattn_dense.evaluation.segmentation import Scores, Settings, count_image, count_pairs
from visattn_dense.openmmlab.datasets.class_names import dataset_classes

run = partial(run_tool, 'eval_miou.py')


def refused(*args: object) -> str:
    """The one message of a call that has to fail."""
    result = run(*args)
    assert result.returncode == 2, result.stderr
    assert 'Traceback' not in result.stderr
    assert not result.stdout
    return result.stderr


def blobs(rng: np.random.Generator, size: tuple[int, int], values: list[int]) -> np.ndarray:
    """A label map of connected regions with ragged edges."""
    coarse = rng.choice(values, (5, 7)).astype(np.uint8)
    picture = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)
    noise = rng.random(size) < 0.05
    picture[noise] = rng.choice(values, noise.sum())
    return picture


def save(folder: Path, **pictures: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f'{name}.png')
    return folder


def folders(root: Path, pred: dict[str, np.ndarray], label: dict[str, np.ndarray]) -> list[Path]:
    return [save(root / 'pred', **pred), save(root / 'label', **label)]


def score(root: Path, num_classes: int, **settings) -> Scores:
    pairs = match_files(root / 'pred', root / 'label')
    return Scores(count_pairs(pairs, Settings(num_classes, **settings)))


def test_case_by_hand(tmp_path: Path) -> None:
    label = np.array([[0, 0, 0, 1], [1, 1, 255, 255]], np.uint8)
    pred = np.array([[0, 0, 1, 1], [1, 255, 2, 0]], np.uint8)
    folders(tmp_path, {'a': pred}, {'a': label})
    scores = score(tmp_path, 4)
    # Class 2 is predicted on an ignored pixel only, class 3 nowhere.
    assert scores.counts.confusion.tolist() == [
        [2, 1, 0, 0, 0], [0, 2, 0, 0, 1], [0] * 5, [0] * 5]
    np.testing.assert_allclose(scores.iou, [100 * 2 / 3, 50, np.nan, np.nan])
    np.testing.assert_allclose(scores.acc, [100 * 2 / 3, 100 * 2 / 3, np.nan, np.nan])
    assert scores.aacc == pytest.approx(100 * 4 / 6)
    assert scores.miou == pytest.approx((100 * 2 / 3 + 50) / 2)


@pytest.mark.parametrize('reduce', [False, True])
def test_equal_to_mmseg_on_the_files_that_mmseg_writes(tmp_path: Path, reduce: bool) -> None:
    from mmseg.evaluation import IoUMetric
    n, rng = 7, np.random.default_rng(3)
    metric = IoUMetric(output_dir=str(tmp_path / 'pred'))
    metric.dataset_meta = dict(classes=[f'c{i}' for i in range(n)])
    for i, size in enumerate([(37, 53), (64, 31), (50, 50)]):
        # Class 5 is never labelled, class 6 neither labelled nor predicted.
        raw = blobs(rng, size, [0, 1, 2, 3, 4, 5, 255] if reduce else [0, 1, 2, 3, 4, 255])
        save(tmp_path / 'label', **{f'im{i}': raw})
        label = raw.astype(np.int64)
        if reduce:
            label = np.where((label == 0) | (label == 255), 255, label - 1)
        pred = np.where(rng.random(size) < 0.7, label, rng.integers(0, 6, size))
        pred[pred == 255] = 0
        metric.process({}, [dict(
            pred_sem_seg=dict(data=torch.from_numpy(pred)[None]),
            gt_sem_seg=dict(data=torch.from_numpy(label)[None]),
            img_path=f'x/im{i}.jpg', reduce_zero_label=reduce)])
    expected = metric.compute_metrics(metric.results)
    areas = [sum(parts) for parts in zip(*metric.results, strict=True)]
    per_class = IoUMetric.total_area_to_metrics(*areas, metrics=['mIoU', 'mDice', 'mFscore'])

    scores = score(tmp_path, n, reduce_zero_label=reduce)
    got = dict(aAcc=scores.aacc, mIoU=scores.miou, mAcc=scores.macc)
    assert {key: round(value, 2) for key, value in got.items()} == pytest.approx(expected)
    np.testing.assert_allclose(scores.iou, 100 * per_class['IoU'], rtol=1e-5)
    for ours, theirs in ((scores.acc, 'Acc'), (scores.acc, 'Recall'), (scores.dice, 'Dice'),
                         (scores.dice, 'Fscore'), (scores.precision, 'Precision')):
        # Their F-score is NaN where precision and recall are 0.
        known = ~np.isnan(per_class[theirs])
        np.testing.assert_allclose(ours[known], 100 * per_class[theirs][known], rtol=1e-5)
    assert np.isnan(scores.iou[6]) and scores.iou[5] == 0


def eroded(mask: np.ndarray, distance: int) -> np.ndarray:
    """The authors' definition: a 3x3 square, eroded d times, zeros around the image."""
    padded = np.pad(mask.astype(np.uint8), distance + 1)
    inside = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    return inside[distance + 1:-distance - 1, distance + 1:-distance - 1] > 0


@pytest.mark.parametrize(('size', 'distance'), [((41, 67), 1), ((41, 67), 4), ((3, 90), 5)])
@pytest.mark.parametrize('shift', [0, 240, 1000])
def test_boundary_region_is_mask_minus_erosion(size: tuple[int, int], distance: int,
                                               shift: int) -> None:
    rng = np.random.default_rng(5)
    classes = blobs(rng, size, [0, 1, 2, 14]).astype(np.uint16) + shift
    region = boundary_region(classes, distance)
    for value in np.unique(classes):
        mask = classes == value
        np.testing.assert_array_equal(region & mask, mask & ~eroded(mask, distance))


def test_boundary_iou_equals_the_definition_class_by_class() -> None:
    rng, n = np.random.default_rng(7), 4
    label, pred = (blobs(rng, (83, 59), list(range(n))) for _ in range(2))
    distance = boundary_distance(83, 59, 0.02)
    assert distance == round(0.02 * (83**2 + 59**2) ** 0.5) == 2
    scores = Scores(count_image(pred, label, Settings(n, boundary_ratio=0.02)))
    for value in range(n):
        g, p = label == value, pred == value
        g, p = g & ~eroded(g, distance), p & ~eroded(p, distance)
        assert scores.boundary_iou[value] == pytest.approx(100 * (g & p).sum() / (g | p).sum())
    assert scores.boundary_miou == pytest.approx(scores.boundary_iou.mean())


def test_no_contour_along_pixels_that_are_not_judged() -> None:
    label = np.zeros((40, 40), np.uint8)
    label[:, 20:] = 255
    region = boundary_region(label, 3, label == 255)
    # The image's edge is a contour, the edge of the unknown half is not.
    assert region[:3, :20].all() and region[:, :3].all()
    assert not region[3:-3, 3:].any()
    # Whatever is predicted there changes nothing.
    pred = label.copy()
    pred[:, 20:] = np.random.default_rng(0).integers(0, 2, (40, 20))
    assert Scores(count_image(pred, label, Settings(2, boundary_ratio=0.05))).boundary_iou[0] == 100


def test_tool_prints_and_writes_everything(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    label = {f'f{i}': blobs(rng, (30 + i, 44), [0, 1, 2, 255]) for i in range(20)}
    pred = {name: np.where(picture == 255, 0, picture) for name, picture in label.items()}
    pred['f3'] = np.full_like(pred['f3'], 1)
    names = tmp_path / 'names.txt'
    # matplotlib takes what stands between dollar signs for a formula.
    names.write_text('sky\nroad, wet\n$\\car$\nboat\n')
    out = tmp_path / 'out'
    result = run(*folders(tmp_path, pred, label), '--classes', names, '--boundary', '--csv',
                 out / 'a.csv', '--json', out / 'a.json', '--plot', out / 'a.png')
    assert result.returncode == 0, result.stderr
    assert '20/20' in result.stderr
    expected = score(tmp_path, 4, boundary_ratio=0.02)
    assert (f'20 images: aAcc {expected.aacc:.2f}  mIoU {expected.miou:.2f}  '
            f'mAcc {expected.macc:.2f}  mBoundaryIoU {expected.boundary_miou:.2f}'
            ) in result.stdout

    rows = list(csv.DictReader((out / 'a.csv').read_text().splitlines()))
    assert [row['class'] for row in rows] == ['sky', 'road, wet', r'$\car$', 'boat']
    assert float(rows[1]['IoU']) == expected.iou[1]
    assert rows[3]['IoU'] == rows[3]['BoundaryIoU'] == ''
    report = json.loads((out / 'a.json').read_text())
    assert report['metrics']['mIoU'] == expected.miou
    assert report['classes'][3]['IoU'] is None
    assert report['confusion_matrix']['pixels'] == expected.counts.confusion.tolist()
    assert report['settings']['num_classes'] == 4 and report['images'] == 20
    picture = np.asarray(Image.open(out / 'a.png').convert('RGB'))
    # Bars, cells and a white page.
    assert min(picture.shape[:2]) > 400 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert sorted(path.name for path in out.iterdir()) == ['a.csv', 'a.json', 'a.png']


def test_everything_that_does_not_fit_is_in_one_message(tmp_path: Path) -> None:
    plain = np.zeros((6, 8), np.uint8)
    pred = {name: plain for name in ('a', 'b', 'small', 'colour', 'extra')}
    pred['small'], pred['colour'] = plain[:3], np.zeros((6, 8, 3), np.uint8)
    label = {name: plain for name in ('a', 'b', 'small', 'colour', 'lone', 'lost')}
    paths = folders(tmp_path, pred, label)
    (tmp_path / 'pred' / 'b.png').write_bytes(b'nothing')
    out = tmp_path / 'out.csv'
    message = refused(*paths, '--num-classes', 2, '--csv', out)
    assert '2 of 6 labels have no prediction' in message and 'lone.png, lost.png' in message
    assert '1 of 5 predictions have no label' in message and 'extra.png' in message
    assert 'small.png is 8x3' in message and 'is 8x6 pixels' in message
    assert 'colour.png is a colour picture (RGB)' in message
    assert 'b.png cannot be read' in message
    assert not out.exists()


@pytest.mark.parametrize('workers', [1, 2])
def test_damaged_file_is_named(tmp_path: Path, workers: int) -> None:
    picture = np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.uint8)
    pred = {f'f{i}': picture for i in range(20)}
    paths = folders(tmp_path, pred, pred)
    damaged = tmp_path / 'pred' / 'f7.png'
    damaged.write_bytes(damaged.read_bytes()[:120])
    assert 'pred/f7.png cannot be read' in refused(*paths, '--num-classes', 2, '--workers', workers)


def test_values_that_are_no_class(tmp_path: Path) -> None:
    ok, counted_from_one = np.array([[0, 1, 2, 255]], np.uint8), np.array([[0, 1, 2, 3]], np.uint8)
    paths = folders(tmp_path, {'a': ok}, {'a': counted_from_one})
    message = refused(*paths, '--num-classes', 3)
    assert 'label/a.png: the label holds 3, but the 3 classes are 0..2' in message
    assert '--reduce-zero-label' in message
    with pytest.raises(UserError, match='the prediction holds 9, 12, but the 3 classes'):
        count_image(np.array([[9, 12]], np.uint8), ok[:, :2], Settings(3))
    with pytest.raises(UserError, match='not one pixel of the labels is judged'):
        Scores(count_image(ok, np.full_like(ok, 255), Settings(3)))
    with pytest.raises(UserError, match='0 classes'):
        Settings(0)


def test_predictions_that_count_from_zero(tmp_path: Path) -> None:
    label = np.array([[0, 1, 2, 3, 3, 255]], np.uint8)
    from_zero = np.array([[2, 0, 1, 2, 2, 0]], np.uint8)
    paths = folders(tmp_path, {'a': from_zero}, {'a': label})
    result = run(*paths, '--num-classes', 3, '--reduce-zero-label', '--pred-zero-based')
    assert 'mIoU 100.00' in result.stdout and 'note' not in result.stderr
    result = run(*paths, '--num-classes', 3, '--reduce-zero-label')
    assert 'mIoU 0.00' in result.stdout and 'give --pred-zero-based' in result.stderr


def test_ignored_class_inside_the_range_is_still_a_prediction() -> None:
    # IoUMetric counts predictions of the ignored class on judged pixels as that class.
    label, pred = np.array([[0, 1, 1, 2]], np.uint8), np.array([[1, 0, 1, 2]], np.uint8)
    counts = count_image(pred, label, Settings(3, ignore_index=0))
    assert counts.confusion.tolist() == [[0] * 4, [1, 1, 0, 0], [0, 0, 1, 0]]


def test_palette_and_sixteen_bit_files(tmp_path: Path) -> None:
    values = np.array([[0, 1, 300]], np.uint16)
    Image.fromarray(values).save(tmp_path / 'deep.png')
    assert read_index_map(str(tmp_path / 'deep.png')).tolist() == [[0, 1, 300]]
    palette = Image.fromarray(np.array([[0, 2, 1]], np.uint8), mode='L').convert('P')
    palette.putpalette([9, 9, 9, 80, 70, 60, 200, 0, 0])
    palette.putdata([0, 2, 1])
    palette.save(tmp_path / 'palette.png')
    assert read_index_map(str(tmp_path / 'palette.png')).tolist() == [[0, 2, 1]]
    Image.fromarray(np.array([[True, False]])).save(tmp_path / 'bit.png')
    assert read_index_map(str(tmp_path / 'bit.png')).tolist() == [[1, 0]]
    scores = Scores(count_image(values, values, Settings(301, boundary_ratio=0.02)))
    assert scores.miou == scores.boundary_miou == 100


def test_names_of_cityscapes_in_folders_by_city(tmp_path: Path) -> None:
    picture = np.array([[0, 5, 18, 255]], np.uint8)
    save(tmp_path / 'gt' / 'ulm', ulm_1_gtFine_labelTrainIds=picture, ulm_1_gtFine_color=picture)
    save(tmp_path / 'pred', ulm_1_leftImg8bit=picture)
    result = run(tmp_path / 'pred', tmp_path / 'gt', '--dataset', 'cityscapes')
    assert 'mIoU 100.00' in result.stdout, result.stderr
    assert 'road' in result.stdout and 'bicycle' in result.stdout


def test_names_of_known_datasets() -> None:
    assert len(dataset_classes('ade20k')) == 150 and dataset_classes('ade20k')[0] == 'wall'
    assert dataset_classes('camvid')[-1] == 'bicyclist'
    with pytest.raises(UserError, match="Did you mean 'ade20k'"):
        dataset_classes('ade20')


def test_bad_class_files(tmp_path: Path) -> None:
    names = tmp_path / 'names.txt'
    for content, problem in (('a\nb\na\n', 'names a more than once'), (' \n', 'is empty')):
        names.write_text(content)
        with pytest.raises(UserError, match=problem):
            read_classes(names)
    with pytest.raises(UserError, match='cannot be read'):
        read_classes(tmp_path / 'none.txt')
    # As editors on Windows write it.
    names.write_text('sky\nroad\n', encoding='utf-8-sig')
    assert read_classes(names) == ('sky', 'road')


def test_outputs_never_overwrite_what_is_evaluated(tmp_path: Path) -> None:
    picture = {'a': np.zeros((4, 4), np.uint8)}
    paths = folders(tmp_path, picture, picture)
    before = (tmp_path / 'pred' / 'a.png').read_bytes()
    assert 'written over or among' in refused(*paths, '--num-classes', 1, '--plot',
                                              tmp_path / 'pred' / 'a.png')
    assert (tmp_path / 'pred' / 'a.png').read_bytes() == before
    assert 'two results would be written to' in refused(
        *paths, '--num-classes', 1, '--csv', tmp_path / 'a', '--json', tmp_path / 'a')
    assert 'has to end in one of .png' in refused(*paths, '--num-classes', 1, '--plot',
                                                  tmp_path / 'plot.txt')


def test_same_name_twice_and_empty_folders(tmp_path: Path) -> None:
    picture = np.zeros((4, 4), np.uint8)
    save(tmp_path / 'label' / 'x', a=picture)
    (tmp_path / 'pred').mkdir()
    with pytest.raises(UserError, match='holds no predictions'):
        match_files(tmp_path / 'pred', tmp_path / 'label')
    save(tmp_path / 'label' / 'y', a=picture)
    with pytest.raises(UserError, match='have the same name'):
        match_files(tmp_path / 'label', tmp_path / 'label')
    with pytest.raises(UserError, match='there is no folder of labels'):
        match_files(tmp_path / 'label' / 'x', tmp_path / 'none')


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 150, (200, 200)).astype(np.uint8)
    folders(tmp_path, {'a': picture}, {'a': picture})
    pair, = match_files(tmp_path / 'pred', tmp_path / 'label')
    settings = Settings(150)
    peaks = []
    for number in (8, 8, 160):
        pairs = [pair] * number
        tracemalloc.start()
        count_pairs(pairs, settings)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The first call also fills caches. 152 more pictures of 40 kB would be 6 MB.
    assert peaks[2] < peaks[1] + 500_000


def test_real_camvid_labels_score_100_as_predictions(shared: Path) -> None:
    labels = shared / 'data' / 'camvid' / 'annotations' / 'val'
    if not labels.is_dir():
        pytest.skip('needs the CamVid data')
    pairs = match_files(labels, labels)
    scores = Scores(count_pairs(pairs, Settings(11, boundary_ratio=0.02)))
    assert scores.counts.images == 26
    assert scores.miou == scores.boundary_miou == scores.aacc == 100


def test_real_ade20k_labels(shared: Path) -> None:
    labels = shared / 'data' / 'ade20k_sample' / 'annotations' / 'validation'
    if not labels.is_dir():
        pytest.skip('needs the ADE20K sample')
    scores = Scores(count_pairs(match_files(labels, labels),
                                Settings(150, reduce_zero_label=True)))
    assert scores.miou == 100
    assert 0 < scores.counts.pred_zeros < scores.counts.confusion.sum()


@pytest.mark.parametrize('rows', [1, 7, 40])
def test_strips_count_what_the_whole_image_does(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    pred, label = (blobs(rng, (61, 83), [0, 1, 2, 255]) for _ in range(2))
    settings = Settings(3, boundary_ratio=0.05)
    whole = count_image(pred, label, settings)
    monkeypatch.setattr(segmentation, '_STRIP', rows * 83)
    parts = count_image(pred, label, settings)
    assert (whole.confusion == parts.confusion).all() and whole.confusion.sum() > 3000
    assert (whole.boundary == parts.boundary).all() and whole.boundary.all()


def test_images_above_the_limit_of_pillow(tmp_path: Path) -> None:
    # 196 million pixels in some kilobytes; Pillow alone refuses 179 million.
    label = np.zeros((14000, 14000), bool)
    label[:7000] = True
    for folder in ('pred', 'label'):
        (tmp_path / folder).mkdir()
        Image.fromarray(label).save(tmp_path / folder / 'a.png')
    result = run(tmp_path / 'pred', tmp_path / 'label', '--num-classes', 2, '--workers', 1)
    assert result.returncode == 0, result.stderr
    assert 'mIoU 100.00' in result.stdout


def test_what_is_no_file_or_never_ends_is_refused(tmp_path: Path) -> None:
    picture = {'a': np.zeros((4, 4), np.uint8)}
    paths = folders(tmp_path, picture, picture)
    (tmp_path / 'label' / 'again').symlink_to(tmp_path / 'label')
    assert 'leads back to' in refused(*paths, '--num-classes', 1)
    (tmp_path / 'label' / 'again').unlink()
    (tmp_path / 'label' / 'a.png').unlink()
    os.mkfifo(tmp_path / 'label' / 'a.png')
    assert 'a.png cannot be read: not a regular file' in refused(*paths, '--num-classes', 1)
