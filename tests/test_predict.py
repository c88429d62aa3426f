"""Sources, threads, results and files of predictions, without a network."""
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import pycocotools.mask as coco
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from visattn_dense.errors import UserError
from visattn_dense.predict import masks
from visattn_dense.predict.records import JsonWriter
from visattn_dense.predict.results import Detection, Segmentation, about
from visattn_dense.predict.sources import open_sources
from visattn_dense.predict.stream import Options, predictions
from visattn_dense.predict.video import VideoWriter
from visattn_dense.visualization.text import font_for, legible

ROOT = Path(__file__).resolve().parents[1]


def noise(height: int = 23, width: int = 31, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# Masks

def random_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 14, (120, 2))
    return [rng.random(size) < share for size, share in zip(sizes, rng.random(120), strict=True)]


def test_run_lengths_are_those_of_pycocotools():
    long = np.zeros((300, 41), bool)
    long[:, 3:40] = True
    for mask in [*random_masks(), long, np.zeros((3, 4), bool), np.ones((3, 4), bool)]:
        ours = masks.encode(mask)
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert ours == dict(size=list(mask.shape), counts=theirs['counts'].decode())
        np.testing.assert_array_equal(masks.decode(ours), mask)
        assert masks.area(ours) == mask.sum()


def test_a_part_of_an_image_is_encoded_at_its_place():
    whole = np.zeros((40, 50), bool)
    whole[7:20, 11:30] = np.random.default_rng(1).random((13, 19)) < 0.6
    assert masks.encode(whole[5:22, 9:33], (5, 9), whole.shape) == masks.encode(whole)


def test_polygons_cover_exactly_the_pixels_of_the_mask():
    """Each pixel's centre lies inside an outer ring and outside its holes, or the other way."""
    for mask in random_masks():
        shapes = masks.polygons(mask)
        assert len(shapes) == ndimage.label(mask)[1]
        covered = np.zeros(mask.shape, int)
        for outer, *holes in shapes:
            covered += _inside(outer, mask.shape)
            for hole in holes:
                covered -= _inside(hole, mask.shape)
        np.testing.assert_array_equal(covered, mask)


