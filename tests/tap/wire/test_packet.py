"""Frames of every link type to segments. scapy writes them a second time where it can, so that two encoders agree."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_tap.account import Account
from llmsec_tap.wire.packet import BAD_CHECKSUM, GOOD_CHECKSUM, PacketDecoder
from support.wire import ACK, RST, ethernet, ipv4, ipv6, tcp

A, B = "10.0.0.1", "10.0.0.2"
A6, B6 = "fd00::1", "fd00::2"
TCP = tcp(40000, 8000, 7, 9, ACK, b"hello")
IP4, IP6 = ipv4(A, B, TCP), ipv6(A6, B6, TCP)
KEY4 = bytes([10, 0, 0, 1, 10, 0, 0, 2]) + struct.pack(">HH", 40000, 8000)
KEY6 = b"\xfd" + bytes(14) + b"\x01" + b"\xfd" + bytes(14) + b"\x02" + KEY4[-4:]


class Sink:
    holes = 1

    def __init__(self) -> None:
        self.segments: list[tuple[Any, ...]] = []
        self.anomalies: list[str] = []

    def segment(self, ts_ns: int, key: bytes, seq: int, ack: int, flags: int, payload: bytes) -> None:
        self.segments.append((key, seq, ack, flags, payload))

    def cut_segment(self, ts_ns: int, key: bytes, seq: int, ack: int, flags: int, payload: bytes, missing: int) -> None:
        self.segments.append((key, seq, ack, flags, payload, missing))

    def anomaly(self, name: str) -> None:
        self.anomalies.append(name)


def decode(frame: bytes, linktype: int = 1, *, captured: int | None = None, ports: frozenset[int] | None = None) -> Sink:
    """The frame stands in the middle of a larger buffer, as it does in a file."""
    sink = Sink()
    decoder = PacketDecoder(sink, ports)
    kept = frame if captured is None else frame[:captured]
    decoder.handler(linktype)(1, b"\xee" * 5 + kept + b"\xee" * 70, 5, 5 + len(kept), len(frame))
    return sink


SLL = struct.pack(">HHH8sH", 0, 1, 6, b"\2\0\0\0\0\1\0\0", 0x0800)
SLL2 = struct.pack(">HHIHBB8s", 0x0800, 0, 1, 1, 0, 6, b"\2\0\0\0\0\1\0\0")


@pytest.mark.parametrize(
    ("frame", "linktype", "key"),
    [
        (ethernet(IP4, 0x0800), 1, KEY4),
        (ethernet(IP6, 0x86DD), 1, KEY6),
        (ethernet(IP4, 0x0800, (42,)), 1, KEY4),
        (ethernet(IP6, 0x86DD, (42, 7)), 1, KEY6),
        (ethernet(IP4, 0x0800) + b"\0" * 6, 1, KEY4),
        (ethernet(ipv4(A, B, TCP, options=b"\1" * 8), 0x0800), 1, KEY4),
        (ethernet(ipv4(A, B, tcp(40000, 8000, 7, 9, ACK, b"hello", options=b"\1" * 12)), 0x0800), 1, KEY4),
        (ethernet(ipv4(A, B, TCP, total=0), 0x0800), 1, KEY4),
        (IP4, 101, KEY4),
        (IP6, 101, KEY6),
        (IP4, 228, KEY4),
        (IP6, 229, KEY6),
        (IP4, 12, KEY4),
        (b"\2\0\0\0" + IP4, 0, KEY4),
        (b"\0\0\0\x1e" + IP6, 0, KEY6),
        (b"\0\0\0\2" + IP4, 108, KEY4),
        (SLL + IP4, 113, KEY4),
        (SLL2 + IP4, 276, KEY4),
        (ethernet(ipv6(A6, B6, bytes([60, 0]) + bytes(6) + bytes([6, 1]) + bytes(14) + TCP, next_header=0), 0x86DD), 1, KEY6),
        (ethernet(ipv6(A6, B6, bytes([6, 1]) + bytes(10) + TCP, next_header=51), 0x86DD), 1, KEY6),
        (ethernet(ipv6(A6, B6, bytes([6, 0, 0, 0, 0, 0, 0, 1]) + TCP, next_header=44), 0x86DD), 1, KEY6),
    ],
    ids=["ethernet", "ethernet IPv6", "VLAN", "QinQ IPv6", "padding", "IP options", "TCP options", "length 0 (offload)", "raw", "raw IPv6", "ipv4", "ipv6",
         "DLT_RAW 12", "null", "null IPv6 of macOS", "loop", "SLL", "SLL2", "hop-by-hop and destination options", "authentication header", "atomic fragment"],
)  # fmt: skip
def test_frames(frame: bytes, linktype: int, key: bytes) -> None:
    sink = decode(frame, linktype)
    assert sink.segments == [(key, 7, 9, ACK, b"hello")]
    assert sink.anomalies == []


def pieces(payload: bytes, size: int) -> list[tuple[int, bytes]]:
    """Offset with the bit for more, and bytes, of fragments of so many bytes."""
    return [(at // 8 | (0x2000 if at + size < len(payload) else 0), payload[at : at + size]) for at in range(0, len(payload), size)]


def fragments4(parts: list[tuple[int, bytes]]) -> list[bytes]:
    return [ethernet(ipv4(A, B, data, fragment=word), 0x0800) for word, data in parts]


def fragments6(parts: list[tuple[int, bytes]]) -> list[bytes]:
    return [
        ethernet(ipv6(A6, B6, struct.pack(">BBHI", 6, 0, (word & 0x1FFF) << 3 | word >> 13, 7) + data, next_header=44), 0x86DD)
        for word, data in parts
    ]


def decode_all(frames: list[bytes], account: Account | None = None) -> Sink:
    sink = Sink()
    account = account or Account()
    decoder = PacketDecoder(sink, account=account)
    for number, frame in enumerate(frames):
        decoder.handler(1)(number, frame, 0, len(frame), len(frame))
    decoder.close()
    assert account.held == 0
    return sink


LONG = tcp(40000, 8000, 7, 9, ACK, bytes(range(256)) * 10)


@pytest.mark.parametrize(("make", "key"), [(fragments4, KEY4), (fragments6, KEY6)])
@given(st.integers(1, 40), st.randoms(), st.booleans())
@settings(max_examples=50)
def test_fragments_in_any_order_and_repeated_are_put_together(make: Any, key: bytes, eighths: int, rng: Any, again: bool) -> None:
    frames = make(pieces(LONG, 8 * eighths))
    frames += frames[:-1] if again and len(frames) > 1 else []
    rng.shuffle(frames)
    sink = decode_all(frames)
    assert sink.segments[:1] == [(key, 7, 9, ACK, LONG[20:])]
    assert set(sink.anomalies) == {"ip_fragment"}


@pytest.mark.parametrize("make", [fragments4, fragments6])
def test_overlapping_fragments_are_dropped_with_their_datagram(make: Any) -> None:
    frames = make(pieces(LONG, 800))
    forged = make([(50 | 0x2000, b"x" * 800)])
    sink = decode_all([frames[0], *forged, *frames[1:]])
    assert (sink.segments, sink.anomalies.count("ip_fragment_overlap")) == ([], 1)


def test_fragments_that_do_not_fit_or_never_end_are_bounded() -> None:
    account = Account()
    flood = [ethernet(ipv4(A, f"10.9.{n >> 8}.{n & 255}", b"z" * 4000, fragment=0x2000 | n % 1000), 0x0800) for n in range(5000)]
    sink = decode_all(flood, account)
    assert sink.segments == []
    assert sink.anomalies.count("ip_fragment_lost") > 3000
    assert decode_all(fragments4([(0x2000, b"x" * 7)])).anomalies == ["ip_fragment", "packet_malformed"]
    assert "ip_fragment_overlap" in decode_all(fragments4([(0x1FFF, b"x" * 80)])).anomalies


def test_checksums_of_what_opens_and_ends_a_connection() -> None:
    def flags(frame: bytes) -> int:
        ((_, _, _, flags, _),) = decode(frame).segments
        return int(flags)

    plain = tcp(40000, 8000, 7, 9, RST, b"odd")
    pseudo = KEY4[:8] + struct.pack(">HH", 6, len(plain))
    total = sum(struct.unpack(">17H", (pseudo + plain)[:34])) + (plain[-1] << 8)
    right = 0xFFFF - (total % 0xFFFF)
    good = plain[:16] + struct.pack(">H", right) + plain[18:]
    assert flags(ethernet(ipv4(A, B, good), 0x0800)) == RST | GOOD_CHECKSUM
    assert flags(ethernet(ipv4(A, B, plain), 0x0800)) == RST | BAD_CHECKSUM
    assert flags(ethernet(ipv4(A, B, TCP), 0x0800)) == ACK


def test_other_protocols_are_no_anomaly() -> None:
    for frame in (
        ethernet(b"x" * 40, 0x0806),
        ethernet(ipv4(A, B, b"u" * 20, protocol=17), 0x0800),
        ethernet(ipv6(A6, B6, b"u" * 30, next_header=58), 0x86DD),
    ):
        assert (decode(frame).segments, decode(frame).anomalies) == ([], [])


def test_a_link_type_that_is_not_known_is_counted() -> None:
    assert decode(IP4, 147).anomalies == ["linktype_unknown"]


def test_snap_length_gives_what_is_there_and_how_much_is_missing() -> None:
    frame = ethernet(IP4, 0x0800)
    assert decode(frame, captured=len(frame) - 3).segments == [(KEY4, 7, 9, ACK, b"he", 3)]
    assert decode(frame, captured=len(frame) - 5).segments == [(KEY4, 7, 9, ACK, b"", 5)]


@pytest.mark.parametrize(
    "frame", [ethernet(IP4, 0x0800), ethernet(IP6, 0x86DD), ethernet(IP4, 0x0800, (1,)), SLL + IP4], ids=["v4", "v6", "vlan", "sll"]
)
def test_cut_anywhere_is_counted_or_read_and_never_raises(frame: bytes) -> None:
    for size in range(len(frame)):
        sink = decode(frame, 113 if frame[:2] == b"\0\0" else 1, captured=size)
        assert len(sink.segments) + len(sink.anomalies) >= 1 or size < 20
        assert all(segment[4] in (b"", b"h", b"he", b"hel", b"hell") for segment in sink.segments)


def test_lengths_that_contradict_are_malformed() -> None:
    for raw in (
        ipv4(A, B, TCP, total=30),
        ipv4(A, B, TCP[:12] + b"\x10" + TCP[13:]),
        ipv4(A, B, TCP[:12] + b"\xf0" + TCP[13:]),
        b"\x41" + IP4[1:],
    ):
        sink = decode(ethernet(raw, 0x0800))
        assert sink.segments == []
        assert sink.anomalies == ["packet_malformed"]


def test_too_many_vlan_tags_and_extension_headers_stop() -> None:
    assert decode(ethernet(IP4, 0x0800, tuple(range(40)))).anomalies == ["packet_malformed"]
    chain = bytes([0, 0]) + bytes(6)
    assert decode(ethernet(ipv6(A6, B6, chain * 60 + TCP, next_header=0), 0x86DD)).anomalies == ["packet_malformed"]


def test_ports_select_either_end() -> None:
    frame = ethernet(IP4, 0x0800)
    assert len(decode(frame, ports=frozenset([8000])).segments) == 1
    assert len(decode(frame, ports=frozenset([40000, 1])).segments) == 1
    assert decode(frame, ports=frozenset([80])).segments == []


def test_scapy_writes_the_same_frames() -> None:
    from scapy.layers.inet import IP
    from scapy.layers.inet import TCP as ScapyTCP
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
    from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

    segment = ScapyTCP(sport=40000, dport=8000, seq=7, ack=9, flags="A", options=[("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)])
    for layers, key in (
        (Ether() / IP(src=A, dst=B) / segment / b"hello", KEY4),
        (Ether() / Dot1AD(vlan=3) / Dot1Q(vlan=4) / IP(src=A, dst=B) / segment / b"hello", KEY4),
        (Ether() / IPv6(src=A6, dst=B6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / segment / b"hello", KEY6),
    ):
        assert decode(bytes(layers)).segments == [(key, 7, 9, ACK, b"hello")]


@given(st.binary(max_size=120), st.sampled_from([0, 1, 101, 108, 113, 276, 228, 229, 999]))
def test_any_frame_never_raises(frame: bytes, linktype: int) -> None:
    decode(frame, linktype)


@given(st.integers(0, 73), st.integers(0, 255), st.sampled_from([IP4, IP6]))
def test_any_changed_byte_never_raises_or_reads_beyond_the_frame(at: int, value: int, packet: bytes) -> None:
    frame = bytearray(ethernet(packet, 0x0800 if packet is IP4 else 0x86DD))
    frame[at % len(frame)] = value
    for segment in decode(bytes(frame)).segments:
        assert b"\xee" not in segment[4] or value == 0xEE
