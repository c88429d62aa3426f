"""Pictures in windows: no seam, no limit of size, objects on a border; TIFF and GeoJSON files."""
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tests.test_predictor import infer, segmentor  # noqa: F401  (fixtures)
from visattn_dense import Predictor
from visattn_dense.errors import UserError
from visattn_dense.inference.detector import Detector
from visattn_dense.inference.preparation import PreparedPicture
from visattn_dense.predict import masks
from visattn_dense.predict.maps import map_file
from visattn_dense.predict.merge import Found, merged
from visattn_dense.predict.sources import Picture
from visattn_dense.predict.stream import Options
from visattn_dense.predict.tiles import (
    blended_bands,
    computed,
    smooth_weights,
    window_spans,
    windows_of,
)

ROOT = Path(__file__).resolve().parents[1]


def smooth_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3),
                                                  np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


# Blending

@pytest.mark.parametrize('length, crop, stride', [(5, 7, 3), (7, 7, 3), (23, 7, 3), (23, 7, 7),
                                                  (19, 10, 8), (101, 32, 5)])
def test_weights_are_a_partition_of_one(length, crop, stride):
    spans = window_spans(length, crop, stride)
    total = np.zeros(length)
    for (start, end), weight in zip(spans, smooth_weights(spans), strict=True):
        assert (weight > 0).all()
        total[start:end] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize('size', [(23, 40), (7, 9), (3, 4), (50, 8)])
@pytest.mark.parametrize('array', [np.asarray, torch.from_numpy])
def test_bands_are_the_weighted_mean_of_the_windows(size, array):
    """Against the equation, computed at once for the whole picture."""
    crop, stride = (7, 9), (5, 4)
    rng = np.random.default_rng(1)
    windows = windows_of(size, crop, stride)
    scores = [rng.normal(size=(3, y2 - y1, x2 - x1)).astype(np.float32)
              for (y1, y2), (x1, x2) in windows]
    rows, columns = (window_spans(*sides) for sides in zip(size, crop, stride, strict=True))
    weights = [np.outer(u, v) for u in smooth_weights(rows) for v in smooth_weights(columns)]
    expected = np.zeros((3, *size))
    for ((y1, y2), (x1, x2)), score, weight in zip(windows, scores, weights, strict=True):
        expected[:, y1:y2, x1:x2] += score * weight
    bands = list(blended_bands(size, crop, stride, iter([array(score) for score in scores]),
                               lambda part: np.asarray(part).copy(), array))
    assert len(bands) == len(rows)
    np.testing.assert_allclose(np.concatenate(bands, axis=1), expected, atol=1e-5)


def test_a_random_network_leaves_no_seam(segmentor):  # noqa: F811
    """The largest jump of a class score across a border of a window stays within the largest jump
    elsewhere; the mean of mmseg's slide jumps more at the borders."""
    model = Predictor(segmentor, native=True, crop=(64, 64), stride=(48, 48)).runtime
    image = smooth_picture(150, 260)
    size, windows = image.shape[:2], windows_of(image.shape[:2], model.crop, model.stride)

    def score(batch):
        with torch.inference_mode():
            return model._scores(batch)

    scores = [part.numpy() for part in computed(windows, lambda window: model.pipeline(
        Picture('x', data=image[slice(*window[0]), slice(*window[1])])), score, 1)]
    smooth = np.concatenate(list(blended_bands(size, model.crop, model.stride, iter(scores),
                                               np.array)), axis=1)
    plain, count = np.zeros_like(smooth), np.zeros(size)
    for ((y1, y2), (x1, x2)), part in zip(windows, scores, strict=True):
        plain[:, y1:y2, x1:x2] += part
        count[y1:y2, x1:x2] += 1
    plain /= count
    assert _seam(smooth, windows) <= 1 < 1.5 < _seam(plain, windows)


def _seam(scores: np.ndarray, windows) -> float:
    """Largest jump across borders of windows, relative to the largest jump elsewhere."""
    ratios = []
    for axis, (which, length) in enumerate(((0, scores.shape[1]), (1, scores.shape[2])), 1):
        jumps = np.abs(np.diff(scores, axis=axis)).max((0, 3 - axis))
        edges = {edge for window in windows for edge in window[which]} - {0, length}
        # jumps[k] is the step from pixel k to k + 1; a border lies before pixel `edge`.
        at = np.array(sorted(edges)) - 1
        elsewhere = np.delete(jumps, at)
        ratios.append(jumps[at].max() / elsewhere.max())
    return max(ratios)


