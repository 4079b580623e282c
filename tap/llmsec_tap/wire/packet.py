"""Link, network and transport headers down to TCP segments.

Rules
- No object per packet: one `unpack_from` reads the headers of the usual frame (Ethernet, IPv4 without options, TCP) at once;
  everything else takes the general path below it.
- A frame is a region `buf[start:end]` of a larger buffer; only the TCP payload is copied out.
- A length field that contradicts another is damage: the packet is counted (`packet_malformed`) and skipped.
- Fragments are put together (fragments.py); no LLM server sends fragmented TCP, but an attacker may.
- What is carried inside (tunnels.py) takes the same path again, to a bounded depth. What is not TCP in the end is counted by kind.
- Of segments that open or end a connection the checksum is looked at (RFC 9293 3.1); `flags` then say what it is.

Link types: https://www.tcpdump.org/linktypes.html. IPv6 extension headers: RFC 8200 section 4.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from llmsec_tap import limits
from llmsec_tap.account import Account
from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.wire import tunnels
from llmsec_tap.wire.fragments import Fragments, Key

LINKTYPE_NULL = 0
LINKTYPE_ETHERNET = 1
LINKTYPE_RAW = 101
LINKTYPE_LOOP = 108
LINKTYPE_LINUX_SLL = 113
LINKTYPE_IPV4 = 228
LINKTYPE_IPV6 = 229
LINKTYPE_LINUX_SLL2 = 276
# DLT_RAW as OpenBSD and Linux number it; written to files by old libpcap versions.
_DLT_RAW = (12, 14)

PROTO_TCP, PROTO_UDP = 6, 17
_ACK = 0x10
_SPECIAL = 0x07  # FIN, SYN, RST
_ETHERTYPE_IPV4 = 0x0800
_ETHERTYPE_IPV6 = 0x86DD
# 802.1Q, 802.1ad (QinQ) and the older QinQ type.
_ETHERTYPE_VLAN = frozenset((0x8100, 0x88A8, 0x9100))
_MAX_VLAN_TAGS = 4
_MAX_EXTENSION_HEADERS = 12
# Hop-by-hop, routing, destination options, mobility, HIP, shim6: length in 8 octets, not counting the first.
_IPV6_EXTENSIONS = frozenset((0, 43, 60, 135, 139, 140))
_IPV6_FRAGMENT = 44
_IPV6_AUTH = 51
# Names of what is counted and not read; every other one is `other`.
_SKIPPED_LINK = {0x0806: "arp", 0x8035: "rarp", 0x88CC: "lldp", 0x88E5: "macsec", 0x8863: "pppoe_discovery", 0x88F7: "ptp"}
_SKIPPED_IP = {1: "icmp", 2: "igmp", 17: "udp", 50: "esp", 58: "icmp", 89: "ospf", 103: "pim", 112: "vrrp", 115: "l2tp", 132: "sctp"}

# Mirrors wrap whole packets, which then no longer fit the path: their outer packets come in fragments.
_FRAGMENTED = frozenset((PROTO_TCP, PROTO_UDP, *tunnels.PROTOCOLS))

# What `flags` say above the wire's own bits.
GOOD_CHECKSUM, BAD_CHECKSUM = 0x100, 0x200

OnDatagram = Callable[[int, bytes, bytes], bool | None]
"""(capture time in ns, addresses and ports as on the wire, payload); whether that is of a connection that it knows"""

PacketHandler = Callable[[int, bytes, int, int, int], None]
"""(capture time in ns, buffer, start, end, length on the wire)"""


class SegmentSink(Protocol):
    """Takes TCP segments. `key` is source address, destination address, source port, destination port, as on the wire."""

    def segment(self, ts_ns: int, key: bytes, seq: int, ack: int, flags: int, payload: bytes) -> None: ...

    def cut_segment(self, ts_ns: int, key: bytes, seq: int, ack: int, flags: int, payload: bytes, missing: int) -> None: ...

    def anomaly(self, name: AnomalyName) -> None: ...

    holes: int
    """While this is 0, segments without data or flags other than ACK need not be given."""


class PacketDecoder:
    """Frames in, TCP segments out to a `SegmentSink`. `ports`, where given, keeps only what is from or to one of them.

    `on_datagram` is given UDP that carries no tunnel, and says whether it knows it; `skipped` counts what nobody knows.
    """

    __slots__ = ("_anomaly", "_cut_segment", "_datagram", "_fragments", "_segment", "_sink", "skipped")

    def __init__(
        self,
        sink: SegmentSink,
        ports: frozenset[int] | None = None,
        account: Account | None = None,
        on_datagram: OnDatagram | None = None,
    ) -> None:
        self._fragments = Fragments(account or Account())
        self._segment = sink.segment if ports is None else _only_ports(sink.segment, ports)
        self._cut_segment = sink.cut_segment if ports is None else _only_ports(sink.cut_segment, ports)
        self._anomaly = sink.anomaly
        self._sink = sink
        self._datagram = on_datagram if ports is None or on_datagram is None else _only_ports(on_datagram, ports)
        self.skipped: Counter[str] = Counter()

    def handler(self, linktype: int) -> PacketHandler:
        """The function that decodes frames of this link type; an unknown type gets one that counts and skips."""
        if linktype == LINKTYPE_ETHERNET:
            return self._ethernet
        if linktype in (LINKTYPE_RAW, LINKTYPE_IPV4, LINKTYPE_IPV6, *_DLT_RAW):
            return self._raw
        if linktype in (LINKTYPE_NULL, LINKTYPE_LOOP):
            return self._null
        if linktype == LINKTYPE_LINUX_SLL:
            return self._sll
        if linktype == LINKTYPE_LINUX_SLL2:
            return self._sll2
        return self._unknown

    def _unknown(self, ts_ns: int, buf: bytes, start: int, end: int, wire_len: int) -> None:
        self._anomaly("linktype_unknown")

    # ethertype, version+ihl, total length, fragment, protocol, addresses+ports, seq, ack, data offset, flags
    _FAST = struct.Struct(">12xHBxH2xHxB2x12sIIBB").unpack_from

    def _ethernet(
        self,
        ts_ns: int,
        buf: bytes,
        start: int,
        end: int,
        wire_len: int,
        _fast: Callable[[bytes, int], tuple[int, int, int, int, int, bytes, int, int, int, int]] = _FAST,
    ) -> None:
        if end - start >= 54:
            ethertype, version_ihl, total, fragment, protocol, key, seq, ack, offset, flags = _fast(buf, start)
            if ethertype == _ETHERTYPE_IPV4 and version_ihl == 0x45 and protocol == PROTO_TCP and not fragment & 0x3FFF:
                stop = start + 14 + total
                data = start + 34 + (offset >> 4) * 4
                if data <= stop <= end and offset >= 0x50 and not flags & _SPECIAL:
                    if data == stop and flags == _ACK and not self._sink.holes:
                        return  # a third of all packets
                    self._segment(ts_ns, key, seq, ack, flags, buf[data:stop])
                    return
            self._network(ts_ns, ethertype, buf, start + 14, end, start + wire_len)
        elif end - start >= 14:
            self._network(ts_ns, buf[start + 12] << 8 | buf[start + 13], buf, start + 14, end, start + wire_len)
        else:
            self._anomaly("packet_malformed")

    def _raw(self, ts_ns: int, buf: bytes, start: int, end: int, wire_len: int) -> None:
        if start >= end:
            self._anomaly("packet_malformed")
            return
        ethertype = _ETHERTYPE_IPV6 if buf[start] >> 4 == 6 else _ETHERTYPE_IPV4
        self._network(ts_ns, ethertype, buf, start, end, start + wire_len)

    def _null(self, ts_ns: int, buf: bytes, start: int, end: int, wire_len: int) -> None:
        # The 4-byte address family is in the capturing host's byte order, and its numbers differ by system: the IP version tells.
        self._raw(ts_ns, buf, start + 4, end, wire_len - 4)

    def _sll(self, ts_ns: int, buf: bytes, start: int, end: int, wire_len: int) -> None:
        if end - start < 16:
            self._anomaly("packet_malformed")
            return
        self._network(ts_ns, buf[start + 14] << 8 | buf[start + 15], buf, start + 16, end, start + wire_len)

    def _sll2(self, ts_ns: int, buf: bytes, start: int, end: int, wire_len: int) -> None:
        if end - start < 20:
            self._anomaly("packet_malformed")
            return
        self._network(ts_ns, buf[start] << 8 | buf[start + 1], buf, start + 20, end, start + wire_len)

    def _network(self, ts_ns: int, ethertype: int, buf: bytes, start: int, end: int, wire_end: int, depth: int = 0) -> None:
        tags = 0
        while ethertype in _ETHERTYPE_VLAN:
            tags += 1
            if start + 4 > end or tags > _MAX_VLAN_TAGS:
                self._anomaly("packet_malformed")
                return
            ethertype = buf[start + 2] << 8 | buf[start + 3]
            start += 4
        if ethertype == _ETHERTYPE_IPV4:
            self._ipv4(ts_ns, buf, start, end, wire_end, depth)
        elif ethertype == _ETHERTYPE_IPV6:
            self._ipv6(ts_ns, buf, start, end, wire_end, depth)
        elif ethertype in tunnels.ETHERTYPES:
            self._inside(ts_ns, tunnels.of_link(ethertype, buf, start, end), buf, end, wire_end, depth)
        else:
            self.skipped[_SKIPPED_LINK.get(ethertype, "other")] += 1

    def _inside(self, ts_ns: int, found: tunnels.Inside | None, buf: bytes, end: int, wire_end: int, depth: int) -> None:
        """What a tunnel carries, from where it begins."""
        if found is None:
            self._anomaly("packet_malformed")
            return
        ethertype, start = found
        if depth >= limits.MAX_ENCAPSULATIONS:
            self._anomaly("packet_too_deep")
            return
        if ethertype == tunnels.ETHERNET:
            if start + 14 > end:
                self._anomaly("packet_malformed")
                return
            ethertype, start = buf[start + 12] << 8 | buf[start + 13], start + 14
        if ethertype == tunnels.UNKNOWN:
            self.skipped["other"] += 1
            return
        self._network(ts_ns, ethertype, buf, start, end, wire_end, depth + 1)

    def _ipv4(self, ts_ns: int, buf: bytes, start: int, end: int, wire_end: int, depth: int) -> None:
        if end - start < 20 or buf[start] >> 4 != 4 or (header := (buf[start] & 15) * 4) < 20 or start + header > end:
            self._anomaly("packet_malformed")
            return
        fragment = buf[start + 6] << 8 | buf[start + 7]
        if fragment & 0x3FFF:  # more fragments, or an offset
            stop = start + (buf[start + 2] << 8 | buf[start + 3])
            key = buf[start + 12 : start + 20], buf[start + 4] << 8 | buf[start + 5], buf[start + 9]
            self._fragment(ts_ns, key, fragment, buf, start + header, end, stop, depth)
            return
        total = buf[start + 2] << 8 | buf[start + 3]
        # Captured before segmentation offload, a packet over 64 KiB states length 0: the frame's own length holds.
        stop = start + total if total else wire_end
        if buf[start + 9] == PROTO_TCP:
            self._tcp(ts_ns, buf[start + 12 : start + 20], buf, start + header, end, stop)
        else:
            self._other(ts_ns, buf[start + 9], buf[start + 12 : start + 20], buf, start + header, end, stop, depth)

    def _ipv6(self, ts_ns: int, buf: bytes, start: int, end: int, wire_end: int, depth: int) -> None:
        if end - start < 40 or buf[start] >> 4 != 6:
            self._anomaly("packet_malformed")
            return
        length = buf[start + 4] << 8 | buf[start + 5]
        stop = start + 40 + length if length else wire_end  # jumbo or offloaded
        kind, at = buf[start + 6], start + 40
        for _ in range(_MAX_EXTENSION_HEADERS):
            if kind == PROTO_TCP:
                self._tcp(ts_ns, buf[start + 8 : start + 40], buf, at, end, stop)
                return
            if kind == _IPV6_FRAGMENT:
                if at + 8 > end:
                    break
                word = buf[at + 2] << 8 | buf[at + 3]
                if word & 0xFFF9:  # an "atomic" fragment is whole (RFC 8200 4.5)
                    key = buf[start + 8 : start + 40], int.from_bytes(buf[at + 4 : at + 8], "big"), buf[at]
                    self._fragment(ts_ns, key, word >> 3 | (word & 1) << 13, buf, at + 8, end, stop, depth)
                    return
                kind, at = buf[at], at + 8
            elif kind in _IPV6_EXTENSIONS and at + 2 <= end:
                kind, at = buf[at], at + 8 + buf[at + 1] * 8
            elif kind == _IPV6_AUTH and at + 2 <= end:
                kind, at = buf[at], at + 8 + buf[at + 1] * 4
            else:
                self._other(ts_ns, kind, buf[start + 8 : start + 40], buf, at, end, stop, depth)
                return
            if at > end:
                break
        self._anomaly("packet_malformed")

    def _other(self, ts_ns: int, protocol: int, addresses: bytes, buf: bytes, start: int, end: int, stop: int, depth: int) -> None:
        """What IP carries other than TCP: a tunnel, a datagram, or nothing for us."""
        cut = min(end, stop)
        if protocol in tunnels.PROTOCOLS:
            self._inside(ts_ns, tunnels.of_ip(protocol, buf, start, cut), buf, cut, stop, depth)
            return
        if protocol == PROTO_UDP:
            if start + 8 > cut:
                self._anomaly("packet_malformed")
                return
            port = buf[start + 2] << 8 | buf[start + 3]
            if port in tunnels.UDP_PORTS and (found := tunnels.of_udp(port, buf, start + 8, cut)) is not None:
                self._inside(ts_ns, found, buf, cut, stop, depth)
                return
            if self._datagram is not None and self._datagram(ts_ns, addresses + buf[start : start + 4], buf[start + 8 : cut]):
                return
        self.skipped[_SKIPPED_IP.get(protocol, "other")] += 1

    def _fragment(self, ts_ns: int, key: Key, fragment: int, buf: bytes, start: int, end: int, stop: int, depth: int) -> None:
        """`fragment` as in IPv4: the offset in 8 octets, and the bit that says that more follow."""
        self._anomaly("ip_fragment")
        more = bool(fragment & 0x2000)
        is_read = key[2] in _FRAGMENTED
        if not is_read or stop > end or stop <= start or (more and (stop - start) % 8):
            if is_read:
                self._anomaly("packet_malformed")
            return
        fragments = self._fragments
        before = fragments.overlaps, fragments.given_up
        whole = fragments.add(ts_ns, key, (fragment & 0x1FFF) * 8, buf[start:stop], more=more)
        if fragments.overlaps > before[0]:
            self._anomaly("ip_fragment_overlap")
        if fragments.given_up > before[1]:
            self._anomaly("ip_fragment_lost")
        if whole is not None and key[2] == PROTO_TCP:
            self._tcp(ts_ns, key[0], whole, 0, len(whole), len(whole))
        elif whole is not None:
            self._other(ts_ns, key[2], key[0], whole, 0, len(whole), len(whole), depth)

    def close(self) -> None:
        self._fragments.close()

    def _tcp(self, ts_ns: int, addresses: bytes, buf: bytes, start: int, end: int, stop: int) -> None:
        if end - start < 20 or (header := (buf[start + 12] >> 4) * 4) < 20 or start + header > stop:
            self._anomaly("packet_malformed")
            return
        data = start + header
        missing = 0
        if stop > end:  # snap length
            missing = stop - max(end, data)
            if missing:
                self._anomaly("packet_cut")
            stop = end
        seq, ack = _SEQ_ACK(buf, start + 4)
        key = addresses + buf[start : start + 4]
        if missing:
            self._cut_segment(ts_ns, key, seq, ack, buf[start + 13], buf[data:stop], missing)
        else:
            flags = buf[start + 13]
            if flags & _SPECIAL:
                flags |= GOOD_CHECKSUM if _checksum(addresses, buf[start:stop]) == 0 else BAD_CHECKSUM
            self._segment(ts_ns, key, seq, ack, flags, buf[data:stop])


def _checksum(addresses: bytes, segment: bytes) -> int:
    """0 where the checksum of a TCP segment is right (RFC 9293 3.1, RFC 1071)."""
    data = addresses + struct.pack(">HH", PROTO_TCP, len(segment)) + segment + b"\0" * (len(segment) & 1)
    # The one's complement sum of 16-bit words is the number's remainder by 65535: that of a right one is 0.
    return int.from_bytes(data, "big") % 0xFFFF


def _only_ports(forward: Callable[..., Any], ports: frozenset[int]) -> Callable[..., Any]:
    wanted = frozenset(struct.pack(">H", port) for port in ports)

    def segment(ts_ns: int, key: bytes, *rest: object) -> object:
        return forward(ts_ns, key, *rest) if key[-2:] in wanted or key[-4:-2] in wanted else None

    return segment


_SEQ_ACK = struct.Struct(">II").unpack_from
