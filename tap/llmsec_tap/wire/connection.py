"""One connection: what protocol it speaks is settled by its first bytes, then its two directions are given to that protocol's decoder.

Protocol choice peeks at the first bytes of each direction and may say "not yet". A direction whose first byte was not captured (or that
opens with a preamble such as PROXY) is searched for the first message instead. HTTP/1 is read by its own parsers as soon as either
direction shows it; another protocol (protocols.py) takes both directions at once, with what was peeked at, also from an HTTP/1 exchange
that opens a tunnel.
"""

from __future__ import annotations

from collections.abc import Callable

from llmsec_tap import limits
from llmsec_tap.account import Entry
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.wire.flow import Flow, StreamSink
from llmsec_tap.wire.http1 import MessageParser, RequestParser
from llmsec_tap.wire.http2.frames import PREFACE
from llmsec_tap.wire.messages import ExchangeFactory, ExchangeSink, Head, ignore
from llmsec_tap.wire.pairing import Pairing
from llmsec_tap.wire.protocols import HTTP1_ONLY, Protocols, ProtocolSink, Upgrade
from llmsec_tap.wire.proxy_protocol import header_length, proxied_client
from llmsec_tap.wire.sniff import classify_start, find_message
from llmsec_tap.wire.websocket import begins_json

# How much of a connection that began with something else is searched for a message (a PROXY protocol header, STARTTLS banter).
_PREAMBLE_BYTES = 4 * limits.KIB
# What is kept of an unsynchronised direction while looking: a request line may have begun in it.
_SEARCH_TAIL = 16 * limits.KIB
_SHORT_TAIL = 32
_FRAME_OF_TEXT = (b"\x81", b"\x01")
# The first bytes of a line tell whether it may be a request line; then its end is waited for.
_PREFIX = 64