def test_one_window_is_the_whole_picture(segmentor):  # noqa: F811
    path = segmentor / 'data/images/0.png'
    (whole,), (tiles,) = (Predictor(segmentor, mode=mode)(path) for mode in ('whole', 'tiles'))
    np.testing.assert_array_equal(whole.labels, tiles.labels)


def test_conf_and_classes_count_in_tiles(segmentor):  # noqa: F811
    predict = Predictor(segmentor, native=True, crop=(32, 32))
    image = smooth_picture(70, 90)
    (all_,), (two,), (sure,) = predict(image), predict(image, classes=['a', 'c']), predict(
        image, conf=0.5, batch_size=4)
    np.testing.assert_array_equal(two.labels, np.where(all_.labels == 1, 255, all_.labels))
    assert 0 < (sure.labels == 255).mean() < 1 and all_.model_size == (32, 32)
    with pytest.raises(UserError, match='scores'):
        list(predict(image, scores=True))


@pytest.mark.parametrize('options, message', [
    (dict(native=True, tta=True), 'exclude'), (dict(mode='tile'), "got 'tile'"),
    (dict(mode='tiles', crop=(8, 8), stride=(9, 9)), 'gaps'),
])
def test_wrong_options_are_one_message(segmentor, options, message):  # noqa: F811
    with pytest.raises(UserError, match=message):
        Predictor(segmentor, **options)


# Objects

@dataclass
class Pixels:
    scores: torch.Tensor
    labels: torch.Tensor
    bboxes: torch.Tensor
    masks: torch.Tensor


class Blobs(Detector):
    """Finds each connected area of one colour: of red pixels class 0, of green ones class 1.

    What a window shows of an object is found as an object, as real detectors do.
    """

    def run(self, batch):
        return [self.find(window) for window in batch]

    def find(self, window: np.ndarray) -> Pixels:
        found = []
        for channel in (0, 1):
            numbers, count = ndimage.label(window[..., channel] > 127)
            found += [(channel, numbers == i) for i in range(1, count + 1)]
        boxes = [(x.min(), y.min(), x.max() + 1, y.max() + 1)
                 for y, x in (np.nonzero(mask) for _, mask in found)]
        shape = (len(found), *window.shape[:2])
        return Pixels(torch.linspace(0.9, 0.5, len(found)),
                      torch.tensor([label for label, _ in found], dtype=torch.long),
                      torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
                      torch.from_numpy(np.array([mask for _, mask in found]).reshape(shape)))


class Plain:
    """A preparation that leaves windows as they are."""

    def __call__(self, picture):
        return picture.data

    def loaded(self, picture):
        return PreparedPicture(picture, picture.data, [], [])


def scene(height: int = 200, width: int = 300, slanting: bool = True) -> np.ndarray:
    """Objects inside windows of 64 at steps of 48, on their borders, in corners, and longer."""
    image = np.zeros((height, width, 3), np.uint8)
    for number, (y1, y2, x1, x2) in enumerate([
            (5, 20, 5, 25), (30, 44, 52, 60), (58, 70, 40, 70), (90, 110, 20, 290),
            (120, 199, 100, 130), (130, 150, 140, 170), (130, 150, 172, 200), (0, 60, 230, 236),
            (180, 200, 280, 300)]):
        image[y1:y2, x1:x2, number % 2] = 255
    # A ring around another object, and a diagonal.
    image[120:170, 220:270, 0] = 255
    image[126:164, 226:264] = 0
    image[140:150, 240:250, 1] = 255
    for step in range(60 if slanting else 0):
        image[40 + step, 120 + step:128 + step, 0] = 255
    return image


