"""How an application's SDK hands records to an agent: frames over a stream of a Unix socket.

A frame is MAGIC, the length of what follows (32 bits, big endian), and MessagePack: from the application a list of records
(docs/formats/exchange.md), from the agent an `Answer` to each frame. Fields that the other side does not know are left out.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

import msgspec

MAGIC: Final = b"LLS1"
HEAD: Final = struct.Struct("!4sI")
MAX_FRAME_BYTES: Final = 16 << 20
MAX_RECORDS: Final = 1_000


class Answer(msgspec.Struct):
    """`taken` records were handed on; of those refused the reasons, by their place in the frame. With an `error` the connection is closed, and the frame was not read."""

    taken: int = 0
    refused: dict[int, str] = {}
    error: str = ""


def count_of(payload: bytes) -> int | None:
    """How many items the list has that this begins with (MessagePack, "array format family"); None: it is no list. So none is made that is too long."""
    first = payload[0] if payload else 0
    if first & 0xF0 == 0x90:
        return first & 0x0F
    size = {0xDC: 2, 0xDD: 4}.get(first)
    return int.from_bytes(payload[1 : 1 + size], "big") if size is not None else None


def exactly(sock: socket.socket, size: int) -> bytearray | None:
    """So many bytes; None where the other side has ended before. Raises OSError."""
    data = bytearray()
    while len(data) < size:
        more = sock.recv(min(size - len(data), 1 << 20))
        if not more:
            return None
        data += more
    return data


def frame(payload: bytes) -> bytes:
    return HEAD.pack(MAGIC, len(payload)) + payload
