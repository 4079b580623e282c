"""The kernel half's record (bpf/event.h) as Python sees it: one struct for the header, the payload behind it."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, NamedTuple

VERSION: Final = 1
DATA, BIND, CLOSE, EXEC, FORK, EXIT, MAP = range(1, 8)
READ, WRITE = 0, 1
CUT, UNREADABLE, FRESH = 1, 2, 4
AF_INET, AF_INET6 = 2, 10
PLAIN_SOCKET: Final = 1 << 63  # in `connection`: it is a socket's inode, and no TLS object
MAX_CALL_BYTES: Final = 65_536 * 128

HEADER: Final = struct.Struct("=BBBBI QQQQQ IIIII HHH6x 16s16s16s")
HEADER_BYTES: Final = HEADER.size
# What the reader thread looks at without decoding the rest: type; payload length; connection, epoch; process.
TYPE_AT: Final = 1
LENGTH: Final = struct.Struct("=4xI")
KEY: Final = struct.Struct("=16xQQ16xI")
_FINAL_OFFSETS: Final = struct.Struct("=QQ")
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


class Event(NamedTuple):
    """One record, as event.h names its fields; times are CLOCK_BOOTTIME."""

    version: int
    type: int
    direction: int
    flags: int
    length: int
    ts_ns: int
    connection: int
    epoch_ns: int
    offset: int
    inode: int
    pid: int
    tid: int
    lost: int
    call_length: int
    other: int
    family: int
    local_port: int
    remote_port: int
    local: bytes
    remote: bytes
    comm: bytes


def decode(record: bytes) -> Event:
    """The header of a record. Raises struct.error on one that is too short, ValueError on another version: defects of ours."""
    event = Event._make(HEADER.unpack_from(record))
    if event.version != VERSION:
        raise ValueError(f"a record of version {event.version}, not {VERSION}: the eBPF object is not of this release")
    return event


def payload(record: bytes, event: Event) -> bytes:
    return record[HEADER_BYTES : HEADER_BYTES + event.length]


def final_offsets(record: bytes) -> tuple[int, int]:
    """Of a CLOSE record: how many bytes the kernel half counted in each direction."""
    read, written = _FINAL_OFFSETS.unpack_from(record, HEADER_BYTES)
    return read, written


def addresses(event: Event) -> tuple[str, str] | None:
    """Local and remote `ip:port`, IPv6 in brackets; IPv4-mapped IPv6 addresses are shown as IPv4. None: not known."""
    if not event.inode:
        return None
    return _address(event.family, event.local, event.local_port), _address(event.family, event.remote, event.remote_port)


def _address(family: int, raw: bytes, port: int) -> str:
    if family == AF_INET:
        return f"{ipaddress.IPv4Address(raw[:4])}:{port}"
    if raw[:12] == _MAPPED:
        return f"{ipaddress.IPv4Address(raw[12:])}:{port}"
    return f"[{ipaddress.IPv6Address(raw)}]:{port}"


def name(comm: bytes) -> str:
    return comm.partition(b"\0")[0].decode(errors="replace")