@pytest.mark.parametrize('has_masks', [True, False])
@pytest.mark.parametrize('stride', [48, 40, 60])
def test_objects_on_borders_are_found_once_and_whole(stride, has_masks):
    model = Blobs(torch.nn.Linear(1, 1), Plain(), ['red', 'green'], [(255, 0, 0), (0, 255, 0)],
                  has_masks, mode='tiles', crop=(64, 64), stride=(stride, stride))
    # Boxes alone do not tell where in the overlap a slanting object lies.
    image = scene(slanting=has_masks)
    truth = replace(model, mode='whole').find(image)
    fields = model.objects(image.shape[:2], lambda window: image[
        slice(*window[0]), slice(*window[1])], Options())

    def rows(boxes, labels):
        return sorted((*map(int, box), int(label))
                      for box, label in zip(boxes, labels, strict=True))

    assert rows(fields['boxes'], fields['labels']) == rows(truth.bboxes, truth.labels)
    if has_masks:
        ours = sorted(masks.encode(masks.decode(rle))['counts'] for rle in fields['rles'])
        assert ours == sorted(masks.encode(mask.numpy())['counts'] for mask in truth.masks)
        (result,) = [model.finish(model.prepare(Picture('x', data=image)), None, Options())]
        assert len(result) == len(truth.labels) == len(result.polygons())
        assert result.masks.sum() == truth.masks.sum()
    (few,) = [model.objects(image.shape[:2], lambda window: image[
        slice(*window[0]), slice(*window[1])], Options(max_det=3, classes=(1,)))]
    assert len(few['boxes']) == 3 and set(few['labels']) == {1}


def test_what_is_left_of_a_cut_object_is_dropped():
    """The second window saw a bit of the first window's object, in a place of its own."""
    left = Found(((0, 64), (0, 64)), np.array([[20., 10, 60, 50]]), np.array([0.9]), np.array([0]))
    for box, count in (([48., 12, 54, 20], 1), ([52., 12, 60, 20], 2)):
        right = Found(((0, 64), (48, 112)), np.array([box]), np.array([0.4]), np.array([0]))
        assert len(merged([left, right], (64, 112)).boxes) == count
    nothing = merged([Found(((0, 64), (0, 64)), np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))],
                     (64, 64))
    assert nothing.boxes.shape == (0, 4) and nothing.masks is None


def test_parts_of_masks_are_decoded():
    mask = np.zeros((40, 50), bool)
    mask[7:20, 11:30] = np.random.default_rng(1).random((13, 19)) < 0.6
    for one in (mask, ~mask, np.zeros_like(mask), np.ones_like(mask)):
        part, (y, x) = masks.decode_part(masks.encode(one))
        whole = np.zeros_like(one)
        whole[y:y + part.shape[0], x:x + part.shape[1]] = part
        np.testing.assert_array_equal(whole, one)


# Files

GEO = [(33550, 'd', 3, (0.5, 0.5, 0.), True),
       (33922, 'd', 6, (0., 0., 0., 500000., 5300000., 0.), True),
       # Projected, pixels are areas, UTM zone 32 north.
       (34735, 'H', 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632), True)]


def write_tiff(path: Path, image: np.ndarray, **options) -> Path:
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(path, image, **dict(photometric='rgb', tile=(64, 48)) | options)
    return path


@pytest.mark.parametrize('options', [
    dict(), dict(tile=None, rowsperstrip=7), dict(compression='zlib', predictor=True),
    dict(planarconfig='separate'), dict(bigtiff=True, extratags=GEO)])
def test_windows_of_a_tiff_are_its_pixels(tmp_path, options):
    from visattn_dense.predict.rasters import Raster
    image = smooth_picture(150, 211)
    stored = np.moveaxis(image, 2, 0) if 'planarconfig' in options else image
    with Raster(write_tiff(tmp_path / 'x.tif', stored, **options)) as raster:
        assert raster.size == (150, 211)
        for window in [*windows_of((150, 211), (70, 80), (50, 60)), ((149, 150), (210, 211))]:
            np.testing.assert_array_equal(raster.read(window),
                                          image[slice(*window[0]), slice(*window[1])])


