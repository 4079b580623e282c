"""Packets with the credentials in their TCP payload masked (`--write` with `--iface`): same lengths, right checksums.

Each direction of a connection has a masker, which sees bytes in their order. What comes twice is written as the first time; what
comes early, before a hole, is masked as if the head that was under way went on. Bound: connections, and bytes kept of each.
"""

from __future__ import annotations

import copy
import struct
from collections import OrderedDict
from typing import Final

from llmsec_tap.capture.files.masked import StreamMasker

_TCP: Final = 6
_MAX_STREAMS = 16_384
# Retransmissions are of what was sent within a window.
_KEPT_BYTES: Final = 64 * 1024
_HALF: Final = 1 << 31


class _Stream:
    __slots__ = ("kept", "masker", "next")

    def __init__(self, seq: int) -> None:
        self.masker = StreamMasker()
        self.next = seq
        self.kept = b""  # what was written last, masked; it ends at `next`


class PacketMasker:
    def __init__(self) -> None:
        self._streams: OrderedDict[bytes, _Stream] = OrderedDict()

    def masked(self, packet: bytes) -> bytes:
        """A raw IP packet; what is not TCP stays as it is."""
        found = _tcp_of(packet)
        if found is None:
            return packet
        addresses, at = found
        ports_at = at
        payload_at = at + (packet[at + 12] >> 4) * 4
        payload = packet[payload_at:]
        seq, flags = struct.unpack_from(">I", packet, at + 4)[0], packet[at + 13]
        key = addresses + packet[ports_at : ports_at + 4]
        if flags & 2:  # SYN: its sequence number stands for itself
            self._streams.pop(key, None)
            seq = seq + 1 & 0xFFFFFFFF
        if not payload:
            return packet
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(seq)
            if len(self._streams) > _MAX_STREAMS:
                self._streams.popitem(last=False)
        out = self._in_order(stream, seq, payload)
        if out == payload:
            return packet
        header = packet[at : at + 16] + b"\0\0" + packet[at + 18 : payload_at]
        length = len(header) + len(out)
        pseudo = struct.pack(">HH", _TCP, length) if len(addresses) == 8 else struct.pack(">II", length, _TCP)
        total = checksum(addresses + pseudo + header + out)
        return packet[:at] + header[:16] + struct.pack(">H", total) + header[18:] + out

    @staticmethod
    def _in_order(stream: _Stream, seq: int, payload: bytes) -> bytes:
        ahead = seq - stream.next & 0xFFFFFFFF
        if ahead and ahead < _HALF:  # a hole before it
            early = copy.copy(stream.masker)
            early.skip(ahead)
            out = early.feed(payload)
            if ahead > _KEPT_BYTES:  # it will not be filled
                stream.masker, stream.next, stream.kept = early, seq + len(payload) & 0xFFFFFFFF, out[-_KEPT_BYTES:]
            return out
        behind = -ahead & 0xFFFFFFFF
        again = b""
        if behind:
            size = min(behind, len(payload))
            start = len(stream.kept) - behind
            again = stream.kept[max(0, start) : max(0, start + size)]
            again = b"*" * (size - len(again)) + again
        fresh = stream.masker.feed(payload[len(again) :])
        if fresh:
            stream.next = stream.next + len(fresh) & 0xFFFFFFFF
            stream.kept = (stream.kept + fresh)[-_KEPT_BYTES:]
        return again + fresh


def _tcp_of(packet: bytes) -> tuple[bytes, int] | None:
    """Addresses and where the TCP header begins, or None."""
    if len(packet) < 40:
        return None
    version = packet[0] >> 4
    if version == 4:
        at = (packet[0] & 15) * 4
        if packet[9] != _TCP or struct.unpack_from(">H", packet, 6)[0] & 0x1FFF or len(packet) < at + 20:
            return None
        return packet[12:20], at
    if version == 6 and packet[6] == _TCP and len(packet) >= 60:
        return packet[8:40], 40
    return None


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071): the sum of 16-bit words in ones' complement is the number modulo 65,535."""
    if len(data) % 2:
        data += b"\0"
    total = int.from_bytes(data, "big") % 0xFFFF
    return 0xFFFF - total or 0xFFFF