def _inside(ring: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """By the even-odd rule, from scan lines through the centres of pixels."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for (x, y1), (_, y2) in zip(ring, np.roll(ring, -1, 0), strict=True):
        crossings[min(y1, y2):max(y1, y2), x] += 1
    return crossings.cumsum(1)[:, :-1] % 2


# Sources

def names_of(source, **options) -> list[str]:
    return [picture.name for picture in open_sources(source, **options)]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ('b.png', 'a.jpg', 'sub/a.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise()).save(tmp_path / name)
    (tmp_path / 'notes.md').write_text('no image')
    (tmp_path / 'list.txt').write_text('# a list\nb.png\n\n  # and one more\nsub/a.png\n')
    return tmp_path


def test_paths_folders_patterns_and_lists(folder):
    assert names_of(folder) == ['a', 'b']
    assert names_of(str(folder / '**/*.png')) == ['b', 'a']
    assert names_of(folder / 'list.txt') == ['b', 'a']
    # Each file once, each result under its own name.
    both = open_sources([folder, folder / 'sub', folder / 'a.jpg'])
    assert (both.total, [p.name for p in both]) == (3, ['a', 'b', 'a_png'])


@pytest.mark.parametrize('source, message', [
    ('missing.jpg', 'no such file'), ('none-*.jpg', 'no image matches'),
    ('sub2', 'holds no images'), ('empty.txt', 'names nothing'),
    ('circle.txt', 'circle.txt leads back to itself'),
    ('half.txt', 'half.txt cannot be read: Invalid IPv6'), (300 * 'x', 'name too long'),
    ('', 'name of a source is empty'), (object(), 'cannot predict on object'),
    ('broken.mp4', 'cannot be opened'), (99, 'cannot be opened'),
    (np.zeros((2, 3, 4, 3), np.uint8), r'got \(2, 3, 4, 3\)'), (np.zeros((4, 4), int), 'int64'),
    (np.full((4, 4), 7.), 'from 0 to 1, got 7'), (np.full((4, 4, 3), np.nan), 'got nan'),
    (torch.zeros(4, 5, 6, 7, 8), r'\(C, H, W\)'),
])
def test_bad_sources_are_one_message(tmp_path, source, message):
    (tmp_path / 'sub2').mkdir()
    (tmp_path / 'empty.txt').write_text('\n')
    (tmp_path / 'circle.txt').write_text('sub2/back.txt\n')
    (tmp_path / 'half.txt').write_text('http://[::1/a.png\n')
    (tmp_path / 'sub2/back.txt').write_text('../circle.txt\n')
    (tmp_path / 'broken.mp4').write_bytes(b'not a video')
    with pytest.raises(UserError, match=message):
        list(open_sources(tmp_path / source if isinstance(source, str) and source else source))


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda path: os.symlink('nowhere', path)])
@pytest.mark.parametrize('source', ['.', '*.png'])
def test_pipes_and_lost_links_are_refused_at_once(folder, make, source):
    make(folder / 'z.png')
    with pytest.raises(UserError, match='z.png is no image'):
        open_sources(folder / source)


def test_hidden_files_are_no_pictures_of_a_folder(folder):
    """A Mac writes "._a.jpg" beside "a.jpg" where the disk is not its own."""
    (folder / '._a.jpg').write_bytes(b'no picture')
    assert names_of(folder) == ['a', 'b']


def test_frames_and_pictures_have_different_names(tmp_path):
    pytest.importorskip('av')
    clip = tmp_path / 'clip.mp4'
    with VideoWriter(clip) as video:
        for _ in range(2):
            video.write(noise(48, 64))
    files = [tmp_path / f'clip{end}' for end in ('_000001.png', '.jpg', '.bmp')]
    for file in files:
        Image.fromarray(noise()).save(file)
    shutil.copy(clip, tmp_path / 'x#1.mp4')
    assert names_of([tmp_path / 'x#1.mp4']) == ['x#1_000000', 'x#1_000001']
    for source in ([clip, *files], [*files[::-1], clip], [clip, clip, clip]):
        names = names_of(source)
        assert len(set(names)) == len(names) >= 5
    nested = [iter([noise(), noise(), clip, clip]), noise(), [noise()], [iter([noise()])],
              (Image.open(file) for file in files[1:])]
    assert len(set(names_of(nested))) == 11


def test_arrays_tensors_images_and_bytes_are_the_same_picture():
    image = noise()
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    chw = torch.from_numpy(image).permute(2, 0, 1)
    sources = [image, Image.fromarray(image), file.getvalue(), io.BytesIO(file.getvalue()), chw,
               chw / 255, np.dstack([image, image[..., :1]]), image.astype(np.uint16) * 256 + 5,
               torch.stack([chw, chw])]
    pictures = list(open_sources(sources))
    assert len(pictures) == open_sources(sources).total == 10
    assert len({picture.name for picture in pictures}) == 10
    (rounded,) = open_sources((chw / 255).bfloat16())
    assert np.abs(rounded.rgb().astype(int) - image).max() <= 1
    for picture in pictures:
        np.testing.assert_array_equal(picture.rgb(), image)
    (turned,) = open_sources(image[..., ::-1], channels='bgr')
    np.testing.assert_array_equal(turned.rgb(), image)


@pytest.mark.parametrize('channels', ['rgb', 'bgr'])
def test_a_generator_may_write_all_pictures_into_one_array(channels):
    """As cv2.VideoCapture.read(frame) does. Pictures are read ahead."""
    def frames():
        frame = np.empty((6, 7, 3), np.uint8)
        for number in range(9):
            frame[:] = number
            yield frame

    pictures = list(open_sources(frames(), channels=channels))
    assert [int(picture.rgb().max()) for picture in pictures] == list(range(9))


@pytest.mark.parametrize('kind', ['RGB', 'L', 'RGBA', 'LA', 'P', '1', 'I;16', 'CMYK', 'exif',
                                  'pages'])
def test_pillow_gives_what_the_loader_of_a_config_gives(tmp_path, kind):
    """Of every kind of file: `mmcv.imread`, by which the configs load, against `Picture.rgb`."""
    image, path, options = Image.fromarray(noise()), tmp_path / 'x.png', {}
    if kind == 'I;16':
        image = Image.fromarray(noise().astype(np.uint16)[..., 0] * 256 + 77)
    elif kind == 'exif':
        exif = Image.Exif()
        exif[0x0112] = 6
        options = dict(exif=exif)
    elif kind == 'pages':
        path, options = tmp_path / 'x.tif', dict(save_all=True, append_images=[image.rotate(90)])
    elif kind == 'CMYK':
        # Flat: the decoders of a JPEG may differ by a rounding, at edges by more.
        image, path = Image.new('CMYK', (31, 23), (10, 90, 200, 30)), tmp_path / 'x.jpg'
    elif kind != 'RGB':
        image = image.convert(kind)
    image.save(path, **options)
    theirs = mmcv.imread(path, channel_order='rgb')
    (picture,) = open_sources(path)
    assert picture.rgb().shape == theirs.shape == ((31, 23, 3) if kind == 'exif' else (23, 31, 3))
    assert np.abs(picture.rgb().astype(int) - theirs).max() <= (2 if kind == 'CMYK' else 0)


def test_what_the_loader_leaves_out_is_said(tmp_path, caplog):
    page = Image.fromarray(noise())
    page.save(tmp_path / 'pages.tif', save_all=True, append_images=[page, page])
    Image.fromarray(noise().astype(np.uint16)[..., 0]).save(tmp_path / 'deep.png')
    alpha = np.dstack([noise(), np.full((23, 31), 100, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / 'alpha.tif')
    mmcv.imwrite(noise().astype(np.uint16), str(tmp_path / 'deep_colour.png'))
    open_sources(tmp_path).verify()
    clear, deep, deep_colour, pages = caplog.messages
    assert 'alpha.tif: alpha: OpenCV multiplies' in clear
    theirs = mmcv.imread(tmp_path / 'alpha.tif', channel_order='rgb')
    assert np.abs(theirs - noise() * (100 / 255)).max() <= 1
    (picture,) = open_sources(tmp_path / 'alpha.tif')
    np.testing.assert_array_equal(picture.rgb(), noise())
    assert 'deep.png: 16 bits a channel, the upper 8' in deep
    assert 'deep_colour.png: 16 bits a channel, the upper 8' in deep_colour
    assert 'pages.tif: 3 pages, the first is used' in pages


def test_addresses_are_fetched(tmp_path):
    Image.fromarray(noise()).save(tmp_path / 'my photo.png')

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f'http://127.0.0.1:{server.server_port}'
        (picture,) = open_sources(f'{root}/my%20photo.png')
        assert picture.name == 'my photo'
        np.testing.assert_array_equal(picture.rgb(), noise())
        with pytest.raises(UserError, match='404'):
            list(open_sources(f'{root}/none.png'))
        # An exported model takes addresses too, where there is no torch.
        done = subprocess.run([sys.executable, '-c', f'''
import sys
sys.modules['torch'] = None
from visattn_dense.predict.sources import open_sources
(picture,) = open_sources('{root}/my%20photo.png')
print(picture.rgb().shape)'''], capture_output=True, text=True)
        assert done.stdout == '(23, 31, 3)\n', done.stderr
        server.shutdown()


def test_a_video_gives_its_frames_and_takes_them(tmp_path):
    pytest.importorskip('av')
    with VideoWriter(tmp_path / 'clip.mp4', 12.5) as video:
        for level in range(0, 200, 20):
            video.write(np.full((47, 61, 3), (level, 90, 30), np.uint8))
        # Smaller and larger ones are fitted in.
        video.write(np.full((20, 30, 3), 255, np.uint8))
        video.write(np.full((400, 300, 3), 255, np.uint8))
    sources = open_sources(tmp_path / 'clip.mp4')
    frames = list(sources)
    assert sources.total == len(frames) == 12
    assert (frames[3].name, frames[3].frame, frames[3].fps) == ('clip_000003', 3, 12.5)
    assert frames[0].rgb().shape == (48, 62, 3)
    for number in range(10):
        assert np.abs(frames[number].rgb()[20, 30].astype(int) - (20 * number, 90, 30)).max() < 9
    assert frames[10].rgb()[40, 50].max() < 30 < 200 < frames[10].rgb()[10, 10].min()
    # Two videos of one name, in a list.
    (tmp_path / 'sub').mkdir()
    shutil.copy(tmp_path / 'clip.mp4', tmp_path / 'sub')
    assert len(set(names_of([tmp_path / 'clip.mp4', tmp_path / 'sub/clip.mp4']))) == 24


def test_a_camera_that_is_not_there_is_refused_at_once_in_one_message(capfd):
    """Before the model is opened, and without the warnings of OpenCV's backends."""
    with pytest.raises(UserError, match='the camera 63 cannot be opened: it is not there'):
        open_sources(63)
    assert capfd.readouterr() == ('', '')


@pytest.mark.skipif(not sys.platform.startswith('linux') or shutil.which('gcc') is None,
                    reason='needs Linux and gcc')
def test_a_camera_gives_its_frames_until_it_is_unplugged(tmp_path):
    """OpenCV reads what tests/camera.c answers in the place of a driver."""
    library = tmp_path / 'camera.so'
    subprocess.run(['gcc', '-shared', '-fPIC', ROOT / 'tests/camera.c', '-o', library], check=True)
    done = subprocess.run([sys.executable, '-c', """
from visattn_dense.predict.sources import open_sources
sources = open_sources(0)
print(sources.total)
for picture in sources:
    image = picture.rgb()
    colours = set(map(tuple, image[0].tolist()))
    print(picture.name, picture.frame, picture.fps, image.shape, *colours)
"""], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ, LD_PRELOAD=str(library)))
    assert done.returncode == 0, done.stderr
    # OpenCV drops the first frame.
    assert done.stdout.splitlines() == ['None'] + [
        f'camera_0_{n:06d} {n} None (48, 64, 3) ({20 * n + 22}, {20 * n + 21}, {20 * n + 20})'
        for n in range(4)]


