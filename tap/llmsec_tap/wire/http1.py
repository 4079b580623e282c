"""HTTP/1.x messages from one direction of a connection (RFC 9112), for a passive observer of hostile or damaged traffic.

Contract of a parser
- `data`, `gap` and `end` may come in any order with any content; nothing raises.
- `on_head(head)` is called once per message and returns the `BodySink` of that message, which then gets `data` and `gap` calls
  and exactly one `end`. Interim (1xx) responses have no body sink calls but their head is reported.
- Oddities go to `on_anomaly(name)`; what follows damage is skipped up to the next thing that looks like a message, and given to
  `on_skipped`.

The state is the current handler method. A handler takes bytes and where to read on, and returns how far it came, or `~at` for "more
data from `at` on". Such bytes are held, and looked at again only when what the state waits for (`_wants`) has come: so work is
linear in the input, however it is cut.
h11 and llhttp refuse much of what is accepted here (no Host, bare LF, folding): a tap must record what peers accept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from llmsec_tap import limits
from llmsec_tap.account import Entry, no_account
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.wire.messages import IGNORED, BodySink, Head, Headers, ignore

# Methods of RFC 9110, PATCH, WebDAV's common ones and QUERY: what a request may begin with when we look for one.
_METHODS = b"GET|POST|PUT|DELETE|HEAD|OPTIONS|PATCH|CONNECT|TRACE|QUERY|PROPFIND|SEARCH|REPORT|LINK|UNLINK|PURGE"
REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) +([^ \r\n]+) +HTTP/(1\.\d) *\r?\n")
_REQUEST_PREFIX = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}(?: |\Z)")
_STATUS_LINE = re.compile(rb"HTTP/(1\.\d) +(\d{3})(?: [^\n]*|\r)?\n")
_STATUS_PREFIX = re.compile(rb"HTTP/1\.(?:\Z|\d(?:\Z| +(?:\Z|\d{1,2}\Z|\d{3}(?:\Z| |\n|\r(?:\Z|\n)))))")
REQUEST_START = re.compile(rb"(?:" + _METHODS + rb") [^ \r\n]+ HTTP/1\.[01] *\r?\n")
STATUS_START = re.compile(rb"HTTP/1\.[01] [1-5]\d\d[ \r\n]")
_EMPTY_LINES = re.compile(rb"[\r\n]*")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
# Any number of leading zeros, as llhttp takes them.
_CHUNK_SIZE = re.compile(rb"(0*+[1-9a-fA-F][0-9a-fA-F]{0,14}|0++)[ \t]*(?:;[^\r\n]*)?")
_CHUNK_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,7})[ \t]*(?:;[^\r\n]*)?\r\n")
_CHUNK_START = re.compile(rb"\r\n" + _CHUNK_SIZE_LINE.pattern)
# While a start line is looked for after damage, so much of a line that may be one is kept.
_LONGEST_START = 64 * limits.KIB

# What a state waits for before held bytes are looked at again.
_ANYTHING, _LINE_END, _HEAD_END_WANTED = range(3)

# Beyond limits.MAX_HEADERS only these are kept: they frame the body and tell what it is.
_ESSENTIAL = frozenset((b"content-length", b"transfer-encoding", b"content-encoding", b"content-type", b"host", b"authorization"))

# Chunk sizes as nearly all servers write them (Go, node, nginx and uvicorn in lower case): looking one up is several times cheaper than a
# checked conversion.
_CHUNK_SIZES: Final = {b"%x" % size: size for size in range(4096)}


class MessageParser:
    """What requests and responses share: heads, body framing, recovery."""

    __slots__ = (
        "_anomaly",
        "_at_boundary",
        "_at_chunk",
        "_body",
        "_complete_at_end",
        "_entry",
        "_head_ns",
        "_held",
        "_holding",
        "_is_start_line",
        "_is_tunnel",
        "_on_head",
        "_on_lost",
        "_on_skipped",
        "_onward",
        "_remaining",
        "_sink",
        "_state",
        "_ts_ns",
        "_wants",
        "_wants_at",
    )

    _start: re.Pattern[bytes]

    def __init__(
        self,
        on_head: Callable[[Head], BodySink],
        on_anomaly: OnAnomaly,
        on_lost: Callable[[], None] = lambda: None,
        on_skipped: Callable[[bytes], None] = lambda _data: None,
        reserve: Callable[[int], bool] = no_account,
    ) -> None:
        """`on_lost` is called where a gap may have swallowed whole messages: their number is then unknown. `on_skipped` takes what
        could not be read as a message. `reserve` gives room for what is held (account.py).
        """
        self._on_head = on_head
        self._on_lost = on_lost
        self._on_skipped = on_skipped
        self._onward: Callable[[int, bytes], None] = ignore
        self._is_tunnel = False
        self._anomaly = on_anomaly
        self._held = bytearray()
        self._entry = Entry(reserve)
        self._wants = _ANYTHING
        self._wants_at = 0  # at so many held bytes the state looks again in any case
        self._is_start_line = False  # the start line of the head being read is whole, and is one
        self._ts_ns = 0
        self._head_ns = 0
        self._remaining: int | None = 0
        self._body: BodySink | None = None
        self._sink: BodySink = IGNORED  # the body's own sink, or one that ignores
        self._complete_at_end = False
        self._at_boundary = False
        self._at_chunk: Callable[[bytes, int], int] = self._chunk_header  # one object, so that `is` tells the state of most segments
        self._state: Callable[[bytes, int], int] = self._at_start

    # --- the three inputs ---------------------------------------------------------------------------------------------

    def data(self, ts_ns: int, data: bytes) -> None:
        self._ts_ns = ts_ns
        held = self._held
        if held:
            is_worth_it = self._has_what_is_wanted(data)
            held += data
            if not is_worth_it:
                if not self._entry.set(len(held)):
                    self.drop("http_memory_limit")
                return
            data = bytes(held)
            held.clear()
        elif self._state is self._at_chunk:
            # The usual segment of a stream is exactly one chunk.
            cut = data.find(b"\r\n", 0, 20)
            size = _CHUNK_SIZES.get(data[:cut], 0) if cut > 0 else 0
            if size and len(data) == cut + 4 + size and data.endswith(b"\r\n"):
                self._sink.data(ts_ns, data[cut + 2 : -2])
                return
        at, size = 0, len(data)
        while at < size:
            at = self._state(data, at)
            if at < 0:
                held += data[~at:]
                break
        if (held or self._entry.size) and not self._entry.set(len(held)):
            self.drop("http_memory_limit")

    def _has_what_is_wanted(self, data: bytes) -> bool:
        if self._wants == _ANYTHING or len(self._held) + len(data) > self._wants_at:
            return True
        if b"\n" not in data:
            return False
        return self._wants == _LINE_END or _HEAD_END.search(self._held[-3:] + data) is not None

    def _wait_for_start(self, data: bytes, keep: int) -> int:
        """A long line that may be a start line is searched again when it is whole; a short rest costs nothing."""
        return self._wait(keep, self._start_wants if len(data) - keep > _SHORT_TAIL else _ANYTHING, 2 * _LONGEST_START)

    def _wait(self, at: int, wants: int = _ANYTHING, most: int = 0) -> int:
        self._wants, self._wants_at = wants, most
        return ~at

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
            self._drop_held()
            self._lose("complete")
            self._on_lost()
            return
        if state in (self._chunk_header, self._chunk_end, self._find_chunk):
            assert self._body is not None
            self._body.gap(ts_ns, length)
            self._drop_held()
            self._seek_chunk()
            return
        # In, or between, heads: the message being read cannot be told any more.
        self._unread_head()
        self._drop_held()
        self._state = self._find_start
        self._on_lost()

    def end(self, ts_ns: int, reason: str) -> None:
        self._ts_ns = ts_ns
        if self._body is not None:
            if self._state == self._find_chunk and self._held:
                self._sink.data(ts_ns, bytes(self._held))
            complete = self._complete_at_end and reason == "fin"
            self._finish("complete" if complete else reason)
        elif self._state == self._head:
            self._unread_head()
        elif self._state == self._find_start and self._held:
            self._on_skipped(bytes(self._held))
        self._drop_held()
        self._state = self._opaque

    def again(self) -> None:
        """The end was none: look for the next message."""
        self._seek_start()

    def pass_through(self, onward: Callable[[int, bytes], None] = ignore) -> None:
        """What follows the message being read is no longer HTTP/1 (after 101, CONNECT): `onward` takes it, with what is held."""
        self._onward = onward
        self._is_tunnel = True
        if self._body is None:
            held = bytes(self._held)
            self._drop_held()
            self._state = self._opaque
            if held:
                onward(self._ts_ns, held)

    @property
    def is_passed(self) -> bool:
        """What comes is no longer HTTP/1."""
        return self._is_tunnel and self._body is None

    def drop(self, why: AnomalyName) -> None:
        """There is no room for what is held: it goes unread, and the next message is looked for."""
        if not self._held:
            return
        self._anomaly(why)
        self._on_skipped(bytes(self._held[: limits.MAX_RAW_PREFIX_BYTES]))
        self._drop_held()
        if self._state == self._trailers:
            self._finish("complete")
        if self._state in (self._head, self._at_start):
            self._state = self._find_start

    def release(self) -> None:
        """After the end: cuts the cycles through bound methods, so that the parser is freed at once."""
        del self._state, self._at_chunk, self._on_head, self._on_lost, self._on_skipped, self._onward, self._anomaly, self._entry

    # --- states -------------------------------------------------------------------------------------------------------

    def _opaque(self, data: bytes, at: int) -> int:
        self._onward(self._ts_ns, data[at:])
        return len(data)

    def _at_start(self, data: bytes, at: int) -> int:
        """Between messages. Empty lines before a start line are allowed (RFC 9112 2.2)."""
        found = _EMPTY_LINES.match(data, at)
        assert found is not None
        if found.end() == at:
            self._head_ns = self._ts_ns
            self._is_start_line = False
            self._state = self._head
        return found.end()

    def _head(self, data: bytes, at: int) -> int:
        """Reads a head once it is whole. What cannot become one is left at the first byte that shows it, so that how the bytes
        were cut makes no difference.
        """
        most = at + limits.MAX_HEAD_BYTES
        if not self._is_start_line:
            if not self._may_be_start(data, at):
                return self._bad_head(data, at, "http_bad_head")
            if data.find(b"\n", at, most) < 0:
                if len(data) > most:
                    return self._bad_head(data, at, "http_head_limit")
                return self._wait(at, _LINE_END, limits.MAX_HEAD_BYTES)
            if not self._is_start(data, at):
                return self._bad_head(data, at, "http_bad_head")
            self._is_start_line = True
        found = _HEAD_END.search(data, at, most)
        if found is None:
            if len(data) > most:
                return self._bad_head(data, at, "http_head_limit")
            return self._wait(at, _HEAD_END_WANTED, limits.MAX_HEAD_BYTES)
        self._begin(self._parse_head(data[at : found.start() + 1 + (data[found.start()] == 13)]))
        return found.end()

    def _bad_head(self, data: bytes, at: int, anomaly: AnomalyName) -> int:
        self._anomaly(anomaly)
        self._on_skipped(data[at : at + 1])
        self._state = self._find_start
        return at + 1  # past where we are, or the same bytes are found again

    def _unread_head(self) -> None:
        """What came of a head when its end is lost, or never came: nobody can have acted on it."""
        if self._held.strip(b"\r\n"):
            self._anomaly("http_bad_head")

    def _find_start(self, data: bytes, at: int) -> int:
        """After damage: the next bytes that look like a message."""
        found = self._find_message(data, at, len(data))
        keep = found.start() if found is not None else self._kept_from(data, at)
        if keep > at:
            self._on_skipped(data[at:keep])
        if found is None:
            return self._wait_for_start(data, keep)
        self._anomaly("http_resync")
        self._state = self._at_start
        return keep

    def _fixed_body(self, data: bytes, at: int) -> int:
        remaining = self._remaining
        assert remaining is not None
        there = len(data) - at
        if there < remaining:
            self._remaining = remaining - there
            self._sink.data(self._ts_ns, data[at:] if at else data)
            return len(data)
        if remaining:
            self._sink.data(self._ts_ns, data[at : at + remaining])
        self._finish("complete")
        return at + remaining

    def _body_to_end(self, data: bytes, at: int) -> int:
        self._sink.data(self._ts_ns, data[at:] if at else data)
        return len(data)

    def _chunk_header(self, data: bytes, at: int) -> int:
        most = at + limits.MAX_CHUNK_LINE_BYTES
        cut = data.find(b"\n", at, most)
        if cut < 0:
            if len(data) <= most and _CHUNK_SIZE.match(data, at):
                return self._wait(at, _LINE_END, limits.MAX_CHUNK_LINE_BYTES)
            self._anomaly("http_bad_chunk")
            self._seek_chunk()
            return at
        line = data[at:cut].rstrip(b"\r")
        size = _CHUNK_SIZES.get(line)
        if size is None:
            match = _CHUNK_SIZE.fullmatch(line)
            if match is None:
                self._anomaly("http_bad_chunk")
                self._seek_chunk()
                return at
            size = int(match[1], 16)
        if size == 0:
            self._state = self._trailers
        else:
            self._remaining = size
            self._state = self._chunk_body
        return cut + 1

    def _chunk_body(self, data: bytes, at: int) -> int:
        remaining = self._remaining
        assert remaining is not None
        there = len(data) - at
        if there < remaining:
            self._remaining = remaining - there
            self._sink.data(self._ts_ns, data[at:] if at else data)
            return len(data)
        self._sink.data(self._ts_ns, data[at : at + remaining])
        self._state = self._chunk_end
        return at + remaining

    def _chunk_end(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self._state = self._at_chunk
            return at + 2
        if data.startswith(b"\n", at):
            self._state = self._at_chunk
            return at + 1
        if data[at] == 13 and at + 1 == len(data):
            return self._wait(at)
        self._anomaly("http_bad_chunk")
        self._seek_chunk()
        return at

    def _trailers(self, data: bytes, at: int) -> int:
        """Trailer lines up to an empty one (RFC 9112 7.1.2); their content is of no use here."""
        cut = data.find(b"\n", at)
        if cut < 0:
            if len(data) - at > limits.MAX_HEAD_BYTES:
                self._anomaly("http_head_limit")
                self._lose("complete")
                return len(data)
            # Some servers send "0\r\n" and go on with the next message on the connection.
            return self._wait(at, _LINE_END, limits.MAX_HEAD_BYTES)
        if not data[at:cut].rstrip(b"\r"):
            self._finish("complete")
        elif self._start.match(data, at):
            self._finish("complete")
            return at
        return cut + 1

    def _find_chunk(self, data: bytes, at: int) -> int:
        """Inside a chunked body after damage: the next line that is a chunk size, or the next message. What is before goes to
        the body: most of it is payload. A size taken wrongly shows at that chunk's end, and the search goes on there.
        """
        # The first bytes may be a chunk size of their own only as long as nothing before them was passed over.
        chunk = (_CHUNK_SIZE_LINE.match(data, at) if self._at_boundary else None) or _CHUNK_START.search(data, at)
        # A message before the chunk ends at the chunk's own line end at the latest.
        message = self._find_message(data, at, len(data) if chunk is None else chunk.start() + 2)
        if message is not None and (chunk is None or message.start() < chunk.start()):
            if message.start() > at:
                self._sink.data(self._ts_ns, data[at : message.start()])
            self._lose("damage")
            self._on_lost()
            return message.start()
        if chunk is not None:
            if chunk.start() > at:
                self._sink.data(self._ts_ns, data[at : chunk.start()])
            self._anomaly("http_resync")
            self._state = self._at_chunk
            return chunk.start(1)
        keep = self._kept_from(data, at)
        if keep > at:
            self._sink.data(self._ts_ns, data[at:keep])
            self._at_boundary = False
        return self._wait_for_start(data, keep)

    def _seek_chunk(self) -> None:
        self._at_boundary = True
        self._state = self._find_chunk

    def _find_message(self, data: bytes, at: int, stop: int) -> re.Match[bytes] | None:
        # Looking for the fixed bytes is far cheaper than the pattern, and they are in both kinds of start.
        return self._start.search(data, at, stop) if data.find(b"HTTP/1.", at, stop) >= 0 else None

    # --- heads --------------------------------------------------------------------------------------------------------

    _start_wants = _ANYTHING
    """What must come before bytes that were searched for a start are searched again."""

    def _may_be_start(self, data: bytes, at: int) -> bool:
        """Whether a start line may begin here, by its first few bytes."""
        raise NotImplementedError

    def _is_start(self, data: bytes, at: int) -> bool:
        """Whether the line that begins here, and is whole, is a start line."""
        raise NotImplementedError

    def _kept_from(self, data: bytes, at: int) -> int:
        """Bytes from here on may be the beginning of a start line or of a chunk size."""
        return max(at, len(data) - _SHORT_TAIL)

    def _start_line(self, line: bytes, headers: Headers) -> Head:
        """The head of a start line that `_is_start` has accepted."""
        raise NotImplementedError

    def _begin(self, head: Head) -> None:
        """Report the head and choose how its body is framed."""
        raise NotImplementedError

    def _parse_head(self, block: bytes) -> Head:
        if block.count(b"\n") != block.count(b"\r\n"):
            self._anomaly("http_bare_lf")
        first, _, rest = block.partition(b"\n")
        headers: Headers = []
        name, parts = b"", [b""]  # of the last header: more of its value may come on the next line
        for line in rest.split(b"\n"):
            line = line.rstrip(b"\r")
            if line[:1] in (b" ", b"\t") and name:
                self._anomaly("http_obs_fold")
                parts.append(line.strip(b" \t"))
                continue
            if name:
                if len(headers) < limits.MAX_HEADERS:
                    headers.append((name, parts[0] if len(parts) == 1 else b" ".join(parts)))
                else:
                    self._header(headers, name, b" ".join(parts))
            key, colon, value = line.partition(b":")
            name, parts = (key.rstrip(b" \t").lower(), [value.strip(b" \t")]) if colon else (b"", [b""])
            if line and not name:
                self._anomaly("http_bad_head")
        if name:
            self._header(headers, name, b" ".join(parts))
        return self._start_line(first + b"\n", headers)

    def _header(self, headers: Headers, name: bytes, value: bytes) -> None:
        if len(headers) < limits.MAX_HEADERS:
            headers.append((name, value))
        elif len(headers) == limits.MAX_HEADERS:
            self._anomaly("http_header_limit")
            headers.append((name, value))
        elif name in _ESSENTIAL and headers[-1] != (name, value):
            headers.append((name, value))

    def _content_length(self, head: Head) -> int | None:
        """The length, or None where there is none or none that can be believed. Of several the first is taken."""
        values = [part.strip(b" \t") for value in head.all(b"content-length") for part in value.split(b",")]
        if not values:
            return None
        lengths = [value.lstrip(b"0") or b"0" for value in values if value.isdigit()]
        if len(lengths) != len(values) or len(set(lengths)) > 1 or len(lengths[0]) > 15:
            self._anomaly("http_bad_length")
        return int(lengths[0]) if lengths and len(lengths[0]) <= 15 else None

    def _is_chunked(self, head: Head) -> bool:
        codings = b",".join(head.all(b"transfer-encoding")).lower()
        if not codings:
            return False
        if head.get(b"content-length") is not None:
            self._anomaly("http_length_and_chunked")
        if codings != b"chunked" or head.version == "1.0":
            self._anomaly("http_framing_unclear")
        return codings.rpartition(b",")[2].strip() == b"chunked"

    # --- bodies -------------------------------------------------------------------------------------------------------

    def _start_body(self, head: Head, *, length: int | None, chunked: bool, to_end: bool) -> None:
        self._body = self._sink = self._on_head(head)
        self._complete_at_end = False
        if chunked:
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
        self._sink = IGNORED
        self._state = self._at_start if not self._is_tunnel else self._opaque
        if body is not None:
            body.end(self._ts_ns, how)

    def _lose(self, how: str) -> None:
        self._finish(how)
        self._seek_start()

    def _seek_start(self) -> None:
        self._state = self._find_start if not self._is_tunnel else self._opaque

    def _drop_held(self) -> None:
        self._held.clear()
        self._entry.set(0)


_REQUEST_HINT = re.compile(rb"(?:" + _METHODS + rb")")
_SHORT_TAIL = 32  # longer than a chunk size line without extension, the beginning of a status line, or a method


class RequestParser(MessageParser):
    """The client's direction."""

    __slots__ = ()
    _start = REQUEST_START

    _start_wants = _LINE_END

    def _may_be_start(self, data: bytes, at: int) -> bool:
        return _REQUEST_PREFIX.match(data, at) is not None

    def _is_start(self, data: bytes, at: int) -> bool:
        return REQUEST_LINE.match(data, at) is not None

    def _kept_from(self, data: bytes, at: int) -> int:
        short = super()._kept_from(data, at)
        line = max(at, len(data) - _LONGEST_START, data.rfind(b"\n", at) + 1)
        return line if line < short and _REQUEST_HINT.search(data, line) else short

    def _start_line(self, line: bytes, headers: Headers) -> Head:
        match = REQUEST_LINE.match(line)
        assert match is not None
        return Head(self._head_ns, match[3].decode(), headers, method=match[1].decode("ascii"), target=match[2].decode("latin-1"))

    def _begin(self, head: Head) -> None:
        chunked = self._is_chunked(head)
        self._start_body(head, length=None if chunked else self._content_length(head), chunked=chunked, to_end=False)


