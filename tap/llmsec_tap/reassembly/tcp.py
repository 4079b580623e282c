"""TCP streams from segments (RFC 9293), as a passive observer sees them.

Rules
- Sequence numbers are compared modulo 2^32.
- The first copy of a byte wins; a later copy that differs is an anomaly (`tcp_overlap_differs`), as far as it can still be compared.
- Bytes ahead of a hole wait. The hole is lost to the capture, a gap of known length, when the receiver has acknowledged past it
  and then sends data of its own, or LOSS_CONFIRM_SEGMENTS more segments or LOSS_CONFIRM_NS pass; when nobody acknowledges it,
  after UNACKED_HOLE_NS; at the end of the connection; or when a bound is reached.
- A connection first seen without a SYN starts where its first bytes are (`is_midstream`).
- Time is capture time, so a replay gives the same result as the live capture.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import attrgetter

from llmsec_tap import limits
from llmsec_tap.reassembly.flow import Flow, FlowSink, StreamSink, endpoints

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
_MASK = 0xFFFFFFFF
_HALF = 0x80000000
_UNACKED_HOLE_NS = 30_000_000_000
_RECENT = 4  # delivered segments still compared with their retransmissions
_SPECIAL = FIN | SYN | RST


class _Ended:
    """Takes what comes after the end of a direction (a peer's mistake, or an attacker's trick) and drops it."""

    def __init__(self) -> None:
        self.data: Callable[[int, bytes], None] = self._ignore

    def _ignore(self, ts_ns: int, data: bytes) -> None:
        pass

    def gap(self, ts_ns: int, length: int | None) -> None:
        pass

    def end(self, ts_ns: int, reason: str) -> None:
        pass


_ENDED = _Ended()


class _Pending:
    """Out-of-order bytes of one direction: (sequence relative to nothing, time, payload, missing), ordered by sequence."""

    __slots__ = ("acked", "bytes", "segments", "segments_after", "since_ns")

    def __init__(self, now_ns: int) -> None:
        self.segments: list[tuple[int, int, bytes, int]] = []
        self.bytes = 0
        self.since_ns = now_ns
        self.acked = False
        self.segments_after = 0


class _Half:
    """What one endpoint sends."""

    __slots__ = ("acked", "connection", "ended", "fin", "last_ns", "next", "peer", "pending", "recent", "sink")

    peer: _Half

    def __init__(self, connection: _Connection, ts_ns: int) -> None:
        self.connection = connection
        self.last_ns = ts_ns
        self.sink: StreamSink
        self.next: int | None = None  # sequence number of the next byte in order
        self.fin: int | None = None  # sequence number after the last byte
        self.acked: int | None = None  # what the peer's last SYN, FIN or RST segment acknowledged of it
        self.ended = False
        self.pending: _Pending | None = None
        self.recent: deque[bytes] = deque(maxlen=_RECENT)  # what was delivered last, without a hole up to `next`


class _Connection:
    __slots__ = ("closed", "first", "flow_sink", "key", "reverse_key", "second", "syn_seq")

    def __init__(self, key: bytes, ts_ns: int) -> None:
        self.key = key
        size = (len(key) - 4) // 2
        self.reverse_key = key[size : 2 * size] + key[:size] + key[-2:] + key[-4:-2]
        self.closed = False
        self.syn_seq: int | None = None
        self.first, self.second = _Half(self, ts_ns), _Half(self, ts_ns)
        self.first.peer, self.second.peer = self.second, self.first
        self.flow_sink: FlowSink

    @property
    def last_ns(self) -> int:
        return max(self.first.last_ns, self.second.last_ns)


class TCPReassembler:
    """Segments in, ordered bytes out to the `FlowSink` that `opener` gives for each connection.

    Bounds: limits.MAX_CONNECTIONS, MAX_PENDING_* and IDLE_TIMEOUT_NS; reaching one is an anomaly on the connection.
    """

    def __init__(self, opener: Callable[[Flow], FlowSink], on_anomaly: Callable[[str], None]) -> None:
        self._opener = opener
        self.anomaly = on_anomaly
        self._open_halves: dict[bytes, _Half] = {}
        self._connections: dict[bytes, _Connection] = {}  # by both keys; closed ones linger here for their late segments
        self._next_sweep_ns = 0
        self._pending_bytes = 0
        self.holes = 0  # directions that wait for missing bytes; while there are none, bare acknowledgements tell nothing
        self.opened = 0
        self.gaps = 0
        self.gap_bytes = 0

    @property
    def open_connections(self) -> int:
        return len(self._open_halves) // 2

    @property
    def latest_ns(self) -> int:
        """The time of the last segment of any known connection; 0 where there is none."""
        return max((connection.last_ns for connection in self._connections.values()), default=0)

    # --- input --------------------------------------------------------------------------------------------------------

    def segment(self, ts_ns: int, key: bytes, seq: int, ack: int, flags: int, payload: bytes) -> None:
        """One segment, whole. The usual one continues a known connection in order; everything else leaves this path early."""
        half = self._open_halves.get(key)
        if half is None or flags & _SPECIAL:
            self._uncommon(ts_ns, key, seq, ack, flags, payload, 0)
        else:
            half.last_ns = ts_ns
            if half.peer.pending is not None:
                self._acknowledge(half.peer, ts_ns, ack, flags, sends_data=bool(payload))
            if payload:
                if seq == half.next and half.pending is None:
                    half.next = seq + len(payload) & _MASK
                    half.recent.append(payload)
                    half.sink.data(ts_ns, payload)
                else:
                    self._out_of_order(half, ts_ns, seq, payload, 0)
        if ts_ns >= self._next_sweep_ns:
            self.sweep(ts_ns)

    def cut_segment(self, ts_ns: int, key: bytes, seq: int, ack: int, flags: int, payload: bytes, missing: int) -> None:
        """A segment of which `missing` bytes after `payload` were on the wire but not captured (snap length)."""
        self._uncommon(ts_ns, key, seq, ack, flags, payload, missing)

    def sweep(self, now_ns: int) -> None:
        """Expire idle and closed connections, and holes nobody will fill. Called from `segment`; live capture also ticks it."""
        self._next_sweep_ns = now_ns + limits.SWEEP_INTERVAL_NS
        for connection in list(dict.fromkeys(self._connections.values())):
            idle = now_ns - connection.last_ns
            if connection.closed:
                if idle > limits.CLOSED_LINGER_NS:
                    self._forget(connection)
            elif idle > limits.IDLE_TIMEOUT_NS:
                connection.flow_sink.anomaly("tcp_idle_expired")
                self._close(connection, now_ns, "expired")
                self._forget(connection)
            else:
                for half in (connection.first, connection.second):
                    if half.pending is not None:
                        self._expire_hole(half, now_ns)

    def close(self) -> None:
        """The capture ends: everything still held is given out, and every connection closed."""
        for connection in list(dict.fromkeys(self._connections.values())):
            if not connection.closed:
                self._close(connection, connection.last_ns, "capture_end")
            self._forget(connection)
        self._next_sweep_ns = 0

    # --- connections --------------------------------------------------------------------------------------------------

    def _open(self, ts_ns: int, key: bytes, flags: int, *, has_syn: bool) -> _Half:
        """A new connection. `first` is who sent the SYN, or the sender of the first segment where none was seen."""
        if len(self._connections) >= 2 * limits.MAX_CONNECTIONS:
            self._evict(ts_ns)
        self.opened += 1
        connection = _Connection(key, ts_ns)
        if has_syn and flags & ACK:  # only the answer to the SYN was seen: its sender is the server
            connection.key, connection.reverse_key = connection.reverse_key, connection.key
        source, destination = endpoints(connection.key)
        sink = connection.flow_sink = self._opener(Flow(source, destination, ts_ns, is_midstream=not has_syn))
        connection.first.sink, connection.second.sink = sink.first, sink.second
        for known, half in ((connection.key, connection.first), (connection.reverse_key, connection.second)):
            self._connections[known] = connection
            self._open_halves[known] = half
        return self._open_halves[key]

    def _forget(self, connection: _Connection) -> None:
        if self._connections.get(connection.key) is connection:
            for known in (connection.key, connection.reverse_key):
                self._connections.pop(known, None)
                self._open_halves.pop(known, None)
            # Cut the cycles, so that the memory is freed at once and not at some later garbage collection.
            for half in (connection.first, connection.second):
                del half.peer, half.connection, half.sink

    def _close(self, connection: _Connection, ts_ns: int, reason: str) -> None:
        if connection.closed:
            return
        connection.closed = True
        self._open_halves.pop(connection.key, None)
        self._open_halves.pop(connection.reverse_key, None)
        for half in (connection.first, connection.second):
            while half.pending is not None:
                self._give_up_hole(half, ts_ns)
            if not half.ended:
                self._lost_at_end(half, ts_ns)
                self._end(half, ts_ns, reason)
            half.recent.clear()
        connection.flow_sink.close(ts_ns, reason)

    def _lost_at_end(self, half: _Half, ts_ns: int) -> None:
        """Bytes before a FIN, or acknowledged at the end, that were never seen: nothing after them showed the hole."""
        if half.next is None:
            return
        if half.fin is not None:
            lost = half.fin - half.next & _MASK
        elif half.acked is not None:
            lost = (half.acked - half.next & _MASK) - 1  # a FIN that was not seen counts as one
        else:
            return
        if 0 < lost < _HALF:
            self._gap(half, ts_ns, lost)

    def _end(self, half: _Half, ts_ns: int, reason: str) -> None:
        half.ended = True
        half.sink.end(ts_ns, reason)
        half.sink = _ENDED

    def _evict(self, ts_ns: int) -> None:
        """Make room: close the least recently used hundredth."""
        connections = sorted(dict.fromkeys(self._connections.values()), key=attrgetter("last_ns"))
        for connection in connections[: max(1, len(connections) // 100)]:
            if not connection.closed:
                self.anomaly("tcp_connection_limit")
                connection.flow_sink.anomaly("tcp_connection_limit")
                self._close(connection, ts_ns, "expired")
            self._forget(connection)

    def _uncommon(self, ts_ns: int, key: bytes, seq: int, ack: int, flags: int, payload: bytes, missing: int) -> None:
        """Segments that open or close a connection, that are cut, or that belong to none."""
        connection = self._connections.get(key)
        if connection is not None and flags & SYN and not flags & RST:
            connection = self._repeated_syn(connection, ts_ns, key, seq, flags)
        if connection is None:
            if flags & RST or (flags & FIN and not payload) or (not flags & SYN and not payload):
                return  # nothing to learn from the end, or the bare acknowledgements, of an unseen connection
            half = self._open(ts_ns, key, flags, has_syn=bool(flags & SYN))
            connection = half.connection
        else:
            half = connection.first if key == connection.key else connection.second
        half.last_ns = ts_ns
        if connection.closed:
            return
        if flags & SYN:
            if half.next is None:
                half.next = seq + 1 & _MASK
                connection.syn_seq = seq if not flags & ACK else connection.syn_seq
            seq = seq + 1 & _MASK  # data on a SYN (TCP Fast Open) comes after it
        if flags & ACK:
            if half.peer.next is None and connection.syn_seq is not None:
                half.peer.next = ack  # the SYN/ACK was not captured: the first ACK tells its number
            half.peer.acked = ack
            if half.peer.pending is not None:
                self._acknowledge(half.peer, ts_ns, ack, flags, sends_data=bool(payload))
        if payload or missing:
            if half.next is None:
                half.next = seq
            if seq == half.next and half.pending is None:
                self._advance(half, ts_ns, seq, payload, missing)
            else:
                self._out_of_order(half, ts_ns, seq, payload, missing)
        if flags & RST:
            connection.flow_sink.anomaly("tcp_reset")
            self._close(connection, ts_ns, "reset")
        elif flags & FIN:
            half.fin = seq + len(payload) + missing & _MASK
            self._check_fin(half, ts_ns)

    def _repeated_syn(self, connection: _Connection, ts_ns: int, key: bytes, seq: int, flags: int) -> _Connection | None:
        """A SYN on a known connection: a retransmission, the other side's, or a new connection on the same ports (None)."""
        half = connection.first if key == connection.key else connection.second
        if not connection.closed and (flags & ACK or half.next is None or seq == connection.syn_seq or seq + 1 & _MASK == half.next):
            return connection
        if not connection.closed:
            connection.flow_sink.anomaly("tcp_port_reuse")
            self._close(connection, ts_ns, "closed")
        self._forget(connection)
        return None

    def _check_fin(self, half: _Half, ts_ns: int) -> None:
        if half.fin is None or half.ended or half.next is None:
            return
        if half.next != half.fin and (half.fin - half.next) & _MASK < _HALF:
            return  # bytes before the FIN are still to come
        self._end(half, ts_ns, "fin")
        if half.peer.ended:
            self._close(half.connection, ts_ns, "fin")

    # --- order --------------------------------------------------------------------------------------------------------

    def _advance(self, half: _Half, ts_ns: int, seq: int, payload: bytes, missing: int) -> None:
        """Deliver bytes that are next in order."""
        half.next = seq + len(payload) + missing & _MASK
        if payload:
            half.recent.append(payload)
            half.sink.data(ts_ns, payload)
        if missing:
            half.recent.clear()
            self._gap(half, ts_ns, missing)

    def _gap(self, half: _Half, ts_ns: int, length: int) -> None:
        self.gaps += 1
        self.gap_bytes += length
        half.connection.flow_sink.anomaly("tcp_gap")
        half.sink.gap(ts_ns, length)

    def _out_of_order(self, half: _Half, ts_ns: int, seq: int, payload: bytes, missing: int) -> None:
        if half.ended:  # also when what was acknowledged just now closed the connection
            return
        if half.next is None:
            half.next = seq
        ahead = (seq - half.next) & _MASK
        if ahead >= _HALF:  # begins before the next byte: a retransmission, whole or in part
            behind = half.next - seq & _MASK
            self._compare_delivered(half, seq, payload, behind)
            if behind >= len(payload) + missing:
                return
            if behind > len(payload):
                missing -= behind - len(payload)
            payload = payload[behind:]
            seq = half.next
            ahead = 0
        if half.pending is None:
            if ahead == 0:
                self._advance(half, ts_ns, seq, payload, missing)
                self._check_fin(half, ts_ns)
                return
            half.pending = _Pending(ts_ns)
            self.holes += 1
        self._hold(half, ts_ns, seq, payload, missing)
        self._drain(half, ts_ns, ts_ns)
        if half.pending is not None:
            self._bound(half, ts_ns)

    def _hold(self, half: _Half, ts_ns: int, seq: int, payload: bytes, missing: int) -> None:
        """Insert what is not yet held; where it overlaps, the first copy stays."""
        pending, base = half.pending, half.next
        assert pending is not None
        assert base is not None
        segments = pending.segments
        index = len(segments)
        ahead = seq - base & _MASK
        while index and (segments[index - 1][0] - base & _MASK) > ahead:
            index -= 1
        if index:  # cut what the one before covers
            held_seq, _, held, held_missing = segments[index - 1]
            covered = (held_seq - base & _MASK) + len(held) + held_missing - ahead
            if covered > 0:
                self._compare(half, held_seq, held, seq, payload)
                if covered >= len(payload) + missing:
                    return
                missing = missing - max(0, covered - len(payload))
                payload = payload[covered:]
                seq = seq + covered & _MASK
                ahead += covered
        while index < len(segments):  # cut what the ones after cover
            held_seq, _, held, held_missing = segments[index]
            start = held_seq - base & _MASK
            if ahead + len(payload) + missing <= start:
                break
            self._compare(half, held_seq, held, seq, payload)
            room = max(0, start - ahead)
            tail = start + len(held) + held_missing - ahead
            if room:
                piece = payload[:room]
                segments.insert(index, (seq, ts_ns, piece, min(missing, room - len(piece))))
                self._held(pending, len(piece))
                index += 1
            index += 1
            if tail >= len(payload) + missing:
                return
            missing -= max(0, tail - len(payload))
            payload = payload[tail:]
            seq = seq + tail & _MASK
            ahead += tail
        segments.insert(index, (seq, ts_ns, payload, missing))
        self._held(pending, len(payload))

    def _held(self, pending: _Pending, length: int) -> None:
        pending.bytes += length
        self._pending_bytes += length

    def _drain(self, half: _Half, ts_ns: int, not_before_ns: int) -> None:
        """Deliver what has become next in order.

        Bytes keep the time of their own segment, but never run back: behind a hole that was filled late they become readable
        only then (`not_before_ns`).
        """
        pending = half.pending
        if pending is None:
            return
        segments = pending.segments
        count = 0
        for seq, captured_ns, payload, missing in segments:
            if seq != half.next:
                break
            not_before_ns = max(not_before_ns, captured_ns)
            self._advance(half, not_before_ns, seq, payload, missing)
            count += 1
            pending.bytes -= len(payload)
            self._pending_bytes -= len(payload)
        del segments[:count]
        if not segments:
            half.pending = None
            self.holes -= 1
            self._check_fin(half, ts_ns)
        elif count:
            pending.since_ns, pending.acked, pending.segments_after = ts_ns, False, 0

    # --- loss ---------------------------------------------------------------------------------------------------------

    def _acknowledge(self, half: _Half, ts_ns: int, ack: int, flags: int, *, sends_data: bool) -> None:
        """The receiver of `half` acknowledged `ack`: does that confirm that the hole is lost to us?"""
        pending = half.pending
        if pending is None or half.next is None or not flags & ACK:
            return
        if (ack - half.next & _MASK) < _HALF and ack != half.next:
            pending.acked = True
        if pending.acked:
            pending.segments_after += 1
            if sends_data or pending.segments_after >= limits.LOSS_CONFIRM_SEGMENTS or ts_ns - pending.since_ns >= limits.LOSS_CONFIRM_NS:
                self._give_up_hole(half, ts_ns)

    def _expire_hole(self, half: _Half, now_ns: int) -> None:
        pending = half.pending
        if pending is not None:
            age = now_ns - pending.since_ns
            if age >= _UNACKED_HOLE_NS or (pending.acked and age >= limits.LOSS_CONFIRM_NS):
                self._give_up_hole(half, now_ns)

    def _bound(self, half: _Half, ts_ns: int) -> None:
        pending = half.pending
        while pending is not None and (
            pending.bytes > limits.MAX_PENDING_BYTES_PER_DIRECTION
            or len(pending.segments) > limits.MAX_PENDING_SEGMENTS_PER_DIRECTION
            or self._pending_bytes > limits.MAX_PENDING_BYTES_TOTAL
        ):
            half.connection.flow_sink.anomaly("tcp_pending_limit")
            self._give_up_hole(half, ts_ns)
            pending = half.pending

    def _give_up_hole(self, half: _Half, ts_ns: int) -> None:
        """The bytes before the first held segment are lost: say so, and go on behind them."""
        pending = half.pending
        if pending is None or half.next is None:
            return
        start = pending.segments[0][0]
        length = start - half.next & _MASK
        half.next = start
        half.recent.clear()
        self._gap(half, pending.since_ns, length)
        self._drain(half, ts_ns, pending.since_ns)

    # --- differing copies ---------------------------------------------------------------------------------------------

    def _compare_delivered(self, half: _Half, seq: int, payload: bytes, behind: int) -> None:
        if len(payload) <= 1 and behind == 1:
            return  # a keep-alive probe carries one byte of garbage (RFC 9293 3.8.4)
        assert half.next is not None
        recent_seq = half.next
        for recent in reversed(half.recent):
            recent_seq -= len(recent)
            if self._compare(half, recent_seq & _MASK, recent, seq, payload):
                return

    def _compare(self, half: _Half, held_seq: int, held: bytes, seq: int, payload: bytes) -> bool:
        offset = seq - held_seq & _MASK
        if offset < _HALF:
            ours, theirs = held[offset : offset + len(payload)], payload
        else:
            offset = held_seq - seq & _MASK
            ours, theirs = held, payload[offset : offset + len(held)]
        size = min(len(ours), len(theirs))
        if size and ours[:size] != theirs[:size]:
            half.connection.flow_sink.anomaly("tcp_overlap_differs")
            return True
        return False
