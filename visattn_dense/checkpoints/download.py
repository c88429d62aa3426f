"""Downloads that arrive whole or not at all: resumed, verified, once for all processes.

A file NAME of the cache has beside it

    NAME.origin.json   its address, size and sha256 as they were when it arrived, checked ever
                       after, and the mirror that it came from, if any
    NAME.part          what has come of it so far, and NAME.part.json, which version that is of

The process that downloads holds a lock in the folder .locks.
"""
import errno
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlparse

from visattn_dense.errors import UserError

from .archive import check_is_checkpoint

CHUNK = 1 << 20
_RANGE = re.compile(r'bytes (\d+)-\d+/(\d+|\*)')
# Passing troubles of a server; any other status is final.
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR)


@dataclass
class Origin:
    """What a file of the cache was when it arrived: address (None: by hand), bytes, checksum, and
    the mirror that it came from in place of that address."""

    url: str | None
    size: int
    sha256: str
    mirror: str | None = None


class _Interrupted(Exception):
    """A transfer stopped before its end; trying again goes on from there."""


def cache_folder() -> Path:
    """torch's folder of downloaded checkpoints; TORCH_HOME moves it."""
    import torch
    return Path(torch.hub.get_dir()) / 'checkpoints'


def download(url: str | None, path: str | os.PathLike | None = None, *, sha256: str | None = None,
             mirror: str | None = None, attempts: int = 5, patience: float = 60.,
             progress: bool | None = None) -> Path:
    """The file at `url`, from the cache or else downloaded into it.

    Processes that ask for the same file at the same time download it once. An interrupted transfer
    goes on where it stopped, in this call or in a later one, as long as the server still has the
    same version of the file.

    Args:
        url: http(s) address; None where the file can only have been put at `path` by hand, or
            comes from `mirror`.
        path: where it belongs; by default the cache, under the last part of the address.
        sha256: published sum, or the beginning of it. By default what torch.hub's naming convention
            says: eight or more hexadecimal digits after a hyphen at the end of the name.
        mirror: address to fetch it from in place of `url`, whose file it is all the same.
        attempts: how often to try before giving up.
        patience: seconds without a byte after which a transfer counts as interrupted; also the
            longest pause between attempts is a tenth of it.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Raises:
        UserError: it cannot be downloaded, is no checkpoint, or is not what was published or what
            arrived first; the message says where to put the file by hand. Nothing remains under
            the file's name then, or what was there remains as it was.
    """
    path = cache_folder() / _name_of(url) if path is None else Path(path)
    sha256 = sha256 or _published_sum(path.name)
    if not path.exists():
        from filelock import FileLock
        with FileLock(_lock_of(path)):
            # Another process may have been faster.
            if not path.exists():
                _fetch(url, path, sha256, mirror=mirror, attempts=attempts, patience=patience,
                       progress=progress)
    verify(path, url, sha256=sha256)
    return path


def verify(path: Path, url: str | None = None, *, sha256: str | None = None) -> Origin:
    """Check a file of the cache against what it was when it arrived, or else remember what it is.

    Raises:
        UserError: it has changed, comes from another address, or is not what was published.
    """
    record = _record_of(path)
    now = Origin(url, path.stat().st_size, file_sha256(path))
    if sha256 and not now.sha256.startswith(sha256.lower()):
        raise UserError(f'{path} is not the published file: its sha256 is {now.sha256}, published '
                        f'is {sha256}; delete it to download it anew')
    then = _read_record(record)
    if then is not None and then.sha256 != now.sha256:
        raise UserError(
            f'{path} has changed since it arrived: {now.size:,} bytes with sha256 {now.sha256}, '
            f'then {then.size:,} bytes with {then.sha256}. Delete it to download it anew, or '
            f'delete {record.name} beside it if the new file is meant to be there')
    if then is not None and url and then.url and then.url != url:
        raise UserError(f'{path} came from {then.url}, not from {url}, which has the same file '
                        'name; download one of the two under another name and give its path')
    if then is not None:
        return then
    # A cache that others keep may be read-only.
    with suppress(OSError):
        _write_record(record, now)
    return now


