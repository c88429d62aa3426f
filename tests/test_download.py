"""Downloads against a real server on loopback that misbehaves in every way that servers do."""
import hashlib
import io
import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from visattn_dense.checkpoints import read_checkpoint
from visattn_dense.checkpoints.download import download
from visattn_dense.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def checkpoint(seed: int = 0) -> bytes:
    """A real checkpoint of about 200 kB."""
    file = io.BytesIO()
    torch.save({'w': torch.randn(50_000, generator=torch.Generator().manual_seed(seed))}, file)
    return file.getvalue()


@dataclass
class File:
    """What a server gives for one address.

    Attributes:
        body: the bytes.
        sends: how many of them each answer sends before the connection breaks, answer by answer;
            all of them once the list is used up.
        length: what is declared in place of the true length.
        status: answers with another status, answer by answer, before it serves.
        ranges: whether parts can be asked for.
        pause: seconds after each tenth of the body; `stall` of them in the middle, once.
    """

    body: bytes
    content_type: str = 'application/octet-stream'
    sends: list[int] = field(default_factory=list)
    length: int | None = None
    status: list[int] = field(default_factory=list)
    ranges: bool = True
    validator: bool = True
    pause: float = 0.
    stall: float = 0.

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:12]}"'


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers, path=self.path))
        file = self.server.files.get(self.path)
        if file is None or file.status:
            self.send_error(file.status.pop(0) if file else 404)
            return
        start = 0
        asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        if asked and file.ranges and self.headers.get('If-Range') == file.etag:
            start = int(asked[1])
        body = file.body[start:]
        self.send_response(206 if start else 200)
        self.send_header('Content-Type', file.content_type)
        self.send_header('Content-Length', str(len(body) if file.length is None else file.length))
        if file.validator:
            self.send_header('ETag', file.etag)
        if start:
            self.send_header('Content-Range',
                             f'bytes {start}-{len(file.body) - 1}/{len(file.body)}')
        self.end_headers()
        body = body[:file.sends.pop(0)] if file.sends else body
        step = len(body) // 10 + 1
        try:
            for i in range(0, len(body), step):
                self.wfile.write(body[i:i + step])
                time.sleep(file.pause)
                if i >= len(body) // 2 and file.stall:
                    stall, file.stall = file.stall, 0.
                    self.wfile.flush()
                    self.server.released.wait(stall)
        except OSError:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Not into the test's output."""


@pytest.fixture
def server():
    """A server; its `files` are what it gives, `requests` what it was asked, `url` where it is."""
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
        httpd.files, httpd.requests, httpd.released = {}, [], threading.Event()
        httpd.url = f'http://127.0.0.1:{httpd.server_port}'
        threading.Thread(target=httpd.serve_forever, kwargs={'poll_interval': .01},
                         daemon=True).start()
        yield httpd
        httpd.released.set()
        httpd.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    return tmp_path / 'hub' / 'checkpoints'


def get(server, name: str = 'w.pth', **kwargs) -> Path:
    return download(f'{server.url}/{name}', **{'attempts': 3, 'patience': 5., **kwargs})


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_file()}


def test_a_file_arrives_once_with_a_record_and_a_bar(server, cache, capsys):
    body = checkpoint()
    server.files['/w.pth'] = File(body)
    assert get(server, progress=True) == get(server) == cache / 'w.pth'
    assert (cache / 'w.pth').read_bytes() == body and len(server.requests) == 1
    assert json.loads((cache / 'w.pth.origin.json').read_text()) == {
        'url': f'{server.url}/w.pth', 'size': len(body), 'sha256': hashlib.sha256(body).hexdigest()}
    assert names(cache) == {'w.pth', 'w.pth.origin.json'}
    bar = capsys.readouterr().err
    assert 'w.pth: 100%' in bar
    assert torch.equal(read_checkpoint(f'{server.url}/w.pth')['w'],
                       torch.load(io.BytesIO(body))['w'])


def test_a_slow_server_is_waited_for(server, cache):
    server.files['/w.pth'] = File(checkpoint(), pause=.02)
    assert get(server).read_bytes() == checkpoint()
    assert len(server.requests) == 1


def test_a_stalled_transfer_goes_on_where_it_stopped(server, cache):
    server.files['/w.pth'] = File(checkpoint(), stall=30.)
    assert get(server, patience=.5).read_bytes() == checkpoint()
    assert 'Range' not in server.requests[0] and 'Range' in server.requests[1]


