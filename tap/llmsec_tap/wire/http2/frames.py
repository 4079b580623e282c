"""The frames of one direction of an HTTP/2 connection (RFC 9113 sections 4 and 6).

DATA goes to its stream's sink as it comes, without waiting for its frame; header blocks are held until they are whole. After a loss that frames'
lengths do not bridge, the next bytes are looked for that read as frames one behind the other, and the table of headers begins anew.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final, Protocol

from llmsec_tap import limits
from llmsec_tap.account import Entry
from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.http2.hpack import HeaderBlock, HeaderTable
from llmsec_tap.wire.messages import BodySink, ignore

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 section 3.4
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = range(10)
_END_STREAM, _END_HEADERS, _PADDED, _WITH_PRIORITY = 0x1, 0x4, 0x8, 0x20
_HEADER: Final = struct.Struct(">BHBBI")  # length in three bytes, type, flags, stream
_ID: Final = struct.Struct(">I")
HEADER_BYTES: Final = 9
# A frame as endpoints send them unless they agreed on more: length up to 16,384, flags that its type has, a stream below 2**24.
_FRAME: Final = re.compile(
    rb"\x00[\x00-\x40].(?:\x00[\x00\x01\x08\x09]|\x01[\x00\x01\x04\x05\x08\x09\x0c\x0d\x20\x21\x24\x25\x28\x29\x2c\x2d]"
    rb"|[\x02\x03\x07\x08]\x00|[\x04\x06][\x00\x01]|\x05[\x00\x04\x0c]|\x09[\x00\x04])\x00...",
    re.DOTALL,
)
_LENGTHS: Final = {_PRIORITY: 5, _RST_STREAM: 4, _PING: 8, _WINDOW_UPDATE: 4}
_OF_CONNECTION: Final = frozenset((_SETTINGS, _PING, _GOAWAY))
_OF_STREAM: Final = frozenset((_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _PUSH_PROMISE, _CONTINUATION))
# So many frames in a row are no chance.
_SURE: Final = 3


def is_frame(kind: int, length: int, stream: int) -> bool:
    """Whether a frame of this type may have this length and stream. Types that RFC 9113 does not know may have any."""
    if kind in _OF_CONNECTION:
        if stream:
            return False
        if kind == _SETTINGS:
            return length % 6 == 0
        if kind == _GOAWAY:
            return length >= 8
    elif kind in _OF_STREAM and not stream:
        return False
    return _LENGTHS.get(kind, length) == length


def find_frames(data: bytes, at: int = 0) -> tuple[int, int]:
    """Where bytes of unknown meaning begin to read as frames, and how many bytes from there on it takes to be sure; 0: it is sure.

    Nowhere: the offset of what may be the beginning of a frame header, whose rest has not come.
    """
    end = len(data)
    while True:
        found = _FRAME.search(data, at)
        if found is None:
            return max(at, end - HEADER_BYTES + 1), HEADER_BYTES
        at = found.start()
        wanted = _chain(data, at, end)
        if wanted is not None:
            return at, wanted
        at += 1


def _chain(data: bytes, at: int, end: int) -> int | None:
    """None: these are no frames. 0: they are. Otherwise so many bytes are needed to tell."""
    begin = at
    for number in range(_SURE):
        if at == end and number:
            return 0
        if at + HEADER_BYTES > end:
            return at + HEADER_BYTES - begin if number < _SURE - 1 else 0
        if _FRAME.match(data, at) is None:
            return None
        high, low, kind, _flags, stream = _HEADER.unpack_from(data, at)
        length = high << 16 | low
        if length > 16384 or not is_frame(kind, length, stream):
            return None
        at += HEADER_BYTES + length
    return 0


class FrameEvents(Protocol):
    """Takes what the frames of both directions say."""

    def preface(self, side: FrameReader) -> None: ...

    def headers(self, side: FrameReader, ts_ns: int, stream: int, block: HeaderBlock, *, ends: bool) -> None: ...

    def promise(self, side: FrameReader, ts_ns: int, promised: int, block: HeaderBlock) -> None: ...

    def body(self, side: FrameReader, ts_ns: int, stream: int) -> BodySink:
        """Where the DATA of this stream goes. The reader keeps it until `side.forget`."""

    def ended(self, side: FrameReader, ts_ns: int, stream: int) -> None: ...

    def reset(self, ts_ns: int, stream: int) -> None: ...

    def going_away(self, side: FrameReader, ts_ns: int, last: int) -> None: ...

    def lost(self, side: FrameReader, ts_ns: int) -> None:
        """Frames of unknown streams were lost."""

    def direction_ended(self, side: FrameReader, ts_ns: int, reason: str) -> None: ...

    def copy_differs(self, side: FrameReader, data: bytes) -> None: ...

    def anomaly(self, name: AnomalyName) -> None: ...


class FrameReader:
    """A `StreamSink`."""

    __slots__ = (
        "_block",
        "_block_flags",
        "_block_ns",
        "_block_stream",
        "_ends",
        "_entry",
        "_events",
        "_held",
        "_is_begun",
        "_is_ended",
        "_is_seeking",
        "_is_unsure",
        "_pad",
        "_promised",
        "_rest",
        "_sink",
        "_skip",
        "_stream",
        "_table",
        "_table_entry",
        "_wanted",
        "address",
        "data",
        "sinks",
    )

    def __init__(self, events: FrameEvents, flow: Flow, address: str) -> None:
        self._events = events
        self.address = address
        self.sinks: dict[int, BodySink] = {}  # of the streams whose DATA came last
        self._entry = Entry(flow.reserve)
        self._table_entry = Entry(flow.reserve)
        self._table = HeaderTable(is_whole=not flow.is_midstream)
        self._held = bytearray()
        self._wanted = 0  # at so many held bytes it is worth looking again
        self._is_begun = False  # past the preface, if there was one
        self._is_ended = False
        self._is_seeking = False
        self._is_unsure = False  # the frame before was none
        self._rest = 0  # bytes of the DATA frame that are still to come, padding included
        self._pad = 0
        self._skip = 0  # bytes of another frame, of no use here, that are still to come
        self._sink: BodySink | None = None
        self._stream = 0
        self._ends = False
        self._block: bytearray | None = None  # a header block whose end has not come
        self._block_stream = 0
        self._block_flags = 0
        self._block_ns = 0
        self._promised = 0
        self.data: Callable[[int, bytes], None] = self._data

    # --- the inputs ---------------------------------------------------------------------------------------------------

    def _data(self, ts_ns: int, data: bytes) -> None:
        held = self._held
        if held:
            held += data
            if len(held) < self._wanted:
                self._account()
                return
            data = bytes(held)
            held.clear()
        elif not (self._rest or self._skip) and len(data) > HEADER_BYTES and not data[3] and self._block is None:
            # The usual piece of a stream is exactly one frame of DATA.
            high, low, _kind, flags, stream = _HEADER.unpack_from(data)
            if not flags and not high and low == len(data) - HEADER_BYTES:
                sink = self.sinks.get(stream)
                if sink is not None and not self._is_seeking:
                    sink.data(ts_ns, data[HEADER_BYTES:])
                    return
        if not self._is_begun:
            data = self._begin(data)
        at, end = 0, len(data)
        while at < end:
            if self._rest:
                at = self._payload(ts_ns, data, at, end)
            elif self._skip:
                taken = min(self._skip, end - at)
                self._skip -= taken
                at += taken
            elif self._is_seeking:
                at, self._wanted = find_frames(data, at)
                if self._wanted:
                    held += data[at:]
                    break
                self._is_seeking = False
            elif end - at < HEADER_BYTES:
                self._hold(data, at, HEADER_BYTES)
                break
            else:
                was, at = at, self._frame(ts_ns, data, at, end)
                if at < 0:
                    self._hold(data, was, ~at)
                    break
        if held or self._entry.size:
            self._account()

    def gap(self, ts_ns: int, length: int | None) -> None:
        if self._rest and length is not None and length <= self._rest:
            assert self._sink is not None
            if length > self._pad or length > self._rest - self._pad:
                self._sink.gap(ts_ns, min(length, max(0, self._rest - self._pad)) or length)
            self._rest -= length
            if not self._rest:
                self._data_ended(ts_ns)
        elif self._skip and length is not None and length <= self._skip:
            self._skip -= length
        else:
            self._out_of_step(ts_ns)

    def other(self, ts_ns: int, data: bytes) -> None:
        self._events.copy_differs(self, data)

    def again(self) -> None:
        self._is_ended = False
        self._out_of_step(0)

    def end(self, ts_ns: int, reason: str) -> None:
        self._is_ended = True
        self._held.clear()
        self._entry.set(0)
        self._drop_block()
        self._events.direction_ended(self, ts_ns, reason)

    def drop(self) -> None:
        """There is no room for what is held: it goes unread."""
        if self._held or self._block is not None:
            self._events.anomaly("http_memory_limit")
            self._out_of_step(0)
        self._entry.set(0)

    def forget(self, stream: int) -> None:
        self.sinks.pop(stream, None)

    def release(self) -> None:
        self.data = ignore
        self.sinks.clear()
        del self._events, self._entry, self._table_entry
        self._sink = None

    # --- held bytes ---------------------------------------------------------------------------------------------------

    def _hold(self, data: bytes, at: int, wanted: int) -> None:
        self._held += data[at:]
        self._wanted = wanted

    def _account(self) -> None:
        if not self._entry.set(len(self._held) + (len(self._block) if self._block is not None else 0)):
            self.drop()

    def _begin(self, data: bytes) -> bytes:
        """Past the client's preface. What is held is shorter than it."""
        if self._is_seeking or not PREFACE.startswith(data[: len(PREFACE)]):
            self._is_begun = True
            if data.startswith(b"HTTP/1."):
                self._events.anomaly("http2_refused")
                self.data = ignore
                return b""
            return data
        if len(data) < len(PREFACE):
            self._hold(data, 0, len(PREFACE))
            return b""
        self._is_begun = True
        self._events.preface(self)
        return data[len(PREFACE) :]

    def _out_of_step(self, ts_ns: int) -> None:
        """Frames' lengths say no more where the next one begins."""
        self._held.clear()
        self._drop_block()
        self._table.lose()
        self._rest = self._skip = self._pad = 0
        self._sink = None
        self._is_seeking = True
        self._is_unsure = False
        self._events.lost(self, ts_ns)

    def _bad_frame(self, ts_ns: int, at: int, length: int) -> int:
        """No endpoint reads on here. Its length is believed if what follows it looks like a frame."""
        self._events.anomaly("http2_bad_frame")
        self._drop_block()
        if self._is_unsure or length > limits.MAX_HEAD_BYTES:
            self._out_of_step(ts_ns)
            return at + 1  # past where it is, or the same bytes are found again
        self._is_unsure = True
        self._skip = length
        return at + HEADER_BYTES

    # --- frames -------------------------------------------------------------------------------------------------------

    def _frame(self, ts_ns: int, data: bytes, at: int, end: int) -> int:
        """Reads the frame at `at`, of which the header is there. Where it reads on, or `~wanted`: so many bytes of it are needed."""
        high, low, kind, flags, stream = _HEADER.unpack_from(data, at)
        length: int = high << 16 | low
        stream &= 0x7FFFFFFF
        if not is_frame(kind, length, stream) or (self._is_unsure and _FRAME.match(data, at) is None):
            return self._bad_frame(ts_ns, at, length)
        self._is_unsure = False
        if self._block is not None and (kind != _CONTINUATION or stream != self._block_stream):
            return self._bad_frame(ts_ns, at, length)  # nothing may come between the frames of a block (RFC 9113 6.10)
        if kind == _DATA:
            return self._data_frame(ts_ns, data, at, end, length, flags, stream)
        payload = at + HEADER_BYTES
        wanted = length if kind in (_HEADERS, _CONTINUATION, _PUSH_PROMISE, _RST_STREAM) else 8 if kind == _GOAWAY else 0
        if wanted > limits.MAX_HEAD_BYTES:
            return self._too_long(payload, length)
        if end - payload < wanted:
            return ~(HEADER_BYTES + wanted)
        if kind in (_HEADERS, _PUSH_PROMISE):
            return self._block_begins(ts_ns, kind, flags, stream, data[payload : payload + length], at)
        if kind == _CONTINUATION:
            return self._block_goes_on(ts_ns, flags, data[payload : payload + length], at)
        if kind == _RST_STREAM:
            self._events.reset(ts_ns, stream)
            return payload + length
        if kind == _GOAWAY:
            self._events.going_away(self, ts_ns, _ID.unpack_from(data, payload)[0] & 0x7FFFFFFF)
        self._skip = length
        return payload

    def _data_frame(self, ts_ns: int, data: bytes, at: int, end: int, length: int, flags: int, stream: int) -> int:
        payload, pad = at + HEADER_BYTES, 0
        if flags & _PADDED:
            if length and payload == end:
                return ~(HEADER_BYTES + 1)
            pad = data[payload] if length else 0
            if pad >= length:
                return self._bad_frame(ts_ns, at, length)
            payload, length = payload + 1, length - 1
        self._stream, self._rest, self._pad, self._ends = stream, length, pad, bool(flags & _END_STREAM)
        self._sink = self.sinks.get(stream)
        if self._sink is None:
            self._sink = self.sinks[stream] = self._events.body(self, ts_ns, stream)
        if not length:
            self._data_ended(ts_ns)
        return payload

    def _payload(self, ts_ns: int, data: bytes, at: int, end: int) -> int:
        there = min(self._rest, end - at)
        useful = min(there, self._rest - self._pad)
        if useful > 0:
            assert self._sink is not None
            self._sink.data(ts_ns, data[at : at + useful])
        self._rest -= there
        if not self._rest:
            self._data_ended(ts_ns)
        return at + there

    def _data_ended(self, ts_ns: int) -> None:
        self._sink = None
        self._pad = 0
        if self._ends:
            self._events.ended(self, ts_ns, self._stream)

    # --- header blocks ------------------------------------------------------------------------------------------------

    def _block_begins(self, ts_ns: int, kind: int, flags: int, stream: int, payload: bytes, at: int) -> int:
        begin, stop = 0, len(payload)
        if flags & _PADDED:
            begin, stop = 1, stop - (payload[0] if payload else 0)
        if kind == _HEADERS and flags & _WITH_PRIORITY:
            begin += 5
        self._promised = 0
        if kind == _PUSH_PROMISE:
            begin += 4
            if begin <= stop:
                self._promised = _ID.unpack_from(payload, begin - 4)[0] & 0x7FFFFFFF
        if begin > stop or (kind == _PUSH_PROMISE and not self._promised):
            return self._bad_frame(ts_ns, at, len(payload))
        self._block_stream, self._block_ns = stream, ts_ns
        self._block_flags = flags if kind == _HEADERS else 0
        self._block = bytearray(payload[begin:stop])
        if flags & _END_HEADERS:
            self._block_ended(ts_ns)
        return at + HEADER_BYTES + len(payload)

    def _block_goes_on(self, ts_ns: int, flags: int, payload: bytes, at: int) -> int:
        if self._block is None:
            return self._bad_frame(ts_ns, at, len(payload))
        if len(self._block) + len(payload) > limits.MAX_HEAD_BYTES:
            self._drop_block()
            return self._too_long(at + HEADER_BYTES, len(payload))
        self._block += payload
        if flags & _END_HEADERS:
            self._block_ended(ts_ns)
        return at + HEADER_BYTES + len(payload)

    def _too_long(self, payload: int, length: int) -> int:
        """A block beyond the bound goes unread; what it adds to the table is not known."""
        self._events.anomaly("http_head_limit")
        self._drop_block()
        self._table.lose()
        self._skip = length
        return payload

    def _drop_block(self) -> None:
        if self._block is not None:
            self._block = None
            self._table.lose()

    def _block_ended(self, ts_ns: int) -> None:
        assert self._block is not None
        raw, self._block = bytes(self._block), None
        block = self._table.read(raw)
        if not self._table_entry.set(self._table.held):
            self._table.lose()
        if block.is_broken:
            self._events.anomaly("http2_bad_block")
        if self._promised:
            self._events.promise(self, self._block_ns, self._promised, block)
        else:
            ends = bool(self._block_flags & _END_STREAM)
            self._events.headers(self, self._block_ns if not ends else ts_ns, self._block_stream, block, ends=ends)
