"""ELF files as a test wants them."""

from __future__ import annotations

import struct

TEXT_AT = 0x1000


def elf(strings: bytes, symbols: bytes, text: bytes = b"\xc3" * 4096) -> bytes:
    """A library with one executable segment over everything, .dynsym and .dynstr."""
    strings_at = TEXT_AT + len(text)
    symbols_at = strings_at + len(strings) + -len(strings) % 8
    headers_at = symbols_at + len(symbols) + -len(symbols) % 8
    out = bytearray(headers_at + 3 * 64)
    out[:64] = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 3, 62, 1, TEXT_AT, 64, headers_at, 0, 64, 56, 1, 64, 3, 0)
    out[64:120] = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, len(out), len(out), 4096)
    out[TEXT_AT:strings_at] = text
    out[strings_at : strings_at + len(strings)] = strings
    out[symbols_at : symbols_at + len(symbols)] = symbols
    out[headers_at + 64 :] = struct.pack("<IIQQQQIIQQ", 0, 11, 2, symbols_at, symbols_at, len(symbols), 2, 0, 8, 24) + struct.pack(
        "<IIQQQQIIQQ", 0, 3, 2, strings_at, strings_at, len(strings), 0, 0, 0, 0
    )
    return bytes(out)


def symbol(name_at: int, value: int) -> bytes:
    return struct.pack("<IBBHQQ", name_at, 0x12, 0, 1, value, 16)