def test_a_transfer_that_dies_halfway_is_resumed(server, cache):
    body = checkpoint()
    server.files['/w.pth'] = File(body, sends=[len(body) // 2, 1000])
    assert get(server).read_bytes() == body
    starts = [request.get('Range') for request in server.requests]
    assert starts == [None, f'bytes={len(body) // 2}-', f'bytes={len(body) // 2 + 1000}-']
    assert names(cache) == {'w.pth', 'w.pth.origin.json'}


def test_what_came_is_kept_for_the_next_call(server, cache):
    body = checkpoint()
    server.files['/w.pth'] = File(body, sends=[1000, 1000])
    with pytest.raises(UserError, match=r'ended after 2,000 of .*by hand.*w\.pth') as error:
        get(server, attempts=2)
    assert str(cache / 'w.pth') in str(error.value)
    assert names(cache) == {'w.pth.part', 'w.pth.part.json'}
    assert get(server).read_bytes() == body
    assert server.requests[-1]['Range'] == 'bytes=2000-'


def test_a_file_that_changed_meanwhile_is_not_patched_together(server, cache):
    server.files['/w.pth'] = File(checkpoint(1), sends=[100_000])
    with pytest.raises(UserError, match='ended after'):
        get(server, attempts=1)
    server.files['/w.pth'] = File(checkpoint(2))
    assert get(server).read_bytes() == checkpoint(2)
    assert server.requests[-1]['Range'] == 'bytes=100000-'


@pytest.mark.parametrize('options', [dict(ranges=False), dict(validator=False)])
def test_servers_that_cannot_resume_send_everything_again(options, server, cache):
    server.files['/w.pth'] = File(checkpoint(), sends=[100_000], **options)
    assert get(server).read_bytes() == checkpoint()


def test_a_passing_error_is_tried_again(server, cache):
    server.files['/w.pth'] = File(checkpoint(), status=[503, 429])
    assert get(server, patience=1.).read_bytes() == checkpoint()


@pytest.mark.parametrize('file, message', [
    (File(checkpoint(), length=400_000), 'another version'),
    (File(checkpoint(), length=100_000), 'cut off'),
    (File(checkpoint()[:100_000]), 'cut off'),
    (File(b''), 'empty'),
    (File(b'<!DOCTYPE html><title>Sign in</title>', 'text/html; charset=utf-8'), 'web page'),
    (File(b'\n<html><title>Sign in</title>'), 'web page'),
    (File(b'version https://git-lfs.github.com/spec/v1\n'), 'Git LFS'),
    (File(bytes(range(256)) * 8), 'no format'),
], ids=['longer length', 'shorter length', 'truncated', 'empty', 'page', 'disguised page', 'lfs',
        'rubbish'])
def test_what_is_no_checkpoint_never_gets_the_name(file, message, server, cache):
    server.files['/w.pth'] = file
    with pytest.raises(UserError, match=message) as error:
        get(server, attempts=2, patience=1.)
    assert f'by hand and put it at {cache / "w.pth"}' in str(error.value)
    assert not (cache / 'w.pth').exists()


def test_a_dead_link_is_not_tried_again(server, cache):
    with pytest.raises(UserError, match='404.*by hand'):
        get(server)
    assert len(server.requests) == 1 and not names(cache)


def test_a_dead_server_says_where_to_put_the_file(cache):
    with pytest.raises(UserError, match='refused.*by hand') as error:
        download('http://127.0.0.1:9/w.pth', attempts=2, patience=1.)
    assert str(cache / 'w.pth') in str(error.value)


def test_a_changed_file_is_noticed(server, cache):
    server.files['/w.pth'] = File(checkpoint(1))
    get(server).write_bytes(checkpoint(2))
    with pytest.raises(UserError, match='has changed since it arrived'):
        get(server)
    (cache / 'w.pth').unlink()
    assert get(server).read_bytes() == checkpoint(1)


def test_a_file_put_there_by_hand_is_taken_and_remembered(server, cache):
    cache.mkdir(parents=True)
    (cache / 'w.pth').write_bytes(checkpoint(3))
    assert get(server).read_bytes() == checkpoint(3) and not server.requests
    (cache / 'w.pth').write_bytes(checkpoint(4))
    with pytest.raises(UserError, match='has changed'):
        get(server)


def test_the_same_name_from_elsewhere_is_not_mistaken(server, cache):
    server.files |= {'/a/w.pth': File(checkpoint(1)), '/b/w.pth': File(checkpoint(2))}
    get(server, 'a/w.pth')
    with pytest.raises(UserError, match='came from .*/a/w.pth, not from .*/b/w.pth'):
        get(server, 'b/w.pth')


def test_a_published_sum_is_held_against_the_file(server, cache):
    body = checkpoint()
    good = f'w-{hashlib.sha256(body).hexdigest()[:8]}.pth'
    server.files |= {f'/{good}': File(body), '/w-01234567.pth': File(body)}
    assert get(server, good).read_bytes() == body
    with pytest.raises(UserError, match='published is 01234567'):
        get(server, 'w-01234567.pth')
    assert not (cache / 'w-01234567.pth').exists()
    server.files['/w-20240131.pth'] = File(body)
    assert get(server, 'w-20240131.pth').read_bytes() == body


RACE = """
import sys, threading
from visattn_dense.checkpoints.download import download
threads = [threading.Thread(target=download, args=sys.argv[1:2]) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_eight_at_once_download_once(server, cache):
    server.files['/w.pth'] = File(checkpoint(), pause=.1)
    processes = [subprocess.Popen([sys.executable, '-c', RACE, f'{server.url}/w.pth'], cwd=ROOT,
                                  stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert not process.communicate()[1] and process.returncode == 0
    assert len(server.requests) == 1
    assert names(cache) == {'w.pth', 'w.pth.origin.json'}
