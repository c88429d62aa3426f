"""Bad servers of every kind, and what becomes of a download from each.

The servers are real: sockets on loopback that send exactly the bytes of a kind. Whatever a server
does, the download ends within seconds. It ends with the right file, or with one message and nothing
under the file's name; and an honest server can then always deliver the file.
"""
import hashlib
import io
import json
import re
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from visattn_dense import web
from visattn_dense.checkpoints import download as module
from visattn_dense.checkpoints import read_checkpoint
from visattn_dense.checkpoints.download import download
from visattn_dense.errors import UserError
from visattn_dense.zoo import find_release

PATIENCE = 1.
SECONDS = 25.
"""The longest that a download from any of these servers may take."""


def checkpoint(seed: int) -> bytes:
    file = io.BytesIO()
    torch.save({'w': torch.randn(50_000, generator=torch.Generator().manual_seed(seed))}, file)
    return file.getvalue()


OLD, NEW = checkpoint(1), checkpoint(2)
assert len(OLD) == len(NEW)
LONGER = NEW + bytes(100)
HALF = len(OLD) // 2
LAST_YEAR, TODAY = 'Mon, 24 Nov 2025 10:00:00 GMT', 'Tue, 24 Nov 2026 10:00:00 GMT'


def etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:12]}"'


@dataclass
class Request:
    """What a client asked for: address, first byte of the range, and If-Range."""

    path: str
    start: int = 0
    condition: str | None = None


@dataclass
class Connection:
    """The server's end of a connection; `over` is set once the test has ended."""

    socket: socket.socket
    request: Request
    over: threading.Event

    def send(self, *pieces: bytes | str, pause: float = 0.) -> None:
        for piece in pieces:
            self.socket.sendall(piece.encode() if isinstance(piece, str) else piece)
            self.over.wait(pause)

    def send_forever(self, piece: bytes | str, pause: float = 0.) -> None:
        while not self.over.is_set():
            self.send(piece, pause=pause)


Answer = Callable[[Connection], None]


def head(status: str = '200 OK', **headers: object) -> str:
    lines = ''.join(f'{name.replace("_", "-")}: {value}\r\n' for name, value in headers.items())
    return f'HTTP/1.1 {status}\r\n{lines}Connection: close\r\n\r\n'


def sends(*pieces: bytes | str, pause: float = 0.) -> Answer:
    """These bytes, then the end of the connection."""
    return lambda connection: connection.send(*pieces, pause=pause)


def then_forever(*pieces: bytes | str, again: bytes | str, pause: float = 0.) -> Answer:
    """These bytes, then `again` without end."""
    def answer(connection: Connection) -> None:
        connection.send(*pieces)
        connection.send_forever(again, pause)
    return answer


def silent(*pieces: bytes | str) -> Answer:
    """These bytes, then nothing, with the connection open."""
    def answer(connection: Connection) -> None:
        connection.send(*pieces)
        connection.over.wait()
    return answer


def resets(connection: Connection) -> None:
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))


def honest(body: bytes) -> Answer:
    """The file as HTTP wants it, parts of it too."""
    def answer(connection: Connection) -> None:
        request = connection.request
        if request.start and request.condition == etag(body):
            part(body)(connection)
        else:
            connection.send(head(Content_Length=len(body), ETag=etag(body)), body)
    return answer


def whole(body: bytes, status: str = '200 OK', **headers: object) -> Answer:
    return sends(head(status, **{'Content_Length': len(body), **headers}), body)


def cut(body: bytes, **names: object) -> Answer:
    """The first half of the file, then the end of the connection."""
    return sends(head(Content_Length=len(body), **(names or {'ETag': etag(body)})), body[:HALF])


