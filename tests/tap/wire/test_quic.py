"""QUIC is named by its first packets, which real clients made."""

from __future__ import annotations

import random

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion

from llmsec_tap import limits
from support.replay import replay
from support.wire import START_NS, ethernet, ipv4, pcap

CLIENT, SERVER = ("10.1.0.7", 50000), ("10.2.0.9", 443)


def frame(side: int, payload: bytes) -> bytes:
    (source, sport), (target, dport) = (CLIENT, SERVER) if side == 0 else (SERVER, CLIENT)
    datagram = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + (8 + len(payload)).to_bytes(2, "big") + bytes(2) + payload
    return ethernet(ipv4(source, target, datagram, protocol=17), 0x0800)


def first_flight(version: QuicProtocolVersion, name: str = "api.anthropic.com") -> list[bytes]:
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=["h3"], server_name=name, original_version=version, supported_versions=[version]
    )
    client = QuicConnection(configuration=configuration)
    client.connect(SERVER, now=0.0)
    return [data for data, _ in client.datagrams_to_send(now=0.0)]


@pytest.mark.parametrize(("version", "shown"), [(QuicProtocolVersion.VERSION_1, "QUIC 1"), (QuicProtocolVersion.VERSION_2, "QUIC 2")])
def test_a_connection_is_named_by_its_client_s_hello(version, shown):
    sent = first_flight(version)
    packets = [frame(0, data) for data in sent] + [frame(1, b"\x40" + bytes(99)), frame(0, b"\x40" + bytes(49))]
    (found,), pipeline = replay(pcap([(START_NS + number, packet) for number, packet in enumerate(packets)]))
    assert (found.provider, found.completeness, found.client, found.server) == ("anthropic", "unreadable", "10.1.0.7:50000", "10.2.0.9:443")
    assert found.tls is not None
    assert (found.tls.transport, found.tls.version, found.tls.server_name, found.tls.alpn_offered) == (
        "quic",
        shown,
        "api.anthropic.com",
        ["h3"],
    )
    assert found.tls.client_bytes == sum(map(len, sent)) + 50
    assert found.tls.server_bytes == 100
    assert found.tls.ja4 is not None
    assert found.tls.ja4.startswith("q13d")
    assert pipeline.protocols == {"quic": 1}


def test_a_silent_connection_is_told_and_a_new_one_begins():
    sent = first_flight(QuicProtocolVersion.VERSION_1)
    late = START_NS + limits.QUIC_IDLE_NS + 1
    found, _ = replay(pcap([(START_NS, frame(0, sent[0])), (late, frame(0, sent[0]))]))
    assert [exchange.started_ns for exchange in found] == [START_NS, late]


def test_connections_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "MAX_QUIC_CONNECTIONS", 8)
    (data, *_) = first_flight(QuicProtocolVersion.VERSION_1)
    packets = []
    for port in range(1000, 1050):
        whole = bytearray(frame(0, data))
        whole[34:36] = port.to_bytes(2, "big")
        packets.append((START_NS + port, bytes(whole)))
    found, pipeline = replay(pcap(packets))
    assert len(found) == 50
    assert pipeline.account.held == 0


def test_damaged_packets_are_no_more_than_unnamed():
    chance = random.Random(3)
    (data, *_) = first_flight(QuicProtocolVersion.VERSION_1)
    packets = []
    for number in range(300):
        changed = bytearray(data[: chance.randrange(7, len(data))] if number % 2 else data)
        for _ in range(chance.randrange(3)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        packets.append((START_NS + number * (limits.QUIC_IDLE_NS + 1), frame(0, bytes(changed))))
    found, _ = replay(pcap(packets))
    assert {exchange.tls.transport for exchange in found if exchange.tls} == {"quic"}
