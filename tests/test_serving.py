"""examples/serve.py: a real server process on loopback, and good and bad clients."""
import base64
import io
import json
import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_export import export
from tests.test_predictor import write_weights
from tests.tiny_runs import ROOT, write_run
from visattn_dense import Predictor
from visattn_dense.predict import masks

pytest.importorskip('starlette')
pytest.importorskip('uvicorn')


@contextmanager
def serving(*arguments: object, cwd: Path | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address and the process of a server that is ready."""
    env = os.environ | {'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}
    process = subprocess.Popen(
        [sys.executable, ROOT / 'examples/serve.py', *map(str, arguments), '--port', '0'],
        stderr=subprocess.PIPE, text=True, env=env, cwd=cwd)
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r'running on (http://\S+)', line):
                break
        else:
            raise AssertionError(''.join(said))
        # The pipe must not fill up.
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(process.stderr.read)
            try:
                yield found[1], process
            finally:
                process.terminate()
                process.wait(30)
            assert 'Traceback' not in rest.result(), rest.result()
    finally:
        process.kill()


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('run')
    write_weights(write_run(folder, images=2), folder / 'iter_8.pth')
    return folder


@pytest.fixture(scope='module')
def server(run) -> Iterator[tuple[str, subprocess.Popen]]:
    with serving(run, '--max-size', 300_000, '--max-pixels', 100_000, '--max-seconds', 2,
                 '--max-waiting', 6) as started:
        yield started


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict]:
    """The status and the JSON answer."""
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def encoded(image: np.ndarray | Image.Image, kind: str = 'PNG') -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind)
    return file.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def bomb(side: int = 30_000) -> bytes:
    """A small PNG file that says it has `side`² pixels, all black."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack(
            '>I', zlib.crc32(kind + data))
    return (b'\x89PNG\r\n\x1a\n' + chunk(
        b'IHDR', struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(bytes(100_000))) + chunk(b'IEND', b''))


def test_the_answer_is_the_result_of_the_predictor(server, run):
    url, path = server[0], run / 'data/images/0.png'
    (expected,) = Predictor(run, device='cpu')(path)
    status, found = post(f'{url}/predict', path.read_bytes())
    assert (status, found['size']) == (200, [40, 43])
    for segment in found['segments']:
        np.testing.assert_array_equal(masks.decode(segment['rle']),
                                      expected.labels == segment['class'])
    status, found = post(f'{url}/predict?labels=png', path.read_bytes())
    labels = Image.open(io.BytesIO(base64.b64decode(found['label_png'])))
    np.testing.assert_array_equal(np.asarray(labels), expected.labels)
    with urllib.request.urlopen(f'{url}/health') as answer:
        assert json.load(answer) == dict(classes=['a', 'b', 'c'])


JPEG = encoded(noise(40, 60), 'JPEG')
HALF = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nab'


@pytest.mark.parametrize('body, status, message', [
    (b'', 415, 'no image'), (b'hello', 415, 'no image'), (b'%!PS-Adobe-3.0 EPSF-3.0', 415, 'JPEG'),
    (JPEG[:len(JPEG) // 2], 400, 'damaged'),
    (encoded(noise(40, 60))[:3000], 400, 'damaged'),
    (encoded(noise(400, 300), 'JPEG'), 413, '300x400 pixels'), (bomb(), 413, 'pixels'),
    (bomb(100_000), 413, 'pixels'), (bytes(400_000), 413, 'more than 300000 bytes'),
    (bytes(3_000_000), 413, 'more than 300000 bytes'),
])
def test_a_bad_body_gets_its_status_and_one_message(server, body, status, message):
    code, answer = post(f'{server[0]}/predict', body)
    assert code == status and message in answer['error'], answer
    assert list(answer) == ['error'] and 'Traceback' not in answer['error']


@pytest.mark.parametrize('query, message', [
    ('conf=much', 'a number'), ('conf=7', 'from 0 to 1'), ('conf=nan', 'from 0 to 1'),
    ('labels=x', 'rle or png')])
def test_a_wrong_option_is_said(server, query, message):
    code, answer = post(f'{server[0]}/predict?{query}', JPEG)
    assert code == 400 and message in answer['error']


@pytest.mark.parametrize('size', [(1, 1), (1, 300), (300, 1), (3, 2)])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'I;16', '1'])
def test_small_and_unusual_pictures_are_predicted(server, size, mode):
    image = Image.fromarray(noise(*size))
    image = (Image.fromarray(noise(*size).astype(np.uint16)[..., 0]) if mode == 'I;16' else
             image.convert(mode))
    code, answer = post(f'{server[0]}/predict', encoded(image))
    assert code == 200 and answer['size'] == list(size), answer


