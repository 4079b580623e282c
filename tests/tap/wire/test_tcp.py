"""TCP reassembly: rows for each behaviour, and the property that disorder changes nothing."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_tap import limits
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.packet import BAD_CHECKSUM, GOOD_CHECKSUM
from llmsec_tap.wire.tcp import ACK, FIN, RST, SYN, TCPReassembler

C = bytes([10, 0, 0, 1]) + bytes([10, 0, 0, 2]) + struct.pack(">HH", 40000, 80)
S = bytes([10, 0, 0, 2]) + bytes([10, 0, 0, 1]) + struct.pack(">HH", 80, 40000)
OTHER = bytes([10, 9, 9, 9]) + bytes([10, 0, 0, 2]) + struct.pack(">HH", 1, 80)
MS = 1_000_000


class Stream:
    def __init__(self) -> None:
        self.text = b""
        self.times: list[int] = []
        self.others: list[bytes] = []
        self.ended: str | None = None
        self.data: Callable[[int, bytes], None] = self._data

    def _data(self, ts_ns: int, data: bytes) -> None:
        assert self.ended is None
        assert data
        self.text += data
        self.times.append(ts_ns)

    def gap(self, ts_ns: int, length: int | None) -> None:
        assert self.ended is None
        self.text += b"<%d>" % (length or 0)

    def end(self, ts_ns: int, reason: str) -> None:
        assert self.ended is None
        self.ended = reason

    def other(self, ts_ns: int, data: bytes) -> None:
        self.others.append(data)

    def again(self) -> None:
        assert self.ended is not None
        self.ended = None
        self.text += b"<again>"


class Sink:
    def __init__(self, facts: Flow) -> None:
        self.facts = facts
        self.first, self.second = Stream(), Stream()
        self.anomalies: list[str] = []
        self.closed: str | None = None

    def anomaly(self, name: str) -> None:
        self.anomalies.append(name)

    def close(self, ts_ns: int, reason: str) -> None:
        assert self.closed is None
        self.closed = reason


class Capture:
    """Feeds segments; time advances a millisecond for each."""

    def __init__(self) -> None:
        self.flows: list[Sink] = []
        self.anomalies: list[str] = []
        self.tcp = TCPReassembler(self._open, self.anomalies.append)
        self.now = 1_000 * MS

    def _open(self, facts: Flow) -> Sink:
        self.flows.append(Sink(facts))
        return self.flows[-1]

    def __call__(
        self, key: bytes, seq: int, data: bytes = b"", flags: int = ACK, ack: int = 0, *, missing: int = 0, after_ms: int = 1
    ) -> Capture:
        self.now += after_ms * MS
        seq &= 0xFFFFFFFF
        if missing:
            self.tcp.cut_segment(self.now, key, seq, ack & 0xFFFFFFFF, flags, data, missing)
        else:
            self.tcp.segment(self.now, key, seq, ack & 0xFFFFFFFF, flags, data)
        return self

    def handshake(self, client: int = 1000, server: int = 5000) -> Capture:
        return self(C, client, flags=SYN)(S, server, flags=SYN | ACK, ack=client + 1)(C, client + 1, ack=server + 1)

    def close(self) -> Capture:
        self.tcp.close()
        return self


def test_handshake_data_and_fin() -> None:
    cap = Capture().handshake()(C, 1001, b"hello")(S, 5001, b"world", ack=1006)(C, 1006, flags=FIN | ACK)(S, 5006, flags=FIN | ACK)
    (flow,) = cap.flows
    assert (flow.facts.first, flow.facts.second, flow.facts.is_midstream) == ("10.0.0.1:40000", "10.0.0.2:80", False)
    assert (flow.first.text, flow.second.text) == (b"hello", b"world")
    assert (flow.first.ended, flow.second.ended, flow.closed) == ("fin", "fin", "fin")
    assert flow.anomalies == []


def test_ipv6_addresses_are_bracketed() -> None:
    cap = Capture()
    key = bytes(15) + b"\x01" + b"\xfd" + bytes(14) + b"\x02" + struct.pack(">HH", 1, 2)
    cap(key, 1, b"x")
    assert (cap.flows[0].facts.first, cap.flows[0].facts.second) == ("[::1]:1", "[fd00::2]:2")


def test_reordering_is_put_right_and_time_never_runs_back() -> None:
    cap = Capture().handshake()(C, 1004, b"def")(C, 1007, b"ghi")(C, 1001, b"abc")
    stream = cap.flows[0].first
    assert stream.text == b"abcdefghi"
    assert stream.times == sorted(stream.times)
    assert len(set(stream.times)) == 1


def test_retransmissions_add_nothing() -> None:
    cap = Capture().handshake()(C, 1001, b"abc")(C, 1001, b"abc")(C, 1004, b"def")(C, 1001, b"abcdef")(C, 1001, b"abcdefghi")
    assert cap.flows[0].first.text == b"abcdefghi"
    assert cap.flows[0].anomalies == []


def test_a_differing_copy_is_an_anomaly_and_the_first_wins() -> None:
    cap = Capture().handshake()(C, 1001, b"abc")(C, 1001, b"aXc")(C, 1004, b"def")
    assert cap.flows[0].first.text == b"abcdef"
    assert cap.flows[0].anomalies == ["tcp_overlap_differs"]
    assert cap.flows[0].first.others == [b"aXc"]


def test_differing_copies_ahead_of_a_hole() -> None:
    cap = Capture().handshake()(C, 1004, b"def")(C, 1005, b"XX")(C, 1001, b"abc")
    assert cap.flows[0].first.text == b"abcdef"
    assert cap.flows[0].anomalies == ["tcp_overlap_differs"]


def test_overlaps_of_every_shape_keep_the_first_copy() -> None:
    cap = Capture().handshake()(C, 1006, b"56")(C, 1003, b"2345678")(C, 1002, b"12")(C, 1001, b"0123")
    assert cap.flows[0].first.text == b"0123" + b"2345678"[2:]


def test_sequence_numbers_wrap() -> None:
    cap = Capture().handshake(client=0xFFFFFFFB)
    cap(C, 0xFFFFFFFC, b"ab")(C, 0x1, b"fgh")(C, 0xFFFFFFFE, b"cde")(C, 4, b"!")
    assert cap.flows[0].first.text == b"abcdefgh!"


def test_keep_alive_probes_are_nothing() -> None:
    cap = Capture().handshake()(C, 1001, b"abc")(C, 1003, b"\0")(C, 1003)(S, 5000, b"\0")(C, 1004, b"d")
    assert cap.flows[0].first.text == b"abcd"
    assert cap.flows[0].anomalies == []


# --- joining and leaving --------------------------------------------------------------------------------------------------


def test_midstream_join_begins_with_what_is_seen() -> None:
    cap = Capture()(S, 9000, b"tail")(C, 700, b"next")
    (flow,) = cap.flows
    assert flow.facts.is_midstream
    assert (flow.first.text, flow.second.text) == (b"tail", b"next")


def test_the_server_is_known_from_its_syn_ack_alone() -> None:
    cap = Capture()(S, 5000, flags=SYN | ACK, ack=1001)(C, 1001, b"x")
    assert cap.flows[0].facts.first == "10.0.0.1:40000"
    assert cap.flows[0].first.text == b"x"


def test_a_lost_syn_ack_costs_nothing() -> None:
    cap = Capture()(C, 1000, flags=SYN)(C, 1001, b"hi", ack=5001)(S, 5001, b"abc")(S, 5004, b"def")
    assert (cap.flows[0].first.text, cap.flows[0].second.text) == (b"hi", b"abcdef")


def test_bare_acknowledgements_and_ends_of_unseen_connections_open_nothing() -> None:
    cap = Capture()(C, 1)(C, 2, flags=FIN | ACK)(C, 3, flags=RST)
    assert cap.flows == []


def test_reset_closes_both_sides() -> None:
    cap = Capture().handshake()(C, 1001, b"abc")(S, 5001, flags=RST | ACK)
    cap(OTHER, 1, b"x", after_ms=9000)  # silence follows
    flow = cap.flows[0]
    assert (flow.first.ended, flow.second.ended, flow.closed, flow.anomalies) == ("reset", "reset", "reset", ["tcp_reset"])


def test_half_open_then_more_data_then_the_end() -> None:
    cap = Capture().handshake()(C, 1001, b"q", flags=FIN | ACK)(S, 5001, b"ans")(S, 5004, b"wer", flags=FIN | ACK)
    flow = cap.flows[0]
    assert (flow.first.text, flow.first.ended, flow.second.text, flow.closed) == (b"q", "fin", b"answer", "fin")


def test_a_fin_before_missing_bytes_waits_for_them() -> None:
    cap = Capture().handshake()(C, 1004, b"def", flags=FIN | ACK)
    assert cap.flows[0].first.ended is None
    cap(C, 1001, b"abc")
    assert cap.flows[0].first.text == b"abcdef"
    assert cap.flows[0].first.ended == "fin"


def test_late_segments_of_a_closed_connection_are_ignored() -> None:
    cap = Capture().handshake()(C, 1001, flags=FIN | ACK)(S, 5001, flags=FIN | ACK)(C, 1002, ack=5002)(C, 1000, b"?")
    assert len(cap.flows) == 1


# --- who ends a connection (RFC 5961) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [RST, RST | ACK])
@pytest.mark.parametrize(
    ("sequence", "anomalies"),
    [
        (1001 + 3, ["tcp_reset", "tcp_data_after_reset"]),
        (1001 + 3 + 5000, ["tcp_reset", "tcp_data_after_reset"]),
        (1001 - 700, ["tcp_reset", "tcp_data_after_reset"]),
        (900_000_000, ["tcp_out_of_window"]),
        (3_000_000_000, ["tcp_out_of_window"]),
    ],
)
def test_a_reset_that_bytes_follow_was_none(flags: int, sequence: int, anomalies: list[str]) -> None:
    cap = Capture().handshake()(C, 1001, b"abc", ack=5001)(C, sequence, flags=flags, ack=5001)
    cap(C, 1004, b"def", after_ms=3000)(S, 5001, b"answer", ack=1007).close()
    (flow,) = cap.flows
    assert (flow.first.text, flow.second.text, flow.closed, flow.anomalies) == (b"abcdef", b"answer", "capture_end", anomalies)


def test_a_refused_connection_is_reset() -> None:
    cap = Capture()(C, 1000, flags=SYN)(S, 0, flags=RST | ACK, ack=1001).close()
    assert cap.flows[0].closed == "reset"
    cap = Capture()(C, 1000, flags=SYN)(S, 0, flags=RST | ACK, ack=77)(S, 5000, flags=SYN | ACK, ack=1001)(C, 1001, b"a").close()
    assert (cap.flows[0].closed, cap.flows[0].first.text) == ("capture_end", b"a")


def test_a_syn_inside_that_nobody_answers_changes_nothing() -> None:
    cap = Capture().handshake()(C, 1001, b"abc")(C, 777_777, flags=SYN)(S, 888_888, flags=SYN)(C, 1004, b"def")(S, 5001, b"x").close()
    (flow,) = cap.flows
    assert (flow.first.text, flow.second.text) == (b"abcdef", b"x")
    assert set(flow.anomalies) == {"tcp_syn_inside"}


@pytest.mark.parametrize("sequence", [1001, 500, 1001 + 3 + 4000])
def test_a_forged_fin_ends_nothing(sequence: int) -> None:
    cap = Capture().handshake()(C, 1001, b"abc")(C, sequence, flags=FIN | ACK)(C, 1004, b"d" * 5000).close()
    assert cap.flows[0].first.text == b"abc" + b"d" * 5000


def test_bytes_behind_an_end_are_read() -> None:
    cap = Capture().handshake()(C, 1001, b"abc", flags=FIN | ACK)(C, 1004, b"more")(S, 5001, b"ans")
    flow = cap.flows[0]
    assert (flow.first.text, flow.first.ended, flow.second.text, flow.anomalies) == (b"abc<again>more", None, b"ans", ["tcp_reopened"])
    cap = Capture().handshake()(C, 1001, flags=FIN | ACK)(S, 5001, flags=FIN | ACK)(C, 1001, b"more")
    assert [flow.first.text for flow in cap.flows] == [b"", b"more"]
    assert (cap.flows[1].facts.is_midstream, cap.anomalies) == (True, ["tcp_reopened"])


def test_what_the_receiver_never_acknowledges_is_not_read() -> None:
    cap = Capture().handshake()(C, 1001, b"abc", ack=5001)(C, 900_001_001, b"forged")
    for number in range(40):
        cap(C, 1004 + number, b"d", ack=5001 + number)(S, 5001 + number, b"a", ack=1005 + number, after_ms=2000)
    cap.close()
    (flow,) = cap.flows
    assert (flow.first.text, flow.second.text) == (b"abc" + b"d" * 40, b"a" * 40)


def test_wrong_checksums_are_left_out_where_there_are_right_ones() -> None:
    cap = Capture()(C, 1000, flags=SYN | GOOD_CHECKSUM)(S, 5000, flags=SYN | ACK, ack=1001)(C, 1001, b"a")
    cap(C, 1002, flags=RST | BAD_CHECKSUM)(S, 5001, flags=RST | BAD_CHECKSUM)
    assert cap.flows[0].anomalies == ["tcp_bad_checksum", "tcp_reset"]


def test_reused_ports_are_a_new_connection() -> None:
    cap = Capture().handshake()(C, 1001, b"a")
    cap.handshake(client=90000, server=7000)(C, 90001, b"b")
    assert [flow.first.text for flow in cap.flows] == [b"a", b"b"]
    assert cap.flows[0].anomalies == ["tcp_syn_inside", "tcp_port_reuse"]
    (flow,) = cap.handshake(client=200_000)(C, 200_001, b"c").flows[2:]
    assert flow.first.text == b"c"


def test_reused_ports_of_which_only_one_direction_is_captured() -> None:
    cap = Capture()(C, 1000, flags=SYN)(C, 1001, b"a")(C, 90000, flags=SYN)(C, 90001, b"b")
    assert [flow.first.text for flow in cap.flows] == [b"a", b"b"]


def test_a_repeated_syn_is_not_a_new_connection() -> None:
    cap = Capture()(C, 1000, flags=SYN)(C, 1000, flags=SYN)(S, 5000, flags=SYN | ACK, ack=1001)(S, 5000, flags=SYN | ACK, ack=1001)(
        C, 1001, b"a"
    )
    assert len(cap.flows) == 1
    assert cap.flows[0].first.text == b"a"


def test_idle_connections_expire_by_capture_time() -> None:
    cap = Capture().handshake()(C, 1001, b"a")
    other = C[:-4] + struct.pack(">HH", 1, 2)
    cap(other, 1, b"x", after_ms=limits.IDLE_TIMEOUT_NS // MS + 1)
    assert cap.flows[0].closed == "expired"
    assert cap.flows[0].anomalies == ["tcp_idle_expired"]
    assert cap.tcp.open_connections == 1


# --- loss -----------------------------------------------------------------------------------------------------------------


def test_an_acknowledged_hole_is_lost_when_the_receiver_answers() -> None:
    cap = Capture().handshake()(C, 1001, b"abc")(C, 1007, b"ghi")
    assert cap.flows[0].first.text == b"abc"
    cap(S, 5001, ack=1010)
    assert cap.flows[0].first.text == b"abc", "an acknowledgement alone may be captured before what it acknowledges"
    cap(S, 5001, b"answer", ack=1010)
    assert cap.flows[0].first.text == b"abc<3>ghi"
    assert cap.flows[0].anomalies == ["tcp_gap"]
    assert (cap.tcp.gaps, cap.tcp.gap_bytes) == (1, 3)


def test_an_acknowledged_hole_is_lost_after_some_segments() -> None:
    cap = Capture().handshake()(C, 1007, b"ghi")
    for _ in range(limits.LOSS_CONFIRM_SEGMENTS):
        cap(S, 5001, ack=1010)
    assert cap.flows[0].first.text == b"<6>ghi"


def test_an_acknowledged_hole_is_lost_after_some_time() -> None:
    cap = Capture().handshake()(C, 1007, b"ghi")(S, 5001, ack=1010)
    cap.tcp.sweep(cap.now + limits.LOSS_CONFIRM_NS + 1)
    assert cap.flows[0].first.text == b"<6>ghi"


def test_a_hole_that_nobody_acknowledged_may_still_be_filled() -> None:
    cap = Capture().handshake()(C, 1004, b"def")
    for _ in range(40):
        cap(S, 5001, ack=1001)
    cap(C, 1001, b"abc", after_ms=3000)
    assert cap.flows[0].first.text == b"abcdef"
    assert cap.flows[0].anomalies == []


def test_what_waits_is_given_out_at_the_end_with_its_gap() -> None:
    cap = Capture().handshake()(C, 1001, b"abc")(C, 1010, b"jkl")(C, 1005, b"ef").close()
    assert cap.flows[0].first.text == b"abc<1>ef<3>jkl"
    assert cap.flows[0].first.ended == "capture_end"


def test_snap_length_is_a_gap_of_known_length() -> None:
    cap = Capture().handshake()(C, 1001, b"abc", missing=5)(C, 1009, b"next")
    assert cap.flows[0].first.text == b"abc<5>next"


def test_out_of_order_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PENDING_BYTES_PER_DIRECTION", 1000)
    cap = Capture().handshake()
    for i in range(30):
        cap(C, 1011 + 100 * i, b"x" * 100)
    assert "tcp_pending_limit" in cap.flows[0].anomalies
    assert cap.flows[0].first.text.startswith(b"<10>x")


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 10)
    cap = Capture()
    for port in range(1, 200):
        cap(C[:8] + struct.pack(">HH", port, 80), 1, b"x")
    assert cap.tcp.open_connections <= 11
    assert sum(flow.anomalies.count("tcp_connection_limit") for flow in cap.flows) >= 180
    assert cap.flows[0].closed == "expired"


# --- properties -----------------------------------------------------------------------------------------------------------


@st.composite
def disorder(draw: st.DrawFn) -> tuple[bytes, int, list[tuple[int, int]]]:
    """A text, an initial sequence number near the wrap, and segments (start, end) in any order, doubled and overlapping, that cover it."""
    text = bytes(draw(st.lists(st.integers(0, 255), min_size=1, max_size=60)))
    isn = draw(st.sampled_from([1000, 0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFF8]))
    bounds = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=12))})
    pieces = [(a, b) for a, b in itertools.pairwise(bounds) if a < b]
    extra = [
        (min(a, b), max(a, b))
        for a, b in draw(st.lists(st.tuples(st.integers(0, len(text)), st.integers(0, len(text))), max_size=6))
        if a != b
    ]
    return text, isn, draw(st.permutations(pieces + extra))


@given(disorder())
@settings(max_examples=300)
def test_reordering_duplicates_overlaps_and_wrap_change_nothing(case: tuple[bytes, int, list[tuple[int, int]]]) -> None:
    text, isn, segments = case
    cap = Capture().handshake(client=isn)
    for start, end in segments:
        cap(C, isn + 1 + start, text[start:end])
    cap(C, isn + 1 + len(text), flags=FIN | ACK)
    (flow,) = cap.flows
    assert flow.first.text == text
    assert flow.first.ended == "fin"
    assert set(flow.anomalies) <= {"tcp_overlap_unchecked"}


def holes(text: bytes) -> Iterator[bytes]:
    while text:
        before, found, rest = text.partition(b"<")
        yield before
        if not found:
            return
        text = rest.partition(b">")[2]


@given(disorder(), st.data())
@settings(max_examples=300)
def test_lost_segments_are_gaps_never_silence(case: tuple[bytes, int, list[tuple[int, int]]], data: st.DataObject) -> None:
    text, isn, segments = case
    text = bytes(97 + b % 26 for b in text)
    kept = [s for s in segments if data.draw(st.booleans())]
    cap = Capture().handshake(client=isn)
    for start, end in kept:
        cap(C, isn + 1 + start, text[start:end])
    cap(C, isn + 1 + len(text), flags=FIN | ACK)(S, 5001, b"ok", ack=isn + 2 + len(text)).close()
    stream = cap.flows[0].first
    covered = bytearray(len(text))
    for start, end in kept:
        covered[start:end] = b"\1" * (end - start)
    seen = stream.text
    at = 0
    for number, part in enumerate(holes(seen)):
        if number:
            at += int(seen.split(b"<")[number].split(b">")[0])
        assert text[at : at + len(part)] == part
        at += len(part)
    assert sum(map(len, holes(seen))) == sum(covered)
    if 0 in covered and any(covered[covered.index(0) :]):
        assert b"<" in seen


@given(
    st.lists(
        st.tuples(
            st.sampled_from([C, S]),
            st.integers(0, 0xFFFFFFFF) | st.integers(995, 1010),
            st.integers(0, 63),
            st.binary(max_size=8),
            st.integers(0, 3),
        ),
        max_size=25,
    )
)
@settings(max_examples=300)
def test_any_segments_never_raise_and_everything_ends(segments: list[tuple[bytes, int, int, bytes, int]]) -> None:
    cap = Capture()
    for key, seq, flags, payload, missing in segments:
        cap(key, seq, payload, flags=flags, ack=seq, missing=missing)
    cap.close()
    assert all(f.closed and f.first.ended and f.second.ended for f in cap.flows)
    assert cap.tcp.open_connections == 0
    assert cap.tcp._pending_bytes == 0
