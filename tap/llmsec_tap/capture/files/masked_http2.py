"""Credentials in a direction of HTTP/2 masked byte for byte (`--write`): in header blocks value by value, in DATA as in any body.

`*` is one byte in HPACK's Huffman code, too, so a coded value is masked in place and the block still decodes. Of a block that is not whole in one
piece nothing is kept. After loss or damage all is masked until frames are seen again: what cannot be told apart may be a credential.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from llmsec_tap.wire.http2.frames import HEADER_BYTES, PREFACE, find_frames, is_frame
from llmsec_tap.wire.http2.hpack import HeaderTable

_DATA, _HEADERS, _PUSH_PROMISE, _CONTINUATION = 0, 1, 5, 9
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 1, 4, 8, 32
_STAR: Final = b"*"
_CODED_STAR: Final = b"\xf9"  # `*` in RFC 7541's appendix B, eight bits
_NOTHING: Final = b"\x20"  # a block of these has no header
_MAX_BODIES: Final = 256


class HTTP2Masker:
    """`body` makes the masker of one stream's DATA, `header` masks a value by its name: bytes of the same length."""

    __slots__ = ("_bodies", "_body", "_head", "_header", "_is_lost", "_kind", "_left", "_preface", "_stream", "_table")

    def __init__(
        self, body: Callable[[], Callable[[bytes], bytes]], header: Callable[[bytes, bytes], bytes], *, is_lost: bool = False
    ) -> None:
        self._body = body
        self._header = header
        self._is_lost = is_lost
        self._table = HeaderTable(is_whole=not is_lost)
        self._bodies: OrderedDict[int, Callable[[bytes], bytes]] = OrderedDict()
        self._preface = 0 if is_lost else len(PREFACE)  # bytes that may still be the client's preface
        self._head = b""  # of the frame whose header has not all come
        self._kind = self._stream = self._left = 0

    def after_loss(self) -> HTTP2Masker:
        return HTTP2Masker(self._body, self._header, is_lost=True)

    def feed(self, data: bytes) -> bytes:
        out = bytearray(data)
        at, end = 0, len(data)
        if self._preface:
            begun = PREFACE[len(PREFACE) - self._preface :]
            size = min(len(begun), end)
            at = size if data[:size] == begun[:size] else 0
            self._preface = self._preface - size if at else 0
        while at < end:
            if self._is_lost:
                found, wanted = find_frames(data, at)
                stop = end if wanted else found
                out[at:stop] = _STAR * (stop - at)
                at, self._is_lost = stop, bool(wanted)
            elif self._left:
                size = min(self._left, end - at)
                self._left -= size
                if self._kind == _DATA:
                    out[at : at + size] = self._body_of(self._stream)(data[at : at + size])
                elif self._kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
                    out[at : at + size] = _NOTHING * size
                at += size
            else:
                size = min(HEADER_BYTES - len(self._head), end - at)
                self._head += data[at : at + size]
                at += size
                if len(self._head) == HEADER_BYTES:
                    at = self._frame(out, data, at, end)
        return bytes(out)

    def _frame(self, out: bytearray, data: bytes, at: int, end: int) -> int:
        head, self._head = self._head, b""
        length, flags = int.from_bytes(head[:3], "big"), head[4]
        self._kind, self._stream = head[3], int.from_bytes(head[5:], "big") & 0x7FFFFFFF
        if not is_frame(self._kind, length, self._stream):
            self._is_lost = True
            self._table.lose()
            return at
        self._left = length
        if self._kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
            if self._kind == _HEADERS and flags & _END_STREAM:
                self._bodies.pop(self._stream, None)
            if self._kind == _CONTINUATION or not flags & _END_HEADERS or length > end - at:
                self._table.lose()
            else:
                self._left = 0
                out[at : at + length] = self._block(data[at : at + length], flags)
                return at + length
        return at

    def _block(self, payload: bytes, flags: int) -> bytes:
        out = bytearray(payload)
        begin, stop = 0, len(payload)
        if flags & _PADDED and payload:
            begin, stop = 1, max(1, stop - payload[0])
        begin += 5 if self._kind == _HEADERS and flags & _PRIORITY else 4 if self._kind == _PUSH_PROMISE else 0

        def value(name: bytes, text: bytes, start: int, end: int) -> None:
            masked = self._header(name, text)
            if masked != text:
                is_coded = end - start != len(text) or payload[begin + start : begin + end] != text
                out[begin + start : begin + end] = _CODED_STAR * (end - start) if is_coded else masked

        if self._table.read(payload[begin:stop], value).is_broken:
            out[begin:] = _NOTHING * (len(payload) - begin)
        return bytes(out[: len(payload)])

    def _body_of(self, stream: int) -> Callable[[bytes], bytes]:
        body = self._bodies.get(stream)
        if body is None:
            body = self._bodies[stream] = self._body()
            if len(self._bodies) > _MAX_BODIES:
                self._bodies.popitem(last=False)
        return body
