"""Messages of gRPC, gRPC-Web and streaming Connect: a byte of flags, a length of four bytes, the message.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, PROTOCOL-WEB.md, https://connectrpc.com/docs/protocol. How a compressed message
is coded stands in a header (`grpc-encoding`), and in its first bytes, which are what is looked at here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from llmsec_tap.account import Entry, no_account
from llmsec_tap.anomalies import OnAnomaly
from llmsec_tap.limits import MAX_EVENT_BYTES
from llmsec_tap.wire.encoding import content_decoder
from llmsec_tap.wire.sse import EventSink

_PREFIX: Final = struct.Struct(">BI")
_COMPRESSED, _CONNECT_END, _WEB_TRAILERS = 0x01, 0x02, 0x80
_CODINGS: Final = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x78", "deflate"))


class GRPCParser:
    """Gives each message as an event without a name; `end` is Connect's last message (JSON), `trailers` those of gRPC-Web (header lines)."""

    __slots__ = ("_anomaly", "_entry", "_held", "_is_lost", "_on_event", "_skip", "_wanted", "fed_bytes", "unfinished")

    def __init__(self, on_event: EventSink, on_anomaly: OnAnomaly, reserve: Callable[[int], bool] = no_account) -> None:
        self._on_event = on_event
        self._anomaly = on_anomaly
        self._entry = Entry(reserve)
        self._held = bytearray()
        self._wanted = _PREFIX.size
        self._skip = 0
        self._is_lost = False  # after a gap nothing says where the next message begins
        self.fed_bytes = 0
        self.unfinished = False

    def feed(self, ts_ns: int, data: bytes) -> None:
        self.fed_bytes += len(data)
        if self._is_lost:
            return
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                self._account()
                return
            data = bytes(self._held)
            self._held.clear()
        at, end = 0, len(data)
        while at < end:
            if self._skip:
                taken = min(self._skip, end - at)
                self._skip -= taken
                at += taken
                continue
            flags, length = _PREFIX.unpack_from(data, at) if end - at >= _PREFIX.size else (0, 0)
            if length > MAX_EVENT_BYTES:
                self._anomaly("event_limit")
                self._skip = length + _PREFIX.size
                continue
            self._wanted = _PREFIX.size + length
            if end - at < self._wanted:
                self._held += data[at:]
                break
            at += self._wanted
            self._message(ts_ns, flags, data[at - length : at])
        self._account()

    def gap(self) -> None:
        self._is_lost = True
        self._held.clear()
        self._entry.set(0)

    def end(self, ts_ns: int) -> None:
        self.unfinished = bool(self._held or self._skip)
        self._held.clear()
        self._entry.set(0)

    def _account(self) -> None:
        if not self._entry.set(len(self._held)):
            self._anomaly("event_limit")
            self.gap()

    def _message(self, ts_ns: int, flags: int, message: bytes) -> None:
        if flags & _COMPRESSED:
            message = self._decompressed(message)
        name = "trailers" if flags & _WEB_TRAILERS else "end" if flags & _CONNECT_END else None
        self._on_event(ts_ns, name, message)

    def _decompressed(self, message: bytes) -> bytes:
        coding = next((name for magic, name in _CODINGS if message.startswith(magic)), None)
        if coding is None:
            if message:
                self._anomaly("content_encoding_unknown")
            return message
        decoder = content_decoder(coding, self._anomaly)
        if decoder is None:
            return message
        parts: list[bytes] = []
        size = 0
        for pieces in (decoder.feed(message), decoder.end()):
            for piece in pieces:
                size += len(piece)
                if size > MAX_EVENT_BYTES:
                    self._anomaly("event_limit")
                    return b"".join(parts)
                parts.append(piece)
        return b"".join(parts)
