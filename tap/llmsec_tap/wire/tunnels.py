"""Encapsulations that mirrors and overlays put around packets: where the packet inside begins, and what it is.

Each function gives (ethertype, offset) of what is carried, ETHERNET in place of the type where that is a frame, UNKNOWN where it is
nothing that is read, or None where the header contradicts itself.
"""

from __future__ import annotations

from typing import Final

Inside = tuple[int, int]
ETHERNET: Final = 0x6558  # transparent Ethernet bridging, as GRE and GENEVE number it
UNKNOWN: Final = 0
_IPV4, _IPV6, _MPLS, _MPLS_MULTICAST, _PPPOE = 0x0800, 0x86DD, 0x8847, 0x8848, 0x8864
_PPP: Final = {0x0021: _IPV4, 0x0057: _IPV6, 0x0281: _MPLS}
_ERSPAN, _ERSPAN_3 = 0x88BE, 0x22EB
_KNOWN: Final = frozenset((_IPV4, _IPV6, ETHERNET, _MPLS, _MPLS_MULTICAST, _PPPOE, 0x8100, 0x88A8))
_MAX_LABELS = 16
_VXLAN, _VXLAN_LINUX, _VXLAN_GPE, _GENEVE = 4789, 8472, 4790, 6081
_GPE_NEXT: Final = {1: _IPV4, 2: _IPV6, 3: ETHERNET, 5: _MPLS}
_IP_IN_IP, _IPV6_IN_IP, _GRE, _MPLS_IN_IP = 4, 41, 47, 137

ETHERTYPES: Final = frozenset((_MPLS, _MPLS_MULTICAST, _PPPOE))
PROTOCOLS: Final = frozenset((_IP_IN_IP, _IPV6_IN_IP, _GRE, _MPLS_IN_IP))
UDP_PORTS: Final = frozenset((_VXLAN, _VXLAN_LINUX, _VXLAN_GPE, _GENEVE))


def of_link(ethertype: int, buf: bytes, start: int, end: int) -> Inside | None:
    return _pppoe(buf, start, end) if ethertype == _PPPOE else _mpls(buf, start, end)


def of_ip(protocol: int, buf: bytes, start: int, end: int) -> Inside | None:
    if protocol == _IP_IN_IP:  # RFC 2003
        return _IPV4, start
    if protocol == _IPV6_IN_IP:  # RFC 4213
        return _IPV6, start
    return _mpls(buf, start, end) if protocol == _MPLS_IN_IP else _gre(buf, start, end)


def of_udp(port: int, buf: bytes, start: int, end: int) -> Inside | None:
    """By its registered port and its header; None where it is neither, and so a datagram like any other."""
    if start + 8 > end:
        return None
    if port == _GENEVE:  # RFC 8926 section 3.4
        header = 8 + (buf[start] & 0x3F) * 4
        return _typed(buf[start + 2] << 8 | buf[start + 3], start + header) if not buf[start] >> 6 and start + header <= end else None
    if port == _VXLAN_GPE:  # draft-ietf-nvo3-vxlan-gpe
        return (_GPE_NEXT.get(buf[start + 3], UNKNOWN), start + 8) if buf[start] & 0x0C == 0x0C else None
    return (ETHERNET, start + 8) if buf[start] & 0x08 else None  # RFC 7348 section 5


def _typed(ethertype: int, start: int) -> Inside:
    return (ethertype if ethertype in _KNOWN else UNKNOWN), start


def _gre(buf: bytes, start: int, end: int) -> Inside | None:
    """RFC 2784 and RFC 2890; inside it ERSPAN (draft-foschiano-erspan)."""
    if start + 4 > end:
        return None
    flags, ethertype = buf[start], buf[start + 2] << 8 | buf[start + 3]
    if buf[start + 1] & 7 or flags & 0x40:  # PPTP, or source routing (RFC 1701)
        return UNKNOWN, start
    has_sequence = bool(flags & 0x10)
    at = start + 4 + 4 * (bool(flags & 0x80) + bool(flags & 0x20) + has_sequence)
    if ethertype == _ERSPAN:
        at += 8 if has_sequence else 0  # type I has no header of its own
        return (ETHERNET, at) if at <= end else None
    if ethertype == _ERSPAN_3:
        if at + 12 > end:
            return None
        kind = buf[at + 10] >> 2 & 0x1F
        at += 20 if buf[at + 11] & 1 else 12
        if at >= end:
            return None
        return (ETHERNET, at) if kind == 0 else (_IPV6 if buf[at] >> 4 == 6 else _IPV4, at)
    return _typed(ethertype, at) if at <= end else None


def _mpls(buf: bytes, start: int, end: int) -> Inside | None:
    """RFC 3032; the first half-byte behind the labels tells what follows (RFC 4928), 0 being the control word of a pseudowire (RFC 4385)."""
    for at in range(start, start + 4 * _MAX_LABELS, 4):
        if at + 5 > end:
            return None
        if buf[at + 2] & 1:
            version = buf[at + 4] >> 4
            if version in (4, 6):
                return (_IPV4 if version == 4 else _IPV6), at + 4
            return ETHERNET, at + 4 + (4 if version == 0 else 0)
    return None


def _pppoe(buf: bytes, start: int, end: int) -> Inside | None:
    """RFC 2516 section 4; the protocol of PPP may be one byte (RFC 1661 section 6.5)."""
    if start + 8 > end:
        return None
    if buf[start + 6] & 1:
        return _PPP.get(buf[start + 6], UNKNOWN), start + 7
    return _PPP.get(buf[start + 6] << 8 | buf[start + 7], UNKNOWN), start + 8
