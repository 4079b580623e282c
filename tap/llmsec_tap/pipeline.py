"""The whole path from packets to exchanges, wired once for replay and live capture. It holds no clock, thread or file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from llmsec_tap import limits
from llmsec_tap.account import Account
from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.counters import Sample, by_label
from llmsec_tap.exchange.assembly import REPLAYED, Context, ExchangeAssembly, ListenerFactory, Origin
from llmsec_tap.identity.credentials import Fingerprinter
from llmsec_tap.identity.whose import WhoseSettings
from llmsec_tap.model import Exchange
from llmsec_tap.wire.connection import Connection
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.packet import PacketDecoder, PacketHandler
from llmsec_tap.wire.tcp import TCPReassembler

# Rotated files may overlap a little: capture threads write in turn.
_FILE_OVERLAP_NS = 1_000_000_000
_PACKETS = (("source", "packets"),)


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
        origin: Origin = REPLAYED,
        memory_cap_bytes: int = limits.MEMORY_CAP_BYTES,
    ) -> None:
        """`memory_cap_bytes` is for the whole process; a share of it is the account of what is held for traffic.

        `on_request` is given what a record could say of an exchange, when the last byte of its request is in.
        `estimate` adds token counts to a record whose server stated none, before it is handed on (`tokens.TokenEstimator.estimate`).
        `origin` is said on every record. `whose` says how tenants and end users are named. `on_defect` is told the name of a decoder, or `tokens`, inside the except block; `shield=False` lets such faults through (tests).
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
            origin=origin,
        )
        self.anomalies: Counter[str] = Counter()
        self.protocols: Counter[str] = Counter()
        self._file_began_ns = 0
        self.exchanges = 0
        self.llm_exchanges = 0
        self.tcp = TCPReassembler(self.open_flow, self._anomaly, self.account)
        self._decoder = PacketDecoder(self.tcp, ports, self.account)

    def handler(self, linktype: int) -> PacketHandler:
        return self._decoder.handler(linktype)

    def capture_begins(self, ts_ns: int) -> None:
        """Connections go on from file to file of a rotated capture. A file that begins before the last one ended is another capture."""
        if ts_ns <= self._file_began_ns or ts_ns < self.tcp.latest_ns - _FILE_OVERLAP_NS:
            self.tcp.close()
        self._file_began_ns = ts_ns

    def open_flow(self, facts: Flow) -> Connection:
        """A connection: of the reassembler, or of a source that has ordered bytes already (TLS uprobes)."""
        first, second = facts.first.rpartition(":")[0], facts.second.rpartition(":")[0]
        holding = self.account.open(f"{min(first, second)} {max(first, second)}")
        facts.reserve = holding.reserve
        connection = Connection(facts, self._assembly, self._protocol, self._anomaly, holding.close)
        holding.shed = connection.shed
        return connection

    def tick(self, now_ns: int) -> None:
        """Expire what is idle; live sources call it, a replay's own packets tell the time."""
        self.tcp.sweep(now_ns)

    def shed(self) -> None:
        """Hand on all that is under way as far as it came, to free its memory."""
        self.account.shed_all()

    def close(self) -> None:
        self.tcp.close()
        self._decoder.close()

    def samples(self) -> Iterable[Sample]:
        yield Sample("llmsec_exchanges_total", self.llm_exchanges, (("kind", "llm"),))
        yield Sample("llmsec_exchanges_total", self.exchanges - self.llm_exchanges, (("kind", "other"),))
        yield Sample("llmsec_connections_total", self.tcp.opened, _PACKETS)
        yield Sample("llmsec_gaps_total", self.tcp.gaps, _PACKETS)
        yield Sample("llmsec_gap_bytes_total", self.tcp.gap_bytes, _PACKETS)
        yield from by_label("llmsec_anomalies_total", "name", self.anomalies)
        yield from by_label("llmsec_undecoded_connections_total", "protocol", self.protocols)

    def _assembly(self, flow: Flow, client: str, server: str, ordinal: int) -> ExchangeAssembly:
        return ExchangeAssembly(self._context, flow, client, server, ordinal)

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
            if not anomaly.name.startswith(("tcp_", "http_")):  # those were counted as they happened, on their connection
                self.anomalies[anomaly.name] += anomaly.count
        self._on_exchange(exchange)
