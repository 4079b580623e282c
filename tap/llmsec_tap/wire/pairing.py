"""Which HTTP/1 response answers which request of a connection.

Responses come in the order of requests (RFC 9112 9.3.2). Where the capture lost whole responses their number is unknown, so a later
one could be taken for the answer to an earlier request. Clients hardly ever pipeline: one that sent another request had its answer to
the one before. What was lost is then known, and shown as a gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from llmsec_tap import limits
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.http1 import RequestParser, ResponseParser, opens_tunnel
from llmsec_tap.wire.messages import IGNORED, BodySink, ExchangeFactory, ExchangeSink, Head

OnTunnel = Callable[[Head | None, Head, ExchangeSink | None], bool]
"""Takes an exchange that opens a tunnel, with its heads: from there on neither direction is HTTP/1. True: its answer comes in the other protocol."""

# An oddity of the connection is shown on so many exchanges at most.
_SHOWN = 16


class Pairing:
    """Makes the exchanges of one connection and the parsers of its two directions."""

    __slots__ = ("_factory", "_flow", "_is_unsure", "_last_ns", "_on_anomaly", "_open", "_ordinal", "_pruned", "_skipped", "_waiting")

    def __init__(self, flow: Flow, factory: ExchangeFactory, on_anomaly: OnAnomaly) -> None:
        self._flow = flow
        self._factory = factory
        self._on_anomaly = on_anomaly
        # Requests without an answer yet, oldest first, with their heads; hardly ever more than one. None: the exchange was cut.
        self._waiting: deque[tuple[ExchangeSink | None, Head]] = deque()
        self._open: list[ExchangeSink] = []  # exchanges of which either side is unfinished, some finished ones among them
        self._pruned = 1  # at so many of them the finished ones are taken out
        self._skipped: ExchangeSink | None = None  # made for what the client sent outside of any message
        self._ordinal = 0
        self._is_unsure = False  # a response may have been lost since the oldest waiting request
        self._last_ns = flow.opened_ns

    def request_parser(self, client: str, server: str) -> RequestParser:
        return RequestParser(
            lambda head: self._request(head, client, server),
            self.anomaly,
            on_skipped=lambda data: self._unread(data, client, server),
            reserve=self._flow.reserve,
        )

    def response_parser(self, client: str, server: str, on_tunnel: OnTunnel) -> ResponseParser:
        return ResponseParser(
            lambda head: self._response(head, client, server, on_tunnel),
            self.anomaly,
            self.responses_lost,
            reserve=self._flow.reserve,
            answered=self._answered,
        )

    def anomaly(self, name: AnomalyName) -> None:
        """An oddity of the connection: counted, and shown on the exchanges that are under way (of many, the oldest and the newest)."""
        self._on_anomaly(name)
        shown = self._open if len(self._open) <= _SHOWN else (*self._open[: _SHOWN // 2], *self._open[-_SHOWN // 2 :])
        for exchange in shown:
            exchange.anomaly(name)

    def other(self, data: bytes, *, of_client: bool) -> None:
        """A differing copy belongs to the request that came last, or to the answer that is under way."""
        under_way = reversed(self._open) if of_client else iter(self._open)
        exchange = next((known for known in under_way if not known.is_ended), None)
        if exchange is not None:
            exchange.other(data, of_client=of_client)

    def responses_lost(self) -> None:
        self._give_up(keep=1)
        self._is_unsure = bool(self._waiting)

    def shed(self) -> None:
        """Hand on what is under way as far as it came."""
        self._waiting = deque(
            (exchange if exchange is not None and exchange.is_ended else None, _bare(head)) for exchange, head in self._waiting
        )
        under_way, self._open = self._open, []
        for exchange in under_way:
            self._cut(exchange)

    def close(self, ts_ns: int, reason: str) -> None:
        if self._is_unsure:
            self._give_up(keep=0)
        for exchange in self._open:
            exchange.close(ts_ns, reason)
        self._open.clear()
        self._waiting.clear()

    # --- called by the parsers ----------------------------------------------------------------------------------------

    def _answered(self) -> str:
        """The method of the request that the next response answers."""
        return self._waiting[0][1].method if self._waiting else ""

    def _request(self, head: Head, client: str, server: str) -> BodySink:
        self._last_ns = head.ts_ns
        if self._is_unsure:
            self._give_up(keep=0)
            self._is_unsure = False
        exchange = self._new(client, server)
        exchange.request_head(head)
        if len(self._waiting) >= limits.MAX_PIPELINED_REQUESTS:
            self._on_anomaly("http_pipeline_limit")
            exchange.anomaly("http_pipeline_limit")
        if exchange.has_room:
            self._waiting.append((exchange, head))
            return exchange.request
        self._waiting.append((None, _bare(head)))
        self._cut(exchange)
        return IGNORED

    def _response(self, head: Head, client: str, server: str, on_tunnel: OnTunnel) -> BodySink:
        if 100 <= head.status < 200 and head.status != 101:
            return IGNORED
        self._last_ns = head.ts_ns
        exchange: ExchangeSink | None
        request: Head | None
        if self._waiting:
            exchange, request = self._waiting.popleft()
            self._is_unsure = self._is_unsure and bool(self._waiting)
        else:
            exchange, request = self._new(client, server), None
            if not self._flow.is_midstream:
                exchange.anomaly("http_unsolicited_response")
        sink = IGNORED
        is_tunnel = opens_tunnel(request.method if request is not None else "", head.status)
        if is_tunnel and on_tunnel(request, head, exchange) and exchange is not None:
            self._open.remove(exchange)
            return IGNORED
        if exchange is not None:
            exchange.response_head(head)
            if exchange.has_room:
                sink = exchange.response
            else:
                self._cut(exchange)
        return sink

    def _unread(self, data: bytes, client: str, server: str) -> None:
        """Bytes of the client that are no message: shown on the exchange under way, or on one of their own."""
        last = self._open[-1] if self._open and not self._open[-1].is_ended else self._skipped
        if last is None or last.is_ended:
            if not data.strip(b"\0\r\n"):
                return
            last = self._skipped = self._new(client, server)
            last.anomaly("http_bad_head")
        last.unread(self._last_ns, "http_bad_head", data)

    # --- exchanges ----------------------------------------------------------------------------------------------------

    def _new(self, client: str, server: str) -> ExchangeSink:
        exchange = self._factory(self._flow, client, server, self._ordinal)
        self._ordinal += 1
        if len(self._open) >= self._pruned:
            self._open = [held for held in self._open if not held.is_ended]
            self._pruned = 2 * len(self._open) + 1
        self._open.append(exchange)
        return exchange

    def _cut(self, exchange: ExchangeSink) -> None:
        if not exchange.is_ended:
            exchange.anomaly("memory_limit")
            exchange.close(self._last_ns, "memory")

    def _give_up(self, *, keep: int) -> None:
        """The oldest waiting requests were answered in what was lost."""
        while len(self._waiting) > keep:
            exchange, _head = self._waiting.popleft()
            if exchange is not None:
                exchange.response.gap(self._last_ns, None)
                exchange.close(self._last_ns, "closed")


def _bare(head: Head) -> Head:
    """What pairing needs of the head of an exchange that was cut, whose memory is given back."""
    return Head(head.ts_ns, head.version, [], method=head.method)
