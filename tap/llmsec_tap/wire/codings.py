"""The content codings of RFC 9110 8.4.1, each as a stage of bounded steps: gzip, deflate, br (RFC 7932), zstd (RFC 8878).

A stage is fed one piece of coded bytes and then read until it gives nothing more. What one `read` gives is bounded, however much
the input stands for, so a stack of stages never holds more than a few pieces. Damage raises one of `ERRORS` of the stage.
"""

from __future__ import annotations

import zlib
from typing import Protocol

from llmsec_tap import limits

_PIECE = 128 * limits.KIB
# A zstd block of 4 bytes may stand for 128 KiB, and the binding has no bound on output: so much input gives 4 MiB at the most.
_ZSTD_SLICE = 128
# RFC 9659: the window of the content coding is 8 MiB at most.
_ZSTD_WINDOW = 8 * limits.MIB
_GZIP_MAGIC = b"\x1f\x8b"


class Coding(Protocol):
    errors: tuple[type[Exception], ...]
    window: int
    """So much of its own output a stage may keep to look back at."""

    def feed(self, data: bytes) -> None:
        """Once all of what was fed before is read."""

    def read(self) -> bytes:
        """The next piece, or nothing: then it needs more input."""


class Zlib:
    """gzip (RFC 1952, also several members in a row), zlib and raw deflate, by zlib's `wbits`."""

    errors: tuple[type[Exception], ...] = (zlib.error,)
    window = 32 * limits.KIB

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._inner = zlib.decompressobj(wbits)
        self._input = b""
        self._is_full = False  # the last piece was cut at its bound: zlib may hold more without any input

    def feed(self, data: bytes) -> None:
        self._input += data

    def read(self) -> bytes:
        while self._input or self._is_full:
            inner = self._inner
            if inner.eof and not self._next_member():
                return b""
            inner = self._inner
            out = inner.decompress(self._input, _PIECE)
            self._is_full = len(out) >= _PIECE and not inner.eof
            self._input = inner.unused_data if inner.eof else inner.unconsumed_tail
            if out:
                return out
        return b""

    def _next_member(self) -> bool:
        """After a member: another one begins (RFC 1952 2.2), or what follows is of no meaning and passed over."""
        if self._wbits == _GZIP and _GZIP_MAGIC.startswith(self._input[:2]):
            if len(self._input) < 2:
                return False
            self._inner = zlib.decompressobj(self._wbits)
            return True
        self._wbits = 0
        self._input = b""
        return False


_GZIP = 16 + zlib.MAX_WBITS


class Brotli:
    window = 16 * limits.MIB

    def __init__(self) -> None:
        import brotli  # type: ignore[import-untyped]  # noqa: PLC0415 - few captures hold it, and it is a shared object of its own

        self._inner = brotli.Decompressor()
        self.errors: tuple[type[Exception], ...] = (brotli.error,)
        self._input = b""

    def feed(self, data: bytes) -> None:
        self._input = data

    def read(self) -> bytes:
        inner = self._inner
        while not inner.is_finished() and (self._input or not inner.can_accept_more_data()):
            data, self._input = self._input, b""
            out: bytes = inner.process(data, output_buffer_limit=_PIECE)
            if out:
                return out
        self._input = b""  # what follows the end is of no meaning
        return b""


class Zstd:
    window = _ZSTD_WINDOW

    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415 - as above

        self._make = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj
        self._inner = self._make()
        self.errors: tuple[type[Exception], ...] = (zstandard.ZstdError,)
        self._input = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        self._input, self._at = data, 0

    def read(self) -> bytes:
        while self._at < len(self._input):
            if self._inner.eof:  # concatenated frames (RFC 8878 3.1)
                self._inner = self._make()
            piece = self._input[self._at : self._at + _ZSTD_SLICE]
            self._at += len(piece)
            out = self._inner.decompress(piece)
            if self._inner.eof:
                self._at -= len(self._inner.unused_data)
            if out:
                return out
        self._input, self._at = b"", 0
        return b""


class Plain:
    """Bytes that are not coded, whatever the header says."""

    errors: tuple[type[Exception], ...] = ()
    window = 0

    def __init__(self) -> None:
        self._input = b""

    def feed(self, data: bytes) -> None:
        self._input = data

    def read(self) -> bytes:
        data, self._input = self._input, b""
        return data


# --- what the first bytes say ------------------------------------------------------------------------------------------

_MAGIC = {"gzip": (_GZIP_MAGIC,), "zstd": (b"\x28\xb5\x2f\xfd", *(bytes([kind, 0x2A, 0x4D, 0x18]) for kind in range(0x50, 0x60)))}
# br and raw deflate have no mark of their own: this many characters of text in a row are taken for text. By chance a coded body
# begins like that once in a million times.
_TEXT_BYTES = 16
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r")) + b"\x7f"


def choose(name: str, first: bytes, *, is_end: bool) -> Coding | None:
    """The stage for a coding of this name (`gzip`, `deflate`, `br` or `zstd`), by the first bytes. None: too few bytes to tell."""
    if name in _MAGIC:
        for magic in _MAGIC[name]:
            if first.startswith(magic):
                return Zlib(_GZIP) if name == "gzip" else Zstd()
            if magic.startswith(first) and not is_end:
                return None
        return Plain()
    if name == "deflate":
        if len(first) < 2 and not is_end:
            return None
        # RFC 9110 8.4.1.2: it is the zlib format. Some servers send raw deflate.
        if len(first) >= 2 and first[0] & 15 == 8 and (first[0] << 8 | first[1]) % 31 == 0:
            return Zlib(zlib.MAX_WBITS)
    if _is_text(first):
        if len(first) < _TEXT_BYTES and not is_end:
            return None
        return Plain()
    return Zlib(-zlib.MAX_WBITS) if name == "deflate" else Brotli()


def _is_text(data: bytes) -> bool:
    data = data[:_TEXT_BYTES]
    if data.translate(None, _CONTROLS) != data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True
