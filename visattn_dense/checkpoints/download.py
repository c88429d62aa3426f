"""Downloads that arrive whole or not at all: resumed, verified, once for all processes.

A file NAME of the cache has beside it

    NAME.origin.json   its address, size and sha256 as they were when it arrived, checked ever
                       after, and the mirror that it came from, if any
    NAME.part          what has come of it so far, and NAME.part.json, which version that is of

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

from .archive import check_is_checkpoint
from .web import REACH, Interrupted, Refused, Response, Unreachable, address_fault, open_url

CHUNK = 1 << 20
LARGEST = 32 << 30
"""Bytes that no checkpoint has; a longer body is not taken."""
# What else of a name this module gives to files of its own, and what file systems take.
_OWN_ENDINGS = ('.part', '.json', '.tmp')
_LONGEST_NAME = 200
_RANGE = re.compile(r'bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)')
# Attempts to reach a server that was never reached.
_KNOCKS = 3


@dataclass
class Origin:
    """What a file of the cache was when it arrived: address (None: by hand), bytes, checksum, and
    the mirror that it came from in place of that address."""

    url: str | None
    size: int
    sha256: str
    mirror: str | None = None


@dataclass
class _Version:
    """Which version of a file a transfer is of: its address, the names and the length of it that
    the server gave with the first byte."""

    url: str
    etag: str | None
    modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """What names this very version; a weak ETag does not (RFC 9110, 13.1.5)."""
        return self.etag if (self.etag or '').startswith('"') else self.modified

    def continues(self, other: '_Version') -> bool:
        """Whether a part of this version belongs to what has come of the other.

        A server may send a part of a new version although If-Range forbids that.
        """
        return bool(self.validator == other.validator is not None
                    and (self.etag is None or self.etag == other.etag)
                    and (self.total is None or other.total is None or self.total == other.total))


def cache_folder() -> Path:
    """torch's folder of downloaded checkpoints; TORCH_HOME moves it."""
    import torch
    return Path(torch.hub.get_dir()) / 'checkpoints'


def download(url: str | None, path: str | os.PathLike | None = None, *, sha256: str | None = None,
             size: int | None = None, mirror: str | None = None, attempts: int = 5,
             patience: float = 60., progress: bool | None = None) -> Path:
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
        size: published length in bytes. What is longer is not taken.
        mirror: address to fetch it from in place of `url`, whose file it is all the same.
        attempts: how often to try before giving up. A server that cannot be reached at all is tried
            three times.
        patience: seconds without a byte, or with less than a kibibyte for each of them, after which
            a transfer counts as interrupted; also the longest pause between attempts is a tenth of
            it.
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


def _fetch(url: str | None, path: Path, sha256: str | None, *, size: int | None,
           mirror: str | None, attempts: int, patience: float, progress: bool | None) -> None:
    """Download to NAME.part, check that, and give it its name."""
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
                # Without its version no call can go on from it.
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
    # The record first: a kill in between leaves no file without one.
    _write_record(_record_of(path), origin)
    os.replace(part, path)
    _forget(part)


def _transfer(url: str, part: Path, *, size: int | None, patience: float, progress: bool | None
              ) -> None:
    """Bring NAME.part to its full length, from where it stands if the server has the same file."""
    headers = {'User-Agent': 'visattn-dense', 'Accept-Encoding': 'identity'}
    start, was = _begun(part, url)
    if start:
        if start == was.total:
            return
        # If-Range: the rest of this very version, or else the whole of the new one.
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
    """Refuse what cannot be the file, or the part of it that was asked for."""
    if response.status not in ((200, 203, 206) if resuming else (200, 203)):
        raise Refused(f'HTTP status {response.status}: {response.reason}')
    if response.headers.get_content_type() == 'text/html':
        raise Refused('it answers with a web page, not with a file: the link is dead, or wants a '
                      'login')
    packing = response.headers.get('Content-Encoding', 'identity').strip().lower()
    if packing not in ('identity', ''):
        raise Refused(f'it answers with a file packed by {packing}, which was not asked for')


def _span(response: Response) -> tuple[int, int | None, int | None]:
    """First byte of the answer's body, the one after its last, and the length of the whole file;
    None where the server does not say. A Content-Range that says nothing gives -1."""
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
    """Refuse a file of another length than was published, or one that has no room."""
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
    # A length that nobody announced leaves some room on the disk.
    limit = total or min(LARGEST, start + shutil.disk_usage(part.parent).free * 9 // 10)
    came = start
    with (open(part, 'ab' if start else 'wb') as file,
          tqdm(desc=name, initial=start, total=total, unit='B', unit_scale=True, unit_divisor=1024,
               disable=None if progress is None else not progress) as bar):
        # What is there is taken at once: a stall loses nothing.
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
    """How many bytes have come that a transfer from `url` can go on from, and their version."""
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
        UserError: the address is none, or no file can have that name.
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
    write_text_whole(record, json.dumps(entries, indent=1))


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
