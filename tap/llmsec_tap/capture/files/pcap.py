"""Capture files: pcap (both byte orders, micro- and nanoseconds), pcapng, gzip of either, and standard input.

Formats: https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-06.html and …-pcapng-05.html.

Our own reader, not dpkt's: it gives each packet as a region of a large buffer, with no object and no copy per packet, which is a
tenth of the cost per packet. What cannot be read raises SourceError with everything before it already delivered.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from llmsec_tap import limits
from llmsec_tap.errors import SourceError
from llmsec_tap.wire.packet import PacketHandler

_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_PCAPNG_MAGIC = 0x0A0D0D0A
# magic number, little endian -> (byte order, nanoseconds per unit)
_PCAP_MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_INTERFACE_BLOCK, _PACKET_BLOCK, _SIMPLE_BLOCK, _ENHANCED_BLOCK, _SECRETS_BLOCK = 1, 2, 3, 6, 10
_TLS_KEY_LOG = 0x544C534B  # the kind of a Decryption Secrets Block
_OPTION_TSRESOL, _OPTION_TSOFFSET = 9, 14


class PacketConsumer(Protocol):
    def handler(self, linktype: int) -> PacketHandler: ...

    def capture_begins(self, ts_ns: int) -> None:
        """The first packet of a file is at `ts_ns`: files may follow one another in time (a rotated capture), or not."""

    def secrets(self, data: bytes) -> None:
        """Lines of a TLS key log that the file holds."""


class CaptureReader:
    """Reads one capture after the other into a consumer. `packets` may be looked at meanwhile.

    `on_progress(bytes)`, where set, is told the bytes of the file that were read since the last call; `on_chunk` is called for each
    megabyte of packets. `stop` may be called from a signal handler: reading ends after the packets in hand, also when it waits for more on a pipe.
    """

    def __init__(self, consumer: PacketConsumer) -> None:
        self._consumer = consumer
        self.on_progress: Callable[[int], None] | None = None
        self.on_chunk: Callable[[], None] = lambda: None
        self.packets = 0
        self.stopped = False
        self._waiting = False

    def stop(self) -> None:
        self.stopped = True
        if self._waiting:
            raise _Stopped

    def receive(self, stream: BinaryIO, size: int) -> bytes:
        """What the stream has, up to `size` bytes; nothing once stopped. Waiting for it is the only place where `stop` cuts in."""
        data = b""
        try:
            self._waiting = True
            if not self.stopped:
                # read1 on a pipe: give what is there, so that a live `tcpdump -w - | …` is shown as it comes.
                data = stream.read1(size) if isinstance(stream, io.BufferedReader) else stream.read(size)
            self._waiting = False
        except _Stopped:
            self._waiting = False
        except OSError as fault:
            self._waiting = False
            raise SourceError(f"reading failed: {fault.strerror}", "Everything before it was read.") from None
        if self.on_progress is not None:
            self.on_progress(len(data))
        return data

    def read(self, path: str) -> None:
        """Read a file, or standard input for `-`. Raises SourceError (with all before the damage delivered)."""
        if path == "-":
            self.read_stream(sys.stdin.buffer, "standard input")
            return
        file = Path(path)
        try:
            if file.is_dir():
                raise SourceError(f"{path} is a folder, not a capture file", "Name the pcap or pcapng file itself.")
            stream = file.open("rb")
        except (OSError, ValueError) as fault:  # ValueError: a NUL in the name
            reason = fault.strerror if isinstance(fault, OSError) else fault
            raise SourceError(f"cannot open {path}: {reason}", "Check the name and the permissions.") from None
        with stream:
            self.read_stream(stream, path)

    def read_stream(self, stream: BinaryIO, name: str) -> None:
        """Read an open stream; `name` is what errors call it."""
        raw = _Received(self, stream)
        head = raw.peek(4)
        if self.stopped:
            return
        if not head:
            raise SourceError(f"{name} is empty", "It holds no capture; was the capture stopped before its first packet?")
        source = _Gunzip(raw) if head[:2] == _GZIP_MAGIC else raw
        try:
            self._read_capture(source.read, name)
        except SourceError as fault:
            if self.stopped:  # stopped in the middle of a packet is no damage
                return
            message = str(fault)
            raise SourceError(message if message.startswith(name) else f"{name}: {message}", fault.hint) from None

    def _read_capture(self, read: Callable[[int], bytes], name: str) -> None:
        magic = _exactly(read, 4)
        if magic in _PCAP_MAGIC:
            order, unit = _PCAP_MAGIC[magic]
            self._read_pcap(read, name, order, unit)
        elif len(magic) == 4 and int.from_bytes(magic, "big") == _PCAPNG_MAGIC:
            _PcapngReader(self, self._consumer, read, name).run(magic)
        else:
            raise SourceError(f"{name} is not a capture file", "Expected pcap or pcapng, plain or gzip; `file` tells what it is.")

    def _read_pcap(self, read: Callable[[int], bytes], name: str, order: str, unit: int) -> None:
        header = _exactly(read, 20)
        if len(header) < 20:
            raise SourceError(f"{name}: cut inside the file header", "It holds no packets.")
        linktype = struct.unpack_from(order + "I", header, 16)[0] & 0xFFFF  # the upper bits hold the FCS length
        handle = self._consumer.handler(linktype)
        unpack = struct.Struct(order + "IIII").unpack_from
        buffer, at, offset = b"", 0, 24
        second, base_ns = -1, 0
        is_first = True
        while chunk := read(_CHUNK):
            self.on_chunk()
            offset += at
            buffer = buffer[at:] + chunk
            at, size, count = 0, len(buffer), 0
            while at + 16 <= size:
                seconds, fraction, captured, on_wire = unpack(buffer, at)
                end = at + 16 + captured
                if end > size:
                    if captured > limits.MAX_PACKET_BYTES:
                        self.packets += count
                        raise SourceError(
                            f"{name}: damaged at byte {offset + at}: a packet of {captured} bytes", "Everything before it was read."
                        )
                    break
                if seconds != second:
                    second, base_ns = seconds, seconds * 1_000_000_000
                    if is_first:
                        is_first = False
                        self._consumer.capture_begins(base_ns + fraction * unit)
                handle(base_ns + fraction * unit, buffer, at + 16, end, on_wire)
                at = end
                count += 1
            self.packets += count
            if self.stopped:
                return
        if at < len(buffer):
            raise SourceError(f"{name}: cut in the middle of a packet at byte {offset + at}", "Everything before it was read.")


class _PcapngReader:
    """One pcapng stream: sections, interfaces, packet blocks; every other block is skipped."""

    def __init__(self, reader: CaptureReader, consumer: PacketConsumer, read: Callable[[int], bytes], name: str) -> None:
        self._reader = reader
        self._consumer = consumer
        self._read = read
        self._name = name
        self._order = "<"
        self._offset = 0
        self._is_first = True
        self._interfaces: list[tuple[PacketHandler, int, int, int, int]] = []  # handler, units, per second, offset ns, snap length

    def run(self, first: bytes) -> None:
        buffer, at = first, 0
        while not self._reader.stopped:
            chunk = self._read(_CHUNK)
            if not chunk:
                break
            self._reader.on_chunk()
            self._offset += at
            buffer = buffer[at:] + chunk
            at = 0
            while len(buffer) - at >= 12:
                kind, length = self._block_head(buffer, at)
                if len(buffer) - at < length:
                    break
                if buffer[at + length - 4 : at + length] != buffer[at + 4 : at + 8]:
                    raise self._damaged(at, "the two lengths of a block differ")
                self._block(kind, buffer, at + 8, at + length - 4, at)
                at += length
        if at < len(buffer):
            raise SourceError(f"{self._name}: cut in the middle of a block at byte {self._offset + at}", "Everything before it was read.")

    def _damaged(self, at: int, what: str) -> SourceError:
        return SourceError(f"{self._name}: damaged at byte {self._offset + at}: {what}", "Everything before it was read.")

    def _block_head(self, buffer: bytes, at: int) -> tuple[int, int]:
        if buffer[at : at + 4] == b"\x0a\x0d\x0d\x0a":  # the section header's type reads the same in both byte orders
            if buffer[at + 8 : at + 12] == b"\x4d\x3c\x2b\x1a":
                self._order = "<"
            elif buffer[at + 8 : at + 12] == b"\x1a\x2b\x3c\x4d":
                self._order = ">"
            else:
                raise self._damaged(at, "a section of unknown byte order")
        kind, length = struct.unpack_from(self._order + "II", buffer, at)
        if length < 12 or length % 4 or length > limits.MAX_PCAPNG_BLOCK_BYTES:
            raise self._damaged(at, f"a block of {length} bytes")
        return kind, length

    def _block(self, kind: int, buffer: bytes, start: int, end: int, at: int) -> None:
        order = self._order
        if kind == _ENHANCED_BLOCK and end - start >= 20:
            interface, high, low, captured, on_wire = struct.unpack_from(order + "IIIII", buffer, start)
            self._packet(interface, high << 32 | low, buffer, start + 20, end, captured, on_wire, at)
        elif kind == _PACKET_BLOCK and end - start >= 20:  # obsolete, but old captures hold it
            interface, _, high, low, captured, on_wire = struct.unpack_from(order + "HHIIII", buffer, start)
            self._packet(interface, high << 32 | low, buffer, start + 20, end, captured, on_wire, at)
        elif kind == _SIMPLE_BLOCK and end - start >= 4:
            (on_wire,) = struct.unpack_from(order + "I", buffer, start)
            snap = self._interfaces[0][4] if self._interfaces else 0
            captured = min(on_wire, end - start - 4, snap or on_wire)
            self._packet(0, None, buffer, start + 4, end, captured, on_wire, at)
        elif kind == _SECRETS_BLOCK and end - start >= 8:
            secrets, length = struct.unpack_from(order + "II", buffer, start)
            if secrets == _TLS_KEY_LOG:
                self._consumer.secrets(buffer[start + 8 : min(end, start + 8 + length)])
        elif kind == _INTERFACE_BLOCK and end - start >= 8:
            if len(self._interfaces) >= limits.MAX_PCAPNG_INTERFACES:
                raise self._damaged(at, "too many interfaces")
            self._interfaces.append(self._interface(buffer, start, end))
        elif kind == _PCAPNG_MAGIC:
            self._interfaces = []

    def _packet(self, interface: int, units: int | None, buffer: bytes, start: int, end: int, captured: int, on_wire: int, at: int) -> None:
        if interface >= len(self._interfaces) or captured > end - start:
            raise self._damaged(at, "a packet longer than its block" if captured > end - start else "a packet of an unknown interface")
        handle, scale, divisor, offset_ns, _ = self._interfaces[interface]
        ts_ns = 0 if units is None else units * scale // divisor + offset_ns
        if self._is_first:
            self._is_first = False
            self._consumer.capture_begins(ts_ns)
        self._reader.packets += 1
        handle(ts_ns, buffer, start, start + captured, on_wire)

    def _interface(self, buffer: bytes, start: int, end: int) -> tuple[PacketHandler, int, int, int, int]:
        order = self._order
        linktype, _, snap = struct.unpack_from(order + "HHI", buffer, start)
        scale, divisor, offset_ns = 1000, 1, 0  # microseconds unless an option says otherwise
        at = start + 8
        while at + 4 <= end:
            code, length = struct.unpack_from(order + "HH", buffer, at)
            value = buffer[at + 4 : min(at + 4 + length, end)]
            if code == 0:
                break
            if code == _OPTION_TSRESOL and value:
                exponent = value[0] & 0x7F
                if value[0] & 0x80:
                    scale, divisor = 1_000_000_000, 1 << exponent
                else:
                    scale, divisor = (10 ** (9 - exponent), 1) if exponent <= 9 else (1, 10 ** min(exponent - 9, 30))
            elif code == _OPTION_TSOFFSET and len(value) == 8:
                offset_ns = struct.unpack(order + "q", value)[0] * 1_000_000_000
            at += 4 + (length + 3 & ~3)
        return self._consumer.handler(linktype), scale, divisor, offset_ns, snap


class _Stopped(Exception):  # noqa: N818 - not an error
    """`stop` was called while the reader waited for a stream."""


class _Received:
    """The bytes of a file as the reader receives them, before they are unzipped."""

    def __init__(self, reader: CaptureReader, stream: BinaryIO) -> None:
        self._reader = reader
        self._stream = stream
        self._peeked = b""

    def peek(self, size: int) -> bytes:
        self._peeked = _exactly(lambda wanted: self._reader.receive(self._stream, wanted), size)
        return self._peeked

    def read(self, size: int) -> bytes:
        if self._peeked:
            data, self._peeked = self._peeked[:size], self._peeked[size:]
            return data
        return self._reader.receive(self._stream, size)


class _Gunzip:
    """gzip (RFC 1952) with any number of members. Unlike GzipFile it gives what it has before it meets the damage."""

    _SLICE = 16 * limits.KIB

    def __init__(self, source: _Received) -> None:
        self._source = source
        self._inner = zlib.decompressobj(31)
        self._input = b""
        self._fault: SourceError | None = None

    def read(self, size: int) -> bytes:
        out: list[bytes] = []
        wanted = size
        while wanted > 0 and self._fault is None:
            if not self._input:
                self._input = self._source.read(_CHUNK)
                if not self._input:
                    if not self._inner.eof:
                        self._fault = SourceError("the gzip data is cut", "Everything before was read.")
                    break
            if self._inner.eof:
                self._inner = zlib.decompressobj(31)
            piece, self._input = self._input[: self._SLICE], self._input[self._SLICE :]
            try:
                data = self._inner.decompress(piece, wanted)
            except zlib.error:
                self._fault = SourceError("the gzip data is damaged", "Everything before the damage was read.")
                break
            self._input = (self._inner.unconsumed_tail or self._inner.unused_data) + self._input
            wanted -= len(data)
            out.append(data)
        if not out and self._fault is not None:
            raise self._fault
        return b"".join(out)


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    data = b""
    while len(data) < size and (more := read(size - len(data))):
        data += more
    return data
