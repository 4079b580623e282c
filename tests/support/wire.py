"""Captures built from bytes: TCP conversations in frames, and the files they are kept in. No packages, so that it is the tests' own view."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
START_NS = 1_790_000_000_000_000_000


def ethernet(payload: bytes, ethertype: int, vlans: tuple[int, ...] = ()) -> bytes:
    tags = b"".join(struct.pack(">HH", 0x8100, tag) for tag in vlans)
    return b"\x02\0\0\0\0\1\x02\0\0\0\0\2" + tags + struct.pack(">H", ethertype) + payload


def ipv4(
    src: str, dst: str, payload: bytes, *, options: bytes = b"", fragment: int = 0x4000, protocol: int = 6, total: int | None = None
) -> bytes:
    header = 20 + len(options)
    length = header + len(payload) if total is None else total
    return (
        struct.pack(">BBHHHBBH", 0x40 | header // 4, 0, length, 0, fragment, 64, protocol, 0)
        + socket.inet_aton(src)
        + socket.inet_aton(dst)
        + options
        + payload
    )


def ipv6(src: str, dst: str, payload: bytes, *, next_header: int = 6) -> bytes:
    return (
        struct.pack(">IHBB", 0x60000000, len(payload), next_header, 64)
        + socket.inet_pton(socket.AF_INET6, src)
        + socket.inet_pton(socket.AF_INET6, dst)
        + payload
    )


def tcp(sport: int, dport: int, seq: int, ack: int, flags: int, data: bytes, *, options: bytes = b"") -> bytes:
    offset = (20 + len(options)) // 4 << 4
    return struct.pack(">HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, offset, flags, 64240, 0, 0) + options + data


@dataclass
class Talk:
    """One TCP connection as frames with times. `say(0, …)` is the client, `say(1, …)` the server."""

    client: tuple[str, int] = ("10.1.0.7", 40000)
    server: tuple[str, int] = ("10.2.0.9", 8000)
    now_ns: int = START_NS
    step_ns: int = 1_000_000
    mss: int = 1448
    seq: list[int] = field(default_factory=lambda: [1000, 5000])
    frames: list[tuple[int, bytes]] = field(default_factory=list)

    def segment(self, side: int, flags: int, data: bytes = b"", seq: int | None = None) -> Talk:
        (src, sport), (dst, dport) = (self.client, self.server) if side == 0 else (self.server, self.client)
        raw = tcp(sport, dport, self.seq[side] if seq is None else seq, self.seq[1 - side] if flags & ACK else 0, flags, data)
        packet = ethernet(ipv6(src, dst, raw), 0x86DD) if ":" in src else ethernet(ipv4(src, dst, raw), 0x0800)
        self.now_ns += self.step_ns
        self.frames.append((self.now_ns, packet))
        return self

    def open(self) -> Talk:
        self.segment(0, SYN)
        self.seq[0] += 1
        self.segment(1, SYN | ACK)
        self.seq[1] += 1
        return self.segment(0, ACK)

    def say(self, side: int, *messages: bytes) -> Talk:
        for data in messages:
            for at in range(0, len(data), self.mss):
                piece = data[at : at + self.mss]
                self.segment(side, PSH | ACK, piece)
                self.seq[side] += len(piece)
            self.segment(1 - side, ACK)
        return self

    def close(self, side: int = 0, flags: int = FIN | ACK) -> Talk:
        self.segment(side, flags)
        if not flags & RST:
            self.seq[side] += 1
            self.segment(1 - side, FIN | ACK)
            self.seq[1 - side] += 1
            self.segment(side, ACK)
        return self


def pcap(frames: list[tuple[int, bytes]], *, linktype: int = 1, order: str = "<", nanoseconds: bool = True, snap: int = 262144) -> bytes:
    unit = 1 if nanoseconds else 1000
    out = [struct.pack(order + "IHHiIII", 0xA1B23C4D if nanoseconds else 0xA1B2C3D4, 2, 4, 0, 0, snap, linktype)]
    for ts, frame in frames:
        kept = frame[:snap]
        out.append(struct.pack(order + "IIII", ts // 10**9, ts % 10**9 // unit, len(kept), len(frame)) + kept)
    return b"".join(out)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += b"\0" * (-len(body) % 4)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def pcapng(frames: list[tuple[int, bytes]], *, order: str = "<", resolution: int = 9, linktype: int = 1) -> bytes:
    """A section with options and unknown blocks, two interfaces (the second is used), enhanced packets with options."""
    section = block(
        0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1) + option(4, b"made by a test", order) + option(0, b"", order), order
    )
    interfaces = block(1, struct.pack(order + "HHI", 101, 0, 0), order) + block(
        1,
        struct.pack(order + "HHI", linktype, 0, 0)
        + option(2, b"lo", order)
        + option(9, bytes([resolution]), order)
        + option(0, b"", order),
        order,
    )
    out = [section, interfaces, block(0xBAD, b"unknown block", order)]
    for ts, frame in frames:
        units = ts // 10 ** (9 - resolution)
        body = struct.pack(order + "IIIII", 1, units >> 32, units & 0xFFFFFFFF, len(frame), len(frame)) + frame
        body += b"\0" * (-len(body) % 4) + option(1, b"a comment", order) + option(0, b"", order)
        out.append(block(6, body, order))
    out.append(block(5, struct.pack(order + "III", 1, 0, 0), order))
    return b"".join(out)