class _Direction:
    """One direction. `data` is replaced by the parser's own once the protocol is known: one call less per segment."""

    __slots__ = (
        "_connection",
        "_ended",
        "_entry",
        "_has_lost",
        "_looked",
        "_parser",
        "_peeked",
        "_searching",
        "_seen",
        "_sink",
        "address",
        "data",
        "peer",
    )

    peer: _Direction

    def __init__(self, connection: Connection, address: str, *, joined_midstream: bool) -> None:
        self._connection = connection
        self.address = address
        self._parser: MessageParser | None = None
        self._sink: StreamSink | None = None  # of another protocol than HTTP/1
        self._ended: str | None = None
        self._has_lost = joined_midstream  # not all that came before what is peeked at is known
        self._peeked = bytearray()
        self._entry = Entry(connection.flow.reserve)
        self._looked = 0  # so much of it was looked at in vain: more of the same line changes nothing
        self._seen = 0
        self._searching = joined_midstream
        self.data: Callable[[int, bytes], None] = self._peek

    def _peek(self, ts_ns: int, data: bytes) -> None:
        self._seen += len(data)
        peeked = self._peeked
        if self._searching and data[:1] in _FRAME_OF_TEXT and begins_json(data) is not None:
            peeked[:] = data
            self._connection.other_protocol(ts_ns, "websocket")
            self._account()
            return
        if peeked:
            peeked += data
            if self._looked >= _PREFIX and b"\n" not in data and len(peeked) <= 2 * self._looked + _PREFIX:
                self._account()
                return
            data = bytes(peeked)
            peeked.clear()
        if self._seen == len(data) and (preamble := header_length(data)):
            self._connection.flow.proxied = proxied_client(data)
            data = data[preamble:]
            self._seen -= preamble
            if not data:
                return
        kind = None if self._searching else classify_start(data)
        if kind == "more":
            peeked += data
            self._looked = len(data)
        elif kind in ("request", "response"):
            self._become(kind, ts_ns, data)
        elif kind is not None and kind != "other":
            peeked += data
            self._connection.other_protocol(ts_ns, kind)
        else:
            self._search(ts_ns, data)
        self._account()

    def _account(self) -> None:
        if not self._entry.set(len(self._peeked)):
            self.drop("http_memory_limit")

    def drop(self, why: AnomalyName) -> None:
        """There is no room for what is held: it goes unread, and the next message is looked for."""
        if self._parser is not None:
            self._parser.drop(why)
        elif self._peeked:
            self._connection.anomaly(why)
            self._peeked.clear()
            self._searching = self._has_lost = True
        self._entry.set(0)

    def _search(self, ts_ns: int, data: bytes) -> None:
        self._searching = True
        found = find_message(data)
        if found is not None:
            kind, at = found
            if at and self._seen == len(data):
                self._connection.flow.proxied = proxied_client(data)
            if self._seen - len(data) + at > _SEARCH_TAIL:
                self._connection.anomaly("http_resync")
            if kind == "http2":
                self._has_lost = self._has_lost and not data.startswith(PREFACE, at)
                self._peeked += data[at:]
                self._connection.other_protocol(ts_ns, kind)
                return
            self._become(kind, ts_ns, data[at:])
        elif not self._connection.flow.is_midstream and self._seen > _PREAMBLE_BYTES:
            self._connection.other_protocol(ts_ns, "unknown")
        else:
            # A request line has no line end inside; the beginning of a status line is shorter than what is kept in any case.
            line = data.rfind(b"\n") + 1
            keep = max(0, min(line, len(data) - _SHORT_TAIL), len(data) - _SEARCH_TAIL)
            self._has_lost = self._has_lost or keep > 0
            self._peeked += data[keep:]
            self._looked = 0 if len(self._peeked) <= _SHORT_TAIL else len(self._peeked)

    def _become(self, kind: str, ts_ns: int, data: bytes) -> None:
        self._parser = self._connection.parser(self, kind)
        self.data = self._parser.data
        self._parser.data(ts_ns, data)

    def hand_over(self, ts_ns: int, sink: StreamSink) -> None:
        """All of this direction is another protocol's, from the message on that is being read: what was peeked at, and what follows."""
        self._sink = sink
        if self._parser is not None:
            self._parser.pass_through(self._pass_on)
            return
        self.data = self._pass_on
        peeked = bytes(self._peeked)
        self._peeked.clear()
        self._entry.set(0)
        if self._has_lost and self._seen:
            sink.gap(ts_ns, None)
        if peeked:
            sink.data(ts_ns, peeked)
        if self._ended is not None:
            sink.end(ts_ns, self._ended)

    def _pass_on(self, ts_ns: int, data: bytes) -> None:
        assert self._sink is not None
        self._sink.data(ts_ns, data)

    @property
    def _is_handed_over(self) -> bool:
        return self._sink is not None and (self._parser is None or self._parser.is_passed)

    def gap(self, ts_ns: int, length: int | None) -> None:
        if self._is_handed_over and self._sink is not None:
            self._sink.gap(ts_ns, length)
        elif self._parser is not None:
            self._parser.gap(ts_ns, length)
        else:
            self._peeked.clear()
            self._searching = self._has_lost = True
            self._connection.responses_lost()

    def other(self, ts_ns: int, data: bytes) -> None:
        if self._is_handed_over and self._sink is not None:
            self._sink.other(ts_ns, data)
        elif self._parser is not None:
            self._connection.other(data, of_client=isinstance(self._parser, RequestParser))

    def again(self) -> None:
        self._ended = None
        if self._sink is not None:
            self._sink.again()
        elif self._parser is not None:
            self._parser.again()
            self._connection.responses_lost()

    def end(self, ts_ns: int, reason: str) -> None:
        self._ended = reason
        if self._parser is not None and not self._parser.is_passed:
            self._parser.end(ts_ns, reason)
        if self._sink is not None:
            self._sink.end(ts_ns, reason)

    def ignore(self) -> None:
        self._peeked.clear()
        if self._parser is not None:
            self._parser.pass_through()
        else:
            self.data = ignore

    @property
    def is_http1(self) -> bool:
        return self._parser is not None

    def release(self) -> None:
        """The connection is over. Cuts the cycles, so that its memory is freed at once and not at some later garbage collection."""
        self.data = ignore
        if self._parser is not None:
            self._parser.release()
        self._parser = self._sink = None
        del self._connection, self._entry, self.peer