def test_tiles_that_a_file_leaves_out_hold_no_data(tmp_path):
    rasterio = pytest.importorskip('rasterio')
    from visattn_dense.predict.rasters import Raster
    image = smooth_picture(60, 100)
    image[:, 48:96] = 7
    for nodata in (None, 7):
        profile = dict(driver='GTiff', height=60, width=100, count=3, dtype='uint8', tiled=True,
                       blockxsize=48, blockysize=64, nodata=nodata, sparse_ok=True)
        with rasterio.open(tmp_path / 'sparse.tif', 'w', **profile) as file:
            for left in (0, 96):
                part = image[:, left:left + 48]
                file.write(part.transpose(2, 0, 1), window=((0, 60), (left, left + part.shape[1])))
        with Raster(tmp_path / 'sparse.tif') as raster:
            found = raster.read(((0, 60), (0, 100)))
        assert (found[:, 48:96] == (nodata or 0)).all()
        np.testing.assert_array_equal(np.delete(found, np.s_[48:96], 1),
                                      np.delete(image, np.s_[48:96], 1))


def twelve_bits(path: Path) -> Path:
    """A file whose head says 12 bits a band, in the place of 16."""
    tifffile = pytest.importorskip('tifffile')
    write_tiff(path, np.zeros((60, 70), np.uint16), photometric='minisblack')
    with tifffile.TiffFile(path, mode='r+b') as file:
        file.pages[0].tags['BitsPerSample'].overwrite(12)
    return path


def test_grey_deep_and_alpha_are_read_as_a_loader_does(tmp_path, monkeypatch):
    from visattn_dense.predict.rasters import Raster
    image = smooth_picture(60, 70)
    for number, (stored, options, expected) in enumerate([
            (image[..., 0], dict(photometric='minisblack'), np.repeat(image[..., :1], 3, 2)),
            (255 - image[..., 0], dict(photometric='miniswhite'), np.repeat(image[..., :1], 3, 2)),
            (65535 - image[..., 0].astype(np.uint16) * 256, dict(photometric='miniswhite'),
             np.repeat(image[..., :1], 3, 2)),
            (image.astype(np.uint16) * 256 + 9, {}, image),
            (np.dstack([image, image[..., 0]]), dict(extrasamples=['unassalpha']), image)]):
        with Raster(write_tiff(tmp_path / f'{number}.tif', stored, **options)) as raster:
            np.testing.assert_array_equal(raster.read(((0, 60), (0, 70))), expected)
    for kind in ('CMYK', 'YCbCr', 'P'):
        Image.fromarray(image).convert(kind).save(tmp_path / f'{kind}.tif')
        with pytest.raises(UserError, match=f'its colours are {kind.replace("P", "a palette")}'):
            Raster(tmp_path / f'{kind}.tif')
    with pytest.raises(UserError, match='12 bits a band'):
        Raster(twelve_bits(tmp_path / 'twelve.tif'))
    monkeypatch.setattr('visattn_dense.predict.rasters._LARGEST_SEGMENT', 60 * 70 - 1)
    with pytest.raises(UserError, match='strips of 60x70 pixels are too large'):
        Raster(write_tiff(tmp_path / 'strip.tif', image, tile=None, rowsperstrip=60))
    for stored, options in ((image.astype(np.float32), {}), (image, dict(
            extratags=[(274, 'H', 1, 6, True)]))):
        with pytest.raises(UserError, match='window by window'):
            Raster(write_tiff(tmp_path / 'no.tif', stored, **options))
    (tmp_path / 'text.tif').write_text('no image')
    with pytest.raises(UserError, match='no TIFF file'):
        Raster(tmp_path / 'text.tif')
    cut = write_tiff(tmp_path / 'cut.tif', np.random.default_rng(0).integers(
        0, 256, (60, 70, 3), np.uint8), compression='zlib')
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(UserError, match=r'cut.tif'), Raster(cut) as raster:
        raster.read(((0, 60), (0, 70)))


