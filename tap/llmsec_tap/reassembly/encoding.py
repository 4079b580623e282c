"""Content codings (RFC 9110 8.4.1): gzip, deflate, br, zstd and stacks of them, decoded as the body streams.

A decoder takes coded bytes and returns what they decode to so far; it never raises. After damage or a bomb it returns nothing
more, and says so once through `on_anomaly`. Bombs: output is bounded by limits.MAX_EXPANSION_RATIO above EXPANSION_FLOOR_BYTES,
and input is fed in slices so that one call cannot expand far beyond that.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol

from llmsec_tap import limits

# A zstd block of 4 bytes may stand for 128 KiB, so a slice of 1 KiB expands to 32 MiB at the most before it is checked.
_SLICE = 1024
_ZLIB_SLICE = 64 * limits.KIB


class _Coding(Protocol):
    def decode(self, data: bytes) -> bytes:
        """Raises any of _ERRORS for damage."""


class _Deflate:
    """`deflate` is the zlib format (RFC 9110 8.4.1.2); some servers send raw deflate, told apart by the first two bytes."""

    def __init__(self) -> None:
        self._head = b""
        self._inner: _Zlib | None = None

    def decode(self, data: bytes) -> bytes:
        if self._inner is None:
            self._head += data
            if len(self._head) < 2:
                return b""
            is_zlib = self._head[0] & 15 == 8 and (self._head[0] << 8 | self._head[1]) % 31 == 0
            self._inner = _Zlib(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
            data, self._head = self._head, b""
        return self._inner.decode(data)


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._inner = zlib.decompressobj(wbits)

    def decode(self, data: bytes) -> bytes:
        out = []
        while data:
            out.append(self._inner.decompress(data))
            data = self._inner.unused_data
            if data:  # another gzip member (RFC 1952 2.2), or trailing bytes that are none
                if self._wbits < 31 or not data.startswith(b"\x1f\x8b"):
                    break
                self._inner = zlib.decompressobj(self._wbits)
        return b"".join(out)


class _Brotli:
    def __init__(self) -> None:
        import brotli  # type: ignore[import-untyped]  # noqa: PLC0415 - few captures hold it, and it is a shared object of its own

        self._inner = brotli.Decompressor()
        self.error = brotli.error

    def decode(self, data: bytes) -> bytes:
        result: bytes = self._inner.process(data)
        return result


class _Zstd:
    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415 - as above

        self._make = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj
        self._inner = self._make()
        self.error = zstandard.ZstdError

    def decode(self, data: bytes) -> bytes:
        out = []
        while data:
            if self._inner.eof:  # concatenated frames (RFC 8878 3.1)
                self._inner = self._make()
            out.append(self._inner.decompress(data))
            data = self._inner.unused_data
        return b"".join(out)


def _make(name: str) -> _Coding | None:
    if name in ("gzip", "x-gzip"):
        return _Zlib(31)
    if name == "deflate":
        return _Deflate()
    if name == "br":
        return _Brotli()
    if name == "zstd":
        return _Zstd()
    return None


class ContentDecoder:
    """Decodes the codings of one Content-Encoding value, the last applied first."""

    __slots__ = ("_anomaly", "_codings", "_dead", "_errors", "_slice", "consumed", "produced")

    def __init__(self, codings: list[_Coding], on_anomaly: Callable[[str], None]) -> None:
        self._codings = codings
        self._anomaly = on_anomaly
        self._dead = False
        self._slice = _SLICE if any(not isinstance(coding, _Zlib | _Deflate) for coding in codings) else _ZLIB_SLICE
        own = tuple(coding.error for coding in codings if isinstance(coding, _Brotli | _Zstd))
        self._errors: tuple[type[Exception], ...] = (zlib.error, MemoryError, *own)
        self.consumed = 0
        self.produced = 0

    def feed(self, data: bytes) -> bytes:
        if self._dead:
            return b""
        out: list[bytes] = []
        for start in range(0, len(data), self._slice):
            piece = data[start : start + self._slice]
            self.consumed += len(piece)
            for coding in self._codings:
                try:
                    piece = coding.decode(piece)
                except self._errors:
                    self._anomaly("content_encoding_bad")
                    self._dead = True
                    return b"".join(out)
                if not piece:
                    break
            self.produced += len(piece)
            if self.produced > limits.EXPANSION_FLOOR_BYTES and self.produced > self.consumed * limits.MAX_EXPANSION_RATIO:
                self._anomaly("content_encoding_bomb")
                self._dead = True
                return b"".join(out)
            out.append(piece)
        return out[0] if len(out) == 1 else b"".join(out)

    def gap(self) -> None:
        """Lost input: what follows cannot be decoded."""
        self._dead = True


def content_decoder(value: str, on_anomaly: Callable[[str], None]) -> ContentDecoder | None:
    """A decoder for a Content-Encoding header value, or None for `identity`, an unknown coding, or too many of them."""
    names = [name for name in (part.strip().lower() for part in value.split(",")) if name and name != "identity"]
    if not names:
        return None
    codings = [_make(name) for name in reversed(names[: limits.MAX_CONTENT_CODINGS + 1])]
    known = [coding for coding in codings if coding is not None]
    if len(known) != len(names):
        on_anomaly("content_encoding_unknown")
        return None
    return ContentDecoder(known, on_anomaly)
