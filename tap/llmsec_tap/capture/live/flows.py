"""Records of TLS calls and of plain sockets to flows: ordered bytes of both directions of each connection, with every loss as a gap.

Rules
- A connection is (process, TLS object, epoch). The same object in a later epoch is another connection. A plain one is its socket, and
  the process is the one that used it first (bpf/plain.h).
- Bytes have offsets. An offset ahead of what came is a gap of known length; the CLOSE record tells the final offsets, so a loss at
  the very end is seen too.
- A connection waits for its socket (bpf/sockets.h, rule c) before it is opened: its addresses are part of every exchange.
- Capture time is the clock's (clock.py), which the kernel half stamps records with: a wall clock that is set moves nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

from llmsec_tap import limits
from llmsec_tap.account import Account
from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.ebpf.events import Event
from llmsec_tap.capture.ebpf.loader_api import ConnectionLoss
from llmsec_tap.capture.host.process import ProcessTable
from llmsec_tap.clock import Clock
from llmsec_tap.counters import Sample
from llmsec_tap.model import CaptureKind
from llmsec_tap.wire.flow import Flow, FlowSink
from llmsec_tap.wire.sniff import classify_start

# A record that waits keeps its event and a tuple, beside its bytes.
_HELD_COST = 8 * limits.PIECE_COST_BYTES
_UNKNOWN = "0.0.0.0:0"
_Key = tuple[int, int, int]


class ConnectionCounts:
    """Of the connections of one kind."""

    __slots__ = ("bytes", "gap_bytes", "gaps", "open", "opened")

    def __init__(self) -> None:
        self.opened = 0
        self.open = 0
        self.bytes = 0  # that came this far
        self.gaps = 0
        self.gap_bytes = 0


def _kind(connection: int) -> CaptureKind:
    return "plain" if connection & events.PLAIN_SOCKET else "tls"


class FlowRecorder(Protocol):
    """Sees what the flows see (`--write`). `direction` is events.READ or events.WRITE."""

    def opened(self, key: _Key, facts: Flow) -> None: ...

    def data(self, key: _Key, ts_ns: int, direction: int, data: bytes) -> None: ...

    def gap(self, key: _Key, ts_ns: int, direction: int, length: int) -> None: ...

    def closed(self, key: _Key, ts_ns: int) -> None: ...


class _Connection:
    __slots__ = ("counts", "flow", "held", "held_bytes", "last_ns", "lost", "next", "opened_ns")

    def __init__(self, ts_ns: int, counts: ConnectionCounts) -> None:
        self.counts = counts
        self.flow: FlowSink | None = None
        self.held: list[tuple[Event, bytes]] = []
        self.held_bytes = 0
        self.opened_ns = ts_ns
        self.last_ns = ts_ns
        self.next = [0, 0]  # the offset that comes next, by direction
        self.lost = 0


class TLSFlows:
    """Feed it records in order (`feed`), tell it the time now and then (`tick`), close it. `opener` is `Pipeline.open_flow`."""

    def __init__(
        self,
        opener: Callable[[Flow], FlowSink],
        processes: ProcessTable,
        clock: Clock,
        recorder: FlowRecorder | None = None,
        account: Account | None = None,
    ) -> None:
        self._clock = clock
        self._account = account or Account()
        self._opener = opener
        self._processes = processes
        self._recorder = recorder
        self._epoch_ns = clock.offset_ns
        self._connections: OrderedDict[_Key, _Connection] = OrderedDict()
        self._waiting: dict[_Key, _Connection] = {}
        self._by_object: dict[tuple[int, int], int] = {}  # (pid, TLS object) -> its epoch
        self._held_bytes = 0  # of connections that wait for their socket
        self.counts: dict[CaptureKind, ConnectionCounts] = {"tls": ConnectionCounts(), "plain": ConnectionCounts()}
        self.without_socket = 0

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def feed(self, record: bytes, event: Event) -> None:
        kind = event.type
        if kind == events.DATA:
            self._data(record, event)
        elif kind == events.BIND:
            self._bound(event)
        elif kind == events.CLOSE:
            self._closed(record, event)
        elif kind == events.EXIT:
            self._exited(event)

    # --- connections --------------------------------------------------------------------------------------------------

    def _data(self, record: bytes, event: Event) -> None:
        key = (event.pid, event.connection, event.epoch_ns)
        connection = self._connections.get(key)
        ts_ns = event.ts_ns + self._epoch_ns
        if connection is None:
            connection = self._begin(key, ts_ns)
        connection.last_ns = ts_ns
        self._connections.move_to_end(key)
        data = events.payload(record, event)
        connection.counts.bytes += len(data)
        if connection.flow is None:
            connection.held.append((event, data))
            size = len(data) + _HELD_COST
            connection.held_bytes += size
            self._held_bytes += size
            self._account.fix(size)
            if event.inode or connection.held_bytes > limits.SOCKET_WAIT_BYTES or self._held_bytes > self._account.limit // 8:
                self._open(key, connection, event)
            return
        self._deliver(key, connection, event, data)

    def _begin(self, key: _Key, ts_ns: int) -> _Connection:
        pid, pointer, epoch = key
        earlier = self._by_object.get((pid, pointer))
        if earlier is not None and earlier != epoch:
            self._close((pid, pointer, earlier), ts_ns, "closed")
        counts = self.counts[_kind(pointer)]
        counts.open += 1
        connection = self._connections[key] = self._waiting[key] = _Connection(ts_ns, counts)
        self._by_object[pid, pointer] = epoch
        self._account.fix(limits.CONNECTION_COST_BYTES)
        if len(self._connections) > min(limits.MAX_TLS_CONNECTIONS, self._account.max_connections):
            oldest, held = next(iter(self._connections.items()))
            if held.flow is not None:
                held.flow.anomaly("ebpf_connection_limit")
            self._close(oldest, ts_ns, "expired")
        return connection

    def _open(self, key: _Key, connection: _Connection, event: Event) -> None:
        """The socket is known (or will not be): open the flow and let out what was held."""
        first, data = connection.held[0]
        found = events.addresses(event)
        if found is None:
            self.without_socket += 1
        local, remote = found or (_UNKNOWN, _UNKNOWN)
        process = self._processes.get(event.pid, events.name(first.comm))
        # Without a beginning that we saw, the first bytes tell whether they may be one.
        is_fresh = bool(first.flags & events.FRESH) or classify_start(data) in ("request", "http2", "more")
        facts = Flow(
            local,
            remote,
            first.ts_ns + self._epoch_ns,
            is_midstream=not is_fresh or first.offset > 0,
            process=process,
            kind=_kind(first.connection),
        )
        connection.flow = self._opener(facts)
        connection.counts.opened += 1
        self._waiting.pop(key, None)
        if self._recorder is not None:
            self._recorder.opened(key, facts)
        self._let_go(connection)
        held, connection.held = connection.held, []
        for earlier, bytes_ in held:
            self._deliver(key, connection, earlier, bytes_)
        if found is None and connection.flow is not None:
            connection.flow.anomaly("ebpf_no_socket")  # now that its exchange has begun and can carry it
        if not first.flags & events.FRESH and self._processes.take_late_ms(event.pid) is not None and connection.flow is not None:
            connection.flow.anomaly("tap_attached_late")

    def _let_go(self, connection: _Connection) -> None:
        self._held_bytes -= connection.held_bytes
        self._account.fix(-connection.held_bytes)
        connection.held_bytes = 0

    def _deliver(self, key: _Key, connection: _Connection, event: Event, data: bytes) -> None:
        flow = connection.flow
        assert flow is not None
        direction = event.direction & 1
        ts_ns = event.ts_ns + self._epoch_ns
        expected = connection.next[direction]
        if event.offset > expected:
            self._gap(
                key,
                connection,
                direction,
                ts_ns,
                event.offset - expected,
                "ebpf_dropped" if event.lost > connection.lost else "ebpf_unreadable",
            )
        elif event.offset < expected:
            return  # came after what followed it was given up
        connection.lost = max(connection.lost, event.lost)
        connection.next[direction] = event.offset + len(data)
        if data:
            (flow.first if direction == events.WRITE else flow.second).data(ts_ns, data)
            if self._recorder is not None:
                self._recorder.data(key, ts_ns, direction, data)
        if event.flags & events.UNREADABLE:
            self._gap(key, connection, direction, ts_ns, event.call_length, "ebpf_unreadable")
            connection.next[direction] += event.call_length
        if event.flags & events.CUT:
            missing = event.call_length - events.MAX_CALL_BYTES
            self._gap(key, connection, direction, ts_ns, missing, "ebpf_cut")
            connection.next[direction] += missing

    def _gap(self, key: _Key, connection: _Connection, direction: int, ts_ns: int, length: int, name: AnomalyName) -> None:
        flow = connection.flow
        assert flow is not None
        connection.counts.gaps += 1
        connection.counts.gap_bytes += length
        flow.anomaly(name)
        (flow.first if direction == events.WRITE else flow.second).gap(ts_ns, length)
        if self._recorder is not None:
            self._recorder.gap(key, ts_ns, direction, length)

    def _bound(self, event: Event) -> None:
        key = (event.pid, event.connection, event.epoch_ns)
        connection = self._waiting.get(key)
        if connection is not None and connection.held:
            self._open(key, connection, event)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _closed(self, record: bytes, event: Event) -> None:
        key = (event.pid, event.connection, event.epoch_ns)
        connection = self._connections.get(key)
        if connection is None:
            return
        if connection.flow is None:
            self._open(key, connection, event)
        self._missing_at_end(key, connection, event.ts_ns + self._epoch_ns, events.final_offsets(record), event.lost)
        self._close(key, event.ts_ns + self._epoch_ns, "fin")

    def _missing_at_end(self, key: _Key, connection: _Connection, ts_ns: int, offsets: tuple[int, int], lost: int) -> None:
        for direction, final in enumerate(offsets):
            missing = final - connection.next[direction]
            if missing > 0 and connection.flow is not None:
                self._gap(key, connection, direction, ts_ns, missing, "ebpf_dropped" if lost else "ebpf_unreadable")
                connection.next[direction] = final
        connection.lost = max(connection.lost, lost)

    def _exited(self, event: Event) -> None:
        for key in [key for key in self._connections if key[0] == event.pid]:
            self._close(key, event.ts_ns + self._epoch_ns, "closed")
        self._processes.forget(event.pid)

    def _close(self, key: _Key, ts_ns: int, reason: str) -> None:
        connection = self._connections.pop(key, None)
        if connection is None:
            return
        connection.counts.open -= 1
        self._account.fix(-limits.CONNECTION_COST_BYTES)
        if self._by_object.get(key[:2]) == key[2]:
            del self._by_object[key[0], key[1]]
        if connection.flow is None and connection.held:
            self._open(key, connection, connection.held[-1][0])
        self._waiting.pop(key, None)
        self._let_go(connection)
        if connection.flow is not None:
            connection.flow.first.end(ts_ns, reason)
            connection.flow.second.end(ts_ns, reason)
            connection.flow.close(ts_ns, reason)
            if self._recorder is not None:
                self._recorder.closed(key, ts_ns)

    # --- time, loss, the end ------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Open what has waited long enough for its socket, close what was silent for too long."""
        now_ns = self._clock.now_ns()
        for key, connection in list(self._waiting.items()):
            if connection.held and now_ns - connection.opened_ns >= limits.SOCKET_WAIT_NS:
                self._open(key, connection, connection.held[-1][0])
        for key, connection in list(self._connections.items()):
            if now_ns - connection.last_ns < limits.IDLE_TIMEOUT_NS:
                break
            self._close(key, now_ns, "expired")

    def lost(self, losses: list[ConnectionLoss]) -> None:
        """What the kernel half says was lost on connections that have said nothing since: their exchanges are gapped too."""
        for loss in losses:
            connection = self._connections.get((loss.pid, loss.connection, loss.epoch_ns))
            if connection is not None and connection.flow is not None and loss.lost > connection.lost:
                self._missing_at_end(
                    (loss.pid, loss.connection, loss.epoch_ns),
                    connection,
                    self._clock.now_ns(),
                    (loss.read_bytes, loss.written_bytes),
                    loss.lost,
                )

    def left_out(self, pid: int, pointer: int, epoch_ns: int) -> None:
        """The reader could not take more of this connection: say so on its exchanges. What follows is a gap by its offset."""
        connection = self._connections.get((pid, pointer, epoch_ns))
        if connection is not None and connection.flow is not None:
            connection.flow.anomaly("tap_overload")

    def shed(self, count: int) -> list[tuple[int, int, int]]:
        """Give up the connections that were quiet longest, to free their memory: which (connection, epoch, process)."""
        keys = [key for key, connection in self._connections.items() if connection.flow is not None][:count]
        for key in keys:
            flow = self._connections[key].flow
            assert flow is not None
            flow.anomaly("tap_overload")
            self._close(key, self._clock.now_ns(), "expired")
        return [(pointer, epoch, pid) for pid, pointer, epoch in keys]

    def close(self) -> None:
        for key in list(self._connections):
            self._close(key, self._clock.now_ns(), "capture_end")

    def samples(self) -> Iterable[Sample]:
        for kind, counts in self.counts.items():
            source = (("source", kind),)
            yield Sample("llmsec_connections_total", counts.opened, source)
            yield Sample("llmsec_open_connections", counts.open, source)
            yield Sample("llmsec_decoded_bytes_total", counts.bytes, source)
            yield Sample("llmsec_gaps_total", counts.gaps, source)
            yield Sample("llmsec_gap_bytes_total", counts.gap_bytes, source)
        yield Sample("llmsec_connections_without_socket_total", self.without_socket)
