"""What mirrors and overlays put around packets is taken off. Headers are scapy's, so they are not ours on both sides."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from scapy.all import IP, UDP, Ether, IPv6, Raw
from scapy.contrib.geneve import GENEVE
from scapy.contrib.mpls import MPLS
from scapy.layers.l2 import GRE, Dot1Q
from scapy.layers.ppp import PPP, PPPoE
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from llmsec_tap import limits
from support.replay import replay
from support.wire import Talk, pcap

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
LINK = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
OUTER = LINK / IP(src="192.0.2.1", dst="192.0.2.2")
OUTER6 = LINK / IPv6(src="2001:db8::1", dst="2001:db8::2")


def inner(frame: bytes) -> bytes:
    """The IP packet of a frame."""
    return frame[14:]


WRAPS: dict[str, Callable[[bytes], Packet]] = {
    "vxlan": lambda frame: OUTER / UDP(sport=50000, dport=4789) / VXLAN(vni=7, flags=8) / Raw(frame),
    "vxlan over IPv6": lambda frame: OUTER6 / UDP(sport=50000, dport=4789) / VXLAN(vni=7, flags=8) / Raw(frame),
    "vxlan of Linux": lambda frame: OUTER / UDP(sport=50000, dport=8472) / VXLAN(vni=7, flags=8) / Raw(frame),
    "geneve": lambda frame: OUTER / UDP(sport=50000, dport=6081) / GENEVE(vni=7, proto=0x6558) / Raw(frame),
    "geneve with IP": lambda frame: OUTER / UDP(sport=50000, dport=6081) / GENEVE(vni=7, proto=0x0800) / Raw(inner(frame)),
    "gre": lambda frame: OUTER / GRE(proto=0x0800) / Raw(inner(frame)),
    "gre with key, checksum and number": lambda frame: (
        OUTER / GRE(proto=0x0800, key_present=1, seqnum_present=1, chksum_present=1) / Raw(inner(frame))
    ),
    "gre with Ethernet": lambda frame: OUTER / GRE(proto=0x6558) / Raw(frame),
    "erspan I": lambda frame: OUTER / GRE(proto=0x88BE) / Raw(frame),
    "erspan II": lambda frame: OUTER / GRE(proto=0x88BE, seqnum_present=1) / Raw(b"\x10\x01\x00\x01\0\0\0\0" + frame),
    "erspan III": lambda frame: OUTER / GRE(proto=0x22EB, seqnum_present=1) / Raw(b"\x20\x01\x00\x01" + bytes(8) + frame),
    "erspan III with a subheader": lambda frame: (
        OUTER / GRE(proto=0x22EB, seqnum_present=1) / Raw(b"\x20\x01\x00\x01" + bytes(7) + b"\1" + bytes(8) + frame)
    ),
    "IP in IP": lambda frame: OUTER / Raw(inner(frame)),
    "IP in IPv6": lambda frame: OUTER6 / Raw(inner(frame)),
    "mpls": lambda frame: LINK / MPLS(label=16, s=0) / MPLS(label=17, s=1) / Raw(inner(frame)),
    "mpls pseudowire": lambda frame: LINK / MPLS(label=16, s=1) / Raw(bytes(4) + frame),
    "pppoe": lambda frame: LINK / PPPoE(sessionid=1) / PPP(proto=0x21) / Raw(inner(frame)),
    "vlan and vxlan": lambda frame: (
        LINK / Dot1Q(vlan=3) / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(dport=4789) / VXLAN(vni=1, flags=8) / Raw(frame)
    ),
    "gre in vxlan": lambda frame: OUTER / UDP(dport=4789) / VXLAN(vni=1, flags=8) / OUTER / GRE(proto=0x0800) / Raw(inner(frame)),
}


def built(packet: Packet) -> bytes:
    if IP in packet and packet[IP].payload.__class__ is Raw:
        packet[IP].proto = 4
    if IPv6 in packet and packet[IPv6].payload.__class__ is Raw:
        packet[IPv6].nh = 4
    return bytes(packet)


def frames() -> list[tuple[int, bytes]]:
    return Talk().open().say(0, POST).say(1, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").close().frames


@pytest.mark.parametrize("name", WRAPS)
def test_packets_inside_are_read_as_those_outside_are(name):
    plain, _ = replay(pcap(frames()))
    wrapped, pipeline = replay(pcap([(at, built(WRAPS[name](frame))) for at, frame in frames()]))
    assert wrapped == plain
    assert [exchange.input_text for exchange in wrapped] == ["hi"]
    assert not pipeline.anomalies


def test_a_mirror_s_packets_come_in_fragments():
    whole = [(at, bytes(WRAPS["vxlan"](frame))) for at, frame in Talk(mss=1448).open().say(0, POST + b"\n" * 3000).close().frames]
    cut = [(at, bytes(piece)) for at, frame in whole for piece in Ether(frame)[IP].fragment(800)]
    found, pipeline = replay(pcap([(at, b"\2" * 12 + b"\x08\0" + data) for at, data in cut]))
    assert [exchange.input_text for exchange in found] == ["hi"]
    assert set(pipeline.anomalies) <= {"ip_fragment", "http_no_response"}


def test_depth_is_bounded():
    frame = frames()[3][1]
    for _ in range(limits.MAX_ENCAPSULATIONS + 1):
        frame = bytes(WRAPS["vxlan"](frame))
    _, pipeline = replay(pcap([(1, frame)]))
    assert pipeline.anomalies == {"packet_too_deep": 1}


def test_what_is_not_read_is_counted_by_kind():
    packets = [
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x0806) / Raw(bytes(28)),
        OUTER / UDP(dport=53) / Raw(b"question"),
        LINK / IP(src="192.0.2.1", dst="192.0.2.2", proto=1) / Raw(bytes(8)),
        LINK / IP(src="192.0.2.1", dst="192.0.2.2", proto=50) / Raw(bytes(20)),
        LINK / IP(src="192.0.2.1", dst="192.0.2.2", proto=99) / Raw(bytes(20)),
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x88CC) / Raw(bytes(20)),
        OUTER / UDP(dport=4789) / Raw(b"\0 is no header of vxlan"),
    ]
    _, pipeline = replay(pcap([(number, bytes(packet)) for number, packet in enumerate(packets)]))
    counted = {dict(sample.labels)["kind"]: sample.value for sample in pipeline.samples() if sample.name == "llmsec_skipped_packets_total"}
    assert counted == {"arp": 1, "udp": 2, "icmp": 1, "esp": 1, "other": 1, "lldp": 1}


def test_cut_and_damaged_tunnels_do_not_raise():
    chance = random.Random(7)
    damaged = []
    for wrap in WRAPS.values():
        packet = built(wrap(frames()[3][1]))
        damaged += [packet[:cut] for cut in range(14, min(len(packet), 140))]
        for _ in range(50):
            changed = bytearray(packet)
            changed[chance.randrange(12, min(len(packet), 100))] = chance.randrange(256)
            damaged.append(bytes(changed))
    replay(pcap([(number, frame) for number, frame in enumerate(damaged)]))
