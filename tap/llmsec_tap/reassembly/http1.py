"""HTTP/1.x messages from one direction of a connection (RFC 9112), for a passive observer of hostile or damaged traffic.

Contract of a parser
- `data`, `gap` and `end` may come in any order with any content; nothing raises.
- `on_head(head)` is called once per message and returns the `BodySink` of that message, which then gets `data` and `gap` calls
  and exactly one `end`. Interim (1xx) responses have no body sink calls but their head is reported.
- Oddities go to `on_anomaly(name)`; what follows damage is skipped up to the next thing that looks like a message.

The state is the current handler method. A handler takes the unread bytes and returns how many it used, or -1 for "more data".
h11 and llhttp refuse much of what is accepted here (no Host, bare LF, folding): a tap must record what peers accept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from llmsec_tap import limits

Headers = list[tuple[bytes, bytes]]

# Methods of RFC 9110, PATCH, WebDAV's common ones and QUERY: what a request may begin with when we look for one.
_METHODS = b"GET|POST|PUT|DELETE|HEAD|OPTIONS|PATCH|CONNECT|TRACE|QUERY|PROPFIND|SEARCH|REPORT|LINK|UNLINK|PURGE"
REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) +([^ \r\n]{1,65536}) +HTTP/(1\.\d) *\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/(1\.\d) +(\d{3})(?: [^\n]*|\r)?\n")
_REQUEST_START = re.compile(rb"(?:" + _METHODS + rb") [^ \r\n]{1,65536} HTTP/1\.[01] *\r?\n")
_STATUS_START = re.compile(rb"HTTP/1\.[01] [1-5]\d\d[ \r\n]")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?")
_CHUNK_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,7})[ \t]*(?:;[^\r\n]*)?\r\n")
_CHUNK_START = re.compile(rb"\r\n" + _CHUNK_SIZE_LINE.pattern)
_LONGEST_START = 64 * limits.KIB  # a request line may be that long, so that much is kept while looking for one

_chunk_sizes: dict[bytes, int] = {}  # sizes repeat; a dictionary is several times cheaper than a checked conversion


class Head:
    """The head of a message. Header names are lower case, in wire order, repeats kept; values without outer white space."""

    __slots__ = ("headers", "method", "status", "target", "ts_ns", "version")

    def __init__(self, ts_ns: int, version: str, headers: Headers, *, method: str = "", target: str = "", status: int = 0) -> None:
        self.ts_ns = ts_ns  # of the first byte
        self.version = version
        self.headers = headers
        self.method = method
        self.target = target
        self.status = status

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    def get(self, name: bytes) -> bytes | None:
        for key, value in self.headers:
            if key == name:
                return value
        return None


class BodySink(Protocol):
    """Takes the body of one message, framing removed."""

    @property
    def bodiless(self) -> bool:
        """The response answers HEAD, or opens a tunnel, so no body follows its head."""

    @property
    def is_tunnel(self) -> bool:
        """What follows on the connection is no longer HTTP/1: a 2xx answer to CONNECT (RFC 9110 9.3.6)."""

    data: Callable[[int, bytes], None]
    """An attribute, which the sink may replace once it knows what the body is; parsers look it up each time."""

    def gap(self, ts_ns: int, length: int | None) -> None: ...

    def end(self, ts_ns: int, how: str) -> None:
        """`how`: complete; or why the message is not: fin, reset, expired, capture_end, closed, damage."""


class _NoBody:
    """Ignores everything: no message is being read, or it is no exchange of its own (an interim response)."""

    bodiless = True
    is_tunnel = False

    def __init__(self) -> None:
        self.data: Callable[[int, bytes], None] = self.ignore

    def ignore(self, ts_ns: int, data: bytes) -> None:
        pass

    def gap(self, ts_ns: int, length: int | None) -> None:
        pass

    def end(self, ts_ns: int, how: str) -> None:
        pass


NO_BODY = _NoBody()


class MessageParser:
    """What requests and responses share: heads, body framing, recovery."""

    __slots__ = (
        "_anomaly",
        "_at_boundary",
        "_at_chunk",
        "_body",
        "_buffer",
        "_complete_at_end",
        "_head_ns",
        "_on_head",
        "_on_lost",
        "_remaining",
        "_scanned",
        "_sink",
        "_state",
        "_ts_ns",
    )

    _start: re.Pattern[bytes]

    def __init__(
        self, on_head: Callable[[Head], BodySink], on_anomaly: Callable[[str], None], on_lost: Callable[[], None] = lambda: None
    ) -> None:
        """`on_lost` is called where a gap may have swallowed whole messages: their number is then unknown."""
        self._on_head = on_head
        self._on_lost = on_lost
        self._anomaly = on_anomaly
        self._buffer = b""
        self._scanned = 0  # how far the buffer was searched, so that byte-by-byte input stays linear
        self._ts_ns = 0
        self._head_ns = 0
        self._remaining: int | None = 0
        self._body: BodySink | None = None
        self._sink: BodySink = NO_BODY  # the body's own sink, or one that ignores
        self._complete_at_end = False
        self._at_boundary = False
        self._at_chunk: Callable[[bytes], int] = self._chunk_header  # one object, so that `is` tells the state of most segments
        self._state: Callable[[bytes], int] = self._at_start

    # --- the three inputs ---------------------------------------------------------------------------------------------

    def data(self, ts_ns: int, data: bytes) -> None:
        self._ts_ns = ts_ns
        buffer = self._buffer
        if buffer:
            data = buffer + data
        elif self._state is self._at_chunk:
            # The usual segment of a stream is exactly one chunk.
            cut = data.find(b"\r\n", 0, 20)
            size = _chunk_sizes.get(data[:cut], 0) if cut > 0 else 0
            if size and len(data) == cut + 4 + size and data.endswith(b"\r\n"):
                self._sink.data(ts_ns, data[cut + 2 : -2])
                return
        while data:
            used = self._state(data)
            if used < 0:
                break
            if used:
                data = data[used:]
        self._buffer = data

    def gap(self, ts_ns: int, length: int | None) -> None:
        self._ts_ns = ts_ns
        state = self._state
        if state == self._opaque:
            return
        if state in (self._fixed_body, self._chunk_body, self._body_to_end):
            # What is buffered was already given out: only the framing has to be kept in step.
            assert self._body is not None
            self._body.gap(ts_ns, length)
            remaining = self._remaining
            if remaining is None:
                return
            if length is not None and length < remaining:
                self._remaining = remaining - length
                return
            if length == remaining:
                if state == self._fixed_body:
                    self._finish("complete")
                else:
                    self._state = self._chunk_end
                return
            if state == self._fixed_body:
                self._lose("damage")
                self._on_lost()
            else:
                self._seek_chunk()
            return
        if state == self._trailers:
            self._drop_buffer()
            self._finish("complete")
            self._state = self._find_start
            self._on_lost()
            return
        if state in (self._chunk_header, self._chunk_end, self._find_chunk):
            assert self._body is not None
            self._body.gap(ts_ns, length)
            self._drop_buffer()
            self._seek_chunk()
            return
        # In, or between, heads: the message being read cannot be told any more.
        if self._buffer.strip(b"\r\n"):
            self._anomaly("http_bad_head")
        self._drop_buffer()
        self._state = self._find_start
        self._on_lost()

    def end(self, ts_ns: int, reason: str) -> None:
        self._ts_ns = ts_ns
        if self._body is not None:
            if self._state == self._find_chunk and self._buffer:
                self._sink.data(ts_ns, self._buffer)
            complete = self._complete_at_end and reason == "fin"
            self._finish("complete" if complete else reason)
        elif self._state == self._head and self._buffer.strip(b"\r\n"):
            self._anomaly("http_bad_head")
        self._drop_buffer()
        self._state = self._opaque

    def pass_through(self) -> None:
        """What follows is no longer HTTP/1 (after 101, CONNECT): ignore it."""
        self._drop_buffer()
        self._state = self._opaque

    def release(self) -> None:
        """After the end: cuts the cycles through bound methods, so that the parser is freed at once."""
        del self._state, self._at_chunk, self._on_head, self._on_lost, self._anomaly

    # --- states -------------------------------------------------------------------------------------------------------

    def _opaque(self, data: bytes) -> int:
        return len(data)

    def _at_start(self, data: bytes) -> int:
        """Between messages. Empty lines before a start line are allowed (RFC 9112 2.2)."""
        skipped = len(data) - len(data.lstrip(b"\r\n"))
        if skipped:
            return skipped
        self._head_ns = self._ts_ns
        self._scanned = 0
        self._state = self._head
        return 0

    def _head(self, data: bytes) -> int:
        """Reads a head once it is whole. What cannot become one is left at the first byte that shows it, so that how the bytes
        were cut makes no difference.
        """
        if self._scanned == 0 and not self._may_be_start(data):
            return self._bad_head("http_bad_head")
        found = _HEAD_END.search(data, max(0, self._scanned - 3))
        if (len(data) if found is None else found.end()) > limits.MAX_HEAD_BYTES:
            return self._bad_head("http_head_limit")
        if found is None:
            # The start line is looked at until it is whole, then only the end of the head is looked for.
            self._scanned = len(data) if b"\n" in data else 0
            return -1
        self._scanned = 0
        self._begin(self._parse_head(data[: found.start() + 1 + (data[found.start()] == 13)]))
        return found.end()

    def _bad_head(self, anomaly: str) -> int:
        self._anomaly(anomaly)
        self._scanned = 0
        self._state = self._find_start
        return 1  # past where we are, or the same bytes are found again

    def _find_start(self, data: bytes) -> int:
        """After damage: the next bytes that look like a message."""
        found = self._find_message(data, max(0, self._scanned - _LONGEST_START))
        if found is not None:
            self._scanned = 0
            self._anomaly("http_resync")
            self._state = self._at_start
            return found.start()
        done = len(data) - _tail(data)
        self._scanned = 0 if done else len(data)
        return done or -1

    def _fixed_body(self, data: bytes) -> int:
        remaining = self._remaining
        assert remaining is not None
        if len(data) < remaining:
            self._remaining = remaining - len(data)
            self._sink.data(self._ts_ns, data)
            return len(data)
        if remaining:
            self._sink.data(self._ts_ns, data[:remaining] if len(data) > remaining else data)
        self._finish("complete")
        return remaining

    def _body_to_end(self, data: bytes) -> int:
        self._sink.data(self._ts_ns, data)
        return len(data)

    def _chunk_header(self, data: bytes) -> int:
        cut = data.find(b"\n")
        if cut < 0:
            if len(data) <= limits.MAX_CHUNK_LINE_BYTES and _CHUNK_SIZE.match(data):
                return -1
            self._anomaly("http_bad_chunk")
            self._seek_chunk()
            return 0
        line = data[:cut].rstrip(b"\r")
        size = _chunk_sizes.get(line)
        if size is None:
            match = _CHUNK_SIZE.fullmatch(line)
            if match is None:
                self._anomaly("http_bad_chunk")
                self._seek_chunk()
                return 0
            size = int(match[1], 16)
            if len(_chunk_sizes) < 65536 and line.isalnum():
                _chunk_sizes[line] = size
        if size == 0:
            self._scanned = 0
            self._state = self._trailers
        else:
            self._remaining = size
            self._state = self._chunk_body
        return cut + 1

    def _chunk_body(self, data: bytes) -> int:
        remaining = self._remaining
        assert remaining is not None
        if len(data) < remaining:
            self._remaining = remaining - len(data)
            self._sink.data(self._ts_ns, data)
            return len(data)
        self._sink.data(self._ts_ns, data[:remaining])
        self._state = self._chunk_end
        return remaining

    def _chunk_end(self, data: bytes) -> int:
        if data.startswith(b"\r\n"):
            self._state = self._at_chunk
            return 2
        if data.startswith(b"\n"):
            self._state = self._at_chunk
            return 1
        if data == b"\r":
            return -1
        self._anomaly("http_bad_chunk")
        self._seek_chunk()
        return 0

    def _trailers(self, data: bytes) -> int:
        """Trailer lines up to an empty one (RFC 9112 7.1.2); their content is of no use here."""
        cut = data.find(b"\n", self._scanned)
        if cut < 0:
            self._scanned = len(data)
            if len(data) > limits.MAX_HEAD_BYTES:
                self._anomaly("http_head_limit")
                self._finish("complete")
                self._state = self._find_start
                return len(data)
            # Some servers send "0\r\n" and go on with the next message on the connection.
            return -1
        self._scanned = 0
        if not data[:cut].rstrip(b"\r"):
            self._finish("complete")
        elif self._start.match(data):
            self._finish("complete")
            return 0
        return cut + 1

    def _find_chunk(self, data: bytes) -> int:
        """Inside a chunked body after damage: the next line that is a chunk size, or the next message. What is before goes to
        the body: most of it is payload. A size taken wrongly shows at that chunk's end, and the search goes on there.
        """
        # The first bytes may be a chunk size of their own only as long as nothing before them was passed over.
        chunk = (_CHUNK_SIZE_LINE.match(data) if self._at_boundary else None) or _CHUNK_START.search(data)
        message = self._find_message(data)
        if message is not None and (chunk is None or message.start() < chunk.start()):
            if message.start():
                self._sink.data(self._ts_ns, data[: message.start()])
            self._lose("damage")
            self._on_lost()
            return message.start()
        if chunk is not None:
            if chunk.start():
                self._sink.data(self._ts_ns, data[: chunk.start()])
            self._anomaly("http_resync")
            self._state = self._at_chunk
            return chunk.start(1)
        done = len(data) - _tail(data)
        if not done:
            return -1
        self._sink.data(self._ts_ns, data[:done])
        self._at_boundary = False
        return done

    def _seek_chunk(self) -> None:
        self._at_boundary = True
        self._state = self._find_chunk

    def _find_message(self, data: bytes, start: int = 0) -> re.Match[bytes] | None:
        # Looking for the fixed bytes is far cheaper than the pattern, and they are in both kinds of start.
        return self._start.search(data, start) if b"HTTP/1." in data else None

    # --- heads --------------------------------------------------------------------------------------------------------

    def _may_be_start(self, data: bytes) -> bool:
        """Whether these bytes begin with a start line, or, where no line end has come yet, may still become one."""
        raise NotImplementedError

    def _start_line(self, line: bytes, headers: Headers) -> Head:
        """The head of a start line that `_may_be_start` has accepted."""
        raise NotImplementedError

    def _begin(self, head: Head) -> None:
        """Report the head and choose how its body is framed."""
        raise NotImplementedError

    def _parse_head(self, block: bytes) -> Head:
        if block.count(b"\n") != block.count(b"\r\n"):
            self._anomaly("http_bare_lf")
        first, _, rest = block.partition(b"\n")
        headers: Headers = []
        for line in rest.split(b"\n"):
            line = line.rstrip(b"\r")
            if line[:1] in (b" ", b"\t") and headers:
                self._anomaly("http_obs_fold")
                name, value = headers[-1]
                headers[-1] = name, value + b" " + line.strip(b" \t")
                continue
            name, colon, value = line.partition(b":")
            if not colon or not name:
                if line:
                    self._anomaly("http_bad_head")
                continue
            headers.append((name.rstrip(b" \t").lower(), value.strip(b" \t")))
        return self._start_line(first + b"\n", headers)

    def _content_length(self, head: Head) -> int | None:
        """The length, or None where there is none or none that can be believed."""
        values = {part.strip() for value in head.all(b"content-length") for part in value.split(b",")}
        if not values:
            return None
        value = values.pop()
        if values or not value.isdigit() or len(value) > 15:
            self._anomaly("http_bad_length")
            return None
        return int(value)

    def _is_chunked(self, head: Head) -> bool:
        codings = b",".join(head.all(b"transfer-encoding")).lower()
        if not codings:
            return False
        if head.get(b"content-length") is not None:
            self._anomaly("http_length_and_chunked")
        return codings.rpartition(b",")[2].strip() == b"chunked"

    # --- bodies -------------------------------------------------------------------------------------------------------

    def _start_body(self, head: Head, *, length: int | None, chunked: bool, to_end: bool) -> None:
        body = self._body = self._sink = self._on_head(head)
        self._complete_at_end = False
        if body.bodiless:
            self._finish("complete")
            if body.is_tunnel:
                self.pass_through()
        elif chunked:
            self._state = self._at_chunk
        elif length is not None:
            self._remaining = length
            if length:
                self._state = self._fixed_body
            else:
                self._finish("complete")
        elif to_end:
            self._complete_at_end = True
            self._remaining = None
            self._state = self._body_to_end
        else:
            self._finish("complete")

    def _finish(self, how: str) -> None:
        body, self._body = self._body, None
        self._sink = NO_BODY
        self._scanned = 0
        self._state = self._at_start
        if body is not None:
            body.end(self._ts_ns, how)

    def _lose(self, how: str) -> None:
        self._finish(how)
        self._state = self._find_start

    def _drop_buffer(self) -> None:
        self._buffer = b""
        self._scanned = 0


_REQUEST_HINT = re.compile(rb"(?:" + _METHODS + rb"|HTTP/)")
_SHORT_TAIL = 32  # longer than a chunk size line without extension, the beginning of a status line, or a method


def _tail(data: bytes) -> int:
    """How many of the last bytes may be the beginning of a start line or of a chunk size."""
    keep = min(len(data), _LONGEST_START)
    line_end = data.rfind(b"\n", len(data) - keep)
    tail = len(data) - 1 - line_end if line_end >= 0 else keep
    if tail > _SHORT_TAIL and not _REQUEST_HINT.search(data, len(data) - tail):
        return _SHORT_TAIL
    return max(tail, min(len(data), _SHORT_TAIL))


class RequestParser(MessageParser):
    """The client's direction."""

    __slots__ = ()
    _start = _REQUEST_START

    def _may_be_start(self, data: bytes) -> bool:
        if b"\n" in data:
            return REQUEST_LINE.match(data) is not None
        method, space, _ = data.partition(b" ")
        return len(method) <= 32 and not method.strip(_TOKEN) and bool(method or not space)

    def _start_line(self, line: bytes, headers: Headers) -> Head:
        match = REQUEST_LINE.match(line)
        assert match is not None
        return Head(self._head_ns, match[3].decode(), headers, method=match[1].decode("ascii"), target=match[2].decode("latin-1"))

    def _begin(self, head: Head) -> None:
        chunked = self._is_chunked(head)
        self._start_body(head, length=None if chunked else self._content_length(head), chunked=chunked, to_end=False)


