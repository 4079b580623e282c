"""The PROXY protocol (haproxy.org/download/3.0/doc/proxy-protocol.txt): who the client is, said by a proxy before the first request."""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Final

_V1: Final = re.compile(rb"PROXY TCP[46] ([0-9a-fA-F.:]{2,39}) [0-9a-fA-F.:]{2,39} (\d{1,5}) \d{1,5}\r\n")
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_MAX_V1: Final = 107
_PORTS: Final = struct.Struct(">H")
# Family and protocol of a v2 header -> bytes of one address.
_SIZES: Final = {0x11: 4, 0x12: 4, 0x21: 16, 0x22: 16}


def proxied_client(data: bytes) -> str | None:
    """`ip:port` (IPv6 in brackets) of the client that a header at the beginning of `data` names, or None where there is none."""
    if data.startswith(b"PROXY "):
        found = _V1.match(data)
        return _address(found[1].decode(), int(found[2])) if found is not None else None
    if data.startswith(_V2) and len(data) >= 16 and data[12] == 0x21:  # version 2, PROXY
        size = _SIZES.get(data[13], 0)
        if size and len(data) >= 16 + 2 * size + 4:
            return _address(str(ipaddress.ip_address(data[16 : 16 + size])), _PORTS.unpack_from(data, 16 + 2 * size)[0])
    return None


def header_length(data: bytes) -> int:
    """Bytes of the header at the beginning of `data`, whether or not it names a client; 0 where there is none, or not all of it."""
    if data.startswith(b"PROXY "):
        return data.find(b"\r\n", 0, _MAX_V1) + 2 if b"\r\n" in data[:_MAX_V1] else 0
    if data.startswith(_V2) and len(data) >= 16:
        length: int = 16 + _PORTS.unpack_from(data, 14)[0]
        return length if length <= len(data) else 0
    return 0


def _address(host: str, port: int) -> str | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
