"""Protocol Buffers messages written by hand."""

from __future__ import annotations

import struct


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: float | str | bytes) -> bytes:
    """An int is a varint, a float a fixed32, a text or bytes (also a message) has its length before it."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value & 0xFFFFFFFFFFFFFFFF)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(*fields: bytes) -> bytes:
    return b"".join(fields)


def framed(*messages: bytes, flags: int = 0) -> bytes:
    """As gRPC and Connect frame messages."""
    return b"".join(bytes([flags]) + len(one).to_bytes(4, "big") + one for one in messages)