def test_a_map_is_labelled_as_a_picture_in_memory(segmentor, tmp_path, infer):  # noqa: F811
    tifffile = pytest.importorskip('tifffile')
    image = smooth_picture(530, 1100)
    path = write_tiff(tmp_path / 'map.tif', image, extratags=GEO)
    infer(segmentor, path, '--native', '--crop', '256', '256', '--batch-size', '2', '--out-dir',
          tmp_path / 'out', '--device', 'cpu')
    (expected,) = Predictor(segmentor, native=True, crop=(256, 256), device='cpu')(image)
    with tifffile.TiffFile(tmp_path / 'out/map_label.tif') as file:
        page = file.pages[0]
        assert page.is_tiled and page.photometric == 3
        labels = page.asarray()
        assert [page.tags[code].value for code, *_ in GEO] == [value for *_, value, _ in GEO]
    assert (labels != expected.labels).mean() < 1e-4 and len(np.unique(labels)) == 3
    # Pillow and OpenMMLab read class indices too.
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'out/map_label.tif')), labels)
    assert Image.open(tmp_path / 'out/map_overlay.png').size[0] == 1100


def test_a_map_and_a_picture_of_one_name_keep_their_results(segmentor, tmp_path,  # noqa: F811
                                                            infer):  # noqa: F811
    (tmp_path / 'in').mkdir()
    Image.fromarray(smooth_picture(60, 70)).save(tmp_path / 'in/x.bmp')
    write_tiff(tmp_path / 'in/x.tif', smooth_picture(64, 80))
    infer(segmentor, tmp_path / 'in', '--native', '--no-legend', '--out-dir', tmp_path / 'out',
          '--device', 'cpu')
    assert {path.name: Image.open(path).size for path in (tmp_path / 'out').glob('x*_label.*')
            } == {'x_label.png': (70, 60), 'x_tif_label.tif': (80, 64)}
    assert {path.name for path in (tmp_path / 'out').glob('x*_overlay.png')
            } == {'x_overlay.png', 'x_tif_overlay.png'}


@pytest.mark.parametrize('options', [['--save-json', 'all.json'], ['--video', 'all.mp4']])
def test_options_that_leave_out_a_map_are_refused(segmentor, tmp_path, infer,  # noqa: F811
                                                  monkeypatch, options):
    pytest.importorskip('av')
    monkeypatch.chdir(tmp_path)
    Image.fromarray(smooth_picture(60, 70)).save('x.png')
    write_tiff(Path('map.tif'), smooth_picture(64, 80))
    said = infer.refused(segmentor, 'x.png', 'map.tif', '--native', *options)
    assert f'{options[0]} takes pictures that fit into memory, and map.tif' in said
    assert {path.name for path in tmp_path.iterdir()} == {'x.png', 'map.tif'}


def test_a_map_is_shown_as_pictures_are(segmentor, tmp_path, infer):  # noqa: F811
    image = smooth_picture(200, 300)
    write_tiff(tmp_path / 'map.tif', image)
    Image.fromarray(image).save(tmp_path / 'photo.png')
    infer(segmentor, tmp_path / 'map.tif', tmp_path / 'photo.png', '--native', '--no-legend',
          '--opacity', '0.2', '--out-dir', tmp_path / 'out', '--device', 'cpu')
    shown, expected = (np.array(Image.open(tmp_path / f'out/{name}_overlay.png'))
                       for name in ('map', 'photo'))
    assert shown.shape == image.shape
    assert (shown != expected).mean() < 1e-3


@pytest.mark.parametrize('options', [['--batch-size', '0'], ['--conf', '7']])
def test_wrong_options_are_said_before_a_map_is_computed(segmentor, tmp_path, infer,  # noqa: F811
                                                         options):
    write_tiff(tmp_path / 'map.tif', smooth_picture(64, 80))
    said = infer.refused(segmentor, tmp_path / 'map.tif', '--native', '--out-dir',
                         tmp_path / 'out', *options)
    assert f'got {options[1]}' in said and not list((tmp_path / 'out').iterdir())
    with pytest.raises(UserError, match='batch_size is at least 1, got 0'):
        Predictor(segmentor, native=True, device='cpu').map(
            tmp_path / 'map.tif', tmp_path / 'out', batch_size=0)


def test_a_map_without_its_codec_is_refused_before_another_is_computed(
        segmentor, tmp_path, infer):  # noqa: F811
    tifffile = pytest.importorskip('tifffile')
    for name in ('a.tif', 'b.tif'):
        write_tiff(tmp_path / name, smooth_picture(64, 80))
    with tifffile.TiffFile(tmp_path / 'b.tif', mode='r+b') as file:
        # A number that no codec has.
        file.pages[0].tags['Compression'].overwrite(65000)
    said = infer.refused(segmentor, tmp_path / 'a.tif', tmp_path / 'b.tif', '--native',
                         '--out-dir', tmp_path / 'out')
    assert 'b.tif: the tile at row 0, column 0 cannot be decoded' in said
    assert not (tmp_path / 'out').exists()