def part(body: bytes, *, shift: int = 0, end: int | None = None, **headers: object) -> Answer:
    """The rest that was asked for, without a look at If-Range; `headers` replace the right ones,
    None leaves one out."""
    def answer(connection: Connection) -> None:
        start, stop = connection.request.start + shift, end or len(body)
        right = {'Content_Length': stop - start, 'ETag': etag(body),
                 'Content_Range': f'bytes {start}-{stop - 1}/{len(body)}'}
        given = {name: value for name, value in {**right, **headers}.items() if value is not None}
        connection.send(head('206 Partial Content', **given), body[start:stop])
    return answer


def leads_to(target: str, status: str = '302 Found') -> Answer:
    return sends(head(status, Location=target, Content_Length=0))


def packed(level: int) -> bytes:
    """A zip archive of zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        archive.writestr('archive/data.pkl', bytes(20_000_000))
    return file.getvalue()


def flipped(body: bytes) -> bytes:
    return body[:HALF] + bytes([body[HALF] ^ 1]) + body[HALF + 1:]


def safetensors(header: bytes, data: bytes = b'') -> bytes:
    return len(header).to_bytes(8, 'little') + header + data


CHUNKED = head(Transfer_Encoding='chunked')
UNKNOWN = head()


@dataclass(frozen=True)
class Kind:
    """A server and what becomes of the download.

    Attributes:
        answers: to the first request, the second, ...; the last to all others.
        outcome: the bytes that arrive, or what the message says.
        largest: in place of the module's LARGEST.
    """

    answers: list[Answer]
    outcome: bytes | str
    largest: int = module.LARGEST


def one(answer: Answer, outcome: bytes | str, **kwargs: int) -> Kind:
    return Kind([answer], outcome, **kwargs)


def resumed(answer: Answer, then: bytes, outcome: bytes | str | None = None) -> Kind:
    """Half of OLD came; `answer` is what the server has for the rest; later it is honest."""
    return Kind([cut(OLD), answer, honest(then)], then if outcome is None else outcome)


CHANGED = dict(Content_Length=len(OLD), Last_Modified=LAST_YEAR)
KINDS: dict[str, Kind] = {
    # Parts that do not belong to what came.
    'part of a new version, If-Range ignored': resumed(part(NEW), NEW),
    'part of a new version, length too': resumed(part(LONGER), NEW),
    'part with the old ETag and another length': resumed(part(LONGER, ETag=etag(OLD)), NEW),
    'part without ETag': resumed(part(NEW, ETag=None), NEW),
    'part with a weak ETag': resumed(part(NEW, ETag='W/' + etag(OLD)), NEW),
    'part with another date': Kind(
        [cut(OLD, Last_Modified=LAST_YEAR), part(NEW, ETag=None, Last_Modified=TODAY),
         honest(NEW)], NEW),
    'part with the same date and a new weak ETag': Kind(
        [cut(OLD, Last_Modified=LAST_YEAR, ETag='W/"1"'),
         part(NEW, ETag='W/"2"', Last_Modified=LAST_YEAR), honest(NEW)], NEW),
    'part without Content-Range': resumed(part(NEW, Content_Range=None), NEW),
    'part with a Content-Range of rubbish': resumed(part(NEW, Content_Range='bytes ?'), NEW),
    'part in another unit': resumed(part(OLD, Content_Range=f'items {HALF}-9/10'), NEW),
    'part that begins before': resumed(part(OLD, shift=-10), NEW),
    'part that begins after': resumed(part(OLD, shift=10), NEW),
    'part that ends after the end': resumed(
        part(OLD, Content_Range=f'bytes {HALF}-{len(OLD) + 5}/{len(OLD)}'), NEW),
    'part of another length than its range': resumed(part(OLD, Content_Length=HALF - 7), NEW),
    'several parts at once': resumed(
        part(OLD, Content_Range=None, Content_Type='multipart/byteranges; boundary=x'), NEW),
    'part of new bytes under the old names': Kind([cut(OLD), part(NEW, ETag=etag(OLD))],
                                                  'damaged.*checksum|Bad CRC'),
    'part that nobody asked for': one(part(OLD), 'HTTP status 206'),
    'whole file in place of the rest': resumed(whole(NEW, ETag=etag(NEW)), NEW),
    'no rest: 416': resumed(whole(b'', '416 Range Not Satisfiable'), NEW),
    '416 to everything': one(whole(b'', '416 Range Not Satisfiable'), 'HTTP status 416'),
    'always a part of another version': Kind([cut(OLD), part(NEW), cut(OLD), part(NEW)] * 2,
                                             'ended after'),
    # Parts that do.
    'part of a length that is not said': resumed(
        part(OLD, Content_Range=f'bytes {HALF}-{len(OLD) - 1}/*'), OLD),
    'part shorter than the rest': resumed(part(OLD, end=HALF + 1000), OLD),
    'empty rest, then the rest': resumed(
        sends(head('206 Partial Content', ETag=etag(OLD), Content_Length=len(OLD) - HALF,
                   Content_Range=f'bytes {HALF}-{len(OLD) - 1}/{len(OLD)}')), OLD),
    # Lengths.
    'length of letters': one(whole(OLD, Content_Length='abc'), "gives 'abc' as the length"),
    'negative length': one(whole(OLD, Content_Length=-5), "gives '-5' as the length"),
    'length with an underscore': one(whole(OLD, Content_Length='1_000'), "gives '1_000'"),
    'length of 5000 digits': one(whole(OLD, Content_Length='9' * 5000), 'as the length'),
    'no digits in the length': one(whole(OLD, Content_Length=''), "gives '' as the length"),
    'two lengths': one(sends(head(Content_Length=f'5\r\nContent-Length: {len(OLD)}'), OLD),
                       "gives '199.*' and '5'|gives '2.*' and '5'"),
    'length above every disk': one(whole(OLD, Content_Length=10**17), 'more than any checkpoint'),
    'length above this disk': one(whole(OLD, Content_Length=10**17), 'have no room',
                                  largest=10**18),
    'longer than announced': one(sends(head(Content_Length=len(OLD)), OLD, bytes(9_000)), OLD),
    'shorter than announced': one(whole(OLD, Content_Length=400_000), 'ended after'),
    'endless after the announced length': one(
        then_forever(head(Content_Length=len(OLD)), OLD, again=bytes(9_000)), OLD),
    'chunks past the announced length': one(
        then_forever(head(Transfer_Encoding='chunked', Content_Length=500_000),
                     again=b'2328\r\n' + bytes(9_000) + b'\r\n'), 'goes on after 500,000 bytes'),
    'endless without a length': one(then_forever(UNKNOWN, again=bytes(9_000)),
                                    'never said how long', largest=3_000_000),
    'endless chunks': one(then_forever(CHUNKED, again=b'2328\r\n' + bytes(9_000) + b'\r\n'),
                          'never said how long', largest=3_000_000),
    'no length, whole': one(sends(UNKNOWN, OLD), OLD),
    'no length, cut off': one(sends(UNKNOWN, OLD[:HALF]), 'cut off'),
    'chunks, whole': one(
        sends(CHUNKED, f'{len(OLD):x}\r\n', OLD, '\r\n0\r\n\r\n'), OLD),
    'chunks, cut off': one(sends(CHUNKED, f'{len(OLD):x}\r\n', OLD[:HALF]), 'ended before'),
    'chunk of a length of letters': one(sends(CHUNKED, 'xyz\r\n', OLD), 'ended before'),
    'chunk of negative length': one(sends(CHUNKED, '-5\r\n', OLD), ''),
    # Slow ones.
    'a byte at a time': one(then_forever(head(Content_Length=len(OLD)), again=b'P', pause=.02),
                            'only .* bytes came in'),
    'chunks of a byte': one(then_forever(CHUNKED, again='1\r\nP\r\n', pause=.02),
                            'only .* bytes came in'),
    'chunk length without end': one(then_forever(CHUNKED, again='0', pause=.001),
                                    'only .* bytes came in|LineTooLong'),
    'headers a byte at a time': one(then_forever('HTTP/1.1 200 OK\r\nX: ', again='x', pause=.02),
                                    'only .* bytes came in'),
    'endless 100 Continue': one(then_forever(again='HTTP/1.1 100 Continue\r\n\r\n'),
                                'only .* bytes came in'),
    'endless trailers': one(
        then_forever(CHUNKED, f'{len(OLD):x}\r\n', OLD, '\r\n0\r\n', again='X: y\r\n'),
        'only .* bytes came in'),
    'endless headers': one(then_forever('HTTP/1.1 200 OK\r\n', again='X: y\r\n'), '100 headers'),
    'endless header': one(then_forever('HTTP/1.1 200 OK\r\nX: ', again='x' * 9_000), 'LineTooLong'),
    'no answer': one(silent(), 'timed out'),
    'no end of the headers': one(silent('HTTP/1.1 200 OK\r\n'), 'timed out'),
    'half, then silence': one(silent(head(Content_Length=len(OLD)), OLD[:HALF]), 'timed out'),
    # Other addresses.
    'redirect': Kind([leads_to('/moved/w.pth'), honest(OLD)], OLD),
    'redirect with an endless body': Kind(
        [then_forever(head('302 Found', Location='/w2.pth'), again=bytes(9_000)), honest(OLD)],
        OLD),
    'redirect to a name that is not ASCII': Kind([leads_to('/gewichte-für-cswin.pth'),
                                                  honest(OLD)], OLD),
    'redirect to ftp': one(leads_to('ftp://127.0.0.1/w.pth'), 'leads to .ftp:.*only http'),
    'redirect to a file': one(leads_to('file:///etc/passwd'), 'leads to .file:.*only http'),
    'redirect to data': one(leads_to('data:,x'), 'leads to .data:.*only http'),
    'redirect to itself': one(leads_to('/w.pth'), 'address to address'),
    'redirect to nowhere': one(whole(b'', '302 Found'), 'HTTP status 302'),
    'redirect to a bad IPv6 address': one(leads_to('http://[::1/w.pth'), 'leads to .*IPv6'),
    'redirect to a host without a name': one(leads_to('http:///w.pth'), 'address to address'),
    'redirect to an empty label': one(leads_to('http://a..b/w.pth'), 'leads to .*no valid address'),
    'redirect to a password': one(leads_to('http://me:pw@127.0.0.1/w'), 'leads to .*a password'),
    # Statuses.
    'status 401': one(whole(b'who?', '401 Unauthorized'), 'HTTP status 401'),
    'status 403': one(whole(b'no', '403 Forbidden'), 'HTTP status 403'),
    'status 404': one(whole(b'no', '404 Not Found'), 'HTTP status 404'),
    'status 204': one(whole(b'', '204 No Content'), 'HTTP status 204'),
    'status 304': one(whole(b'', '304 Not Modified'), 'HTTP status 304'),
    'status 202': one(whole(b'later', '202 Accepted'), 'HTTP status 202'),
    'status 500 always': one(whole(b'', '500 Oops'), 'HTTP status 500: Oops, tried 3 times'),
    'status 503, then the file': Kind([whole(b'', '503 Busy'), honest(OLD)], OLD),
    'status 429, then the file': Kind([whole(b'', '429 Slowly'), honest(OLD)], OLD),
    'status with an endless body': one(then_forever(head('404 Gone'), again=bytes(9_000)),
                                       'HTTP status 404'),
    'status that is no number': one(sends('HTTP/1.1 abc OK\r\n\r\n'), 'no valid HTTP'),
    'status with control characters': one(whole(b'', '404 \x1b[2J\x07gone'),
                                          re.escape('404: ?[2J?gone')),
    'another protocol': one(sends('SSH-2.0-OpenSSH_9.2\r\n'), 'no valid HTTP.*BadStatusLine'),
    'no byte, then the end': one(sends(), 'closed connection'),
    'a reset': one(resets, 'reset'),
    'a reset, then the file': Kind([resets, honest(OLD)], OLD),
    # Files.
    'a web page': one(whole(b'<html>Sign in', Content_Type='text/html'), 'web page'),
    'a web page as a file': one(whole(b'<!DOCTYPE html>Sign in'), 'web page'),
    'an error as JSON': one(whole(b'{"error": "quota exceeded"}'), 'no checkpoint'),
    'a pointer of Git LFS': one(whole(b'version https://git-lfs.github.com/spec/v1\n'), 'Git LFS'),
    'nothing': one(whole(b''), 'empty'),
    'rubbish': one(whole(bytes(range(256)) * 8), 'no format'),
    'a packed answer': one(whole(OLD, Content_Encoding='gzip'), 'packed by gzip'),
    'a flipped bit': one(whole(flipped(OLD)), 'damaged.*checksum|Bad CRC'),
    'an archive without its end': one(whole(OLD[:-30]), 'cut off'),
    'an archive that unpacks to 500 times its size': one(whole(packed(9)), 'refused'),
    'safetensors without its end': one(
        whole(safetensors(json.dumps({'w': {'dtype': 'F32', 'shape': [9], 'data_offsets': [0, 36]}}
                                     ).encode(), bytes(20))), 'damaged'),
    'safetensors with a header of rubbish': one(whole(safetensors(b'{"w": [')), 'damaged'),
}


class Server:
    """Answers on loopback as a kind says.

    Attributes:
        url: where it is.
        answers: as in `Kind`; may be replaced at any time.
        requests: what it was asked.
    """

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self._tls = tls
        self._over = threading.Event()
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port = self._listener.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}'
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        # A client that has had enough closes the connection.
        with connection, suppress(OSError):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            text = b''
            while b'\r\n\r\n' not in text:
                if not (piece := connection.recv(9_000)):
                    return
                text += piece
            request = Request(text.split()[1].decode())
            if asked := re.search(rb'\r\nRange: bytes=(\d+)-', text):
                request.start = int(asked[1])
            if asked := re.search(rb'\r\nIf-Range: (.*)\r\n', text, re.I):
                request.condition = asked[1].decode()
            self.requests.append(request)
            answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
            answer(Connection(connection, request, self._over))
            if self._tls:
                connection.close()

    def close(self) -> None:
        self._over.set()
        self._listener.close()


@contextmanager
def serving(*answers: Answer) -> Iterator[Server]:
    server = Server(*answers)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    return tmp_path / 'hub' / 'checkpoints'


def fetch(url: str, **options: object) -> Path:
    return download(url, **{'attempts': 3, 'patience': PATIENCE, **options})


def message_of(url: str, **options: object) -> str:
    """The message that a download ends with, which has to be one line."""
    with pytest.raises(UserError) as error:
        fetch(url, **options)
    message = str(error.value)
    assert message.isprintable() and len(message) < 2000
    return message


def files(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_file()} if cache.exists() else set()


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS.keys())
def test_a_bad_server(kind: Kind, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'LARGEST', kind.largest)
    begun = time.monotonic()
    with serving(*kind.answers) as server:
        url = f'{server.url}/w.pth'
        if isinstance(kind.outcome, bytes):
            assert fetch(url).read_bytes() == kind.outcome
            assert files(cache) == {'w.pth', 'w.pth.origin.json'}
            return
        message = message_of(url)
        assert time.monotonic() - begun < SECONDS
        assert re.search(kind.outcome, message), message
        assert message.endswith(f'init_cfg=None to begin with random weights, or fetch it by hand '
                                f'and put it at {cache / "w.pth"}')
        # What is kept can be gone on from, and nothing else is kept.
        kept = 'are kept, the next call goes on' in message
        assert files(cache) == ({'w.pth.part', 'w.pth.part.json'} if kept else set())
        monkeypatch.setattr(module, 'LARGEST', 1 << 30)
        server.answers = [honest(NEW)]
        assert fetch(url).read_bytes() == NEW
        assert files(cache) == {'w.pth', 'w.pth.origin.json'}


def test_what_came_before_a_refused_range_is_not_called_kept(cache: Path) -> None:
    with serving(cut(OLD), part(NEW)) as server:
        message = message_of(f'{server.url}/w.pth', attempts=2)
    assert 'what came was dropped' in message and 'kept' not in message
    assert not files(cache)


def test_a_part_without_a_version_is_not_called_kept(cache: Path) -> None:
    with serving(sends(head(Content_Length=len(OLD)), OLD[:HALF])) as server:
        message = message_of(f'{server.url}/w.pth')
        assert 'ended after' in message and 'kept' not in message
    assert not files(cache)


def test_a_file_that_came_whole_is_not_asked_for_again(cache: Path) -> None:
    """A kill may come between the last byte and the name."""
    with serving(cut(OLD), honest(OLD)) as server:
        message_of(f'{server.url}/w.pth', attempts=1)
        (cache / 'w.pth.part').write_bytes(OLD)
        assert fetch(f'{server.url}/w.pth').read_bytes() == OLD
        assert len(server.requests) == 1


@pytest.mark.parametrize('record', ['', '[]', '{"url": 1}', 'null', '"x"', '\x00',
                                    '{"url": null, "etag": 5, "modified": [], "total": "x"}'])
def test_a_damaged_record_of_a_part_is_no_record(record: str, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / 'w.pth.part').write_bytes(OLD[:HALF])
    (cache / 'w.pth.part.json').write_text(record)
    with serving(honest(NEW)) as server:
        assert fetch(f'{server.url}/w.pth').read_bytes() == NEW


@pytest.mark.parametrize('answer, outcome', [
    (honest(OLD), 'announces .* bytes, published are 1,000'),
    (then_forever(UNKNOWN, again=bytes(900)), 'goes on after 1,000 bytes, where it should end'),
    (sends(UNKNOWN, OLD[:900]), 'ended after 900 of 1,000'),
], ids=['announced', 'endless', 'short'])
def test_a_published_length_is_the_limit(answer: Answer, outcome: str, cache: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    release = replace(find_release('cswin_tiny_224'), size=1000)
    with serving(answer) as server:
        assert re.search(outcome, message_of(f'{server.url}/w.pth', size=1000))
        monkeypatch.setenv('VISATTN_MIRROR', server.url)
        monkeypatch.setattr(time, 'sleep', lambda _: None)
        with pytest.raises(UserError, match=outcome):
            release.fetch()
    assert not files(cache)


@pytest.mark.parametrize('address, message', [
    ('http://[::1/w.pth', 'no valid address.*IPv6'),
    ('http://[zz]/w.pth', 'no valid address|no connection'),
    ('http://127.0.0.1:99999/w.pth', 'no valid address'),
    ('http://127.0.0.1:abc/w.pth', 'no valid address'),
    ('http://a..b/w.pth', 'no valid address'),
    (f'http://{"a" * 300}/w.pth', 'no valid address'),
    ('http:///w.pth', 'only http and https'),
    ('https://', 'only http and https'),
    ('http://me:secret@127.0.0.1/w.pth', 'leave them out'),
    ('http://127.0.0.1/gewichte-für.pth', 'gewichte-f%C3%BCr.pth'),
    ('http://bücher.example/w.pth', 'xn--'),
    ('http://127.0.0.1/two words.pth', 'two%20words.pth'),
    ('http://127.0.0.1/a\nb.pth', 'a%0Ab.pth'),
    ('http://127.0.0.1/', 'no file name'),
    ('http://127.0.0.1', 'no file name'),
    ('http://127.0.0.1/folder/', 'no file name'),
    ('http://127.0.0.1/folder/..', 'is no name for a file'),
    ('http://127.0.0.1/folder/.', 'is no name for a file'),
    ('http://127.0.0.1/.locks', 'is no name for a file'),
    ('http://127.0.0.1/w.pth.part', 'is no name for a file'),
    ('http://127.0.0.1/w.pth.origin.json', 'is no name for a file'),
    (f'http://127.0.0.1/{"a" * 300}.pth', 'is no name for a file'),
])
def test_an_address_that_no_file_has(address: str, message: str, cache: Path) -> None:
    for door in (download, read_checkpoint):
        with pytest.raises(UserError, match=message) as error:
            door(address)
        assert str(error.value).isprintable() and len(str(error.value)) < 1500
    assert not files(cache)


def test_a_mirror_that_is_no_address(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mirror in ('http://[::1', 'http://a..b', 'ftp://127.0.0.1', 'http://127.0.0.1/für'):
        monkeypatch.setenv('VISATTN_MIRROR', mirror)
        with pytest.raises(UserError, match='VISATTN_MIRROR is the http'):
            find_release('cswin_tiny_224').fetch()


def test_a_folder_under_the_files_name(cache: Path) -> None:
    (cache / 'w.pth').mkdir(parents=True)
    with pytest.raises(UserError, match='w.pth is no file'):
        fetch('http://127.0.0.1/w.pth')


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize('address, tried', [
    (f'http://127.0.0.1:{unused_port()}', 'tried 3 times'), ('https://no-such-host.invalid', '')],
    ids=['refused', 'no such name'])
def test_a_machine_without_a_network(address: str, tried: str, cache: Path) -> None:
    """The default patience: the message comes within seconds all the same."""
    begun = time.monotonic()
    with pytest.raises(UserError, match=f'no connection to .*{tried}.*Set init_cfg=None') as error:
        download(f'{address}/w.pth')
    assert time.monotonic() - begun < 25
    assert str(error.value).endswith(f'fetch it by hand and put it at {cache / "w.pth"}')


def test_a_lookup_that_never_ends(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a resolver that drops every packet; no such one can be had on loopback."""
    release = threading.Event()
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: release.wait(60))
    monkeypatch.setattr(web, 'REACH', .5)
    monkeypatch.setattr(module, 'REACH', .5)
    begun = time.monotonic()
    message = message_of('http://example.invalid/w.pth', attempts=5, patience=60.)
    release.set()
    assert 'no connection to example.invalid' in message and time.monotonic() - begun < 6


