"""WebSocket written from frames: single frames as hostile as wanted, and messages that are deflated as an endpoint would."""

from __future__ import annotations

import zlib

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN, RSV1, RSV2, RSV3 = 0x80, 0x40, 0x20, 0x10
KEY = b"\x37\xfa\x21\x3d"
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate"
REQUEST = (
    b"GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n"
)
RESPONSE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n%s\r\n"
)


def frame(payload: bytes, kind: int = TEXT, bits: int = FIN, *, key: bytes | None = None, width: int = 0) -> bytes:
    """`key` masks it; `width` is that of the length (7, 16 or 64 bits), 0: the least."""
    size = len(payload)
    width = width or (7 if size < 126 else 16 if size < 1 << 16 else 64)
    mask = 0x80 if key is not None else 0
    length = bytes([mask | size]) if width == 7 else bytes([mask | (126 if width == 16 else 127)]) + size.to_bytes(width // 8, "big")
    if key is not None:
        payload = bytes(byte ^ key[number % 4] for number, byte in enumerate(payload))
    return bytes([bits | kind]) + length + (key or b"") + payload


def masked(payload: bytes, kind: int = TEXT, bits: int = FIN) -> bytes:
    return frame(payload, kind, bits, key=KEY)


class Deflater:
    """Messages of one direction, deflated (RFC 7692 7.2.1)."""

    def __init__(self, *, keeps_context: bool = True, window_bits: int = 15) -> None:
        self._keeps_context, self._bits = keeps_context, window_bits
        self._inner = self._new()

    def _new(self) -> zlib._Compress:
        return zlib.compressobj(9, zlib.DEFLATED, -self._bits)

    def __call__(self, data: bytes) -> bytes:
        if not self._keeps_context:
            self._inner = self._new()
        return (self._inner.compress(data) + self._inner.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")
