"""One connection: what protocol it speaks is settled by its first bytes, then its two directions are given to that protocol's parsers.

Protocol choice peeks at the first bytes of each direction and may say "not yet". A direction whose first byte was not captured (or that
opens with a preamble such as PROXY) is searched for the first message instead.
"""

from __future__ import annotations

from collections.abc import Callable

from llmsec_tap import limits
from llmsec_tap.account import Entry
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.wire.flow import Flow, FlowSink, StreamSink
from llmsec_tap.wire.http1 import MessageParser, RequestParser
from llmsec_tap.wire.messages import ExchangeFactory, ignore
from llmsec_tap.wire.pairing import Pairing
from llmsec_tap.wire.proxy_protocol import proxied_client
from llmsec_tap.wire.sniff import classify_start, find_message

# How much of a connection that began with something else is searched for a message (a PROXY protocol header, STARTTLS banter).
_PREAMBLE_BYTES = 4 * limits.KIB
# What is kept of an unsynchronised direction while looking: a request line may have begun in it.
_SEARCH_TAIL = 16 * limits.KIB
_SHORT_TAIL = 32
# The first bytes of a line tell whether it may be a request line; then its end is waited for.
_PREFIX = 64


class _Direction:
    """One direction. `data` is replaced by the parser's own once the protocol is known: one call less per segment."""

    __slots__ = ("_connection", "_entry", "_looked", "_parser", "_peeked", "_searching", "_seen", "_sink", "address", "data", "peer")

    peer: _Direction

    def __init__(self, connection: Connection, address: str, *, joined_midstream: bool) -> None:
        self._connection = connection
        self.address = address
        self._parser: MessageParser | None = None
        self._sink: StreamSink | None = None  # of a protocol that carries another one
        self._peeked = bytearray()
        self._entry = Entry(connection.flow.reserve)
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
        carrier = self._connection.carrier
        if carrier is not None:  # the other direction has told what this is
            self._carry(carrier, ts_ns, data)
            return
        kind = None if self._searching else classify_start(data)
        if kind == "more":
            peeked += data
            self._looked = len(data)
        elif kind in ("request", "response"):
            self._become(kind, ts_ns, data)
        elif kind == "tls" and (carrier := self._connection.begin_tls()) is not None:
            self._carry(carrier, ts_ns, data)
        elif kind is not None and kind != "other":
            self._connection.other_protocol(kind)
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
            self._searching = True
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
            self._become(kind, ts_ns, data[at:])
        elif not self._connection.flow.is_midstream and self._seen > _PREAMBLE_BYTES:
            self._connection.other_protocol("unknown")
        else:
            # A request line has no line end inside; the beginning of a status line is shorter than what is kept in any case.
            line = data.rfind(b"\n") + 1
            self._peeked += data[max(0, min(line, len(data) - _SHORT_TAIL), len(data) - _SEARCH_TAIL) :]
            self._looked = 0 if len(self._peeked) <= _SHORT_TAIL else len(self._peeked)

    def _carry(self, carrier: FlowSink, ts_ns: int, data: bytes) -> None:
        """Everything goes to the protocol that carries another one."""
        self._sink = carrier.first if self is self._connection.first else carrier.second
        self.data = self._sink.data
        self._sink.data(ts_ns, data)

    def _become(self, kind: str, ts_ns: int, data: bytes) -> None:
        self._parser = self._connection.parser(self, kind)
        self.data = self._parser.data
        self._parser.data(ts_ns, data)

    def gap(self, ts_ns: int, length: int | None) -> None:
        if self._sink is not None:
            self._sink.gap(ts_ns, length)
        elif self._parser is not None:
            self._parser.gap(ts_ns, length)
        else:
            self._peeked.clear()
            self._searching = True
            self._connection.responses_lost()

    def other(self, ts_ns: int, data: bytes) -> None:
        if self._sink is not None:
            self._sink.other(ts_ns, data)
        elif self._parser is not None:
            self._connection.other(data, of_client=isinstance(self._parser, RequestParser))

    def again(self) -> None:
        if self._sink is not None:
            self._sink.again()
        elif self._parser is not None:
            self._parser.again()
            self._connection.responses_lost()

    def end(self, ts_ns: int, reason: str) -> None:
        if self._sink is not None:
            self._sink.end(ts_ns, reason)
        elif self._parser is not None:
            self._parser.end(ts_ns, reason)

    def ignore(self) -> None:
        self._peeked.clear()
        if self._parser is not None:
            self._parser.pass_through()
        else:
            self.data = ignore

    def release(self) -> None:
        """The connection is over. Cuts the cycles, so that its memory is freed at once and not at some later garbage collection."""
        self.data = ignore
        if self._parser is not None:
            self._parser.release()
        self._parser = self._sink = None
        del self._connection, self._entry, self.peer


