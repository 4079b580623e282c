"""Writing pcapng: decrypted connections as ordinary TCP with their real addresses, and packets as they were read.

What is written reads back as the same exchanges: times in nanoseconds, one segment per piece of a TLS call, holes as missing
sequence numbers. https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-05.html
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import stat
import struct
from collections import OrderedDict
from typing import BinaryIO, Final

from llmsec_tap import __version__
from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.files.masked import StreamMasker
from llmsec_tap.capture.files.masked_packets import PacketMasker, checksum
from llmsec_tap.errors import SourceError
from llmsec_tap.journal import WARNINGS, Journal
from llmsec_tap.model import Process
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.packet import LINKTYPE_RAW, PacketHandler
from llmsec_tap.wire.sniff import classify_start

_SECTION, _INTERFACE, _PACKET, _STATISTICS = 0x0A0D0D0A, 1, 6, 5
_OPT_COMMENT, _OPT_NAME, _OPT_APPLICATION, _OPT_RESOLUTION = 1, 2, 4, 9
FIN, SYN, PSH, ACK = 1, 2, 8, 16
# An IPv4 packet holds 65,535 bytes with its headers; a multiple of 1448 reads well beside real traffic.
_SEGMENT_BYTES: Final = 45 * 1448
_WINDOW: Final = 65_535
_MAX_OPEN = 65_536
_Key = tuple[int, int, int]


class PcapngWriter:
    """Blocks to a file. Raises SourceError where the file cannot be made; a failing write stops the writing, is told and is kept in `fault`.

    Credentials are masked (masked.py) unless `keeps_secrets`.
    """

    def __init__(self, path: str, *, keeps_secrets: bool = False, journal: Journal = WARNINGS) -> None:
        try:
            self._file: BinaryIO = open(path, "wb", opener=_private)  # noqa: SIM115 - closed by close(); Path has no opener
        except OSError as fault:
            if fault.errno == errno.ELOOP:
                raise SourceError(f"{path} is a symbolic link", "Name the file itself.") from None
            raise SourceError(f"cannot write {path}: {fault.strerror}", "Name a file in a folder that you may write to.") from None
        self.keeps_secrets = keeps_secrets
        self._path = path
        self._journal = journal
        self.fault: str | None = None
        self.packets = 0
        options = _option(_OPT_APPLICATION, f"llmsec-tap {__version__}".encode()) + _option(0, b"")
        self._block(_SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + options)
        name = _option(_OPT_NAME, b"llmsec-tap") + _option(_OPT_RESOLUTION, b"\x09") + _option(0, b"")
        self._block(_INTERFACE, struct.pack("<HHI", LINKTYPE_RAW, 0, 0) + name)

    def packet(self, ts_ns: int, data: bytes, wire_len: int | None = None, comment: str = "") -> None:
        """An IP packet."""
        body = struct.pack("<IIIII", 0, ts_ns >> 32, ts_ns & 0xFFFFFFFF, len(data), len(data) if wire_len is None else wire_len)
        body += data + b"\0" * (-len(data) % 4)
        if comment:
            body += _option(_OPT_COMMENT, comment.encode()) + _option(0, b"")
        self._block(_PACKET, body)
        if self.fault is None:
            self.packets += 1

    def copying(self, handle: PacketHandler) -> PacketHandler:
        """`handle` with a copy of each packet (raw IP) to the file first."""
        masker = None if self.keeps_secrets else PacketMasker()

        def both(ts_ns: int, buffer: bytes, start: int, end: int, on_wire: int) -> None:
            data = buffer[start:end]
            self.packet(ts_ns, data if masker is None else masker.masked(data), on_wire)
            handle(ts_ns, buffer, start, end, on_wire)

        return both

    def _block(self, kind: int, body: bytes) -> None:
        length = 12 + len(body) + (-len(body) % 4)
        if self.fault is None:
            try:
                self._file.write(struct.pack("<II", kind, length) + body + b"\0" * (-len(body) % 4) + struct.pack("<I", length))
            except OSError as fault:
                self._fail(fault)

    def give_to(self, uid: int, gid: int) -> None:
        """The file belongs to another user from now on."""
        os.fchown(self._file.fileno(), uid, gid)

    def flush(self) -> None:
        if self.fault is None:
            try:
                self._file.flush()
            except OSError as fault:
                self._fail(fault)

    def _fail(self, fault: OSError) -> None:
        self.fault = fault.strerror or "write failed"
        self._journal.error(
            "file_failed", f"cannot write {self._path}: {self.fault}. The capture goes on without it: make room, and begin a new file"
        )

    def close(self) -> None:
        self.flush()
        with contextlib.suppress(OSError):
            self._file.close()


class _Half:
    __slots__ = ("address", "port", "seq")

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address = ipaddress.ip_address(host.strip("[]"))
        self.port = int(port)
        self.seq = 1


class _Connection:
    __slots__ = ("comment", "is_midstream", "local", "maskers", "remote", "started")

    def __init__(self, facts: Flow) -> None:
        self.local, self.remote = _Half(facts.first), _Half(facts.second)
        if self.local.address.version != self.remote.address.version:
            self.remote = _Half(facts.second if self.remote.address.version == 6 else f"[::ffff:{self.remote.address}]:{self.remote.port}")
            self.local = _Half(facts.first if self.local.address.version == 6 else f"[::ffff:{self.local.address}]:{self.local.port}")
        self.comment = describe(facts.process)
        self.is_midstream = facts.is_midstream
        self.started = False
        self.maskers = (StreamMasker(), StreamMasker())  # by direction


class FlowWriter:
    """A `FlowRecorder` that writes TCP. The client is who sends the first request, so its SYN comes first."""

    def __init__(self, writer: PcapngWriter) -> None:
        self._writer = writer
        self._open: OrderedDict[_Key, _Connection] = OrderedDict()

    def opened(self, key: _Key, facts: Flow) -> None:
        self._open[key] = _Connection(facts)
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)

    def data(self, key: _Key, ts_ns: int, direction: int, data: bytes) -> None:
        connection = self._open.get(key)
        if connection is None:
            return
        sender, receiver = _ends(connection, direction)
        if not connection.started:
            self._start(connection, ts_ns, sender, receiver, data)
        if not self._writer.keeps_secrets:
            data = connection.maskers[direction == events.WRITE].feed(data)
        comment = connection.comment
        for at in range(0, len(data), _SEGMENT_BYTES):
            piece = data[at : at + _SEGMENT_BYTES]
            self._segment(ts_ns, sender, receiver, PSH | ACK, piece, comment)
            sender.seq = sender.seq + len(piece) & 0xFFFFFFFF
            comment = ""
        connection.comment = ""
        self._segment(ts_ns, receiver, sender, ACK, b"")

    def _start(self, connection: _Connection, ts_ns: int, sender: _Half, receiver: _Half, data: bytes) -> None:
        connection.started = True
        if connection.is_midstream:
            return
        client, server = (receiver, sender) if classify_start(data) == "response" else (sender, receiver)
        client.seq = server.seq = 0
        self._segment(ts_ns, client, server, SYN, b"", connection.comment)
        client.seq = 1
        self._segment(ts_ns, server, client, SYN | ACK, b"")
        server.seq = 1
        self._segment(ts_ns, client, server, ACK, b"")
        connection.comment = ""

    def gap(self, key: _Key, ts_ns: int, direction: int, length: int) -> None:
        connection = self._open.get(key)
        if connection is not None:
            sender, receiver = _ends(connection, direction)
            connection.started = True
            connection.maskers[direction == events.WRITE].skip(length)
            sender.seq = sender.seq + length & 0xFFFFFFFF
            self._segment(ts_ns, receiver, sender, ACK, b"")  # the receiver has them: so a reader knows they are lost, not late

    def closed(self, key: _Key, ts_ns: int) -> None:
        connection = self._open.pop(key, None)
        if connection is not None and connection.started:
            for sender, receiver in ((connection.local, connection.remote), (connection.remote, connection.local)):
                self._segment(ts_ns, sender, receiver, FIN | ACK, b"")
                sender.seq = sender.seq + 1 & 0xFFFFFFFF
            self._segment(ts_ns, connection.local, connection.remote, ACK, b"")

    def _segment(self, ts_ns: int, source: _Half, target: _Half, flags: int, data: bytes, comment: str = "") -> None:
        ack = target.seq if flags & ACK else 0
        header = struct.pack(">HHIIBBHHH", source.port, target.port, source.seq, ack, 0x50, flags, _WINDOW, 0, 0)
        addresses = source.address.packed + target.address.packed
        length = len(header) + len(data)
        pseudo = struct.pack(">HH", 6, length) if source.address.version == 4 else struct.pack(">II", length, 6)
        tcp = header[:16] + struct.pack(">H", checksum(addresses + pseudo + header + data)) + header[18:] + data
        if source.address.version == 4:
            ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, 6, 0) + addresses
            ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
        else:
            ip = struct.pack(">IHBB", 0x60000000, length, 6, 64) + addresses
        self._writer.packet(ts_ns, ip + tcp, comment=comment)


def describe(process: Process | None) -> str:
    """The process as a packet comment."""
    if process is None:
        return ""
    parts = [f"pid {process.pid}", process.comm or "", process.exe or ""]
    if process.container_id:
        parts.append(f"container {process.container_id[:12]}")
    if process.pod:
        parts.append(f"pod {process.namespace}/{process.pod}")
    return " ".join(part for part in parts if part)


def _ends(connection: _Connection, direction: int) -> tuple[_Half, _Half]:
    return (connection.local, connection.remote) if direction == events.WRITE else (connection.remote, connection.local)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def _private(path: str, flags: int) -> int:
    """It holds decrypted content: for its owner alone, also where a file of that name was there before with another mode."""
    descriptor = os.open(path, flags & ~os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")  # noqa: TRY301 - the descriptor is closed below
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