class Connection:
    """A `ProtocolSink`. Exchanges come from `factory`; protocols that are not among `protocols` are told to `on_protocol` once."""

    __slots__ = ("_factory", "_on_anomaly", "_on_closed", "_on_protocol", "_pairing", "_protocol", "_protocols", "first", "flow", "second")

    def __init__(
        self,
        flow: Flow,
        factory: ExchangeFactory,
        on_protocol: Callable[[str], None],
        on_anomaly: OnAnomaly,
        on_closed: Callable[[], None] = lambda: None,
        protocols: Protocols = HTTP1_ONLY,
    ) -> None:
        """`on_closed` is called when nothing is held any more."""
        self.flow = flow
        self._factory = factory
        self._on_protocol = on_protocol
        self._on_anomaly = on_anomaly
        self._on_closed = on_closed
        self._protocols = protocols
        self._pairing: Pairing | None = None  # made when the first direction turns out to be HTTP/1
        self._protocol: ProtocolSink | None = None  # of another protocol, once it is known
        self.first: StreamSink = _Direction(self, flow.first, joined_midstream=flow.is_midstream)
        self.second: StreamSink = _Direction(self, flow.second, joined_midstream=flow.is_midstream)
        assert isinstance(self.first, _Direction)
        assert isinstance(self.second, _Direction)
        self.first.peer, self.second.peer = self.second, self.first

    def anomaly(self, name: AnomalyName) -> None:
        """An oddity of the connection: counted, and shown on the exchanges that are under way."""
        if self._protocol is not None:
            self._protocol.anomaly(name)
        elif self._pairing is not None:
            self._pairing.anomaly(name)
        else:
            self._on_anomaly(name)

    def close(self, ts_ns: int, reason: str) -> None:
        if self._pairing is not None:
            self._pairing.close(ts_ns, reason)
        if self._protocol is not None:
            self._protocol.close(ts_ns, reason)
        for direction in (self.first, self.second):
            assert isinstance(direction, _Direction)
            direction.release()
        self._on_closed()

    def shed(self) -> None:
        """Memory is short, and this connection holds more than its share: what is under way is handed on as far as it came."""
        for direction in (self.first, self.second):
            assert isinstance(direction, _Direction)
            direction.drop("http_memory_limit")
        if self._pairing is not None:
            self._pairing.shed()
        if self._protocol is not None:
            self._protocol.shed()

    # --- called by the directions -------------------------------------------------------------------------------------

    def parser(self, direction: _Direction, kind: str) -> MessageParser:
        if self._pairing is None:
            self._pairing = Pairing(self.flow, self._factory, self._on_anomaly)
        peer = direction.peer
        if kind == "request":
            return self._pairing.request_parser(direction.address, peer.address)
        return self._pairing.response_parser(peer.address, direction.address, lambda *opened: self._tunnel(direction, *opened))

    def other_protocol(self, ts_ns: int, name: str) -> None:
        """A direction's first bytes, which it holds as peeked, are of the protocol `name`."""
        assert isinstance(self.first, _Direction)
        assert isinstance(self.second, _Direction)
        make = self._protocols.sniffed.get(name)
        if make is not None and not self.first.is_http1 and not self.second.is_http1:
            self._hand_over(ts_ns, make(self.flow))
            return
        self._on_protocol(name)
        self.first.ignore()
        self.second.ignore()

    def _tunnel(self, server: _Direction, request: Head | None, response: Head, exchange: ExchangeSink | None) -> bool:
        """What follows in both directions is no longer HTTP/1. Called before the server's parser reads on behind the head."""
        upgrade = Upgrade(request, response, server is self.second, exchange)
        make = self._protocols.upgraded.get(upgrade.name)
        if make is None:
            server.peer.ignore()
            return False
        self._hand_over(response.ts_ns, make(self.flow, upgrade))
        return upgrade.name == "h2c"

    def _hand_over(self, ts_ns: int, protocol: ProtocolSink) -> None:
        assert isinstance(self.first, _Direction)
        assert isinstance(self.second, _Direction)
        self._protocol = protocol
        self.first.hand_over(ts_ns, protocol.first)
        self.second.hand_over(ts_ns, protocol.second)

    def other(self, data: bytes, *, of_client: bool) -> None:
        """A second copy of bytes, which differs from the first."""
        if self._pairing is not None:
            self._pairing.other(data, of_client=of_client)

    def responses_lost(self) -> None:
        if self._pairing is not None:
            self._pairing.responses_lost()