class Connection:
    """A `FlowSink`. Exchanges come from `factory`; protocols that are not decoded are told to `on_protocol` once."""

    __slots__ = ("_factory", "_on_anomaly", "_on_closed", "_on_protocol", "_open_tls", "_pairing", "carrier", "first", "flow", "second")

    def __init__(
        self,
        flow: Flow,
        factory: ExchangeFactory,
        on_protocol: Callable[[str], None],
        on_anomaly: OnAnomaly,
        on_closed: Callable[[], None] = lambda: None,
        open_tls: Callable[[Flow], FlowSink] | None = None,
    ) -> None:
        """`on_closed` is called when nothing is held any more. `open_tls` makes what reads TLS; without it TLS is not decoded."""
        self.flow = flow
        self._factory = factory
        self._on_protocol = on_protocol
        self._on_anomaly = on_anomaly
        self._on_closed = on_closed
        self._open_tls = open_tls
        self.carrier: FlowSink | None = None  # TLS
        self._pairing: Pairing | None = None  # made when the first direction turns out to be HTTP/1
        self.first: StreamSink = _Direction(self, flow.first, joined_midstream=flow.is_midstream)
        self.second: StreamSink = _Direction(self, flow.second, joined_midstream=flow.is_midstream)
        assert isinstance(self.first, _Direction)
        assert isinstance(self.second, _Direction)
        self.first.peer, self.second.peer = self.second, self.first

    def anomaly(self, name: AnomalyName) -> None:
        """An oddity of the connection: counted, and shown on the exchanges that are under way."""
        if self.carrier is not None:
            self.carrier.anomaly(name)
        elif self._pairing is not None:
            self._pairing.anomaly(name)
        else:
            self._on_anomaly(name)

    def close(self, ts_ns: int, reason: str) -> None:
        if self.carrier is not None:
            self.carrier.close(ts_ns, reason)
            self.carrier = None
        if self._pairing is not None:
            self._pairing.close(ts_ns, reason)
        for direction in (self.first, self.second):
            assert isinstance(direction, _Direction)
            direction.release()
        self._on_closed()

    def shed(self) -> None:
        """Memory is short, and this connection holds more than its share: what is under way is handed on as far as it came."""
        for direction in (self.first, self.second):
            assert isinstance(direction, _Direction)
            direction.drop("http_memory_limit")
        if self.carrier is not None:
            self.carrier.shed()
        if self._pairing is not None:
            self._pairing.shed()

    # --- called by the directions -------------------------------------------------------------------------------------

    def parser(self, direction: _Direction, kind: str) -> MessageParser:
        pairing = self._pairing = self._pairing or Pairing(self.flow, self._factory, self._on_anomaly)
        peer = direction.peer
        if kind == "request":
            return pairing.request_parser(direction.address, peer.address)
        return pairing.response_parser(peer.address, direction.address, peer.ignore)

    def begin_tls(self) -> FlowSink | None:
        if self.carrier is None and self._open_tls is not None and self._pairing is None:
            self.carrier = self._open_tls(self.flow)
        return self.carrier

    def other_protocol(self, name: str) -> None:
        self._on_protocol(name)
        for direction in (self.first, self.second):
            assert isinstance(direction, _Direction)
            direction.ignore()

    def other(self, data: bytes, *, of_client: bool) -> None:
        """A second copy of bytes, which differs from the first."""
        if self._pairing is not None:
            self._pairing.other(data, of_client=of_client)

    def responses_lost(self) -> None:
        if self._pairing is not None:
            self._pairing.responses_lost()
