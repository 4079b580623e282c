"""AWS event streams, `application/vnd.amazon.eventstream`.

https://docs.aws.amazon.com/lexv2/latest/dg/event-stream-encoding.html, all big endian: total length u32, headers length u32,
CRC-32 of these eight bytes, headers, payload, CRC-32 of everything before it. A header: name length u8, name, type u8, value.

Both CRCs are checked. A message with a wrong one is dropped; when the prelude's is wrong the lengths cannot be trusted, and the
next message is looked for byte by byte: a prelude whose CRC matches.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from llmsec_tap.account import Entry, no_account
from llmsec_tap.anomalies import OnAnomaly
from llmsec_tap.limits import MAX_EVENTSTREAM_MESSAGE_BYTES
from llmsec_tap.wire.sse import EventSink

_PRELUDE = struct.Struct(">III")
_OVERHEAD = 16
_FIXED_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}  # true, false, byte, short, int, long, timestamp, uuid
_STRING = 7
_BYTES = 6


class EventStreamParser:
    """Gives each message as an event: name is `:event-type`, or "exception:" and `:exception-type` (`:error-code`)."""

    __slots__ = ("_anomaly", "_buffer", "_entry", "_on_event", "fed_bytes", "unfinished")

    def __init__(self, on_event: EventSink, on_anomaly: OnAnomaly, reserve: Callable[[int], bool] = no_account) -> None:
        self._on_event = on_event
        self._anomaly = on_anomaly
        self._buffer = bytearray()
        self._entry = Entry(reserve)
        self.fed_bytes = 0
        self.unfinished = False

    def feed(self, ts_ns: int, data: bytes) -> None:
        self.fed_bytes += len(data)
        buffer = self._buffer
        buffer += data
        at, size = 0, len(buffer)
        while size - at >= 12:
            total, headers_length, crc = _PRELUDE.unpack_from(buffer, at)
            if zlib.crc32(buffer[at : at + 8]) != crc or not _OVERHEAD + headers_length <= total <= MAX_EVENTSTREAM_MESSAGE_BYTES:
                self._anomaly("eventstream_bad_frame")
                at = self._resync(at + 1)
                continue
            if size - at < total:
                break
            message = bytes(buffer[at : at + total])
            at += total
            if zlib.crc32(message[:-4]) != int.from_bytes(message[-4:], "big"):
                self._anomaly("eventstream_bad_crc")
                continue
            self._message(ts_ns, message, headers_length)
        if at:
            del buffer[:at]
        if not self._entry.set(len(buffer)):
            self._anomaly("memory_limit")
            buffer.clear()

    def _resync(self, at: int) -> int:
        """The next offset at which a prelude's CRC matches, or where too few bytes are left to tell."""
        buffer = self._buffer
        while len(buffer) - at >= 12:
            # Messages are far below 16 MiB, so the first byte of the total length is zero: look for that first.
            at = buffer.find(b"\0", at, len(buffer) - 11)
            if at < 0:
                return len(buffer) - 11
            if zlib.crc32(buffer[at : at + 8]) == int.from_bytes(buffer[at + 8 : at + 12], "big"):
                return at
            at += 1
        return at

    def _message(self, ts_ns: int, message: bytes, headers_length: int) -> None:
        headers = parse_headers(message[12 : 12 + headers_length])
        if headers is None:
            self._anomaly("eventstream_bad_frame")
            return
        name: str | None = headers.get(":event-type")
        if headers.get(":message-type") in ("exception", "error"):
            name = "exception:" + (headers.get(":exception-type") or headers.get(":error-code") or "unknown")
        payload = message[12 + headers_length : -4]
        if not payload and (text := headers.get(":error-message")):
            payload = text.encode()
        self._on_event(ts_ns, name, payload)

    def gap(self) -> None:
        self._buffer.clear()
        self._entry.set(0)

    def end(self, ts_ns: int) -> None:
        self.unfinished = bool(self._buffer)
        self._buffer.clear()
        self._entry.set(0)


def parse_headers(data: bytes) -> dict[str, str] | None:
    """String headers by name (others are checked and left out); None where the lengths do not fit."""
    headers: dict[str, str] = {}
    at, size = 0, len(data)
    while at < size:
        name_length = data[at]
        value_at = at + 2 + name_length
        if value_at > size:
            return None
        name, kind = data[at + 1 : at + 1 + name_length], data[value_at - 1]
        if kind in (_STRING, _BYTES):
            if value_at + 2 > size:
                return None
            length = data[value_at] << 8 | data[value_at + 1]
            value_at += 2
            if value_at + length > size:
                return None
            if kind == _STRING:
                headers[name.decode("utf-8", "replace")] = data[value_at : value_at + length].decode("utf-8", "replace")
        elif kind in _FIXED_SIZES:
            length = _FIXED_SIZES[kind]
        else:
            return None
        at = value_at + length
    return headers if at == size else None
