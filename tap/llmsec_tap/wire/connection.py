"""One connection: what protocol it speaks, and which response answers which request.

Protocol choice peeks at the first bytes of each direction and may say "not yet"; parsers never sniff. A direction whose first
byte was not captured (or that opens with a preamble such as PROXY) is searched for the first message instead. Ports play no part.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Protocol

from llmsec_tap import limits
from llmsec_tap.account import Entry
from llmsec_tap.wire.flow import Flow, StreamSink
from llmsec_tap.wire.http1 import NO_BODY, REQUEST_LINE, BodySink, Head, MessageParser, RequestParser, ResponseParser, find_message

_REQUEST_PREFIX = re.compile(rb"[A-Z]{0,16}\Z|[A-Z]{2,16} ")
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 section 3.4
# How much of a connection that began with something else is searched for a message (a PROXY protocol header, STARTTLS banter).
_PREAMBLE_BYTES = 4 * limits.KIB
# What is kept of an unsynchronised direction while looking: a request line may have begun in it.
_SEARCH_TAIL = 16 * limits.KIB
_SHORT_TAIL = 32
# The first bytes of a line tell whether it may be a request line; then its end is waited for.
_PREFIX = 64
# An oddity of the connection is shown on so many exchanges at most.
_SHOWN = 16


class ExchangeSink(Protocol):
    """One request and its response in the making."""

    @property
    def request(self) -> BodySink: ...

    @property
    def response(self) -> BodySink: ...

    @property
    def is_ended(self) -> bool:
        """Both sides have ended."""

    @property
    def has_room(self) -> bool:
        """There was room in the account when it began; otherwise it is cut as soon as its head is known."""

    def request_head(self, head: Head) -> None: ...

    def response_head(self, head: Head) -> None: ...

    def anomaly(self, name: str) -> None: ...

    def unread(self, ts_ns: int, name: str, data: bytes) -> None:
        """What the client sent here could not be read as a message."""

    def other(self, data: bytes, *, of_client: bool) -> None:
        """A second reading of bytes of the request, or of the answer."""

    def close(self, ts_ns: int, reason: str) -> None:
        """The connection ended; whatever is missing will not come."""


class ExchangeFactory(Protocol):
    def __call__(self, flow: Flow, client: str, server: str, ordinal: int) -> ExchangeSink: ...


class _Cut:
    """In the place of an exchange that was cut: takes its answer, which nobody reads any more."""

    def __init__(self, sink: BodySink) -> None:
        self.bodiless = sink.bodiless
        self.is_tunnel = sink.is_tunnel
        self.data: Callable[[int, bytes], None] = NO_BODY.data

    def gap(self, ts_ns: int, length: int | None) -> None:
        pass

    def end(self, ts_ns: int, how: str) -> None:
        pass


class _Direction:
    """One direction. `data` is replaced by the parser's own once the protocol is known: one call less per segment."""

    __slots__ = ("_entry", "_flow", "_looked", "_parser", "_peeked", "_searching", "_seen", "address", "data", "peer")

    peer: _Direction

    def __init__(self, flow: HTTPFlow, address: str, *, joined_midstream: bool) -> None:
        self._flow = flow
        self.address = address
        self._parser: MessageParser | None = None
        self._peeked = bytearray()
        self._entry = Entry(flow.facts.reserve)
        self._looked = 0  # so much of it was looked at in vain: more of the same line changes nothing
        self._seen = 0
        self._searching = joined_midstream
        self.data: Callable[[int, bytes], None] = self._peek

    def _peek(self, ts_ns: int, data: bytes) -> None:
        self._seen += len(data)
        peeked = self._peeked
        if peeked:
            peeked += data
            if self._looked >= _PREFIX and b"\n" not in data and len(peeked) <= 2 * self._looked + _PREFIX:
                self._account()
                return
            data = bytes(peeked)
            peeked.clear()
        kind = None if self._searching else classify_start(data)
        if kind == "more":
            peeked += data
            self._looked = len(data)
        elif kind in ("request", "response"):
            self._become(kind, ts_ns, data)
        elif kind is not None and kind != "other":
            self._flow.other_protocol(kind)
        else:
            self._search(ts_ns, data)
        self._account()

    def _account(self) -> None:
        if not self._entry.set(len(self._peeked)):
            self.drop("http_memory_limit")

    def drop(self, why: str) -> None:
        """There is no room for what is held: it goes unread, and the next message is looked for."""
        if self._parser is not None:
            self._parser.drop(why)
        elif self._peeked:
            self._flow.anomaly(why)
            self._peeked.clear()
            self._searching = True
        self._entry.set(0)

    def _search(self, ts_ns: int, data: bytes) -> None:
        self._searching = True
        found = find_message(data)
        if found is not None:
            kind, at = found
            if self._seen - len(data) + at > _SEARCH_TAIL:
                self._flow.anomaly("http_resync")
            self._become(kind, ts_ns, data[at:])
        elif not self._flow.facts.is_midstream and self._seen > _PREAMBLE_BYTES:
            self._flow.other_protocol("unknown")
        else:
            # A request line has no line end inside; the beginning of a status line is shorter than what is kept in any case.
            line = data.rfind(b"\n") + 1
            self._peeked += data[max(0, min(line, len(data) - _SHORT_TAIL), len(data) - _SEARCH_TAIL) :]
            self._looked = 0 if len(self._peeked) <= _SHORT_TAIL else len(self._peeked)

    def _become(self, kind: str, ts_ns: int, data: bytes) -> None:
        self._parser = self._flow.parser(self, kind)
        self.data = self._parser.data
        self._parser.data(ts_ns, data)

    def gap(self, ts_ns: int, length: int | None) -> None:
        if self._parser is not None:
            self._parser.gap(ts_ns, length)
        else:
            self._peeked.clear()
            self._searching = True
            self._flow.responses_lost()

    def other(self, ts_ns: int, data: bytes) -> None:
        if self._parser is not None:
            self._flow.other(data, of_client=isinstance(self._parser, RequestParser))

    def again(self) -> None:
        if self._parser is not None:
            self._parser.again()
            self._flow.responses_lost()

    def end(self, ts_ns: int, reason: str) -> None:
        if self._parser is not None:
            self._parser.end(ts_ns, reason)

    def ignore(self) -> None:
        self._peeked.clear()
        if self._parser is not None:
            self._parser.pass_through()
        else:
            self.data = NO_BODY.data

    def release(self) -> None:
        """The connection is over. Cuts the cycles, so that its memory is freed at once and not at some later garbage collection."""
        self.data = NO_BODY.data
        if self._parser is not None:
            self._parser.release()
        self._parser = None
        del self._flow, self._entry, self.peer


