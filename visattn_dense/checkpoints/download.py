"""Downloads: resumed after a break, verified, and made once for all processes.

A file appears under its name only when it is complete. Beside a file NAME in the cache lie

    NAME.origin.json   address, size and sha256 of the file when it arrived, checked at every later
                       use; and the mirror of the download, if there was one
    NAME.part          the bytes of an unfinished download
    NAME.part.json     the version of the file to which these bytes belong

The process that downloads holds a lock in the folder .locks.
"""
import hashlib
import json
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from visattn_dense.atomic import write_text_whole
from visattn_dense.errors import UserError
from visattn_dense.web import (
    REACH,
    Interrupted,
    Refused,
    Response,
    Unreachable,
    address_fault,
    open_url,
)

from .archive import check_is_checkpoint

CHUNK = 1 << 20
LARGEST = 32 << 30
"""More bytes than any checkpoint has. A longer body is refused."""
# Endings of this module's own files, and a length of names that every file system takes.
_OWN_ENDINGS = ('.part', '.json', '.tmp')
_LONGEST_NAME = 200
_RANGE = re.compile(r'bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)')
# How often to try a server that was never reached.
_KNOCKS = 3


@dataclass
class Origin:
    """A file of the cache when it arrived: its address (None: put there by hand), size in bytes,
    checksum, and the mirror of the download (None: downloaded from the address)."""

    url: str | None
    size: int
    sha256: str
    mirror: str | None = None


@dataclass
class _Version:
    """The version of a file in a transfer: address, and the ETag, date and length that the server
    gave with the first byte."""

    url: str
    etag: str | None
    modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """The ETag or date of this version. A weak ETag identifies none (RFC 9110, 13.1.5)."""
        return self.etag if (self.etag or '').startswith('"') else self.modified

    def continues(self, other: '_Version') -> bool:
        """Whether a part of this version fits to the bytes of `other`.

        A server may send a part of a new version, although If-Range forbids this.
        """
        return bool(self.validator == other.validator is not None
                    and (self.etag is None or self.etag == other.etag)
                    and (self.total is None or other.total is None or self.total == other.total))


def cache_folder() -> Path:
    """torch's folder of downloaded checkpoints. The variable TORCH_HOME moves this folder."""
    import torch
    return Path(torch.hub.get_dir()) / 'checkpoints'


def download(url: str | None, path: str | os.PathLike | None = None, *, sha256: str | None = None,
             size: int | None = None, mirror: str | None = None, attempts: int = 5,
             patience: float = 60., progress: bool | None = None) -> Path:
    """The file at `url`, from the cache; downloaded into the cache if necessary.

    If several processes need the same file at the same time, one process downloads it. An
    interrupted transfer continues where it stopped, in this call or in a later call, if the server
    still has the same version of the file.

    Args:
        url: http(s) address; None if the file has no address: then the file comes from `mirror`, or
            a user put the file at `path` by hand.
        path: the place of the file; by default in the cache, under the last part of the address.
        sha256: published checksum, or its beginning. By default the checksum in the name, as in
            torch.hub: eight or more hexadecimal digits after a hyphen at the end of the name.
        size: published length in bytes. A longer file is refused.
        mirror: an address to download from in place of `url`.
        attempts: how often to try. A server that cannot be reached at all is tried three times.
        patience: a transfer counts as interrupted after this many seconds without a byte, or with
            less than a kibibyte per second. The longest pause between attempts is a tenth of
            `patience`.
        progress: show a bar on stderr; None: only if stderr is a terminal.

    Raises:
        UserError: the file cannot be downloaded, is not a checkpoint, or differs from the published
            file or from the file that arrived first. The message says where to put the file by
            hand. A file that was at `path` before stays unchanged.
    """
    path = cache_folder() / _name_of(url) if path is None else Path(path)
    sha256 = sha256 or _published_sum(path.name)
    if not path.exists():
        from filelock import FileLock
        try:
            with FileLock(_lock_of(path)):
                # Another process may have been faster.
                if not path.exists():
                    _fetch(url, path, sha256, size=size, mirror=mirror, attempts=attempts,
                           patience=patience, progress=progress)
        except OSError as error:
            raise UserError(f'could not write {path} or a file beside it: '
                            f'{error.strerror or error}. Make room, or move the cache with the '
                            'environment variable TORCH_HOME') from error
    if not path.is_file():
        raise UserError(f'{path} is no file; move it away to download the file')
    verify(path, url, sha256=sha256)
    return path


