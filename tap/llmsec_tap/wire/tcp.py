"""TCP streams from segments (RFC 9293), as a passive observer sees them.

Rules
- Sequence numbers are compared modulo 2^32.
- The first copy of a byte wins. A later copy that differs (the receiver may have taken that one) goes to the sink as another reading,
  with the anomaly `tcp_overlap_differs`, as far as it can still be compared (`tcp_overlap_unchecked` where not).
- Nobody ends a connection from outside (RFC 5961). A reset is believed when silence follows; a SYN inside a connection when the other
  side answers it; a FIN at the place that the bytes come to. What cannot be in any window is left out (`tcp_out_of_window`).
- Bytes ahead of a hole wait. The hole is lost to the capture, a gap of known length, when the receiver has acknowledged past it
  and then sends data of its own, or LOSS_CONFIRM_SEGMENTS more segments or LOSS_CONFIRM_NS pass; when nobody acknowledges it,
  after UNACKED_HOLE_NS; at the end of the connection; or when a bound is reached. Where the receiver's acknowledgements are seen and
  none comes for what is ahead of the hole, it never had those bytes: they are dropped, and the hole stays open.
- A connection first seen without a SYN starts where its first bytes are (`is_midstream`).
- Time is capture time, so a replay gives the same result as the live capture.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable

from llmsec_tap import limits
from llmsec_tap.account import Account
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.wire.flow import Flow, FlowSink, StreamSink, endpoints
from llmsec_tap.wire.packet import BAD_CHECKSUM, GOOD_CHECKSUM

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
_MASK = 0xFFFFFFFF
_HALF = 0x80000000
_UNACKED_HOLE_NS = 30_000_000_000
_MAX_WINDOW = 1 << 30  # RFC 7323 2.3: no retransmission is older
_SEGMENT_COST = 4 * limits.PIECE_COST_BYTES  # of a held segment, beyond its payload
_EVICT_COUNT = 8
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

    def other(self, ts_ns: int, data: bytes) -> None:
        pass

    def again(self) -> None:
        pass

    def end(self, ts_ns: int, reason: str) -> None:
        pass


_ENDED = _Ended()


class _Pending:
    """Out-of-order bytes of one direction: (sequence number, time, payload, missing), in order.

    `starts` are their places on a line without wrap-around, on which `at` is the place of the next byte in order.
    """

    __slots__ = ("acked", "acks", "at", "bytes", "segments", "segments_after", "since_ns", "starts")

    def __init__(self, now_ns: int) -> None:
        self.segments: list[tuple[int, int, bytes, int]] = []
        self.starts: list[int] = []
        self.at = 0
        self.bytes = 0
        self.since_ns = now_ns
        self.acked = False  # the receiver has acknowledged what we have not seen
        self.acks = 0  # acknowledgements of the receiver since then
        self.segments_after = 0


class _Half:
    """What one endpoint sends."""

    __slots__ = ("acked", "connection", "ended", "fin", "has_checksums", "last_ns", "next", "peer", "pending", "recent", "sink")

    peer: _Half

    def __init__(self, connection: _Connection, ts_ns: int) -> None:
        self.connection = connection
        self.last_ns = ts_ns
        self.sink: StreamSink
        self.next: int | None = None  # sequence number of the next byte in order
        self.fin: int | None = None  # sequence number after the last byte
        self.acked: int | None = None  # what the peer's last SYN, FIN or RST segment acknowledged of it
        self.ended = False
        self.has_checksums = False  # a segment with a right checksum was seen: they are not left to the network card
        self.pending: _Pending | None = None
        self.recent: deque[bytes] = deque(maxlen=_RECENT)  # what was delivered last, without a hole up to `next`


class _Connection:
    __slots__ = ("closed", "first", "flow_sink", "key", "reset_ns", "reverse_key", "second", "syn", "syn_seq")

    def __init__(self, key: bytes, ts_ns: int) -> None:
        self.key = key
        size = (len(key) - 4) // 2
        self.reverse_key = key[size : 2 * size] + key[:size] + key[-2:] + key[-4:-2]
        self.closed = False
        self.syn_seq: int | None = None
        self.syn: tuple[bytes, int, int, bytes] | None = None  # inside the connection: key, time, sequence number, data
        self.reset_ns: int | None = None  # when a reset came that nothing has contradicted
        self.first, self.second = _Half(self, ts_ns), _Half(self, ts_ns)
        self.first.peer, self.second.peer = self.second, self.first
        self.flow_sink: FlowSink

    @property
    def is_two_way(self) -> bool:
        return self.first.next is not None and self.second.next is not None

    @property
    def last_ns(self) -> int:
        return max(self.first.last_ns, self.second.last_ns)


class TCPReassembler:
    """Segments in, ordered bytes out to the `FlowSink` that `opener` gives for each connection.

    Bounds: shares of the account for connections, for what waits behind holes and for what was delivered last, and those of one
    connection in limits; reaching one is an anomaly on the connection.
    """

    def __init__(self, opener: Callable[[Flow], FlowSink], on_anomaly: OnAnomaly, account: Account | None = None) -> None:
        self._account = account = account or Account()
        self._max_pending_bytes = account.limit // 6
        self._max_recent_bytes = account.limit // 12
        self._recent_bytes = 0
        self._evictable: list[tuple[_Connection, int]] = []  # the least recently used when they were last sorted, oldest at the end
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
        return sum(not known.closed for known in dict.fromkeys(self._connections.values()))

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
                    size = len(payload)
                    half.next = seq + size & _MASK
                    half.recent.append(payload)
                    self._recent_bytes += size
                    half.sink.data(ts_ns, payload)
                else:
                    self._out_of_order(half, ts_ns, seq, payload, 0)
        if ts_ns >= self._next_sweep_ns or self._recent_bytes > self._max_recent_bytes:
            if self._recent_bytes > self._max_recent_bytes:
                self._forget_recent()
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
            elif connection.reset_ns is not None and idle > limits.RESET_LINGER_NS:
                self._close(connection, connection.reset_ns, "reset")
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
        self._forget_recent()
        self._evictable.clear()
        self._next_sweep_ns = 0

    # --- connections --------------------------------------------------------------------------------------------------

    def _open(self, ts_ns: int, key: bytes, flags: int, *, has_syn: bool) -> _Half:
        """A new connection. `first` is who sent the SYN, or the sender of the first segment where none was seen."""
        if len(self._connections) >= 2 * self._account.max_connections:
            self._evict(ts_ns)
        self.opened += 1
        self._account.fix(limits.CONNECTION_COST_BYTES)
        connection = _Connection(key, ts_ns)
        if has_syn and flags & ACK:  # only the answer to the SYN was seen: its sender is the server
            connection.key, connection.reverse_key = connection.reverse_key, connection.key
        source, destination = endpoints(connection.key)
        sink = connection.flow_sink = self._opener(Flow(source, destination, ts_ns, is_midstream=not has_syn))
        connection.first.sink, connection.second.sink = sink.first, sink.second
        for known, half in ((connection.key, connection.first), (connection.reverse_key, connection.second)):
            self._connections[known] = connection
            self._open_halves[known] = half
        return self._half(connection, key)

    def _forget(self, connection: _Connection) -> None:
        if self._connections.get(connection.key) is connection:
            self._account.fix(-limits.CONNECTION_COST_BYTES)
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
        if connection.reset_ns is not None:  # nothing has contradicted it
            ts_ns, reason = connection.reset_ns, "reset"
        self._open_halves.pop(connection.key, None)
        self._open_halves.pop(connection.reverse_key, None)
        for half in (connection.first, connection.second):
            while (pending := half.pending) is not None:
                if pending.acks and not pending.acked and ts_ns - pending.segments[0][1] >= limits.LOSS_CONFIRM_NS:
                    self._drop_pending(half)
                else:
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
        for key in (half.connection.key, half.connection.reverse_key):  # what follows takes the long way
            if self._open_halves.get(key) is half:
                del self._open_halves[key]

    def _evict(self, ts_ns: int) -> None:
        """Make room: close a few, those of which one side said nothing first, then the least recently used."""
        for _ in range(_EVICT_COUNT):
            connection, seen_ns = self._evictable.pop() if self._evictable else (None, 0)
            while connection is not None and (connection.last_ns != seen_ns or self._connections.get(connection.key) is not connection):
                connection, seen_ns = self._evictable.pop() if self._evictable else (None, 0)
            if connection is None:
                oldest = sorted((known.is_two_way, known.last_ns, key) for key, known in self._connections.items() if key == known.key)
                self._evictable = [(self._connections[key], last_ns) for _, last_ns, key in reversed(oldest[: max(1, len(oldest) // 8)])]
                continue
            if not connection.closed:
                connection.flow_sink.anomaly("tcp_connection_limit")
                self._close(connection, ts_ns, "expired")
            self._forget(connection)

    def _forget_recent(self) -> None:
        for connection in self._connections.values():
            connection.first.recent.clear()
            connection.second.recent.clear()
        self._recent_bytes = 0

    def _uncommon(self, ts_ns: int, key: bytes, seq: int, ack: int, flags: int, payload: bytes, missing: int) -> None:
        """Segments that open or close a connection, that are cut, or that belong to none."""
        connection = self._connections.get(key)
        if connection is not None and flags & BAD_CHECKSUM and self._half(connection, key).has_checksums:
            self._oddity(connection, "tcp_bad_checksum")  # no receiver takes it
            return
        if connection is not None and (flags & SYN or connection.syn is not None) and not flags & RST:
            connection = self._syn_inside(connection, ts_ns, key, seq, ack, flags, payload)
            if connection is None:
                return
            if connection.closed:
                connection = None
        elif connection is not None and connection.closed and payload and not flags & RST:
            connection = self._reopened(connection, key, seq, payload)
        if connection is None:
            if flags & RST or (flags & FIN and not payload) or (not flags & SYN and not payload):
                return  # nothing to learn from the end, or the bare acknowledgements, of an unseen connection
            half = self._open(ts_ns, key, flags, has_syn=bool(flags & SYN))
            connection = half.connection
        else:
            half = self._half(connection, key)
        if flags & GOOD_CHECKSUM:
            half.has_checksums = True
        if flags & RST:
            self._reset(half, ts_ns, seq, ack, flags)
            return
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
            if seq == half.next and half.pending is None and not half.ended:
                self._advance(half, ts_ns, seq, payload, missing)
            else:
                self._out_of_order(half, ts_ns, seq, payload, missing)
        if flags & FIN and not half.ended:
            fin = seq + len(payload) + missing & _MASK
            if half.next is not None and (fin - half.next & _MASK) >= _HALF:
                self._oddity(connection, "tcp_out_of_window")  # before bytes that came already
                return
            half.fin = fin
            self._check_fin(half, ts_ns)

    def _half(self, connection: _Connection, key: bytes) -> _Half:
        return connection.first if key == connection.key else connection.second

    def _oddity(self, connection: _Connection, name: AnomalyName) -> None:
        if connection.closed:
            self.anomaly(name)
        else:
            connection.flow_sink.anomaly(name)

    # --- what looks like a beginning or an end ------------------------------------------------------------------------

    def _reset(self, half: _Half, ts_ns: int, seq: int, ack: int, flags: int) -> None:
        """RFC 5961 3.2, for an observer: outside of the window nobody takes it; inside, silence tells whether somebody did."""
        connection = half.connection
        if connection.closed:
            return
        distance = 0 if half.next is None else seq - half.next & _MASK
        if half.next is None and not (flags & ACK and (half.peer.next is None or ack == half.peer.next)):
            distance = _HALF  # an answer to a SYN acknowledges it (RFC 9293 3.5.2)
        if min(distance, _MASK + 1 - distance) > limits.MAX_PENDING_BYTES_PER_DIRECTION:
            self._oddity(connection, "tcp_out_of_window")
            return
        if connection.reset_ns is None:
            connection.flow_sink.anomaly("tcp_reset")
            connection.reset_ns = ts_ns
            # From here on every segment takes the long way, on which one with new bytes is noticed.
            self._open_halves.pop(connection.key, None)
            self._open_halves.pop(connection.reverse_key, None)
        half.last_ns = ts_ns

    def _goes_on(self, connection: _Connection) -> None:
        """Bytes after a reset or a SYN: the connection is still the same."""
        if connection.reset_ns is not None:
            connection.flow_sink.anomaly("tcp_data_after_reset")
        connection.reset_ns = connection.syn = None
        self._open_halves[connection.key], self._open_halves[connection.reverse_key] = connection.first, connection.second

    def _syn_inside(
        self, connection: _Connection, ts_ns: int, key: bytes, seq: int, ack: int, flags: int, payload: bytes
    ) -> _Connection | None:
        """A SYN on a known connection: a retransmission, the other side's, a forgery, or a new connection on the same ports.

        The last is sure when the other side answers it, or bytes follow it (RFC 5961 4: the connection itself is not touched).
        Returns a closed connection for a new one, None where nothing more is to be done.
        """
        half = self._half(connection, key)
        if connection.syn is not None and self._confirms(connection, key, seq, ack, flags, payload):
            syn_key, syn_ns, syn_seq, data = connection.syn
            connection.flow_sink.anomaly("tcp_port_reuse")
            self._close(connection, ts_ns, "closed")
            self._forget(connection)
            self._uncommon(syn_ns, syn_key, syn_seq, 0, SYN, data, 0)
            self._uncommon(ts_ns, key, seq, ack, flags, payload, 0)
            return None
        if not flags & SYN:
            return connection
        if connection.closed or connection.reset_ns is not None:
            self._close(connection, ts_ns, "closed")
            self._forget(connection)
            return connection
        if half.next is None or (seq == connection.syn_seq and not flags & ACK) or seq + 1 & _MASK == half.next:
            return connection
        if flags & ACK:
            return None  # a copy of the answer to the first SYN
        if connection.syn is None or connection.syn[2] != seq:
            connection.flow_sink.anomaly("tcp_syn_inside")
            connection.syn = (key, ts_ns, seq, payload)
            self._open_halves.pop(connection.key, None)
            self._open_halves.pop(connection.reverse_key, None)
        return None

    def _confirms(self, connection: _Connection, key: bytes, seq: int, ack: int, flags: int, payload: bytes) -> bool:
        assert connection.syn is not None
        syn_key, _, syn_seq, data = connection.syn
        after = syn_seq + 1 + len(data) & _MASK
        if key != syn_key:
            return bool(flags & SYN and flags & ACK and ack - syn_seq - 1 & _MASK <= len(data))
        return bool(payload) and not flags & SYN and seq in (after, syn_seq + 1 & _MASK) and seq != self._half(connection, key).next

    def _reopened(self, connection: _Connection, key: bytes, seq: int, payload: bytes) -> _Connection | None:
        """Bytes on a closed connection: late copies, or it goes on, and is read on as one that was joined in the middle."""
        half = self._half(connection, key)
        if half.next is not None:
            behind = half.next - seq & _MASK
            if len(payload) <= behind < _HALF:
                return connection
        self.anomaly("tcp_reopened")
        self._forget(connection)
        return None

    def _check_fin(self, half: _Half, ts_ns: int) -> None:
        if half.fin is None or half.ended or half.next is None:
            return
        if half.next != half.fin:
            if (half.fin - half.next) & _MASK >= _HALF:
                half.fin = None  # bytes came where the end should have been
            return  # bytes before the FIN are still to come
        self._end(half, ts_ns, "fin")
        if half.peer.ended:
            self._close(half.connection, ts_ns, "fin")

    # --- order --------------------------------------------------------------------------------------------------------

    def _advance(self, half: _Half, ts_ns: int, seq: int, payload: bytes, missing: int) -> None:
        """Deliver bytes that are next in order."""
        half.next = seq + len(payload) + missing & _MASK
        if half.connection.reset_ns is not None or half.connection.syn is not None:
            self._goes_on(half.connection)
        if payload:
            half.recent.append(payload)
            self._recent_bytes += len(payload)
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
        if half.connection.closed:  # by what was acknowledged just now
            return
        if half.ended and not self._begins_again(half, seq, payload):
            return
        if half.next is None:
            half.next = seq
        ahead = (seq - half.next) & _MASK
        if ahead >= _HALF:  # begins before the next byte: a retransmission, whole or in part
            behind = half.next - seq & _MASK
            if behind > _MAX_WINDOW:
                self._oddity(half.connection, "tcp_out_of_window")
                return
            self._compare_delivered(half, ts_ns, seq, payload, behind)
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
        pending = half.pending
        assert pending is not None
        assert half.next is not None
        segments, starts = pending.segments, pending.starts
        place = pending.at + (seq - half.next & _MASK)
        index = bisect_right(starts, place)
        if index:  # cut what the one before covers
            held_seq, _, held, held_missing = segments[index - 1]
            covered = starts[index - 1] + len(held) + held_missing - place
            if covered > 0:
                self._compare(half, ts_ns, held_seq, held, seq, payload)
                if covered >= len(payload) + missing:
                    return
                missing = missing - max(0, covered - len(payload))
                payload = payload[covered:]
                seq = seq + covered & _MASK
                place += covered
        while index < len(segments):  # cut what the ones after cover
            held_seq, _, held, held_missing = segments[index]
            start = starts[index]
            if place + len(payload) + missing <= start:
                break
            self._compare(half, ts_ns, held_seq, held, seq, payload)
            room = max(0, start - place)
            tail = start + len(held) + held_missing - place
            if room:
                piece = payload[:room]
                self._insert(pending, index, place, (seq, ts_ns, piece, min(missing, room - len(piece))))
                index += 1
            index += 1
            if tail >= len(payload) + missing:
                return
            missing -= max(0, tail - len(payload))
            payload = payload[tail:]
            seq = seq + tail & _MASK
            place += tail
        self._insert(pending, index, place, (seq, ts_ns, payload, missing))

    def _insert(self, pending: _Pending, index: int, place: int, segment: tuple[int, int, bytes, int]) -> None:
        pending.segments.insert(index, segment)
        pending.starts.insert(index, place)
        self._held(pending, len(segment[2]) + _SEGMENT_COST)

    def _held(self, pending: _Pending, size: int) -> None:
        pending.bytes += size
        self._pending_bytes += size
        self._account.fix(size)

    def _begins_again(self, half: _Half, seq: int, payload: bytes) -> bool:
        """Bytes behind the end of a direction: then it was none."""
        assert half.next is not None
        if len(payload) <= 1 or (seq + len(payload) - half.next & _MASK) - 1 >= _HALF:
            return False  # a keep-alive probe, or copies
        connection = half.connection
        half.sink = connection.flow_sink.first if half is connection.first else connection.flow_sink.second
        half.ended, half.fin = False, None
        half.sink.again()
        connection.flow_sink.anomaly("tcp_reopened")
        return True

    def _drain(self, half: _Half, ts_ns: int, not_before_ns: int) -> None:
        """Deliver what has become next in order.

        Bytes keep the time of their own segment, but never run back: behind a hole that was filled late they become readable
        only then (`not_before_ns`).
        """
        pending = half.pending
        if pending is None:
            return
        segments = pending.segments
        count = released = 0
        for seq, captured_ns, payload, missing in segments:
            if seq != half.next:
                break
            not_before_ns = max(not_before_ns, captured_ns)
            self._advance(half, not_before_ns, seq, payload, missing)
            pending.at += len(payload) + missing
            count += 1
            released += len(payload) + _SEGMENT_COST
        if count:
            del segments[:count], pending.starts[:count]
            self._held(pending, -released)
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
        pending.acks += 1
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
            if pending.acked and age >= limits.LOSS_CONFIRM_NS:
                self._give_up_hole(half, now_ns)
            elif pending.acks and now_ns - pending.segments[0][1] >= _UNACKED_HOLE_NS:
                self._drop_pending(half)
            elif age >= _UNACKED_HOLE_NS:
                self._give_up_hole(half, now_ns)

    def _drop_pending(self, half: _Half) -> None:
        """The receiver has acknowledged nothing of what is ahead of the hole: it never had it."""
        pending = half.pending
        assert pending is not None
        self._oddity(half.connection, "tcp_out_of_window")
        self._held(pending, -pending.bytes)
        half.pending = None
        self.holes -= 1

    def _bound(self, half: _Half, ts_ns: int) -> None:
        pending = half.pending
        while pending is not None and (
            pending.bytes > limits.MAX_PENDING_BYTES_PER_DIRECTION
            or len(pending.segments) > limits.MAX_PENDING_SEGMENTS_PER_DIRECTION
            or self._pending_bytes > self._max_pending_bytes
        ):
            half.connection.flow_sink.anomaly("tcp_pending_limit")
            if pending.acks and not pending.acked:
                _, _, payload, _ = pending.segments.pop()  # the furthest: the receiver has none of it yet
                pending.starts.pop()
                self._held(pending, -len(payload) - _SEGMENT_COST)
                if not pending.segments:
                    half.pending = None
                    self.holes -= 1
            else:
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
        pending.at = pending.starts[0]
        half.recent.clear()
        self._gap(half, pending.since_ns, length)
        self._drain(half, ts_ns, pending.since_ns)

    # --- differing copies ---------------------------------------------------------------------------------------------

    def _compare_delivered(self, half: _Half, ts_ns: int, seq: int, payload: bytes, behind: int) -> None:
        if len(payload) <= 1 and behind == 1:
            return  # a keep-alive probe carries one byte of garbage (RFC 9293 3.8.4)
        assert half.next is not None
        recent_seq = half.next
        compared = 0
        for recent in reversed(half.recent):
            recent_seq -= len(recent)
            compared += len(recent)
            if self._compare(half, ts_ns, recent_seq & _MASK, recent, seq, payload):
                return
            if compared >= behind:
                return
        self._oddity(half.connection, "tcp_overlap_unchecked")

    def _compare(self, half: _Half, ts_ns: int, held_seq: int, held: bytes, seq: int, payload: bytes) -> bool:
        offset = seq - held_seq & _MASK
        if offset < _HALF:
            ours, theirs = held[offset : offset + len(payload)], payload
        else:
            offset = held_seq - seq & _MASK
            ours, theirs = held, payload[offset : offset + len(held)]
        size = min(len(ours), len(theirs))
        if size and ours[:size] != theirs[:size]:
            half.connection.flow_sink.anomaly("tcp_overlap_differs")
            half.sink.other(ts_ns, payload)
            return True
        return False