def classify_start(data: bytes) -> str:
    """What a direction's first bytes are: request, response, http2, tls, other, or "more" where too few have come."""
    if data.startswith(b"HTTP/"):
        return "response" if len(data) > 7 and data[5:7] == b"1." else "more" if len(data) <= 7 else "other"
    if data.startswith(_HTTP2_PREFACE[: max(4, min(len(data), len(_HTTP2_PREFACE)))]):
        return "http2" if len(data) >= len(_HTTP2_PREFACE) else "more"
    if data[:1] == b"\x16":
        return "tls" if len(data) >= 3 and data[1] == 3 else "more" if len(data) < 3 else "other"
    stripped = data.lstrip(b"\r\n")
    if not _REQUEST_PREFIX.match(stripped):
        return "request" if REQUEST_LINE.match(stripped) else "other"
    if b"\n" in stripped:
        return "request" if REQUEST_LINE.match(stripped) else "other"
    return "more" if len(stripped) <= limits.MAX_HEAD_BYTES else "other"


class HTTPFlow:
    """A `FlowSink`. Exchanges come from `factory`; protocols that are not decoded are told to `on_protocol` once."""

    __slots__ = (
        "_factory",
        "_is_unsure",
        "_last_ns",
        "_on_closed",
        "_on_protocol",
        "_pruned",
        "_skipped",
        "_waiting",
        "anomaly_sink",
        "facts",
        "first",
        "open",
        "ordinal",
        "second",
    )

    def __init__(
        self,
        facts: Flow,
        factory: ExchangeFactory,
        on_protocol: Callable[[str], None],
        on_anomaly: Callable[[str], None],
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_closed` is called when nothing is held any more."""
        self.facts = facts
        self._factory = factory
        self._on_closed = on_closed
        self._on_protocol = on_protocol
        self.anomaly_sink = on_anomaly
        self._waiting: deque[ExchangeSink | _Cut] = deque()  # requests without an answer yet, oldest first; hardly ever more than one
        self.open: list[ExchangeSink] = []  # exchanges of which either side is unfinished, some finished ones among them
        self._pruned = 1  # at so many of them the finished ones are taken out
        self._skipped: ExchangeSink | None = None  # made for what the client sent outside of any message
        self.ordinal = 0
        self._is_unsure = False  # a response may have been lost since the oldest waiting request
        self._last_ns = facts.opened_ns
        self.first: StreamSink = _Direction(self, facts.first, joined_midstream=facts.is_midstream)
        self.second: StreamSink = _Direction(self, facts.second, joined_midstream=facts.is_midstream)
        assert isinstance(self.first, _Direction)
        assert isinstance(self.second, _Direction)
        self.first.peer, self.second.peer = self.second, self.first

    def anomaly(self, name: str) -> None:
        """An oddity of the connection: counted, and shown on the exchanges that are under way (of many, the oldest and the newest)."""
        self.anomaly_sink(name)
        shown = self.open if len(self.open) <= _SHOWN else (*self.open[: _SHOWN // 2], *self.open[-_SHOWN // 2 :])
        for exchange in shown:
            exchange.anomaly(name)

    def close(self, ts_ns: int, reason: str) -> None:
        if self._is_unsure:
            self._give_up(keep=0)
        for exchange in self.open:
            exchange.close(ts_ns, reason)
        self.open.clear()
        self._waiting.clear()
        for direction in (self.first, self.second):
            assert isinstance(direction, _Direction)
            direction.release()
        self._on_closed()

    def shed(self) -> None:
        """Memory is short, and this connection holds more than its share: what is under way is handed on as far as it came."""
        for direction in (self.first, self.second):
            assert isinstance(direction, _Direction)
            direction.drop("http_memory_limit")
        self._waiting = deque(
            _Cut(exchange.response) if not isinstance(exchange, _Cut) and not exchange.is_ended else exchange for exchange in self._waiting
        )
        under_way, self.open = self.open, []
        for exchange in under_way:
            self._cut(exchange)

    def _cut(self, exchange: ExchangeSink) -> None:
        if not exchange.is_ended:
            exchange.anomaly("memory_limit")
            exchange.close(self._last_ns, "memory")

    # --- called by the directions -------------------------------------------------------------------------------------

    def parser(self, direction: _Direction, kind: str) -> MessageParser:
        if kind == "request":
            return RequestParser(
                lambda head: self._request(direction, head),
                self.anomaly,
                on_skipped=lambda data: self._unread(direction, data),
                reserve=self.facts.reserve,
            )
        return ResponseParser(lambda head: self._response(direction, head), self.anomaly, self.responses_lost, reserve=self.facts.reserve)

    def other_protocol(self, name: str) -> None:
        self._on_protocol(name)
        for direction in (self.first, self.second):
            assert isinstance(direction, _Direction)
            direction.ignore()

    def other(self, data: bytes, *, of_client: bool) -> None:
        """A differing copy belongs to the request that came last, or to the answer that is under way."""
        under_way = reversed(self.open) if of_client else iter(self.open)
        exchange = next((known for known in under_way if not known.is_ended), None)
        if exchange is not None:
            exchange.other(data, of_client=of_client)

    # --- pairing ------------------------------------------------------------------------------------------------------
    #
    # Responses come in the order of requests. Where the capture lost whole responses their number is unknown, so a later one
    # could be taken for the answer to an earlier request. Clients hardly ever pipeline: one that sent another request had its
    # answer to the one before. What was lost is then known, and shown as a gap.

    def responses_lost(self) -> None:
        self._give_up(keep=1)
        self._is_unsure = bool(self._waiting)

    def _give_up(self, *, keep: int) -> None:
        """The oldest waiting requests were answered in what was lost."""
        while len(self._waiting) > keep:
            exchange = self._waiting.popleft()
            if not isinstance(exchange, _Cut):
                exchange.response.gap(self._last_ns, None)
                exchange.close(self._last_ns, "closed")

    def _new(self, client: str, server: str) -> ExchangeSink:
        exchange = self._factory(self.facts, client, server, self.ordinal)
        self.ordinal += 1
        if len(self.open) >= self._pruned:
            self.open = [held for held in self.open if not held.is_ended]
            self._pruned = 2 * len(self.open) + 1
        self.open.append(exchange)
        return exchange

    def _unread(self, direction: _Direction, data: bytes) -> None:
        """Bytes of the client that are no message: shown on the exchange under way, or on one of their own."""
        last = self.open[-1] if self.open and not self.open[-1].is_ended else self._skipped
        if last is None or last.is_ended:
            if not data.strip(b"\0\r\n"):
                return
            last = self._skipped = self._new(direction.address, direction.peer.address)
            last.anomaly("http_bad_head")
        last.unread(self._last_ns, "http_bad_head", data)

    def _request(self, direction: _Direction, head: Head) -> BodySink:
        self._last_ns = head.ts_ns
        if self._is_unsure:
            self._give_up(keep=0)
            self._is_unsure = False
        exchange = self._new(direction.address, direction.peer.address)
        exchange.request_head(head)
        if len(self._waiting) >= limits.MAX_PIPELINED_REQUESTS:
            self.anomaly_sink("http_pipeline_limit")
            exchange.anomaly("http_pipeline_limit")
        sink: BodySink = exchange.request
        if exchange.has_room:
            self._waiting.append(exchange)
        else:
            self._waiting.append(_Cut(exchange.response))
            sink = _Cut(sink)
            self._cut(exchange)
        return sink

    def _response(self, direction: _Direction, head: Head) -> BodySink:
        if 100 <= head.status < 200 and head.status != 101:
            return NO_BODY
        self._last_ns = head.ts_ns
        exchange: ExchangeSink | _Cut
        if self._waiting:
            exchange = self._waiting.popleft()
            self._is_unsure = self._is_unsure and bool(self._waiting)
        else:
            exchange = self._new(direction.peer.address, direction.address)
            if not self.facts.is_midstream:
                exchange.anomaly("http_unsolicited_response")
        sink: BodySink
        if isinstance(exchange, _Cut):
            sink = exchange
        else:
            exchange.response_head(head)
            sink = exchange.response
            if not exchange.has_room:
                sink = _Cut(sink)
                self._cut(exchange)
        if head.status == 101 or sink.is_tunnel:
            direction.peer.ignore()
        return sink