def test_a_video_that_fails_half_way_is_removed(tmp_path):
    pytest.importorskip('av')
    for stop, kept in ((ValueError, False), (KeyboardInterrupt, True)):
        with pytest.raises(stop), VideoWriter(tmp_path / 'x.mp4') as video:
            video.write(noise(48, 64))
            raise stop
        assert (tmp_path / 'x.mp4').exists() == kept
    assert len(list(open_sources(tmp_path / 'x.mp4'))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['x.mp4']


def test_an_older_video_stays_until_the_new_one_is_whole(tmp_path):
    """Also where the process is killed."""
    pytest.importorskip('av')
    for suffix in ('.mp4', '.mkv'):
        path = tmp_path / f'x{suffix}'
        path.write_bytes(b'older')
        with VideoWriter(path) as video:
            video.write(noise(48, 64))
            assert path.read_bytes() == b'older'
        assert len(list(open_sources(path))) == 1
        with pytest.raises(ValueError), VideoWriter(path) as video:
            video.write(noise(48, 64))
            raise ValueError
        assert len(list(open_sources(path))) == 1
        with VideoWriter(path):
            pass
        assert len(list(open_sources(path))) == 1


@pytest.mark.parametrize('name', ['x.webm', 'x.gif', 'x.png', 'x.mp3', 'x'])
def test_a_video_that_cannot_be_written_is_refused_at_once(tmp_path, name):
    with pytest.raises(UserError, match='ends in .mp4 or .mkv'):
        VideoWriter(tmp_path / name)
    assert not list(tmp_path.iterdir())


# The stream

@dataclass
class Asked:
    picture: object
    key: tuple


class Counting:
    """A model that remembers what it was asked for; each pixel is of the class of its red."""

    classes, palette = ['low', 'high'], [(255, 0, 0), (0, 0, 255)]

    def __init__(self, seconds: float = 0.) -> None:
        self.seconds, self.prepared, self.batches = seconds, 0, []

    def prepare(self, picture):
        self.prepared += 1
        time.sleep(self.seconds)
        return Asked(picture, picture.rgb().shape)

    def run(self, batch):
        time.sleep(self.seconds)
        assert len({asked.key for asked in batch}) == 1
        self.batches.append(len(batch))
        return [asked.picture.rgb()[..., 0] > 127 for asked in batch]

    def finish(self, asked, output, options):
        return Segmentation(**about(asked.picture), image=asked.picture.rgb(),
                            model_size=asked.key[:2], classes=self.classes, palette=self.palette,
                            labels=output.astype(np.uint8))


def run(model, source, **options) -> list:
    return list(predictions(model, open_sources(source), Options(), **options))


def test_mixed_sizes_come_back_in_order_in_batches_of_one_size():
    model = Counting()
    images = [noise(10 + (number % 3 == 0), 12, number) for number in range(11)]
    results = run(model, images, batch_size=4, workers=3)
    assert model.batches == [2, 2, 3, 1, 2, 1]
    for image, result in zip(images, results, strict=True):
        np.testing.assert_array_equal(result.labels, image[..., 0] > 127)


def test_a_stream_is_read_as_its_results_are_taken():
    model, asked = Counting(), 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield noise(6, 7, asked)

    stream = predictions(model, open_sources(endless()), Options(), batch_size=2, workers=2)
    for taken in range(1, 40):
        next(stream)
        assert asked <= taken + 3 * 2 + 2 + 1
    time.sleep(0.2)
    assert asked <= 39 + 9
    stream.close()
    stopped = asked
    time.sleep(0.1)
    assert asked == stopped
    assert not [thread for thread in threading.enumerate() if thread.name.startswith('visattn-')
                and thread.name != 'visattn-feed']


def test_reading_model_and_writing_overlap():
    """Three steps of 20 ms for each of 20 pictures take much less than 60 ms a picture."""
    model, begun = Counting(seconds=0.02), time.monotonic()
    for _ in predictions(model, open_sources([noise()] * 20), Options()):
        time.sleep(0.02)
    assert time.monotonic() - begun < 0.75 * 20 * 0.06


def test_an_error_comes_after_the_results_before_it(tmp_path):
    (tmp_path / 'broken.png').write_bytes(Image.fromarray(noise()).tobytes()[:100])
    stream = predictions(Counting(), open_sources([noise(), noise(), tmp_path / 'broken.png',
                                                   noise()]), Options(), batch_size=8)
    assert [next(stream).size for _ in range(2)] == [(23, 31)] * 2
    with pytest.raises(UserError, match=r'broken.png is no image'):
        next(stream)

    def failing():
        yield noise()
        raise RuntimeError('the camera fell down')

    stream = predictions(Counting(), open_sources(failing()), Options())
    next(stream)
    with pytest.raises(RuntimeError, match='fell down'):
        next(stream)


# Results

def detection(**changes) -> Detection:
    mask = np.zeros((2, 60, 80), bool)
    mask[0, 5:30, 10:40] = mask[1, 20:50, 30:70] = True
    return Detection(**dict(
        name='x', path=None, frame=None, fps=None, image=noise(60, 80), model_size=(60, 80),
        classes=['cat', 'dog'], palette=[(200, 30, 30), (30, 30, 200)],
        boxes=np.array([[10, 5, 40, 30], [30, 20, 70, 50]], np.float32),
        scores=np.array([0.9, 0.5], np.float32), labels=np.array([1, 1]),
        rles=[masks.encode(one) for one in mask]) | changes)


def test_objects_of_one_class_are_told_apart():
    found = detection()
    picture = found.draw(legend=False, opacity=1.)
    assert picture.shape == (60, 80, 3)
    first, second = picture[15, 15], picture[40, 50]
    assert tuple(first) == (30, 30, 200) and np.abs(first.astype(int) - second).max() > 10
    assert second[2] > second[0], 'a tone of the class colour'
    outside = np.ones((60, 80), bool)
    # Pillow's boxes hold their last row and column.
    outside[:31, 9:] = outside[19:, 29:] = False
    np.testing.assert_array_equal(picture[outside], found.image[outside])
    assert found.draw().shape[0] > 60
    assert detection(rles=None).draw(legend=False).shape == (60, 80, 3)


def test_lines_and_letters_grow_with_the_image():
    large = detection(image=np.zeros((1200, 1600, 3), np.uint8), rles=None,
                      boxes=np.array([[200, 100, 800, 600], [600, 400, 1400, 1000]]))
    lit = large.draw(legend=False).any(2)
    assert lit[800, 600:620].sum() >= 3, 'the left line of a box'
    small = detection(image=np.zeros((60, 80, 3), np.uint8), rles=None)
    assert small.draw(legend=False).any(2)[40, 30:36].sum() == 1
    legend = large.draw().shape[0] - 1200
    assert legend > 1.3 * (small.draw().shape[0] - 60)


def test_names_in_other_scripts_have_a_font_or_a_number(caplog):
    names = ['car', '汽车', 'Straße', '자동차']
    legible.__globals__['_legible'].cache_clear()
    shown = legible(names)
    for number, name in enumerate(names):
        assert shown[number] == (name if font_for(name, 20) else f'class {number}')
    assert shown[0] == 'car' and shown[2] == 'Straße'
    lost = [name for name, text in zip(names, shown, strict=True) if name != text]
    detection(classes=names).draw()
    legible(names)
    said = [record for record in caplog.records if 'No font' in record.message]
    assert len(said) == bool(lost)


def test_coco_files_open_in_pycocotools(tmp_path):
    labels = (noise(60, 80)[..., 0] > 127).astype(np.uint8)
    segmented = Segmentation(name='y', path='y.png', frame=None, fps=None, image=noise(60, 80),
                             model_size=(30, 40), classes=['a', 'b'], palette=[(0, 0, 0)] * 2,
                             labels=labels)
    for name, result in (('objects', detection()), ('segments', segmented)):
        with JsonWriter(tmp_path / 'new' / f'{name}.json', result.classes) as file:
            file.write(result)
            file.write(result)
        data = COCO(str(tmp_path / 'new' / f'{name}.json'))
        assert len(data.imgs) == 2 and len(data.anns) == 4 and len(data.cats) == 2
        entry = data.loadAnns(data.getAnnIds(imgIds=2))[0]
        mask = data.annToMask(entry)
        expected = detection().masks[0] if name == 'objects' else labels == entry['category_id'] - 1
        np.testing.assert_array_equal(mask, expected)
        assert entry['area'] == mask.sum()
        x, y, width, height = entry['bbox']
        assert mask[int(y):int(y + height), int(x):int(x + width)].sum() == mask.sum()
    with JsonWriter(tmp_path / 'lines.jsonl', ['a', 'b']) as file:
        file.write(segmented)
        file.write(segmented)
    first, second = map(json.loads, (tmp_path / 'lines.jsonl').read_text().splitlines())
    assert first == second
    assert sum(segment['share'] for segment in first['segments']) == pytest.approx(1)


def test_results_are_saved(tmp_path):
    assert detection().save(tmp_path / 'out') == tmp_path / 'out/x_overlay.png'
    entry = json.loads((tmp_path / 'out/x.json').read_text())
    assert [item['name'] for item in entry['objects']] == ['dog', 'dog']
    assert entry['objects'][0]['score'] == pytest.approx(0.9)
    assert detection().names == ['dog', 'dog']
    nothing = detection(boxes=np.zeros((0, 4)), scores=np.zeros(0), rles=[],
                        labels=np.zeros(0, int))
    assert nothing.summary() == 'nothing' and nothing.masks.shape == (0, 60, 80)
    nothing.save(tmp_path)
    assert nothing.to_coco() == nothing.polygons() == []


def test_the_room_needs_numpy_and_pillow_alone(tmp_path):
    """In an interpreter that finds nothing else: sources, stream, results, drawing, files."""
    for package in (np, Image):
        place = Path(package.__file__).parent
        for part in (place, place.parent / f'{place.name.lower().replace("pil", "pillow")}.libs'):
            if part.exists():
                (tmp_path / part.name).symlink_to(part)
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]
import numpy as np
from visattn_dense.predict import masks, records, results, sources, stream, video
from visattn_dense import Predictor
mask = np.zeros((60, 80), bool)
mask[3:20, 5:40] = True
(picture,) = sources.open_sources(np.zeros((60, 80, 3), np.uint8))
found = results.Detection(
    **results.about(picture), image=picture.rgb(), model_size=(60, 80), classes=['x'],
    palette=[(9, 9, 9)], boxes=np.array([[5., 3, 40, 20]]), scores=np.array([.5]),
    labels=np.array([0]), rles=[masks.encode(mask)])
found.save({str(tmp_path / 'out')!r})
print(len(found.polygons()), 'torch' in sys.modules, 'cv2' in sys.modules)
"""
    done = subprocess.run([sys.executable, '-S', '-c', code], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['1', 'False', 'False']