def file_sha256(path: Path) -> str:
    """The sum as sha256sum prints it."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _fetch(url: str | None, path: Path, sha256: str | None, *, mirror: str | None, attempts: int,
           patience: float, progress: bool | None) -> None:
    """Download to NAME.part, check that, and give it its name."""
    published = f' from {url}' if mirror and url else ''
    by_hand = f'Fetch it by hand{published} and put it at {path}'
    source = mirror or url
    part = path.with_name(path.name + '.part')
    trouble = ''
    for attempt in range(attempts):
        if attempt:
            time.sleep(min(2.**(attempt - 1), patience / 10))
        try:
            _transfer(source, part, patience=patience, progress=progress)
            break
        except urllib.error.HTTPError as error:
            trouble = f'HTTP status {error.code}: {error.reason}'
            if error.code not in _TRY_AGAIN:
                raise UserError(f'could not download {source} ({trouble}). {by_hand}') from error
        except (_Interrupted, urllib.error.URLError, http.client.HTTPException, TimeoutError,
                ConnectionError) as error:
            trouble = str(getattr(error, 'reason', error)) or type(error).__name__
        except OSError as error:
            trouble = str(error)
            if error.errno in _CANNOT_WRITE:
                raise UserError(f'could not write {part}: {error.strerror}. Make room, or move the '
                                'cache with the environment variable TORCH_HOME') from error
    else:
        raise UserError(f'could not download {source}: {trouble}, {attempts} times. What came is '
                        f'kept and the next call goes on from there. {by_hand}')
    try:
        check_is_checkpoint(part)
        origin = Origin(url, part.stat().st_size, file_sha256(part), mirror)
        if sha256 and not origin.sha256.startswith(sha256.lower()):
            raise UserError(f'its sha256 is {origin.sha256}, published is {sha256}')
    except UserError as error:
        _forget(part)
        raise UserError(f'what {source} gave is not the file: {error}. {by_hand}') from error
    # The record first: a kill in between leaves no file without one.
    _write_record(_record_of(path), origin)
    os.replace(part, path)
    _forget(part)


def _transfer(url: str, part: Path, *, patience: float, progress: bool | None) -> None:
    """Bring NAME.part to its full length, from where it stands if the server has the same file."""
    version = part.with_name(part.name + '.json')
    start, headers = 0, {'User-Agent': 'visattn-dense', 'Accept-Encoding': 'identity'}
    with suppress(FileNotFoundError, ValueError, KeyError):
        # If-Range: the rest of this very version, or else the whole of the new one.
        was = json.loads(version.read_text())
        # Two servers may give the same date to different files.
        if was['url'] == url and (start := part.stat().st_size):
            headers |= {'Range': f'bytes={start}-', 'If-Range': was['validator']}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers),
                                          timeout=patience)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            _forget(part)
            raise _Interrupted('the part that was here is no part of the file') from error
        raise
    with response:
        if response.headers.get_content_type() == 'text/html':
            raise UserError(f'{url} answers with a web page, not with a file: the link is dead, or '
                            'wants a login. Fetch it by hand and put it at '
                            f'{part.with_name(part.name.removesuffix(".part"))}')
        resumed = response.status == 206
        span = _RANGE.fullmatch(response.headers.get('Content-Range', ''))
        if resumed and not (span and int(span[1]) == start):
            _forget(part)
            raise _Interrupted('the server sent another part of the file than was asked for')
        start = start if resumed else 0
        length = response.headers.get('Content-Length')
        total = start + int(length) if length else None
        if not resumed:
            _forget(part)
            if validator := _strong_validator(response.headers):
                _write_whole(version, json.dumps({'url': url, 'validator': validator}))
        _receive(response, part, start=start, total=total, progress=progress)


def _receive(response: http.client.HTTPResponse, part: Path, *, start: int, total: int | None,
             progress: bool | None) -> None:
    from tqdm import tqdm
    name = part.name.removesuffix('.part')
    with (open(part, 'ab' if start else 'wb') as file,
          tqdm(desc=name, initial=start, total=total, unit='B', unit_scale=True, unit_divisor=1024,
               disable=None if progress is None else not progress) as bar):
        # read1 gives what is there: a stall loses nothing.
        while block := response.read1(CHUNK):
            file.write(block)
            bar.update(len(block))
    came = part.stat().st_size
    if total is not None and came != total:
        raise _Interrupted(f'the connection ended after {came:,} of {total:,} bytes')


def _strong_validator(headers: http.client.HTTPMessage) -> str | None:
    """What names this very version of the file; a weak ETag does not (RFC 9110, 13.1.5)."""
    etag = headers.get('ETag', '')
    return etag if etag.startswith('"') else headers.get('Last-Modified')


def _forget(part: Path) -> None:
    for path in (part, part.with_name(part.name + '.json')):
        path.unlink(missing_ok=True)


def _name_of(url: str) -> str:
    name = Path(urlparse(url).path).name
    if not name:
        raise UserError(f'{url} has no file name at its end; download it and give its path')
    return name


def _published_sum(name: str) -> str | None:
    # A date is no sum.
    match = re.search(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.', name)
    return match[1] if match else None


def _record_of(path: Path) -> Path:
    return path.with_name(path.name + '.origin.json')


def _read_record(record: Path) -> Origin | None:
    """None where there is no record, or none that can be read."""
    with suppress(FileNotFoundError, ValueError, TypeError):
        return Origin(**json.loads(record.read_text()))
    return None


def _write_record(record: Path, origin: Origin) -> None:
    entries = {key: value for key, value in asdict(origin).items()
               if value is not None or key != 'mirror'}
    _write_whole(record, json.dumps(entries, indent=1))


def _lock_of(path: Path) -> Path:
    """Apart, because a lock that is deleted after use is none."""
    folder = path.parent / '.locks'
    _make_folder(folder)
    return folder / f'{hashlib.sha256(path.name.encode()).hexdigest()[:16]}.lock'


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'the cache {folder} cannot be made: {error.strerror}; move it with the '
                        'environment variable TORCH_HOME') from error


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    temporary.write_text(text)
    os.replace(temporary, path)