def test_a_slow_client_is_let_go_and_hinders_nobody(server):
    host, port = server[0].removeprefix('http://').split(':')
    slow = [socket.create_connection((host, int(port))) for _ in range(10)]
    for connection in slow:
        connection.sendall(HALF)
    assert post(f'{server[0]}/predict', JPEG)[0] == 200
    begun = time.monotonic()
    for connection in slow:
        connection.settimeout(30)
        assert connection.recv(100).startswith(b'HTTP/1.1 408')
        connection.close()
    assert time.monotonic() - begun < 25


def test_a_client_that_leaves_is_forgotten(server):
    host, port = server[0].removeprefix('http://').split(':')
    for _ in range(10):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(HALF)
    assert post(f'{server[0]}/predict', JPEG)[0] == 200


def resident(process: subprocess.Popen) -> float:
    """Memory of a process in MB."""
    lines = Path(f'/proc/{process.pid}/status').read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith('VmRSS'))


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
def test_memory_stays_where_it_is_under_hundreds_of_requests(server):
    """Good and bad ones from several clients at once; those that wait too many are told so."""
    url, process = f'{server[0]}/predict', server[1]
    bodies = [JPEG, encoded(noise(40, 43)), JPEG[:500], bomb(), b'x', bytes(350_000),
              encoded(noise(90, 70), 'WEBP')]

    def send(number: int) -> int:
        return post(url, bodies[number % len(bodies)])[0]

    with ThreadPoolExecutor(4) as clients:
        first = list(clients.map(send, range(70)))
        before = resident(process)
        rest = list(clients.map(send, range(280)))
        grown = resident(process) - before
    assert set(first + rest) == {200, 400, 413, 415}
    assert grown < 25, f'{grown:.0f} MB more'
    with ThreadPoolExecutor(40) as clients:
        many = list(clients.map(lambda _: post(url, JPEG)[0], range(80)))
    assert set(many) == {200, 503}


def test_the_commands_of_the_page(run, tmp_path):
    """docs/deployment.md: the server on a run's folder, and what curl sends to it."""
    page = (ROOT / 'docs/deployment.md').read_text(encoding='utf-8').split('## Serving')[1]
    lines = page.split('```sh\n')[1].partition('```')[0].splitlines()
    install, start, *requests = map(shlex.split, lines)
    extra = re.fullmatch(r'visattn-dense\[(\w+)\]', install[2])[1]
    assert f"'{extra}': [" in (ROOT / 'setup.py').read_text()
    if shutil.which('curl') is None:
        pytest.skip('needs curl')
    assert start[:2] == ['python', 'examples/serve.py']
    shutil.copytree(run, tmp_path / 'work_dirs/mine')
    (tmp_path / 'photo.jpg').write_bytes(JPEG)
    with serving(*start[2:], cwd=tmp_path) as (url, _):
        for request in requests:
            command = [part.replace('http://127.0.0.1:8000', url) for part in request]
            done = subprocess.run([*command, '-s'], cwd=tmp_path, capture_output=True, text=True)
            assert json.loads(done.stdout)['size'] == [40, 60]


def test_an_exported_file_is_served(run, tmp_path):
    """The same answers as of the file itself; the requests are those of a run's folder."""
    for name in ('onnx', 'onnxruntime', 'onnxscript'):
        pytest.importorskip(name)
    path = tmp_path / 'model.onnx'
    assert export(run, '--size', '40x43', '--out', path) == 0
    predict = Predictor(path)
    with serving(path) as (url, _):
        for picture in (run / 'data/images/0.png', noise(70, 50)):
            body = encoded(picture) if isinstance(picture, np.ndarray) else picture.read_bytes()
            (expected,) = predict(body)
            status, found = post(f'{url}/predict', body)
            assert (status, tuple(found['size'])) == (200, expected.size)
            assert len(found['segments']) > 1
            for segment in found['segments']:
                np.testing.assert_array_equal(masks.decode(segment['rle']),
                                              expected.labels == segment['class'])
        assert post(f'{url}/predict', b'hello')[0] == 415


@pytest.mark.parametrize('options, message', [
    ([], 'there is no file nowhere.onnx'),
    (['--port', '99999'], '--port is from 0 to 65535, got 99999')])
def test_a_wrong_model_or_port_is_one_message(options, message):
    done = subprocess.run([sys.executable, ROOT / 'examples/serve.py', 'nowhere.onnx', *options],
                          text=True, capture_output=True,
                          env=os.environ | {'PYTHONPATH': str(ROOT)})
    assert done.returncode == 2 and done.stderr == f'error: {message}\n'
