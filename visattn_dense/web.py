"""One http(s) request, which always ends, with any server.

urllib limits only the wait for each single byte. A server that sends one byte a minute, or headers
without end, would keep its client waiting for ever. Here a connection must stand within `REACH`
seconds, and the body must arrive with at least `SLOWEST` bytes a second. Bytes of headers, of chunk
sizes and of trailers do not count.
"""
import http.client
import io
import re
import socket
import string
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from ssl import SSLEOFError, SSLError
from urllib.parse import quote, urljoin, urlsplit

REACH = 10.
"""Seconds for everything before the request: the lookup of the name, all its addresses, TLS."""
SLOWEST = 1024
"""Bytes of a body that have to come each second, on average over `patience` seconds."""
REDIRECTS = 10
_REDIRECT = (301, 302, 303, 307, 308)
# Temporary troubles of a server; any other status is final.
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class Interrupted(Exception):
    """A transfer stopped before its end. Another attempt may continue it."""


class Unreachable(Interrupted):
    """There was no connection to the server. A few more attempts may help."""


class Refused(Exception):
    """No further attempt can succeed.

    Attributes:
        status: the HTTP status, if that is the reason.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def open_url(url: str, headers: Mapping[str, str], patience: float) -> 'Response':
    """The answer to a GET, after at most `REDIRECTS` redirects, all of them to http(s).

    Args:
        url: http(s) address.
        headers: of the request.
        patience: seconds without a byte, or with too few, after which the transfer is interrupted.

    Raises:
        Interrupted, Unreachable: the request may succeed another time.
        Refused: the request cannot succeed: the address, the status, or no HTTP.
    """
    asked = url
    for _ in range(REDIRECTS):
        if fault := address_fault(url):
            raise Refused(fault if url == asked else f'it leads to {url[:200]!r}: {fault}')
        request = urllib.request.Request(url, headers=dict(headers))
        try:
            with _troubles():
                return _opener().open(request, timeout=patience)
        except urllib.error.HTTPError as error:
            # The body of an error or of a redirect may have no end; it is not read.
            error.close()
            target = error.headers.get('Location')
            if error.code not in _REDIRECT or not target:
                status = f'HTTP status {error.code}: {error.reason}'
                if error.code in _TRY_AGAIN:
                    raise Interrupted(status) from error
                raise Refused(status, error.code) from error
        try:
            url = urljoin(url, quote(target, encoding='iso-8859-1', safe=string.punctuation))
        except ValueError as error:
            raise Refused(f'it leads to {target[:200]!r}: {error}') from error
    raise Refused(f'it leads from address to address, more than {REDIRECTS} times')


def address_fault(url: str) -> str:
    """Why `url` is not a usable http(s) address; '' if it is one."""
    if re.search(r'[^!-~]', url):
        return ('an address has only ASCII characters and no spaces: in a path, write '
                f'{quote(url, safe=string.punctuation)[:300]!r}; in a host, its xn-- form')
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        # Finds labels that are empty or too long.
        (host or '').encode('idna')
    except ValueError as error:
        return f'it is no valid address ({error})'
    if parts.scheme not in ('http', 'https') or not host:
        return 'only http and https addresses can be downloaded'
    return 'it holds a user name or a password; leave them out' if '@' in parts.netloc else ''


class Response(http.client.HTTPResponse):
    """An answer that is interrupted when it becomes too slow."""

    def __init__(self, sock: socket.socket, *args, **kwargs) -> None:
        super().__init__(sock, *args, **kwargs)
        self._paced = _Paced(sock, self.fp)
        self.fp = io.BufferedReader(self._paced)

    def read_some(self, size: int) -> bytes:
        """The bytes of the body that have arrived, `size` bytes at most; b'' at the end.

        Raises:
            Interrupted, Refused: as in `open_url`.
        """
        with _troubles():
            block = self.read1(size)
        self._paced.came += len(block)
        return block


class _Paced(io.RawIOBase):
    """The bytes of a socket. Raises TimeoutError if the body arrives too slowly.

    Attributes:
        came: bytes of the body since the current span of `patience` seconds began; the reader of
            the body adds to it.
    """

    def __init__(self, sock: socket.socket, owner: io.BufferedIOBase) -> None:
        self._sock, self._owner = sock, owner
        self._patience = sock.gettimeout()
        self._since, self.came = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = self._sock.recv_into(buffer)
        now = time.monotonic()
        if (span := now - self._since) >= self._patience:
            if self.came < SLOWEST * span:
                raise TimeoutError(f'only {self.came:,} bytes came in {span:.0f} seconds')
            self._since, self.came = now, 0
        return count

    def close(self) -> None:
        # The socket closes when its last file does.
        self._owner.close()
        super().close()


class _Connecting:
    """A connection that stands within `REACH` seconds, or raises."""

    response_class = Response

    def connect(self) -> None:
        connected: Future[None] = Future()
        # A lookup of a name and a TLS handshake cannot be interrupted; a thread can be left behind.
        threading.Thread(target=_settle, args=(connected, super().connect), daemon=True).start()
        limit = min(REACH, self.timeout)
        try:
            connected.result(limit)
        except FutureTimeout as error:
            raise Unreachable(f'no connection to {self.host} within {limit:.0f} seconds') from error
        except SSLError as error:
            kind = Unreachable if isinstance(error, SSLEOFError) else Refused
            raise kind(f'no secure connection to {self.host}: {error}') from error
        except OSError as error:
            raise Unreachable(f'no connection to {self.host}: {error.strerror or error}'
                              ) from error


def _settle(future: Future, function) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


class _HTTPConnection(_Connecting, http.client.HTTPConnection):
    pass


class _HTTPSConnection(_Connecting, http.client.HTTPSConnection):
    pass


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Response:
        return self.do_open(_HTTPConnection, request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Response:
        return self.do_open(_HTTPSConnection, request)


def _opener() -> urllib.request.OpenerDirector:
    """urllib's, with its proxies, but without ftp, files, and redirects of its own."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), _HTTPHandler(), _HTTPSHandler(),
                    urllib.request.HTTPDefaultErrorHandler(),
                    urllib.request.HTTPErrorProcessor()):
        opener.add_handler(handler)
    return opener


@contextmanager
def _troubles() -> Iterator[None]:
    """Turn errors of the network into Interrupted (temporary) or Refused (final)."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except http.client.IncompleteRead as error:
        raise Interrupted('the connection ended before the body did') from error
    except OSError as error:
        reason = getattr(error, 'reason', error)
        raise Interrupted(str(reason) or type(reason).__name__) from error
    except (http.client.HTTPException, ValueError) as error:
        raise Refused(f'no valid HTTP: {type(error).__name__}: {error}') from error