def opens_tunnel(method: str, status: int) -> bool:
    """Whether what follows this answer to a request of `method` is no longer HTTP/1, in both directions (RFC 9110 7.8 and 9.3.6)."""
    return status == 101 or (method == "CONNECT" and 200 <= status < 300)


class ResponseParser(MessageParser):
    """The server's direction. Message body length: RFC 9112 section 6.3."""

    __slots__ = ("_answered",)
    _start = STATUS_START

    def __init__(
        self,
        on_head: Callable[[Head], BodySink],
        on_anomaly: OnAnomaly,
        on_lost: Callable[[], None] = lambda: None,
        on_skipped: Callable[[bytes], None] = lambda _data: None,
        reserve: Callable[[int], bool] = no_account,
        answered: Callable[[], str] = lambda: "",
    ) -> None:
        """`answered` gives the method of the request that the next response answers; it is asked just before `on_head`."""
        super().__init__(on_head, on_anomaly, on_lost, on_skipped, reserve)
        self._answered = answered

    def release(self) -> None:
        super().release()
        del self._answered

    def _may_be_start(self, data: bytes, at: int) -> bool:
        return _STATUS_PREFIX.match(data, at) is not None or b"HTTP/1.".startswith(data[at : at + 7])

    def _is_start(self, data: bytes, at: int) -> bool:
        return _STATUS_LINE.match(data, at) is not None

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
        method = self._answered()
        is_tunnel = opens_tunnel(method, status)
        chunked = False
        length: int | None = 0
        if status not in (101, 204, 304):
            chunked = self._is_chunked(head)
            length = None if chunked else self._content_length(head)
        if is_tunnel or method == "HEAD":
            chunked, length = False, 0
        self._start_body(head, length=length, chunked=chunked, to_end=not chunked and length is None)
        if is_tunnel:
            self.pass_through(self._onward)