def verify(path: Path, url: str | None = None, *, sha256: str | None = None) -> Origin:
    """Compare a file of the cache with its record. Without a record, write one.

    Raises:
        UserError: the file has changed, comes from another address, or is not the published file.
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
    # A cache of other users may be read-only.
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


def _fetch(url: str | None, path: Path, sha256: str | None, *, size: int | None,
           mirror: str | None, attempts: int, patience: float, progress: bool | None) -> None:
    """Download to NAME.part, check this file, and rename it to NAME."""
    source = mirror or url
    by_hand = f'fetch it by hand{f" from {url}" if mirror and url else ""} and put it at {path}'
    part = path.with_name(path.name + '.part')
    begun, before, tried = time.monotonic(), _begun(part, source)[0], 0
    while True:
        try:
            _transfer(source, part, size=size, patience=patience, progress=progress)
            break
        except Refused as error:
            final, trouble = True, _printable(error)
        except Interrupted as error:
            # With no network, an answer within seconds is better than a late one.
            hopeless = isinstance(error, Unreachable) and _begun(part, source)[0] == before and (
                tried + 1 >= _KNOCKS or time.monotonic() - begun > REACH)
            final, trouble = hopeless or tried + 1 >= attempts, _printable(error)
        tried += 1
        if final:
            kept = ''
            if came := _begun(part, source)[0]:
                kept = f' The {came:,} bytes that came are kept, the next call goes on from there.'
            else:
                # A part without a version cannot be continued.
                _forget(part)
            times = f', tried {tried} times' if tried > 1 else ''
            raise UserError(f'could not download {source} ({trouble}{times}).{kept} Set '
                            f'init_cfg=None to begin with random weights, or {by_hand}')
        time.sleep(min(2.**(tried - 1), patience / 10))
    try:
        check_is_checkpoint(part)
        origin = Origin(url, part.stat().st_size, file_sha256(part), mirror)
        if sha256 and not origin.sha256.startswith(sha256.lower()):
            raise UserError(f'its sha256 is {origin.sha256}, published is {sha256}')
    except UserError as error:
        _forget(part)
        raise UserError(f'what {source} gave is not the file: {error}. Set init_cfg=None to begin '
                        f'with random weights, or {by_hand}') from error
    # Write the record first, so that a kill in between leaves no file without a record.
    _write_record(_record_of(path), origin)
    os.replace(part, path)
    _forget(part)


def _transfer(url: str, part: Path, *, size: int | None, patience: float, progress: bool | None
              ) -> None:
    """Download the rest of NAME.part; all of it if the server has another version."""
    headers = {'User-Agent': 'visattn-dense', 'Accept-Encoding': 'identity'}
    start, was = _begun(part, url)
    if start:
        if start == was.total:
            return
        # If-Range asks for the rest of this version, or for the whole file of a new version.
        headers |= {'Range': f'bytes={start}-', 'If-Range': was.validator}
    try:
        response = open_url(url, headers, patience)
    except Refused as error:
        if error.status == 416 and start:
            _forget(part)
            raise Interrupted('the server has no rest to what came; it was dropped') from error
        raise
    with response:
        _check_answer(response, resuming=start > 0)
        first, end, total = _span(response)
        now = _Version(url, response.headers.get('ETag'), response.headers.get('Last-Modified'),
                       total)
        if response.status == 206:
            if first != start or not now.continues(was):
                _forget(part)
                raise Interrupted('the server sent a part of another version, or another part than '
                                  'was asked for; what came was dropped')
            total = total or was.total
        else:
            start = 0
            _forget(part)
        total = total or size
        _check_length(total, size, part, start)
        if not start and now.validator:
            write_text_whole(_version_of(part), json.dumps(asdict(now)))
        _receive(response, part, start=start, total=total, progress=progress)


def _check_answer(response: Response, *, resuming: bool) -> None:
    """Refuse an answer that cannot be the file, or the requested part of the file."""
    if response.status not in ((200, 203, 206) if resuming else (200, 203)):
        raise Refused(f'HTTP status {response.status}: {response.reason}')
    if response.headers.get_content_type() == 'text/html':
        raise Refused('it answers with a web page, not with a file: the link is dead, or wants a '
                      'login')
    packing = response.headers.get('Content-Encoding', 'identity').strip().lower()
    if packing not in ('identity', ''):
        raise Refused(f'it answers with a file packed by {packing}, which was not asked for')


def _span(response: Response) -> tuple[int, int | None, int | None]:
    """(first, end, total): the answer's body is bytes first to end - 1 of a file of `total` bytes.

    end or total is None if the server does not give it. first is -1 for an invalid Content-Range.
    """
    lengths = {length.strip() for length in response.headers.get_all('Content-Length', [])}
    if any(not re.fullmatch('[0-9]{1,18}', length) for length in lengths) or len(lengths) > 1:
        given = ' and '.join(repr(length[:40]) for length in sorted(lengths))
        raise Refused(f'it gives {given} as the length of the file')
    length = int(lengths.pop()) if lengths else None
    if response.status != 206:
        return 0, length, length
    match = _RANGE.fullmatch(response.headers.get('Content-Range', '').strip())
    if not match:
        return -1, None, None
    first, end = int(match[1]), int(match[2]) + 1
    total = None if match[3] == '*' else int(match[3])
    if length not in (None, end - first) or (total is not None and end > total):
        return -1, None, None
    return first, end, total


def _check_length(total: int | None, size: int | None, part: Path, start: int) -> None:
    """Refuse a file whose length is not the published one, or that does not fit on the disk."""
    if size is not None and total != size:
        raise Refused(f'it announces {total:,} bytes, published are {size:,}')
    if (total or 0) > LARGEST:
        raise Refused(f'it announces {total:,} bytes, more than any checkpoint has')
    free = shutil.disk_usage(part.parent).free
    if total and total - start > free:
        raise Refused(f'the {total - start:,} bytes to come have no room at {part.parent}, where '
                      f'{free:,} are free; make room, or move the cache with the environment '
                      'variable TORCH_HOME')


def _receive(response: Response, part: Path, *, start: int, total: int | None,
             progress: bool | None) -> None:
    from tqdm import tqdm
    name = part.name.removesuffix('.part')
    # If the server announced no length, leave some room on the disk.
    limit = total or min(LARGEST, start + shutil.disk_usage(part.parent).free * 9 // 10)
    came = start
    with (open(part, 'ab' if start else 'wb') as file,
          tqdm(desc=name, initial=start, total=total, unit='B', unit_scale=True, unit_divisor=1024,
               disable=None if progress is None else not progress) as bar):
        # Bytes are written as soon as they arrive, so that a stall loses nothing.
        while block := response.read_some(CHUNK):
            came += len(block)
            if came > limit:
                break
            file.write(block)
            bar.update(len(block))
    if came > limit:
        _forget(part)
        raise Refused(f'it goes on after {limit:,} bytes, ' + (
            'where it should end' if total else 'and never said how long it is'))
    if total is not None and came != total:
        raise Interrupted(f'the connection ended after {came:,} of {total:,} bytes')


def _begun(part: Path, url: str) -> tuple[int, _Version | None]:
    """How many bytes of an earlier transfer from `url` can be used, and their version."""
    with suppress(FileNotFoundError, ValueError, TypeError, AttributeError):
        was = _Version(**json.loads(_version_of(part).read_text()))
        came = part.stat().st_size
        # Two servers may give the same date to different files.
        if was.url == url and was.validator and 0 < came <= (was.total or came):
            return came, was
    return 0, None


def _version_of(part: Path) -> Path:
    return part.with_name(part.name + '.json')


def _printable(what: object) -> str:
    """One short line; a server may send anything as its reason."""
    text = ''.join(c if c.isprintable() else '?' for c in str(what))
    return text if len(text) <= 500 else f'{text[:500]}...'


def _forget(part: Path) -> None:
    for path in (part, _version_of(part)):
        path.unlink(missing_ok=True)


def _name_of(url: str) -> str:
    """The file name at the end of an address.

    Raises:
        UserError: the address is not valid, or no file of the cache can have this name.
    """
    advice = 'Download the file by hand and give its path'
    if fault := address_fault(url):
        raise UserError(f'cannot download {_printable(url)}: {fault}. {advice}')
    name = urlsplit(url).path.rpartition('/')[2]
    if not name:
        raise UserError(f'{_printable(url)} has no file name at its end. {advice}')
    if len(name) > _LONGEST_NAME or name.startswith('.') or name.endswith(_OWN_ENDINGS):
        raise UserError(f'the end of {_printable(url)} is no name for a file of the cache: such a '
                        f'name has at most {_LONGEST_NAME} characters, does not begin with a dot '
                        f'and does not end in {", ".join(_OWN_ENDINGS)}. {advice}')
    return name


def _published_sum(name: str) -> str | None:
    # Digits that look like a date are not a checksum.
    match = re.search(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.', name)
    return match[1] if match else None


def _record_of(path: Path) -> Path:
    return path.with_name(path.name + '.origin.json')


def _read_record(record: Path) -> Origin | None:
    """The record; None if there is no readable record."""
    with suppress(FileNotFoundError, ValueError, TypeError):
        return Origin(**json.loads(record.read_text()))
    return None


def _write_record(record: Path, origin: Origin) -> None:
    entries = {key: value for key, value in asdict(origin).items()
               if value is not None or key != 'mirror'}
    write_text_whole(record, json.dumps(entries, indent=1))


def _lock_of(path: Path) -> Path:
    """The lock file of a download, in a folder of its own: a lock file must not be deleted."""
    folder = path.parent / '.locks'
    _make_folder(folder)
    return folder / f'{hashlib.sha256(path.name.encode()).hexdigest()[:16]}.lock'


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'the cache {folder} cannot be made: {error.strerror}; move it with the '
                        'environment variable TORCH_HOME') from error
