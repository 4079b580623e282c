"""The whole path from packets to exchanges, wired once for replay and live capture. It holds no clock, thread or file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from llmsec_tap import limits
from llmsec_tap.account import Account
from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.counters import Sample, by_label
from llmsec_tap.exchange.assembly import REPLAYED, Context, ExchangeAssembly, ListenerFactory, Origin
from llmsec_tap.exchange.sessions import JoinedSession, session_of
from llmsec_tap.exchange.unread_connection import connection_record
from llmsec_tap.identity.credentials import Fingerprinter
from llmsec_tap.identity.tenants import Directory
from llmsec_tap.identity.whose import WhoseSettings
from llmsec_tap.model import TLS, Exchange
from llmsec_tap.wire.connection import Connection
from llmsec_tap.wire.flow import Flow, FlowSink
from llmsec_tap.wire.http2.streams import HTTP2
from llmsec_tap.wire.packet import PacketDecoder, PacketHandler
from llmsec_tap.wire.protocols import NOT_READ, Protocols, ProtocolSink, Upgrade
from llmsec_tap.wire.quic import QUICConnections
from llmsec_tap.wire.tcp import TCPReassembler
from llmsec_tap.wire.tls.connection import TLSConnection
from llmsec_tap.wire.tls.key_log import KeyLog
from llmsec_tap.wire.websocket import JoinedWebSocket, WebSocket

# Rotated files may overlap a little: capture threads write in turn.
_FILE_OVERLAP_NS = 1_000_000_000
_PACKETS = (("source", "packets"),)


class Share(NamedTuple):
    """Of `processes` that read the same packets, this one decodes every so many-th connection. All of them put streams together, so each does the
    same with every packet, and `on_order` is told the place of each exchange among those of all.
    """

    number: int
    processes: int
    on_order: Callable[[Order], None]


# The packet; whether it ended something itself, by the time it told, or at the end of a capture; the number of the connection.
Order = tuple[int, int, int]


class _InPhases(TCPReassembler):
    """Says in which phase connections end: several may at one packet."""

    phase = 0

    def sweep(self, now_ns: int) -> None:
        self.phase = 1
        super().sweep(now_ns)
        self.phase = 0

    def close(self) -> None:
        self.phase = 2
        super().close()
        self.phase = 0


class Pipeline:
    """Packets in through `handler(linktype)`, exchanges out to `on_exchange` as each is complete, the rest at `close`."""

    def __init__(
        self,
        on_exchange: Callable[[Exchange], None],
        fingerprint: Fingerprinter,
        *,
        ports: frozenset[int] | None = None,
        on_defect: Callable[[str], None] = lambda _decoder: None,
        listener_factory: ListenerFactory | None = None,
        on_request: Callable[[Exchange], None] | None = None,
        estimate: Callable[[Exchange], None] | None = None,
        shield: bool = True,
        whose: WhoseSettings | None = None,
        directory: Directory | None = None,
        origin: Origin = REPLAYED,
        memory_cap_bytes: int = limits.MEMORY_CAP_BYTES,
        share: Share | None = None,
        keys: KeyLog | None = None,
    ) -> None:
        """`share`: where several processes read the same packets. `memory_cap_bytes` is for the whole process; a share of it is the account of what is held for traffic.

        `on_request` is given what a record could say of an exchange, when the last byte of its request is in.
        `estimate` adds token counts to a record whose server stated none, before it is handed on (`tokens.TokenEstimator.estimate`).
        `keys` opens TLS of which the packets are read; a capture file may add some (`secrets`).
        `origin` is said on every record. `whose` says how tenants and end users are named, `directory` whose keys are. `on_defect` is told the name of a decoder, or `tokens`, inside the except block; `shield=False` lets such faults through (tests).
        """
        self.account = Account(memory_cap_bytes * limits.ACCOUNT_BYTES // limits.MEMORY_CAP_BYTES)
        self._on_exchange = on_exchange
        self._estimate = estimate
        self._on_defect = on_defect
        self._shield = shield
        self._context = Context(
            self._exchange,
            fingerprint,
            on_defect=on_defect,
            listener_factory=listener_factory,
            on_request=on_request,
            shield=shield,
            whose=whose,
            directory=directory,
            origin=origin,
        )
        self.anomalies: Counter[str] = Counter()
        self.protocols: Counter[str] = Counter()
        self.keys = keys or KeyLog()
        self._file_began_ns = 0
        self.exchanges = 0
        self.llm_exchanges = 0
        self._share = share
        self._packets = 0  # where it is shared
        # What is not of one connection is the same in all processes: the first one counts it.
        self._counts = share is None or share.number == 0
        on_anomaly = self._anomaly if self._counts else lambda _name: None
        self.tcp: TCPReassembler = (TCPReassembler if share is None else _InPhases)(self.open_flow, on_anomaly, self.account)
        # What is inside a proxy's tunnel is looked at as a connection's own first bytes are.
        self._protocols = Protocols(
            sniffed={"tls": self._tls, "http2": self._http2, "websocket": self._joined_websocket},
            upgraded={"connect": lambda flow, _upgrade: self._connection(flow), "h2c": self._http2, "websocket": self._websocket},
        )
        self._quic = QUICConnections(self._unread, self.account)
        # Without a share of their own: there are few, and each is told by the first process alone.
        self._decoder = PacketDecoder(self.tcp, ports, self.account, self._quic.datagram if self._counts else None)

    def handler(self, linktype: int) -> PacketHandler:
        handle = self._decoder.handler(linktype)
        return handle if self._share is None else self._counting(handle)

    def _counting(self, handle: PacketHandler) -> PacketHandler:
        def handler(ts_ns: int, buf: bytes, start: int, end: int, wire_len: int) -> None:
            self._packets += 1
            handle(ts_ns, buf, start, end, wire_len)

        return handler

    def capture_begins(self, ts_ns: int) -> None:
        """Connections go on from file to file of a rotated capture. A file that begins before the last one ended is another capture."""
        if ts_ns <= self._file_began_ns or ts_ns < self.tcp.latest_ns - _FILE_OVERLAP_NS:
            self._end_connections()
        self._file_began_ns = ts_ns

    def open_flow(self, facts: Flow) -> FlowSink:
        """A connection: of the reassembler, or of a source that has ordered bytes already (TLS uprobes)."""
        facts.number = self.tcp.opened
        if self._share is not None and facts.number % self._share.processes != self._share.number:
            return NOT_READ
        first, second = facts.first.rpartition(":")[0], facts.second.rpartition(":")[0]
        holding = self.account.open(f"{min(first, second)} {max(first, second)}")
        facts.reserve = holding.reserve
        connection = self._connection(facts, holding.close)
        holding.shed = connection.shed
        return connection

    def _connection(self, facts: Flow, on_closed: Callable[[], None] = lambda: None) -> Connection:
        return Connection(facts, self._assembly, self._protocol, self._anomaly, on_closed, self._protocols)

    def _http2(self, facts: Flow, upgrade: Upgrade | None = None) -> HTTP2:
        return HTTP2(facts, self._assembly, self._anomaly, self._protocols, upgrade)

    def _websocket(self, facts: Flow, upgrade: Upgrade) -> ProtocolSink:
        sink = session_of(facts, upgrade, self._turn)
        if sink is None:
            self._protocol("websocket")
            return NOT_READ
        return WebSocket(facts, upgrade, sink, self._anomaly)

    def _joined_websocket(self, facts: Flow) -> JoinedWebSocket:
        def session(upgrade: Upgrade) -> JoinedSession:
            return JoinedSession(facts, upgrade, self._turn, lambda: self._protocol("websocket"))

        return JoinedWebSocket(facts, session, self._anomaly)

    def tick(self, now_ns: int) -> None:
        """Expire what is idle; live sources call it, a replay's own packets tell the time."""
        self.tcp.sweep(now_ns)
        self._quic.sweep(now_ns)

    def shed(self) -> None:
        """Hand on all that is under way as far as it came, to free its memory."""
        self.account.shed_all()

    def close(self) -> None:
        self._end_connections()
        self._decoder.close()

    def _end_connections(self) -> None:
        if isinstance(self.tcp, _InPhases):
            self.tcp.phase = 2
        self._quic.close()
        self.tcp.close()

    def samples(self) -> Iterable[Sample]:
        yield Sample("llmsec_exchanges_total", self.llm_exchanges, (("kind", "llm"),))
        yield Sample("llmsec_exchanges_total", self.exchanges - self.llm_exchanges, (("kind", "other"),))
        if self._counts:
            yield Sample("llmsec_connections_total", self.tcp.opened, _PACKETS)
            yield Sample("llmsec_gaps_total", self.tcp.gaps, _PACKETS)
            yield Sample("llmsec_gap_bytes_total", self.tcp.gap_bytes, _PACKETS)
            yield from by_label("llmsec_skipped_packets_total", "kind", self._decoder.skipped)
            yield Sample("llmsec_tls_secrets", self.keys.secrets)
            yield Sample("llmsec_tls_secrets_left_out_total", self.keys.left_out)
        yield from by_label("llmsec_anomalies_total", "name", self.anomalies)
        yield from by_label("llmsec_undecoded_connections_total", "protocol", self.protocols)

    def secrets(self, data: bytes) -> None:
        """Secrets of TLS that a capture file holds, as lines of a key log."""
        self.keys.add(data)

    def _tls(self, flow: Flow) -> TLSConnection:
        def inside(tls: TLS) -> Connection:
            return self._connection(flow.inside(tls))

        def unread(client: str, server: str, ended_ns: int, tls: TLS) -> None:
            self._unread(flow, client, server, ended_ns, tls)

        return TLSConnection(flow, self.keys, inside, unread, self._anomaly)

    def _unread(self, flow: Flow, client: str, server: str, ended_ns: int, tls: TLS) -> None:
        """A connection that stays closed is one record."""
        self.protocols["tls" if tls.transport == "tcp" else tls.transport] += 1
        self._anomaly("tls_unread")
        self._context.emitting = flow
        self._emit(connection_record(flow, client, server, ended_ns, tls, self._context))

    def _assembly(self, flow: Flow, client: str, server: str, ordinal: int) -> ExchangeAssembly:
        return ExchangeAssembly(self._context, flow, client, server, ordinal)

    def _turn(self, flow: Flow, client: str, server: str, ordinal: int) -> ExchangeAssembly:
        return ExchangeAssembly(self._context, flow, client, server, ordinal, framing="websocket")

    def _anomaly(self, name: AnomalyName) -> None:
        self.anomalies[name] += 1

    def _protocol(self, name: str) -> None:
        self.protocols[name] += 1

    def _exchange(self, exchange: Exchange) -> None:
        if self._estimate is not None:
            try:
                self._estimate(exchange)
            except Exception:  # a record without an estimate is worth more than none
                if not self._shield:
                    raise
                self._on_defect("tokens")
        self.exchanges += 1
        if exchange.provider is not None:
            self.llm_exchanges += 1
        for anomaly in exchange.anomalies:
            # Those of a connection were counted as they happened.
            if not anomaly.name.startswith(("tcp_", "http_", "http2_", "tls_", "websocket_")):
                self.anomalies[anomaly.name] += anomaly.count
        self._emit(exchange)

    def _emit(self, exchange: Exchange) -> None:
        if self._share is not None and isinstance(self.tcp, _InPhases):
            flow = self._context.emitting
            self._share.on_order((self._packets, self.tcp.phase, flow.number if flow is not None else 0))
        self._on_exchange(exchange)
