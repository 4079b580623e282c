"""The body of one HTTP message on its way to a dialect: content coding undone, then framed into events or held until its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llmsec_tap import limits
from llmsec_tap.account import Entry
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.model import Framing
from llmsec_tap.wire.encoding import ContentDecoder, content_decoder
from llmsec_tap.wire.eventstream import EventStreamParser
from llmsec_tap.wire.grpc import GRPCParser
from llmsec_tap.wire.messages import Head
from llmsec_tap.wire.ndjson import JSONArrayParser, NDJSONParser
from llmsec_tap.wire.sse import EventSink, SSEParser

FRAMING_BY_TYPE: dict[str, Framing] = {
    "text/event-stream": "sse",
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/x-jsonlines": "ndjson",
    "application/stream+json": "ndjson",
    "application/vnd.amazon.eventstream": "aws-eventstream",
}


_FOLD_AT = 64
_GZIP_BEGINS = b"\x1f\x8b\x08"


class FrameParser(Protocol):
    """SSEParser, NDJSONParser, JSONArrayParser, EventStreamParser, GRPCParser and MessageParser."""

    fed_bytes: int

    @property
    def unfinished(self) -> bool:
        """The body ended inside an event, which nobody can have read whole."""

    def feed(self, ts_ns: int, data: bytes) -> None: ...

    def gap(self) -> None: ...

    def end(self, ts_ns: int) -> None: ...


class MessageParser:
    """What comes is framed already: each piece is an event (messages of a WebSocket)."""

    __slots__ = ("_on_event", "fed_bytes", "unfinished")

    def __init__(self, on_event: EventSink, _on_anomaly: OnAnomaly, _reserve: Callable[[int], bool]) -> None:
        self._on_event = on_event
        self.fed_bytes = 0
        self.unfinished = False

    def feed(self, ts_ns: int, data: bytes) -> None:
        self.fed_bytes += len(data)
        self._on_event(ts_ns, None, data)

    def gap(self) -> None:
        """The messages around it are whole."""

    def end(self, ts_ns: int) -> None:
        """Nothing is held."""


FRAME_PARSERS: dict[str, Callable[[EventSink, OnAnomaly, Callable[[int], bool]], FrameParser]] = {
    "sse": SSEParser,
    "ndjson": NDJSONParser,
    "json-array": JSONArrayParser,
    "aws-eventstream": EventStreamParser,
    "grpc": GRPCParser,
    "websocket": MessageParser,
}


class BodyOwner(Protocol):
    """The exchange that a body belongs to."""

    @property
    def is_ended(self) -> bool: ...

    def anomaly(self, name: AnomalyName, count: int = 1) -> None: ...

    def reserve(self, size: int) -> bool:
        """Take (or with a negative size give back) room in the account of all that is held; False where there is none."""

    def truncate(self, why: AnomalyName) -> None:
        """Bytes were left out for a bound, the anomaly `why`."""

    def gap(self, body: Body) -> None: ...

    def ended(self, body: Body, ts_ns: int) -> None: ...


class Body:
    """One side's body: content decoding, then either framed events or a bounded buffer.

    What could not be read is said: `unreadable` is the anomaly's name, `raw_prefix` the first bytes of it as they came.
    `other_bytes` are copies of its bytes on the wire that differed from those that were read (`tcp_overlap_differs`).
    """

    __slots__ = (
        "_decoder",
        "_folded",
        "_held",
        "_is_cut",
        "_may_be_coded",
        "_others",
        "_others_size",
        "_owner",
        "_raw",
        "_raw_size",
        "_size",
        "_windows",
        "bytes",
        "data",
        "ended",
        "gapped",
        "on_data",
        "parts",
        "unreadable",
    )

    def __init__(self, owner: BodyOwner, on_data: Callable[[int, bytes], None]) -> None:
        self._owner = owner
        self.on_data = on_data  # takes decoded bytes
        self.data: Callable[[int, bytes], None] = self._first_data
        self._decoder: ContentDecoder | None = None
        self._may_be_coded = True
        self._windows = Entry(owner.reserve)  # what the decoder keeps
        self._held = 0  # in the account
        self._size = 0
        self._is_cut = False
        self._folded: list[bytes] = []
        self._raw: list[bytes] = []
        self._others: list[bytes] = []
        self._others_size = 0
        self._raw_size = 0
        self.unreadable: AnomalyName | None = None
        self.parts: list[bytes] = []
        self.bytes = 0  # as on the wire, codings included
        self.gapped = False
        self.ended: str | None = None

    @property
    def raw_prefix(self) -> bytes:
        """The first bytes that could not be read, at most limits.MAX_RAW_PREFIX_BYTES, until the body is released."""
        return b"".join(self._raw)

    @property
    def other_bytes(self) -> bytes:
        """At most limits.MAX_RAW_PREFIX_BYTES, until the body is released."""
        return b"\n".join(self._others)

    def other(self, data: bytes) -> None:
        if self._others_size + len(data) <= limits.MAX_RAW_PREFIX_BYTES and self._owner.reserve(len(data)):
            self._others_size += len(data)
            self._others.append(data)

    def head(self, head: Head) -> None:
        coding = b",".join(head.all(b"content-encoding"))
        if coding:
            self._decoder = content_decoder(coding.decode("latin-1"), self._owner.anomaly)
        self._may_be_coded = b"zip" not in (head.get(b"content-type") or b"")

    def _first_data(self, ts_ns: int, data: bytes) -> None:
        self.data = self._data
        if self._decoder is None and self._may_be_coded and data.startswith(_GZIP_BEGINS):
            self._owner.anomaly("content_encoding_undeclared")
            self._decoder = content_decoder("gzip", self._owner.anomaly)
        self._data(ts_ns, data)

    def _data(self, ts_ns: int, data: bytes) -> None:
        self.bytes += len(data)
        decoder = self._decoder
        if decoder is None:
            self.on_data(ts_ns, data)
            return
        for piece in decoder.feed(data):
            self.on_data(ts_ns, piece)
        if not self._windows.set(decoder.held):
            self._owner.truncate("memory_limit")
            decoder.stop("memory_limit")
        if decoder.fault is not None:
            self._undecoded(decoder)

    def _undecoded(self, decoder: ContentDecoder) -> None:
        if decoder.fault != "gap":  # a gap is said as one
            assert decoder.fault is not None
            self.unread(decoder.fault, decoder.undecoded)
        decoder.undecoded = b""

    def unread(self, why: AnomalyName, data: bytes) -> None:
        """These bytes could not be read: keep the first of them as they are."""
        self.unreadable = self.unreadable or why
        data = data[: max(0, limits.MAX_RAW_PREFIX_BYTES - self._raw_size)]
        if data and self._owner.reserve(len(data)):
            self._raw_size += len(data)
            self._raw.append(data)

    def stream_into(self, frames: FrameParser) -> None:
        """From now on events are read as bytes come; with no coding to undo, the HTTP parser feeds the frame parser itself."""
        self.on_data = frames.feed
        if self._decoder is None:
            frames.fed_bytes = self.bytes
            self.data = frames.feed

    def hold(self, data: bytes) -> None:
        """Keep decoded bytes until the end, within the bounds."""
        cost = len(data) + limits.PIECE_COST_BYTES
        if self._is_cut:
            return
        if self._size + len(data) > limits.MAX_BODY_BYTES:
            self._owner.truncate("http_body_limit")
            self.unread("http_body_limit", data)
            return
        if not self._owner.reserve(cost):
            self._is_cut = True
            self._owner.truncate("memory_limit")
            self.unread("memory_limit", b"")
            return
        self._size += len(data)
        self._held += cost
        self.parts.append(data)
        if len(self.parts) >= _FOLD_AT:  # pieces of a byte or two would take fifty times their size
            self._folded.append(b"".join(self.parts))
            self.parts.clear()

    def take(self) -> bytes:
        data = b"".join([*self._folded, *self.parts]) if self._folded else b"".join(self.parts)
        self._drop()
        return data

    def _drop(self) -> None:
        self._owner.reserve(-self._held)
        self._held = self._size = 0
        self.parts.clear()
        self._folded.clear()

    def release(self) -> None:
        self._drop()
        self._owner.reserve(-self._raw_size - self._others_size)
        self._raw_size = self._others_size = 0
        self._raw.clear()
        self._others.clear()

    def gap(self, ts_ns: int, length: int | None) -> None:
        if self._owner.is_ended:
            return
        self.gapped = True
        if self._decoder is not None:
            self._decoder.gap()
        self._owner.gap(self)

    def end(self, ts_ns: int, how: str) -> None:
        if self.ended is None:
            if self._decoder is not None:
                for piece in self._decoder.end():
                    self.on_data(ts_ns, piece)
            self.ended = how
            self._owner.ended(self, ts_ns)


def looks_like_sse(data: bytes) -> bool:
    return data.lstrip(b"\xef\xbb\xbf\r\n").startswith((b"data:", b"event:", b": ", b":\n", b"id:", b"retry:"))
