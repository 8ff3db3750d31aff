"""A lean HTTP/1.1 client for very many small calls (RFC 9110, RFC 9112), strict in what it takes.

No redirects, cookies, proxies or compression, and nothing is ever sent twice.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import zlib
from collections.abc import Generator, Mapping
from ipaddress import IPv6Address
from typing import NamedTuple, cast
from urllib.parse import SplitResult, urlsplit

_IDLE_SECONDS = 15.0
_MOST_HEAD = 1 << 16  # bytes of a head, and of a chunked body's trailers
_MOST_LINE = 1 << 12  # bytes of a chunk's size with its extensions
_PIECE = 1 << 18  # bytes that are written at once
_DEFAULTS = {"User-Agent": "selfchat", "Accept-Encoding": "identity"}
_PORTS = {"http": 80, "https": 443}
_OURS = frozenset(("connection", "content-length", "host", "transfer-encoding"))

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # a token: RFC 9110, section 5.6.2
_TOKEN = re.compile(_NAME)
_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_PATH = re.compile(r"[!\"$-~]*")  # ASCII that shows, without the fragment's `#`
_HOST = re.compile(r"[a-z0-9._-]+")
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n\0]*)?\r\n")
_FIELD = re.compile(rf"^({_NAME}):([^\r\n\0]*)\r$", re.MULTILINE)
_LENGTH = re.compile(r"[0-9]{1,18}")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?")

_Parser = Generator[None, bytes, "tuple[Response, bool]"]


class Response(NamedTuple):
    """An answer; header names are in lower case, repeated ones joined by `, `."""

    status: int
    headers: dict[str, str]
    body: bytes


class HttpError(Exception):
    """There is no answer."""


class NotConnected(HttpError):
    """No connection was made, and nothing sent."""


class Broken(HttpError):
    """The request may have been sent, and no whole, well-formed answer came."""


class TooLarge(HttpError):
    """The answer is over the limit in bytes."""


class HttpClient:
    """Makes requests under one base URL, over as many connections as there are calls under way.

    Connections are kept for the next call; the one used last is taken first.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        connect_seconds: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Send `headers` with every request.

        Raises:
            ValueError: `base_url` is not http(s)://host[:port][/prefix], or a header is malformed.
        """
        parts = _split(base_url)
        usual = _PORTS[parts.scheme]
        self._host, shown = _host(parts.hostname or "")
        self._port = usual if parts.port is None else parts.port
        self._authority = shown if self._port == usual else f"{shown}:{self._port}"
        self._prefix = parts.path.rstrip("/")
        self._tls = (tls or _tls()) if parts.scheme == "https" else None
        self._connect_seconds = connect_seconds
        self._lines = {
            "host": f"Host: {self._authority}\r\n",
            **_lines(_DEFAULTS),
            **_lines(headers),
        }
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []  # the one idle for longest comes first
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        seconds: float,
        most: int | None,
    ) -> Response:
        """Make one request and wait for the whole answer, whatever its status.

        Args:
            path: starts with `/` and is joined to the base URL's prefix; it may hold a query.
            headers: go before the client's of the same name.
            seconds: for all of it, connecting included.
            most: bytes that the answer's body may have.

        Raises:
            NotConnected, Broken, TooLarge: see there.
            ValueError: the method, the path or a header is malformed.
        """
        head = self._head(method, path, headers, len(body))
        loop = asyncio.get_running_loop()
        now = loop.time()
        connection = self._take(now) or await self._connect(seconds)
        answer: asyncio.Future[Response] = loop.create_future()
        connection.expect(answer, method, most)
        timer = loop.call_at(now + seconds, connection.give_up, seconds)
        try:
            if len(body) <= _PIECE:
                connection.transport.write(head + body)
            else:
                await connection.upload(head, body)
            response = await answer
        except BaseException:
            answer.cancel()
            connection.abort()
            raise
        finally:
            timer.cancel()
        self._give_back(connection, loop)
        return _decoded(response, most) if "content-encoding" in response.headers else response

    async def close(self) -> None:
        """Close all connections; calls under way end with Broken."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._idle.clear()
        for connection in tuple(self._open):
            connection.abort()
        for _ in range(4):  # turns of the loop after which even a TLS connection knows
            await asyncio.sleep(0)

    def _head(self, method: str, path: str, headers: Mapping[str, str] | None, size: int) -> bytes:
        """The request line and the headers: RFC 9112, sections 3 and 5."""
        if not _TOKEN.fullmatch(method):
            raise ValueError(f"malformed method: {method!r}")
        if not path.startswith("/") or not _PATH.fullmatch(path):
            raise ValueError(f"malformed path: {path!r}")
        lines = self._lines | _lines(headers) if headers else self._lines
        length = f"Content-Length: {size}\r\n" if size or method in ("POST", "PUT", "PATCH") else ""
        first = f"{method} {self._prefix}{path} HTTP/1.1\r\n"
        return f"{first}{''.join(lines.values())}{length}\r\n".encode("latin-1")

    def _take(self, now: float) -> _Connection | None:
        """The connection that was used last, if there is one that can be used again."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if (
                connection.alive
                and not connection.transport.is_closing()
                and now - connection.idle_since < _IDLE_SECONDS
            ):
                return connection
            connection.abort()
        return None

    def _give_back(self, connection: _Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Keep a connection for another call, unless the answer or the upload forbids it."""
        if not connection.alive or connection.transport.get_write_buffer_size():
            connection.abort()
            return
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_IDLE_SECONDS, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what has been idle for too long, and come again for the next."""
        past = loop.time() - _IDLE_SECONDS
        while self._idle and self._idle[0].idle_since <= past:
            self._idle.pop(0).abort()
        self._sweeper = None
        if self._idle:
            then = self._idle[0].idle_since + _IDLE_SECONDS
            self._sweeper = loop.call_at(then, self._sweep, loop)

    async def _connect(self, seconds: float) -> _Connection:
        if self._closed:
            raise NotConnected(f"{self._authority}: the client is closed")
        limit = min(seconds, self._connect_seconds)
        try:
            async with asyncio.timeout(limit):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._open),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    happy_eyeballs_delay=0.25,
                )
        except TimeoutError:
            raise NotConnected(f"{self._authority}: no connection within {limit:g} s") from None
        except OSError as error:
            raise NotConnected(f"{self._authority}: {error}") from error
        if self._closed or not connection.alive:
            connection.abort()
            raise NotConnected(f"{self._authority}: the connection was closed at once")
        return connection


class _Connection(asyncio.Protocol):
    """A connection and the exchange on it, if any; it is one of `home` while it is open."""

    __slots__ = ("_answer", "_home", "_parser", "_room", "alive", "idle_since", "transport")

    transport: asyncio.Transport

    def __init__(self, home: set[_Connection]) -> None:
        self._home = home
        self._answer: asyncio.Future[Response] | None = None
        self._parser: _Parser | None = None
        self._room: asyncio.Future[None] | None = None  # comes when more may be written
        self.alive = True  # whether another exchange may begin
        self.idle_since = 0.0

    def expect(self, answer: asyncio.Future[Response], method: str, most: int | None) -> None:
        """Begin an exchange, of which `answer` will tell the end."""
        self._answer = answer
        self._parser = _read_answer(method, most)
        next(self._parser)

    async def upload(self, head: bytes, body: bytes) -> None:
        """Write as fast as the server reads, until it has answered."""
        self.transport.write(head)
        view = memoryview(body)
        for at in range(0, len(view), _PIECE):
            if self._room is not None:
                await self._room
            if self._parser is None or self.transport.is_closing():
                self.alive = False
                return
            self.transport.write(view[at : at + _PIECE])

    def give_up(self, seconds: float) -> None:
        self._fail(Broken(f"no answer within {seconds:g} s"))

    def abort(self) -> None:
        self.alive = False
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._home.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._home.discard(self)
        self._fail(Broken(f"the connection was lost: {exc or 'closed'}"))

    def data_received(self, data: bytes) -> None:
        if self._parser is None:  # nobody asked
            self.abort()
            return
        try:
            self._parser.send(data)
        except StopIteration as end:
            response, self.alive = end.value
            answer, self._answer, self._parser = self._answer, None, None
            if answer is not None and not answer.done():
                answer.set_result(response)
            if self._room is not None:
                self.resume_writing()
        except HttpError as error:
            self._fail(error)

    def eof_received(self) -> None:
        if self._parser is not None:
            self.data_received(b"")
        self.alive = False

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def _fail(self, error: HttpError) -> None:
        """End the exchange, if there is one; who waits for it aborts the connection."""
        self.alive = False
        answer, self._answer, self._parser = self._answer, None, None
        if answer is not None and not answer.done():
            answer.set_exception(error)
        self.resume_writing()


def _read_answer(method: str, most: int | None) -> _Parser:
    """Read one answer: is sent what arrives, and b"" when the server has ended the stream.

    Returns the response, and whether the connection may be used again.
    """
    data = b""
    status = 100
    while status < 200:  # RFC 9110, section 15.2: interim answers come before the one
        while (end := data.find(b"\r\n\r\n")) < 0 and len(data) <= _MOST_HEAD:
            data += yield from _more()
        if not 0 <= end <= _MOST_HEAD:
            raise Broken(f"the answer's head is over {_MOST_HEAD:,} bytes")
        status, headers, last = _read_head(data[: end + 2])
        data = data[end + 4 :]
    body, rest = b"", data
    if method != "HEAD" and status not in (204, 304):
        if "transfer-encoding" in headers:
            body, rest = yield from _chunked(data, most)
        elif "content-length" in headers:
            body, rest = yield from _sized(data, _length(headers["content-length"]), most)
        else:
            body, rest, last = (yield from _until_closed(data, most)), b"", True
    return Response(status, headers, body), not (last or rest)


def _more() -> Generator[None, bytes, bytes]:
    if data := (yield):
        return data
    raise Broken("the connection was closed before the answer's end")


def _read_head(head: bytes) -> tuple[int, dict[str, str], bool]:
    """Status, headers, and whether the server closes the connection: RFC 9112, sections 4 to 6."""
    text = head.decode("latin-1")
    first = _STATUS.match(text)
    fields = _FIELD.findall(text)
    if first is None or first[2] == "101" or len(fields) != text.count("\n") - 1:
        raise Broken("the answer has a malformed head")
    headers: dict[str, str] = {}
    for name, value in fields:
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    last = first[1] == "0"
    if "connection" in headers:
        last |= "close" in headers["connection"].lower().replace(" ", "").split(",")
    if "transfer-encoding" in headers and (
        first[1] == "0"
        or "content-length" in headers
        or headers["transfer-encoding"].lower() != "chunked"
    ):
        raise Broken("the answer's length is told in a malformed way")
    return int(first[2]), headers, last


def _length(said: str) -> int:
    """A Content-Length, which may be said again and again: RFC 9112, section 6.3."""
    lengths = {length.strip(" \t") for length in said.split(",")} if "," in said else {said}
    length = lengths.pop()
    if lengths or not _LENGTH.fullmatch(length):
        raise Broken("the answer's Content-Length is malformed")
    return int(length)


def _check(size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise TooLarge(f"an answer of more than {most:,} bytes")


def _sized(data: bytes, size: int, most: int | None) -> Generator[None, bytes, tuple[bytes, bytes]]:
    """A body of `size` bytes, and what follows it."""
    _check(size, most)
    if len(data) < size:
        body = bytearray(data)
        while len(body) < size:
            body += yield from _more()
        data = bytes(body)
    return data[:size], data[size:]


def _until_closed(data: bytes, most: int | None) -> Generator[None, bytes, bytes]:
    body = bytearray(data)
    _check(len(body), most)
    while more := (yield):
        body += more
        _check(len(body), most)
    return bytes(body)


def _chunked(data: bytes, most: int | None) -> Generator[None, bytes, tuple[bytes, bytes]]:
    """A chunked body, and what follows it: RFC 9112, section 7.1. Trailers are left out."""
    body = bytearray()
    at = 0
    while True:
        data, at, end = yield from _line(data, at)
        size = _SIZE.fullmatch(data, at, end)
        if size is None:
            raise Broken("the answer has a malformed chunk")
        at, whole = end + 2, len(body) + int(size[1], 16)
        if whole == len(body):
            break
        _check(whole, most)
        while True:
            piece = data[at : at + whole - len(body)]
            body += piece
            at += len(piece)
            if len(body) == whole:
                break
            data, at = (yield from _more()), 0
        data, at, end = yield from _line(data, at)
        if at != end:
            raise Broken("the answer has a malformed chunk")
        at += 2
    return bytes(body), (yield from _trailers(data, at))


def _trailers(data: bytes, at: int) -> Generator[None, bytes, bytes]:
    """What follows the trailers."""
    room = _MOST_HEAD
    while True:
        data, at, end = yield from _line(data, at)
        room -= end - at
        if at == end:
            return data[end + 2 :]
        if room < 0 or not _FIELD.fullmatch(data[at : end + 1].decode("latin-1")):
            raise Broken("the answer has malformed trailers")
        at = end + 2


def _line(data: bytes, at: int) -> Generator[None, bytes, tuple[bytes, int, int]]:
    """Where the line that begins at `at` begins and ends, in what there is of the data by then."""
    while (end := data.find(b"\r\n", at)) < 0 and len(data) - at <= _MOST_LINE:
        data, at = data[at:] + (yield from _more()), 0
    if not 0 <= end - at <= _MOST_LINE:
        raise Broken(f"the answer has a line of over {_MOST_LINE:,} bytes")
    return data, at, end


def _decoded(response: Response, most: int | None) -> Response:
    """Undo gzip, which was not asked for."""
    encoding = response.headers["content-encoding"].lower()
    if encoding == "identity" or not response.body:
        return response
    if encoding not in ("gzip", "x-gzip"):
        raise Broken("the answer has an encoding that was not asked for")
    engine = zlib.decompressobj(wbits=31)
    try:
        body = engine.decompress(response.body, 0 if most is None else most + 1)
    except zlib.error:
        raise Broken("the answer is malformed gzip") from None
    _check(len(body), most)
    if not engine.eof or engine.unused_data:
        raise Broken("the answer is malformed gzip")
    return response._replace(body=body)


def _lines(headers: Mapping[str, str]) -> dict[str, str]:
    """Header lines by name in lower case. A fault is told without the value: it may be a key."""
    lines = {}
    for name, value in headers.items():
        key = name.lower()
        if not _TOKEN.fullmatch(name) or key in _OURS:
            raise ValueError(f"no header of this name may be sent: {name!r}")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"header {name}: its value has characters that may not be sent")
        lines[key] = f"{name}: {value}\r\n"
    return lines


def _split(base_url: str) -> SplitResult:
    """The parts of a base URL that has no more of them than it may."""
    parts = urlsplit(base_url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("a base URL is http(s)://host[:port][/prefix]")
    if re.search(r"[?#\\\0- \x7f]", base_url) or re.search("[@%]", parts.netloc):
        raise ValueError("a base URL holds no user, query, fragment, zone or space")
    if not _PATH.fullmatch(parts.path):
        raise ValueError("a base URL's path is ASCII, the rest percent-encoded")
    return parts


def _host(name: str) -> tuple[str, str]:
    """A host in ASCII, to connect to and as the Host header has it: RFC 9112, section 3.2."""
    if ":" in name:
        return name, f"[{IPv6Address(name).compressed}]"
    ascii_name = name.encode("idna").decode()
    other = not name.isascii() and ascii_name.encode().decode("idna") != name
    if other or not _HOST.fullmatch(ascii_name):  # IDNA 2003 takes `ß` for `ss`: another's name
        raise ValueError(f"malformed host: {name!r}")
    return ascii_name, ascii_name


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
