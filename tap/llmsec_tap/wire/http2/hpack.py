"""Header blocks of one direction (HPACK, RFC 7541), for a reader that may have missed some of them.

Entries of the dynamic table are counted from the newest, so what was added since the last loss is found where it should be; a reference beyond
that is to an entry that was not captured, and its header is left out and said. docs/adr/0011-own-hpack.md has why this is no library.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from llmsec_tap import limits
from llmsec_tap.wire.http2.huffman import decode as decode_huffman
from llmsec_tap.wire.messages import Headers

_STATIC: Final[tuple[tuple[bytes, bytes], ...]] = tuple(
    (name, value.replace(b"_", b" "))
    for name, _, value in (
        entry.partition(b"=")
        for entry in (
            b":authority :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200 :status=204 :status=206 "
            b":status=304 :status=400 :status=404 :status=500 accept-charset accept-encoding=gzip,_deflate accept-language accept-ranges accept "
            b"access-control-allow-origin age allow authorization cache-control content-disposition content-encoding content-language "
            b"content-length content-location content-range content-type cookie date etag expect expires from host if-match if-modified-since "
            b"if-none-match if-range if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization range "
            b"referer refresh retry-after server set-cookie strict-transport-security transfer-encoding user-agent vary via www-authenticate"
        ).split()
    )
)
_STATIC_SIZE: Final = len(_STATIC)
# RFC 7541 4.1: what an entry counts beyond its bytes.
_ENTRY: Final = 32
_DEFAULT_SIZE: Final = 4096


OnValue = Callable[[bytes, bytes, int, int], None]
"""Takes a header's name (empty where it is unknown), its value, and where the value's bytes stand in the block."""


class HeaderBlock:
    """What one block says. `is_broken`: it could not be read past some point. `unknown` headers refer to what was not captured."""

    __slots__ = ("headers", "is_broken", "is_cut", "size", "unknown")

    def __init__(self) -> None:
        self.headers: Headers = []
        self.unknown = 0
        self.is_broken = False
        self.is_cut = False  # longer than the bounds: the rest is left out
        self.size = 0


class HeaderTable:
    """The dynamic table of one direction's encoder, as far as it is known, and the reader of its blocks."""

    __slots__ = ("_entries", "_is_whole", "_limit", "size")

    def __init__(self, *, is_whole: bool) -> None:
        """`is_whole`: every block from the connection's first one comes here."""
        self._entries: deque[tuple[bytes, bytes]] = deque()  # the newest first
        self._is_whole = is_whole
        self._limit = _DEFAULT_SIZE if is_whole else limits.MAX_HEADER_TABLE_BYTES
        self.size = 0  # as RFC 7541 4.1 counts it

    def lose(self) -> None:
        """Blocks may have been lost here: how many entries they added is unknown."""
        self._entries.clear()
        self.size = 0
        self._is_whole = False
        self._limit = limits.MAX_HEADER_TABLE_BYTES

    @property
    def held(self) -> int:
        """Bytes that the entries take here."""
        return self.size + 2 * limits.PIECE_COST_BYTES * len(self._entries)

    def read(self, block: bytes, on_value: OnValue | None = None) -> HeaderBlock:
        """Headers in order, names in lower case. `on_value` is told of each value that stands in the block itself."""
        found = HeaderBlock()
        at, end = 0, len(block)
        try:
            while at < end:
                first = block[at]
                if first & 0x80:
                    index, at = _integer(block, at, 0x7F)
                    self._refer(found, index)
                elif first & 0xE0 == 0x20:
                    size, at = _integer(block, at, 0x1F)
                    self._resize(size)
                else:
                    at = self._literal(found, block, at, 0x3F if first & 0x40 else 0x0F, on_value)
        except (ValueError, IndexError):
            found.is_broken = True
            self.lose()
        return found

    def _literal(self, found: HeaderBlock, block: bytes, at: int, mask: int, on_value: OnValue | None) -> int:
        index, at = _integer(block, at, mask)
        name: bytes
        if index:
            name = self._entry(index)[0]
        else:
            name, at = _string(block, at)
            if not name:
                raise ValueError("a header without a name")
            name = name.lower()
        start = at
        value, at = _string(block, at)
        if on_value is not None:
            on_value(name, value, _integer(block, start, 0x7F)[1], at)
        if mask == 0x3F:
            self._add(name, value)
        _keep(found, name, value)
        return at

    def _refer(self, found: HeaderBlock, index: int) -> None:
        name, value = self._entry(index)
        _keep(found, name, value)

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        """The entry; without a name where it was not captured."""
        if index <= 0:
            raise ValueError("no entry has this index")
        if index <= _STATIC_SIZE:
            return _STATIC[index - 1]
        index -= _STATIC_SIZE + 1
        if index < len(self._entries):
            return self._entries[index]
        if self._is_whole or index > limits.MAX_HEADER_TABLE_BYTES:
            raise ValueError("no entry has this index")
        return b"", b""

    def _add(self, name: bytes, value: bytes) -> None:
        self._entries.appendleft((name, value))
        self.size += len(name) + len(value) + _ENTRY
        self._evict()

    def _resize(self, size: int) -> None:
        """Up to what the receiver's SETTINGS allow, which it keeps to itself to enforce; beyond our own bound the oldest are forgotten."""
        self._limit = min(size, limits.MAX_HEADER_TABLE_BYTES)
        if size > limits.MAX_HEADER_TABLE_BYTES:
            self._is_whole = False
        self._evict()

    def _evict(self) -> None:
        while self.size > self._limit and self._entries:
            name, value = self._entries.pop()
            self.size -= len(name) + len(value) + _ENTRY


def _keep(found: HeaderBlock, name: bytes, value: bytes) -> None:
    if not name:
        found.unknown += 1
        return
    found.size += len(name) + len(value)
    if found.size > limits.MAX_HEAD_BYTES or len(found.headers) >= limits.MAX_HEADERS:
        found.is_cut = True
        return
    found.headers.append((name, value))


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """RFC 7541 5.1. Raises IndexError where the block ends inside, ValueError beyond 28 bits."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in (0, 7, 14, 21):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise ValueError("an integer too long")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    is_coded = block[at] & 0x80
    size, at = _integer(block, at, 0x7F)
    if at + size > len(block):
        raise ValueError("a string beyond the block's end")
    raw = block[at : at + size]
    if not is_coded:
        return raw, at + size
    text = decode_huffman(raw)
    if text is None:
        raise ValueError("not the Huffman code")
    return text, at + size
