"""The streams of an HTTP/2 connection: each is one exchange, whose ordinal is the stream's id (RFC 9113 section 5).

Who is the client is told by the preface, or where the beginning was not captured by the first header block that says a method or a status.
DATA that comes before that waits, within a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from llmsec_tap import limits
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.wire.flow import Flow, StreamSink
from llmsec_tap.wire.http2.frames import FrameReader
from llmsec_tap.wire.http2.hpack import HeaderBlock
from llmsec_tap.wire.messages import IGNORED, BodySink, ExchangeFactory, ExchangeSink, Head, Headers
from llmsec_tap.wire.protocols import HTTP1_ONLY, Protocols, ProtocolSink, Upgrade

# An oddity of the connection is shown on so many exchanges at most.
_SHOWN: Final = 16
# Streams that ended are remembered where frames may have been lost: a late frame of theirs begins nothing.
_REMEMBERED: Final = 256
_OF_REQUEST: Final = frozenset((b":method", b":path", b":scheme", b":authority", b":protocol"))
_STATUS: Final = b":status"
_VERSION: Final = "2"


class _Stream:
    __slots__ = ("exchange", "may_be_lost", "request", "request_sink", "response", "response_sink", "tunnel")

    def __init__(self, exchange: ExchangeSink) -> None:
        self.exchange = exchange
        self.request: Head | None = None
        self.response: Head | None = None
        self.request_sink: BodySink | None = exchange.request  # None: this side has ended
        self.response_sink: BodySink | None = exchange.response
        self.tunnel: ProtocolSink | None = None
        self.may_be_lost = False  # the head that is missing may have come in what was lost


class _Waiting:
    """The body of a stream of which it is not known yet whether it is the request's or the answer's."""

    def __init__(self, connection: HTTP2, side: FrameReader, stream: int) -> None:
        self._connection, self._side, self._stream = connection, side, stream
        self.data: Callable[[int, bytes], None] = self._data

    def _data(self, ts_ns: int, data: bytes) -> None:
        side, stream = self._side, self._stream
        self._connection.later(side, len(data), lambda: self._sink(ts_ns).data(ts_ns, data), data)
        if self._connection.is_settled:
            side.forget(stream)

    def gap(self, ts_ns: int, length: int | None) -> None:
        self._connection.later(self._side, 0, lambda: self._sink(ts_ns).gap(ts_ns, length))

    def end(self, ts_ns: int, how: str) -> None: ...

    def _sink(self, ts_ns: int) -> BodySink:
        return self._connection.body(self._side, ts_ns, self._stream)


class HTTP2:
    """A `ProtocolSink`."""

    __slots__ = (
        "_client",
        "_closed",
        "_factory",
        "_flow",
        "_highest",
        "_is_lossy",
        "_last_ns",
        "_on_anomaly",
        "_protocols",
        "_streams",
        "_waiting",
        "_waiting_bytes",
        "_waiting_sizes",
        "first",
        "second",
    )

    def __init__(
        self,
        flow: Flow,
        factory: ExchangeFactory,
        on_anomaly: OnAnomaly,
        protocols: Protocols = HTTP1_ONLY,
        upgrade: Upgrade | None = None,
    ) -> None:
        """`upgrade`: the HTTP/1 exchange that asked for HTTP/2 (RFC 7540 3.2), whose answer is stream 1's. `protocols` are those that a
        stream may be given to by an extended CONNECT (RFC 8441).
        """
        self._flow = flow
        self._factory = factory
        self._on_anomaly = on_anomaly
        self._protocols = protocols
        self._streams: dict[int, _Stream] = {}
        self._closed: dict[int, None] = {}
        self._highest = [0, 0]  # ids of streams that the server and the client began
        self._is_lossy = flow.is_midstream
        self._last_ns = flow.opened_ns
        self._waiting: list[Callable[[], None]] = []
        self._waiting_bytes = 0
        self._waiting_sizes: dict[FrameReader, int] = {}
        self.first: StreamSink = FrameReader(self, flow, flow.first)
        self.second: StreamSink = FrameReader(self, flow, flow.second)
        self._client: FrameReader | None = None
        if upgrade is not None:
            client = self.first if upgrade.client_is_first else self.second
            assert isinstance(client, FrameReader)
            self._client = client
            if upgrade.exchange is not None:
                stream = self._streams[1] = _Stream(upgrade.exchange)
                stream.request = upgrade.request
                stream.request_sink = None
            self._highest[1] = 1

    @property
    def is_settled(self) -> bool:
        return self._client is not None

    @property
    def _sides(self) -> tuple[FrameReader, FrameReader]:
        first, second = self.first, self.second
        assert isinstance(first, FrameReader)
        assert isinstance(second, FrameReader)
        return first, second

    def anomaly(self, name: AnomalyName) -> None:
        self._on_anomaly(name)
        for number, stream in enumerate(self._streams.values()):
            if number == _SHOWN:
                break
            stream.exchange.anomaly(name)

    def shed(self) -> None:
        for side in self._sides:
            side.drop()
        self._waiting.clear()
        self._flow.reserve(-self._waiting_bytes)
        self._waiting_bytes = 0
        for number, stream in list(self._streams.items()):
            self._cut(number, stream)

    def close(self, ts_ns: int, reason: str) -> None:
        if self._client is None:
            self._guess()
        for number, stream in list(self._streams.items()):
            self._over(ts_ns, number, stream, reason)
        for side in self._sides:
            side.release()

    # --- who is who ---------------------------------------------------------------------------------------------------

    def preface(self, side: FrameReader) -> None:
        if self._client is None:
            self._settle(side)

    def later(self, side: FrameReader, size: int, call: Callable[[], None], data: bytes = b"") -> None:
        """Do this when it is known who is the client. Beyond a bound it is guessed: events are an answer, and answers are longer."""
        if self._client is not None:
            call()
            return
        self._waiting.append(call)
        self._waiting_sizes[side] = self._waiting_sizes.get(side, 0) + size
        cost = size + 4 * limits.PIECE_COST_BYTES
        self._waiting_bytes += cost
        if not self._flow.reserve(cost):
            self._waiting_bytes -= cost
            self._guess()
        elif self._waiting_bytes > limits.MAX_UNSETTLED_BYTES:
            self._guess()
        elif data.startswith((b"data:", b"event:")):
            self._settle(self._other(side))

    def _guess(self) -> None:
        first, second = self._sides
        longer = self._waiting_sizes.get(first, 0) > self._waiting_sizes.get(second, 0)
        self._settle(second if longer else first)

    def _settle(self, client: FrameReader) -> None:
        self._client = client
        for side in self._sides:
            side.sinks.clear()
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()
        self._flow.reserve(-self._waiting_bytes)
        self._waiting_bytes = 0
        self._waiting_sizes.clear()

    def _other(self, side: FrameReader) -> FrameReader:
        first, second = self._sides
        return second if side is first else first

    # --- what frames say ----------------------------------------------------------------------------------------------

    def headers(self, side: FrameReader, ts_ns: int, stream: int, block: HeaderBlock, *, ends: bool) -> None:
        if self._client is None:
            names = {name for name, _value in block.headers}
            if not names.isdisjoint(_OF_REQUEST):
                self._settle(side)
            elif _STATUS in names:
                self._settle(self._other(side))
            else:
                self.later(side, block.size, lambda: self.headers(side, ts_ns, stream, block, ends=ends))
                return
        self._last_ns = ts_ns
        if side is self._client:
            self._request(ts_ns, stream, block)
        else:
            self._response(ts_ns, stream, block)
        if ends:
            self.ended(side, ts_ns, stream)

    def promise(self, side: FrameReader, ts_ns: int, promised: int, block: HeaderBlock) -> None:
        if self._client is None:
            self._settle(self._other(side))
        if side is not self._client:  # clients push nothing
            self._request(ts_ns, promised, block)
            stream = self._streams.get(promised)
            if stream is not None:
                self._request_ended(ts_ns, promised, stream, "complete")

    def body(self, side: FrameReader, ts_ns: int, stream: int) -> BodySink:
        if self._client is None:
            return _Waiting(self, side, stream)
        self._last_ns = ts_ns
        of_client = side is self._client
        known = self._streams.get(stream) or self._joined(ts_ns, stream)
        if known is None:
            return IGNORED
        if known.tunnel is None and (known.request if of_client else known.response) is None:
            # Its headers were not captured: the body is read by its shape.
            self._note(known, "http2_header_unknown")
            head = Head(ts_ns, _VERSION, [])
            sink = known.request_sink if of_client else known.response_sink
            if of_client:
                known.request = head
                known.exchange.request_head(head)
            else:
                known.response = head
                known.exchange.response_head(head)
            if sink is not None:
                sink.gap(ts_ns, None)
        sink = known.request_sink if of_client else known.response_sink
        return sink if sink is not None else IGNORED

    def ended(self, side: FrameReader, ts_ns: int, stream: int) -> None:
        if self._client is None:
            self.later(side, 0, lambda: self.ended(side, ts_ns, stream))
            return
        known = self._streams.get(stream)
        if known is not None:
            if side is self._client:
                self._request_ended(ts_ns, stream, known, "complete")
            else:
                self._response_ended(ts_ns, stream, known, "complete")

    def reset(self, ts_ns: int, stream: int) -> None:
        known = self._streams.get(stream)
        if known is not None:
            self._over(ts_ns, stream, known, "reset")

    def going_away(self, side: FrameReader, ts_ns: int, last: int) -> None:
        """The server will not answer streams beyond `last`."""
        if self._client is not None and side is not self._client:
            for number, stream in [(number, stream) for number, stream in self._streams.items() if number > last and number & 1]:
                self._over(ts_ns, number, stream, "reset")

    def lost(self, side: FrameReader, ts_ns: int) -> None:
        self._is_lossy = True
        for stream in list(self._streams.values()):
            sink = stream.request_sink if side is self._client else stream.response_sink
            head = stream.request if side is self._client else stream.response
            if head is None:
                stream.may_be_lost = True
            elif sink is not None:
                sink.gap(ts_ns, None)

    def direction_ended(self, side: FrameReader, ts_ns: int, reason: str) -> None:
        if self._client is None:
            return
        for number, stream in list(self._streams.items()):
            if side is self._client:
                self._request_ended(ts_ns, number, stream, reason)
            elif stream.response is not None:
                self._response_ended(ts_ns, number, stream, reason)

    def copy_differs(self, side: FrameReader, data: bytes) -> None:
        newest = next(reversed(self._streams.values()), None)
        if newest is not None and newest.tunnel is None:
            newest.exchange.other(data, of_client=side is self._client)

    # --- streams ------------------------------------------------------------------------------------------------------

    def _open(self, number: int) -> _Stream | None:
        assert self._client is not None
        server = self._other(self._client)
        exchange = self._factory(self._flow, self._client.address, server.address, number)
        stream = self._streams[number] = _Stream(exchange)
        self._highest[number & 1] = max(number, self._highest[number & 1])
        return stream

    def _joined(self, ts_ns: int, number: int) -> _Stream | None:
        """A stream whose beginning was not captured. Where nothing was lost there is none: it has ended, or was never begun."""
        if not self._is_lossy or number in self._closed:
            return None
        stream = self._open(number)
        return self._kept(ts_ns, number, stream)

    def _kept(self, ts_ns: int, number: int, stream: _Stream | None) -> _Stream | None:
        """None where there is no room for it."""
        if stream is None or stream.exchange.has_room:
            return stream
        self._last_ns = ts_ns
        self._cut(number, stream)
        return None

    def _request(self, ts_ns: int, number: int, block: HeaderBlock) -> None:
        stream = self._streams.get(number)
        if stream is None:
            if number in self._closed or (not self._is_lossy and number <= self._highest[number & 1]):
                return
            stream = self._open(number)
        if stream is None or stream.request is not None:
            return  # trailers
        head = stream.request = _head(ts_ns, block)
        stream.exchange.request_head(head)
        self._mark(stream, block)
        self._kept(ts_ns, number, stream)

    def _response(self, ts_ns: int, number: int, block: HeaderBlock) -> None:
        stream = self._streams.get(number)
        if stream is None:
            stream = self._joined(ts_ns, number)
        if stream is None or stream.tunnel is not None:
            return
        if stream.response is not None:
            stream.exchange.trailers(block.headers)
            return
        head = _head(ts_ns, block)
        if 100 <= head.status < 200:
            return
        stream.response = head
        stream.exchange.response_head(head)
        self._mark(stream, block)
        if stream.request is not None and stream.request.method == "CONNECT" and 200 <= head.status < 300:
            self._tunnel(ts_ns, number, stream, Upgrade(stream.request, head, client_is_first=self._client is self.first))

    def _mark(self, stream: _Stream, block: HeaderBlock) -> None:
        if block.unknown or block.is_broken:
            self._note(stream, "http2_header_unknown")
        if block.is_cut:
            self._note(stream, "http_header_limit")

    def _note(self, stream: _Stream, name: AnomalyName) -> None:
        self._on_anomaly(name)
        stream.exchange.anomaly(name)

    def _tunnel(self, ts_ns: int, number: int, stream: _Stream, upgrade: Upgrade) -> None:
        """The stream's bytes are another protocol's; the exchange that opened it has ended."""
        for sink in (stream.request_sink, stream.response_sink):
            if sink is not None:
                sink.end(ts_ns, "complete")
        make = self._protocols.upgraded.get(upgrade.name)
        for side in self._sides:
            side.forget(number)
        if make is None:
            stream.request_sink = stream.response_sink = IGNORED
            return
        stream.tunnel = tunnel = make(self._flow, upgrade)
        to_client, to_server = (tunnel.second, tunnel.first) if upgrade.client_is_first else (tunnel.first, tunnel.second)
        stream.request_sink, stream.response_sink = to_server, to_client

    def _request_ended(self, ts_ns: int, number: int, stream: _Stream, how: str) -> None:
        sink, stream.request_sink = stream.request_sink, None
        if sink is not None:
            sink.end(ts_ns, how if stream.tunnel is None or how != "complete" else "fin")
        self._perhaps_over(ts_ns, number, stream)

    def _response_ended(self, ts_ns: int, number: int, stream: _Stream, how: str) -> None:
        sink, stream.response_sink = stream.response_sink, None
        if sink is not None:
            sink.end(ts_ns, how if stream.tunnel is None or how != "complete" else "fin")
        self._perhaps_over(ts_ns, number, stream)

    def _perhaps_over(self, ts_ns: int, number: int, stream: _Stream) -> None:
        if stream.request_sink is None and stream.response_sink is None:
            self._over(ts_ns, number, stream, "closed")

    def _over(self, ts_ns: int, number: int, stream: _Stream, reason: str) -> None:
        self._streams.pop(number, None)
        for side in self._sides:
            side.forget(number)
        if self._is_lossy:
            self._closed[number] = None
            if len(self._closed) > _REMEMBERED:
                del self._closed[next(iter(self._closed))]
        if stream.tunnel is not None:
            for sink in (stream.request_sink, stream.response_sink):
                if sink is not None:
                    sink.end(ts_ns, reason)
            stream.tunnel.close(ts_ns, reason)
        elif not stream.exchange.is_ended:
            if stream.may_be_lost and stream.response is None:
                stream.exchange.response.gap(ts_ns, None)
            stream.exchange.close(ts_ns, reason)

    def _cut(self, number: int, stream: _Stream) -> None:
        if stream.tunnel is not None:
            stream.tunnel.shed()
            return
        if not stream.exchange.is_ended:
            stream.exchange.anomaly("memory_limit")
        self._over(self._last_ns, number, stream, "memory")


def _head(ts_ns: int, block: HeaderBlock) -> Head:
    """The head that a block makes, in the shape of any version's: the authority is the host, cookies are one header (RFC 9113 8.2.3)."""
    headers: Headers = []
    pseudo: dict[bytes, bytes] = {}
    cookies: list[bytes] = []
    cookie_at = 0
    for name, value in block.headers:
        if name[:1] == b":":
            pseudo.setdefault(name, value)
            if name == b":protocol":
                headers.append((name, value))
        elif name == b"cookie":
            if not cookies:
                cookie_at = len(headers)
                headers.append((name, value))
            cookies.append(value)
        elif name != b"host" or b":authority" not in pseudo:
            headers.append((name, value.strip(b" \t")))
    if len(cookies) > 1:
        headers[cookie_at] = (b"cookie", b"; ".join(cookies))
    authority = pseudo.get(b":authority")
    if authority is not None:
        headers.insert(0, (b"host", authority))
    status = pseudo.get(_STATUS, b"")
    return Head(
        ts_ns,
        _VERSION,
        headers,
        method=pseudo.get(b":method", b"").decode("latin-1"),
        target=pseudo.get(b":path", b"").decode("latin-1"),
        status=int(status) if len(status) == 3 and status.isdigit() else 0,
    )