def test_a_server_that_is_lost_halfway_is_tried_longer(cache: Path) -> None:
    """The few attempts are for servers that were never reached."""
    server = Server(cut(OLD))

    def cut_and_close(connection: Connection) -> None:
        cut(OLD)(connection)
        server.close()

    server.answers = [cut_and_close]
    message = message_of(f'{server.url}/w.pth', attempts=5, patience=.5)
    assert 'refused' in message and 'tried 5 times' in message
    assert f'The {HALF:,} bytes that came are kept' in message


@pytest.mark.parametrize('answer', [silent(), sends('HTTP/1.1 200 OK\r\n\r\n')],
                         ids=['silent', 'plain'])
def test_https_without_tls(answer: Answer, cache: Path) -> None:
    with serving(answer) as server:
        message = message_of(f'https://127.0.0.1:{server.port}/w.pth')
    assert re.search('no (secure )?connection to 127.0.0.1', message)


def test_a_proxy_is_asked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)
    with serving(honest(OLD)) as server:
        monkeypatch.setenv('http_proxy', server.url)
        assert fetch('http://example.invalid/w.pth').read_bytes() == OLD
        assert server.requests[0].path == 'http://example.invalid/w.pth'


@pytest.mark.skipif(not shutil.which('openssl'), reason='makes a certificate with openssl')
def test_https_with_and_without_a_known_certificate(cache: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / 'certificate.pem', tmp_path / 'key.pem'
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '1',
                    '-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1',
                    '-keyout', key, '-out', certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server(cut(OLD), honest(OLD), tls=context)
    try:
        url = f'https://127.0.0.1:{server.port}/w.pth'
        message = message_of(url, attempts=5)
        assert 'no secure connection to 127.0.0.1' in message and 'tried' not in message
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
        assert fetch(url, patience=10.).read_bytes() == OLD
        assert [request.start for request in server.requests] == [0, HALF]
    finally:
        server.close()
