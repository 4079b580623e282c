"""What the tap needs of a 64-bit little-endian ELF file: where named functions are, their bytes, the build id, the sections.

Names are looked up by searching the string table for them and the symbol table for its offset: an executable such as node has
hundreds of thousands of symbols, and walking them in Python would take longer than the whole start may.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Self

_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_SHDR: Final = struct.Struct("<IIQQQQIIQQ")
_SYM: Final = struct.Struct("<IBBHQQ")
_PT_LOAD, _PT_NOTE = 1, 4
_PF_X = 1
_ENDINGS: Final = frozenset((0xC3, 0xCC, 0x90, 0x00))  # ret, int3, nop, the last byte of a long nop
_SHT_SYMTAB, _SHT_DYNSYM, _SHT_NOBITS = 2, 11, 8
_STT_FUNC, _STT_GNU_IFUNC = 2, 10
_NT_GNU_BUILD_ID = 3
_EM_X86_64 = 62
_MAX_SECTIONS = 4096
_MAX_SEGMENTS = 512
_EMPTY_SECTION: Final = (0,) * 10


class ELFError(Exception):
    """Not an ELF file that can be probed; private to this module and its callers, who skip the file and say why."""


class Function(NamedTuple):
    offset: int  # in the file: what a uprobe takes
    size: int
    table: str  # .dynsym or .symtab


class ELFFile:
    """Use as a context manager. Raises ELFError on anything that is not a sound 64-bit x86 ELF file, OSError if unreadable."""

    def __init__(self, path: str | Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size < _EHDR.size:
                raise ELFError("too short")
            self.data = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        try:
            self._read_headers()
        except (struct.error, IndexError, OverflowError) as fault:
            self.data.close()
            raise ELFError("damaged headers") from fault
        except ELFError:
            self.data.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.data.close()

    def _read_headers(self) -> None:
        ident, _, machine, _, _, ph_at, sh_at, _, _, ph_size, ph_count, sh_size, sh_count, names = _EHDR.unpack_from(self.data)
        if ident[:4] != b"\x7fELF" or ident[4] != 2 or ident[5] != 1:
            raise ELFError("not a 64-bit little-endian ELF file")
        if machine != _EM_X86_64:
            raise ELFError(f"machine {machine}, not x86-64")
        self.segments = [_PHDR.unpack_from(self.data, ph_at + index * ph_size) for index in range(min(ph_count, _MAX_SEGMENTS))]
        headers = [_SHDR.unpack_from(self.data, sh_at + index * sh_size) for index in range(min(sh_count, _MAX_SECTIONS))] if sh_at else []
        size = len(self.data)
        # What lies outside the file (damage) is as if it were empty.
        headers = [header if header[1] == _SHT_NOBITS or header[4] + header[5] <= size else _EMPTY_SECTION for header in headers]
        self.segments = [segment for segment in self.segments if segment[2] + segment[5] <= size]
        self.headers = headers
        self.sections: dict[str, tuple[int, int, int]] = {}  # name -> (file offset, size, address)
        if names < len(headers):
            table_at, table_size = headers[names][4], headers[names][5]
            for header in headers:
                name = self._string(table_at, table_size, header[0])
                if header[1] != _SHT_NOBITS:
                    self.sections[name] = (header[4], header[5], header[3])

    def _string(self, table_at: int, table_size: int, offset: int) -> str:
        if offset >= table_size:
            return ""
        end = self.data.find(b"\0", table_at + offset, table_at + table_size)
        return self.data[table_at + offset : end].decode(errors="replace") if end >= 0 else ""

    def file_offset(self, address: int) -> int | None:
        """Where a virtual address is in the file; None outside the loaded segments."""
        for kind, _, offset, base, _, in_file, _, _ in self.segments:
            if kind == _PT_LOAD and base <= address < base + in_file:
                return int(offset + address - base)
        return None

    def functions(self, names: Iterable[str]) -> dict[str, Function]:
        """The defined functions of these names, exported or local. Versioned symbols count under their plain name."""
        found: dict[str, Function] = {}
        wanted = [name for name in names if name]
        for header in sorted(self.headers, key=lambda h: h[1] != _SHT_DYNSYM):
            kind, at, size, link = header[1], header[4], header[5], header[6]
            if kind not in (_SHT_SYMTAB, _SHT_DYNSYM) or link >= len(self.headers):
                continue
            strings_at, strings_size = self.headers[link][4], self.headers[link][5]
            for name in wanted:
                if name not in found:
                    function = self._find(
                        name.encode() + b"\0", at, size, strings_at, strings_size, ".dynsym" if kind == _SHT_DYNSYM else ".symtab"
                    )
                    if function is not None:
                        found[name] = function
        return found

    def _find(self, name: bytes, at: int, size: int, strings_at: int, strings_size: int, table: str) -> Function | None:
        position = strings_at
        strings_end, symbols_end = strings_at + strings_size, at + size
        while (position := self.data.find(name, position, strings_end)) >= 0:
            # A linker may keep a name as the tail of a longer one, so what stands before it does not matter.
            index = struct.pack("<I", position - strings_at)
            symbol = at
            while (symbol := self.data.find(index, symbol, symbols_end)) >= 0:
                if (symbol - at) % _SYM.size == 0:
                    _, info, _, section, value, length = _SYM.unpack_from(self.data, symbol)
                    offset = self.file_offset(value) if section and info & 15 in (_STT_FUNC, _STT_GNU_IFUNC) else None
                    if offset is not None:
                        return Function(offset, length, table)
                symbol += 1
            position += 1
        return None

    def code(self, function: Function) -> bytes:
        return self.data[function.offset : function.offset + function.size]

    def build_id(self) -> str | None:
        """The GNU build id in hexadecimal."""
        for kind, _, offset, _, _, size, _, _ in self.segments:
            if kind != _PT_NOTE:
                continue
            at, end = offset, offset + size
            while at + 12 <= end:
                name_size, content_size, note = struct.unpack_from("<III", self.data, at)
                content = at + 12 + (name_size + 3 & ~3)
                if note == _NT_GNU_BUILD_ID and self.data[at + 12 : at + 16] == b"GNU\0" and content + content_size <= end:
                    return self.data[content : content + content_size].hex()
                at = content + (content_size + 3 & ~3)
        return None

    def may_be_function(self, offset: int) -> bool:
        """In executable code, behind the end or padding of another function, or at the alignment that compilers give functions."""
        inside = any(
            kind == _PT_LOAD and flags & _PF_X and start <= offset < start + in_file
            for kind, flags, start, _, _, in_file, _, _ in self.segments
        )
        return inside and (offset % 16 == 0 or self.data[offset - 1] in _ENDINGS)

    def contains(self, text: bytes) -> bool:
        return self.data.find(text) >= 0