def test_polygons_lie_where_the_map_lies(segmentor, tmp_path):  # noqa: F811
    rasterio = pytest.importorskip('rasterio')
    from rasterio.features import rasterize
    from rasterio.warp import transform_geom
    path = write_tiff(tmp_path / 'map.tif', smooth_picture(150, 200), extratags=GEO)
    Predictor(segmentor, native=True, crop=(64, 64)).map(path, tmp_path / 'out', geojson=True)
    data = json.loads((tmp_path / 'out/map.geojson').read_text())
    with rasterio.open(tmp_path / 'out/map_label.tif') as file:
        labels, transform = file.read(1), file.transform
        assert file.crs.to_epsg() == 32632 and transform == rasterio.open(path).transform
    x, y = np.array(data['features'][0]['geometry']['coordinates'][0][0])
    assert 8 < x < 10 and 47 < y < 48.5, 'degrees, by the meridian of the zone'
    shapes = [(transform_geom('EPSG:4326', 'EPSG:32632', feature['geometry']),
               feature['properties']['class'] + 1) for feature in data['features']]
    drawn = rasterize(shapes, labels.shape, transform=transform)
    assert (drawn.astype(int) - 1 == labels).mean() > 0.999


def test_objects_of_a_map(tmp_path):
    model = Blobs(torch.nn.Linear(1, 1), Plain(), ['red', 'green'], [(255, 0, 0), (0, 255, 0)],
                  True, mode='tiles', crop=(64, 64), stride=(48, 48))
    image = scene()
    path = write_tiff(tmp_path / 'map.tif', image)
    rows = []
    map_file(model, path, tmp_path / 'out', Options(), progress=rows.append)
    assert sum(rows) == 200 and len(rows) == 4
    entry = json.loads((tmp_path / 'out/map.json').read_text())
    assert entry['size'] == [200, 300] and len(entry['objects']) == len(model.find(image).labels)
    assert Image.open(tmp_path / 'out/map_overlay.png').size[0] == 300


def test_memory_does_not_grow_with_the_height(tmp_path):
    """A map twice as high needs no more memory; a copy of its pixels would take 38 MB more."""
    tifffile = pytest.importorskip('tifffile')
    code = f"""
import sys
sys.path[:0] = {[str(ROOT), *sys.path]!r}
import numpy as np
from visattn_dense.predict import maps, rasters
from visattn_dense.predict.stream import Options
from visattn_dense.predict.tiles import blended_bands, computed, windows_of

class Red:
    classes, palette = ['low', 'high'], [(0, 0, 0), (255, 0, 0)]
    def bands(self, size, read, options):
        windows = windows_of(size, (512, 512), (448, 448))
        scores = computed(windows, read, lambda batch: [
            np.stack([255 - pixels[..., 0], pixels[..., 0]]).astype(np.float32)
            for pixels in batch], 1)
        return blended_bands(size, (512, 512), (448, 448), scores, lambda s: s.argmax(0))

# Two rows of windows; the usual limit would hold all tiles of both maps.
rasters._CACHE = 2**23
maps.map_file(Red(), sys.argv[1], {str(tmp_path)!r}, Options())
# Unlike ru_maxrss, this peak begins with the program, and not with its parent.
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""
    tile = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    peaks = []
    for height in (6144, 12288):
        path = tmp_path / f'{height}.tif'
        tifffile.imwrite(path, (tile for _ in range(height // 256 * 8)), dtype=np.uint8,
                         shape=(height, 2048, 3), photometric='rgb', tile=(256, 256))
        done = subprocess.run([sys.executable, '-c', code, path], text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
        labels = tifffile.imread(tmp_path / f'{height}_label.tif')
        np.testing.assert_array_equal(labels[-256:, -256:], tile[..., 0] > 127)
    assert peaks[1] - peaks[0] < 10_000, peaks
