"""WebSocket: the messages of both directions of a connection (RFC 6455), inflated where permessage-deflate was agreed on (RFC 7692).

A message is handed on whole; control frames between its fragments are no part of it. After a loss that a frame's length does not bridge, the next
bytes are looked for that read as frames. What inflating looks back at is lost with a message: later ones that refer to it are counted as unread,
those that do not are read.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from llmsec_tap import limits
from llmsec_tap.account import Entry
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.wire.flow import Flow, StreamSink
from llmsec_tap.wire.messages import Head, ignore
from llmsec_tap.wire.protocols import Upgrade

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_FIN, _RSV1, _RSV23, _OPCODE = 0x80, 0x40, 0x30, 0x0F
_MASKED, _LENGTH = 0x80, 0x7F
_MAX_CONTROL: Final = 125
_KINDS: Final = frozenset((_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG))
# What may be the first two bytes of a frame. The last class is the mask bit and length.
_BEGINS: Final = {
    True: re.compile(rb"(?:[\x00-\x02\x40-\x42\x80-\x82\xc0-\xc2][\x80-\xff]|[\x88-\x8a][\x80-\xfd])", re.DOTALL),
    False: re.compile(rb"(?:[\x00-\x02\x40-\x42\x80-\x82\xc0-\xc2][\x00-\x7f]|[\x88-\x8a][\x00-\x7d])", re.DOTALL),
}
_JSON: Final = re.compile(rb"\s*[\[{]\s*[\"{\]}]")
_SURE: Final = 3  # so many frames in a row are no chance
_TAIL: Final = 32  # of bytes that are searched, so many may be the beginning of a frame
_END_OF_BLOCK: Final = b"\x00\x00\xff\xff"  # RFC 7692 7.2.2: the sender leaves it out
_WINDOW_BYTES: Final = 32 * limits.KIB
_MAX_LAST_BLOCKS: Final = 64  # of one message; a sender writes none, or one
_INFLATER_BYTES: Final = 2 * _WINDOW_BYTES + 16 * limits.KIB  # zlib's window and state, and what is kept here


class MessageSink(Protocol):
    """Takes the messages of one connection, in the order in which they came."""

    def message(self, ts_ns: int, data: bytes, *, of_client: bool) -> None: ...

    def lost(self, ts_ns: int, *, of_client: bool) -> None:
        """A message, or some, did not come (whole)."""

    def closing(self, ts_ns: int, code: int | None, *, of_client: bool) -> None:
        """A close frame; without a code it says nothing (RFC 6455 7.4)."""

    def copy_differs(self, data: bytes, *, of_client: bool) -> None: ...

    def anomaly(self, name: AnomalyName) -> None:
        """Of the connection: it is counted already."""

    def shed(self) -> None: ...

    def close(self, ts_ns: int, reason: str) -> None: ...


class Deflate(NamedTuple):
    """What an endpoint's answer says of permessage-deflate. Windows are of any size to a reader: inflating takes the largest."""

    server_keeps_context: bool = True
    client_keeps_context: bool = True


def deflate_of(response: Head) -> Deflate | None:
    """The extension as the server agreed to it, None: none. Its parameters may be quoted (RFC 6455 9.1)."""
    for value in response.all(b"sec-websocket-extensions"):
        for extension in value.lower().split(b","):
            name, *parameters = (part.strip() for part in extension.split(b";"))
            if name == b"permessage-deflate":
                names = {parameter.partition(b"=")[0].strip() for parameter in parameters}
                return Deflate(
                    server_keeps_context=b"server_no_context_takeover" not in names,
                    client_keeps_context=b"client_no_context_takeover" not in names,
                )
    return None