class ResponseParser(MessageParser):
    """The server's direction. Message body length: RFC 9112 section 6.3."""

    __slots__ = ()
    _start = _STATUS_START

    def _may_be_start(self, data: bytes) -> bool:
        if b"\n" in data:
            return _STATUS_LINE.match(data) is not None
        return b"HTTP/1.".startswith(data[:7])

    def _start_line(self, line: bytes, headers: Headers) -> Head:
        match = _STATUS_LINE.match(line)
        assert match is not None
        return Head(self._head_ns, match[1].decode(), headers, status=int(match[2]))

    def _begin(self, head: Head) -> None:
        status = head.status
        if 100 <= status < 200 and status != 101:
            self._on_head(head)
            self._state = self._at_start
            return
        if status in (101, 204, 304):
            self._start_body(head, length=0, chunked=False, to_end=False)
            if status == 101:
                self.pass_through()
            return
        chunked = self._is_chunked(head)
        length = None if chunked else self._content_length(head)
        self._start_body(head, length=length, chunked=chunked, to_end=not chunked and length is None)


def find_message(data: bytes) -> tuple[str, int] | None:
    """Where the first request or response begins in bytes of unknown meaning: its kind and offset."""
    if b"HTTP/1." not in data:
        return None
    request, response = _REQUEST_START.search(data), _STATUS_START.search(data)
    if request is not None and (response is None or request.start() < response.start()):
        return "request", request.start()
    return ("response", response.start()) if response is not None else None


_TOKEN = b"!#$%&'*+.^_`|~-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