def unmasked(data: bytes, key: bytes | bytearray) -> bytes:
    size = len(data)
    mask = (bytes(key) * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")


class Inflater:
    """One direction's messages, inflated within limits.MAX_EVENT_BYTES each."""

    __slots__ = ("_inner", "_keeps_context", "_window")

    def __init__(self, *, keeps_context: bool) -> None:
        self._keeps_context = keeps_context
        self.forget()

    def forget(self) -> None:
        """What later messages refer to is not known any more; what refers to it does not inflate."""
        self._inner = zlib.decompressobj(-zlib.MAX_WBITS)
        self._window = b""

    def inflate(self, data: bytes) -> bytes | None:
        """A message, or None where it cannot be read, or would be longer than limits.MAX_EVENT_BYTES."""
        if not self._keeps_context:
            self.forget()
        waiting = data + _END_OF_BLOCK
        out = b""
        try:
            for _ in range(_MAX_LAST_BLOCKS):
                out += self._inner.decompress(waiting, limits.MAX_EVENT_BYTES + 1 - len(out))
                if len(out) > limits.MAX_EVENT_BYTES:
                    break
                if not self._inner.eof:
                    self._window = (self._window + out[-_WINDOW_BYTES:])[-_WINDOW_BYTES:]
                    return out
                # A last block (RFC 7692 7.2.3.4): another one may follow, in the same window.
                waiting = self._inner.unused_data
                self._inner = zlib.decompressobj(-zlib.MAX_WBITS, zdict=(self._window + out[-_WINDOW_BYTES:])[-_WINDOW_BYTES:])
                if waiting == _END_OF_BLOCK:
                    waiting = b""
        except zlib.error:
            pass
        self.forget()
        return None


def header_bytes(head: bytes | bytearray) -> int:
    """How long the frame header is that begins so; 2 where less than two bytes are known."""
    if len(head) < 2:
        return 2
    length = head[1] & _LENGTH
    return 2 + (2 if length == 126 else 8 if length == 127 else 0) + (4 if head[1] & _MASKED else 0)


def _length(head: bytes | bytearray) -> int:
    length = head[1] & _LENGTH
    if length == 126:
        return int.from_bytes(head[2:4], "big")
    return int.from_bytes(head[2:10], "big") if length == 127 else length


def begins_json(data: bytes) -> bool | None:
    """Whether bytes begin with a message of JSON, as a connection that was joined in its middle may show; then, whether a client sent it.

    None: they do not, as far as can be seen.
    """
    if len(data) < 2 or data[0] not in (_TEXT, _FIN | _TEXT):
        return None
    of_client = bool(data[1] & _MASKED)
    return of_client if len(data) > 8 and _reads_as_json(data, of_client=of_client) else None


def _reads_as_json(data: bytes, *, of_client: bool) -> bool:
    head = data[: header_bytes(data[:2])]
    length, short = _length(head), head[1] & _LENGTH
    if not 2 <= length <= limits.MAX_EVENT_BYTES or (short >= 126 and length < 126) or (short == 127 and length < 1 << 16):
        return False
    begin = data[len(head) : len(head) + min(length, 8)]
    return _JSON.match(unmasked(begin, head[-4:]) if of_client else begin) is not None


def find_frame(data: bytes, *, of_client: bool, is_deflated: bool) -> int | None:
    """Where bytes of unknown meaning begin to read as frames: several in a row, or one with JSON in it."""
    for found in _BEGINS[of_client].finditer(data):
        at = found.start()
        if _reads_as_frames(data, at, of_client=of_client, is_deflated=is_deflated):
            return at
    return None


def _reads_as_frames(data: bytes, at: int, *, of_client: bool, is_deflated: bool) -> bool:
    end = len(data)
    for number in range(_SURE):
        if at == end and number:
            return True
        if _BEGINS[of_client].match(data, at) is None or at + header_bytes(data[at : at + 2]) > end:
            return False
        head = data[at : at + header_bytes(data[at : at + 2])]
        length, short = _length(head), head[1] & _LENGTH
        if length > limits.MAX_EVENT_BYTES or (short >= 126 and length < 126) or (short == 127 and length < 1 << 16):
            return False
        if head[0] & _RSV1 and not is_deflated:
            return False
        at += len(head)
        if head[0] & _OPCODE in (_TEXT, _BINARY) and not head[0] & _RSV1:
            begin = data[at : at + min(length, 8)]
            if _JSON.match(unmasked(begin, head[-4:]) if of_client else begin):
                return True
        at += length
        if at > end:
            return False
    return True


class FrameReader:
    """A `StreamSink`: one direction. Mask and opcode say how a frame is read, whoever sent it; what RFC 6455 forbids is counted."""

    __slots__ = (
        "_entry",
        "_has_room",
        "_head",
        "_inflater",
        "_is_cut",
        "_is_deflated",
        "_is_open",
        "_message",
        "_of_client",
        "_payload",
        "_remaining",
        "_reserve",
        "_searching",
        "_sink",
        "_skips",
        "_tail",
        "_websocket",
        "data",
    )

    def __init__(
        self, websocket: WebSocket, sink: MessageSink, flow: Flow, *, of_client: bool, deflate: Deflate | None, is_joined: bool
    ) -> None:
        self._websocket = websocket
        self._sink = sink
        self._of_client = of_client
        keeps = deflate is None or (deflate.client_keeps_context if of_client else deflate.server_keeps_context)
        self._inflater = Inflater(keeps_context=keeps) if deflate is not None else None
        self._reserve = flow.reserve
        self._has_room = deflate is None or flow.reserve(_INFLATER_BYTES)
        self._entry = Entry(flow.reserve)
        self._head = bytearray()
        self._payload = bytearray()  # of the frame that is being read
        self._remaining = 0  # bytes of it that have not come
        self._skips = False  # they are not kept
        self._message = bytearray()  # of the frames before it
        self._is_open = False  # a message has begun, and its last frame has not come
        self._is_deflated = False
        self._is_cut = False  # some of the message is missing
        self._searching = is_joined
        self._tail = b""
        self.data: Callable[[int, bytes], None] = self._data

    def _data(self, ts_ns: int, data: bytes) -> None:
        at, end = 0, len(data)
        if self._searching:
            data = self._tail + data
            found = find_frame(data, of_client=self._of_client, is_deflated=self._inflater is not None)
            if found is None:
                self._tail = data[-_TAIL:]
                return
            self._searching, self._tail = False, b""
            at, end = found, len(data)
        while at < end and not self._searching:
            if self._remaining:
                taken = min(self._remaining, end - at)
                if not self._skips:
                    self._payload += data[at : at + taken]
                at += taken
                self._remaining -= taken
                if not self._remaining:
                    self._frame(ts_ns)
                continue
            head = self._head
            wanted = header_bytes(head) - len(head)
            head += data[at : at + wanted]
            at += wanted
            if len(head) >= 2 and len(head) == header_bytes(head):
                self._begin(ts_ns)
        if not self._entry.set(len(self._payload) + len(self._message)):
            self.drop("memory_limit")

    def _begin(self, ts_ns: int) -> None:
        """A frame's header is whole."""
        head = self._head
        kind, length = head[0] & _OPCODE, _length(head)
        is_control = kind >= _CLOSE
        may_be_deflated = self._inflater is not None and kind in (_TEXT, _BINARY)
        if (
            kind not in _KINDS
            or head[0] & _RSV23
            or (head[0] & _RSV1 and not may_be_deflated)
            or length >> 63
            or (is_control and (length > _MAX_CONTROL or not head[0] & _FIN))
        ):
            self._websocket.anomaly("websocket_bad_frame")
            self._resync(ts_ns)
            return
        if bool(head[1] & _MASKED) is not self._of_client:
            self._websocket.anomaly("websocket_bad_frame")
        self._remaining = length
        self._skips = False
        if not is_control:
            self._continue(ts_ns, kind)
            if len(self._message) + length > limits.MAX_EVENT_BYTES:
                self._skips = True
                self._cut("event_limit")
            self._skips = self._skips or self._is_cut
        if not length:
            self._frame(ts_ns)

    def _continue(self, ts_ns: int, kind: int) -> None:
        """A frame of data begins a message, or goes on with it."""
        if kind == _CONTINUATION:
            if not self._is_open:  # its beginning was lost, or never was
                self._websocket.anomaly("websocket_bad_frame")
                self._is_open = self._is_cut = True
            return
        if self._is_open and not self._is_cut:
            # No endpoint may begin another one here. What a lax one takes for a message is read as one.
            self._websocket.anomaly("websocket_bad_frame")
            self._whole(ts_ns)
        self._message.clear()
        self._is_open, self._is_cut = True, False
        self._is_deflated = bool(self._head[0] & _RSV1)

    def _frame(self, ts_ns: int) -> None:
        """The frame is whole."""
        head, payload = self._head, bytes(self._payload)
        self._head = bytearray()
        self._payload.clear()
        if payload and head[1] & _MASKED:
            payload = unmasked(payload, head[-4:])
        kind = head[0] & _OPCODE
        if kind >= _CLOSE:
            if kind == _CLOSE:
                self._sink.closing(ts_ns, int.from_bytes(payload[:2], "big") if len(payload) >= 2 else None, of_client=self._of_client)
            return
        if not head[0] & _FIN:
            self._message += payload
        elif self._is_cut:
            self._is_open = False
            self._message.clear()
        elif self._message:
            self._message += payload
            self._whole(ts_ns)
        else:
            self._hand_on(ts_ns, payload)

    def _whole(self, ts_ns: int) -> None:
        message = bytes(self._message)
        self._message.clear()
        self._hand_on(ts_ns, message)

    def _hand_on(self, ts_ns: int, data: bytes) -> None:
        self._is_open = False
        if self._is_deflated and self._inflater is not None:
            inflated = self._inflater.inflate(data) if self._has_room else None
            if inflated is None or not self._reserve(len(inflated)):
                self._websocket.anomaly("websocket_unread")
                self._sink.lost(ts_ns, of_client=self._of_client)
                return
            self._sink.message(ts_ns, inflated, of_client=self._of_client)
            self._reserve(-len(inflated))
        elif data:
            self._sink.message(ts_ns, data, of_client=self._of_client)

    def _cut(self, why: AnomalyName | None) -> None:
        """The message that is being read stays unread; later ones may refer to it."""
        if not self._is_cut and why is not None:
            self._websocket.anomaly(why)
        self._is_cut = True
        self._payload.clear()
        self._message.clear()
        if self._inflater is not None:
            self._inflater.forget()

    def drop(self, why: AnomalyName) -> None:
        """There is no room for what is held."""
        if self._payload or self._message:
            self._skips = True
            self._cut(why)
        self._entry.set(0)

    def _resync(self, ts_ns: int) -> None:
        self._head.clear()
        self._remaining = 0
        self._searching = True
        self._cut(None)
        self._is_open = False
        self._sink.lost(ts_ns, of_client=self._of_client)

    def gap(self, ts_ns: int, length: int | None) -> None:
        if length is None or length > self._remaining:
            self._resync(ts_ns)
            return
        self._skips = True
        self._remaining -= length
        if self._head[0] & _OPCODE < _CLOSE:
            self._cut(None)
            self._sink.lost(ts_ns, of_client=self._of_client)
        if not self._remaining:
            self._frame(ts_ns)

    def other(self, ts_ns: int, data: bytes) -> None:
        if not self._of_client:  # a client's bytes say nothing without their mask
            self._sink.copy_differs(data, of_client=False)

    def again(self) -> None:
        """Its end said nothing to the messages."""

    def end(self, ts_ns: int, reason: str) -> None:
        if self._remaining or (self._is_open and not self._is_cut):
            self._cut(None)
            self._sink.lost(ts_ns, of_client=self._of_client)

    def release(self) -> None:
        self._entry.set(0)
        if self._inflater is not None and self._has_room:
            self._reserve(-_INFLATER_BYTES)
        self.data = ignore
        del self._sink, self._websocket, self._reserve, self._entry


class WebSocket:
    """A `ProtocolSink`, of a connection or of a stream of HTTP/2 (RFC 8441)."""

    __slots__ = ("_on_anomaly", "_sink", "first", "second")

    def __init__(self, flow: Flow, upgrade: Upgrade, sink: MessageSink, on_anomaly: OnAnomaly, *, is_joined: bool = False) -> None:
        """`is_joined`: nobody knows where the first frame begins."""
        self._sink = sink
        self._on_anomaly = on_anomaly
        deflate = deflate_of(upgrade.response)
        self.first: StreamSink = FrameReader(self, sink, flow, of_client=upgrade.client_is_first, deflate=deflate, is_joined=is_joined)
        self.second: StreamSink = FrameReader(self, sink, flow, of_client=not upgrade.client_is_first, deflate=deflate, is_joined=is_joined)

    def anomaly(self, name: AnomalyName) -> None:
        self._on_anomaly(name)
        self._sink.anomaly(name)

    def shed(self) -> None:
        for side in (self.first, self.second):
            assert isinstance(side, FrameReader)
            side.drop("memory_limit")
        self._sink.shed()

    def close(self, ts_ns: int, reason: str) -> None:
        self._sink.close(ts_ns, reason)
        for side in (self.first, self.second):
            assert isinstance(side, FrameReader)
            side.release()


class _Undecided:
    """One direction of a connection that was joined in its middle."""

    def __init__(self, joined: JoinedWebSocket, *, is_first: bool) -> None:
        self._joined = joined
        self._is_first = is_first
        self.inner: StreamSink | None = None
        self.data: Callable[[int, bytes], None] = self._data

    def _data(self, ts_ns: int, data: bytes) -> None:
        of_client = begins_json(data)
        if of_client is not None:
            self._joined.settle(client_is_first=of_client is self._is_first)
            self.data(ts_ns, data)

    def hand_over(self, inner: StreamSink) -> None:
        self.inner = inner
        self.data = inner.data

    def gap(self, ts_ns: int, length: int | None) -> None:
        if self.inner is not None:
            self.inner.gap(ts_ns, length)

    def other(self, ts_ns: int, data: bytes) -> None:
        if self.inner is not None:
            self.inner.other(ts_ns, data)

    def again(self) -> None:
        """Its end said nothing to the messages."""

    def end(self, ts_ns: int, reason: str) -> None:
        if self.inner is not None:
            self.inner.end(ts_ns, reason)

    def release(self) -> None:
        self.data = ignore
        self.inner = None
        del self._joined


class JoinedWebSocket:
    """A `ProtocolSink` of a connection whose upgrade was not captured: the first message of JSON tells who is the client, by its mask."""

    def __init__(self, flow: Flow, session: Callable[[Upgrade], MessageSink], on_anomaly: OnAnomaly) -> None:
        self._flow = flow
        self._session = session
        self._on_anomaly = on_anomaly
        self._inner: WebSocket | None = None
        self._sides = _Undecided(self, is_first=True), _Undecided(self, is_first=False)

    @property
    def first(self) -> StreamSink:
        return self._sides[0]

    @property
    def second(self) -> StreamSink:
        return self._sides[1]

    def settle(self, *, client_is_first: bool) -> None:
        if self._inner is None:
            upgrade = Upgrade(None, Head(self._flow.opened_ns, "", []), client_is_first)
            inner = self._inner = WebSocket(self._flow, upgrade, self._session(upgrade), self._on_anomaly, is_joined=True)
            self._sides[0].hand_over(inner.first)
            self._sides[1].hand_over(inner.second)

    def anomaly(self, name: AnomalyName) -> None:
        if self._inner is not None:
            self._inner.anomaly(name)
        else:
            self._on_anomaly(name)

    def shed(self) -> None:
        if self._inner is not None:
            self._inner.shed()

    def close(self, ts_ns: int, reason: str) -> None:
        if self._inner is not None:
            self._inner.close(ts_ns, reason)
        for side in self._sides:
            side.release()
