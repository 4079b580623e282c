"""What the tap needs of a 64-bit little-endian ELF file: where named functions are, their bytes, the build id, the sections.

Rules
- The file belongs to somebody else, who may change it at any moment. So it is read with pread in bounded pieces and never mapped
  (a truncated mapping kills the reader), and what is missing or contradicts itself is an ELFError.
- Each table is read once, in order: the work is linear in the file, whatever it holds.
- An offset is a function's only if it lies in executable code, at the start of an instruction, and is not in the middle of a
  function that the unwind table (.eh_frame_hdr, which stripping keeps) knows.

ELF: System V ABI, chapter 4 and 5. Unwind table: Linux Standard Base Core 5.0, section 10.6.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from llmsec_tap.capture.probes.machine import HOST, Machine

_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_SHDR: Final = struct.Struct("<IIQQQQIIQQ")
_SYM: Final = struct.Struct("<IBBHQQ")
_PT_LOAD, _PT_NOTE, _PT_GNU_EH_FRAME = 1, 4, 0x6474E550
_PF_X, _PF_W = 1, 2
_SHT_SYMTAB, _SHT_DYNSYM, _SHT_NOBITS = 2, 11, 8
_STT_FUNC = 2
_NT_GNU_BUILD_ID = 3
_EMPTY_SECTION: Final = (0,) * 10
_EH_TABLE: Final = b"\x01\x1b\x03\x3b"  # version 1; pointer pcrel, count udata4, table sorted and relative to the header
_EH_ENTRY: Final = struct.Struct("<ii")

# --- bounds, each with its reason ---
# The largest library met (a GPU build of PyTorch) is 2.5 GB.
MAX_FILE_BYTES: Final = 4 << 30
# A file that states far more than it occupies is a trap for its reader. Compressing file systems reach a tenth.
_SPARSE_ABOVE, _SPARSE_RATIO = 64 << 20, 16
_MAX_SECTIONS = 4096
_MAX_SEGMENTS = 512
# Chromium with all symbols has 2 million of them.
_MAX_SYMBOLS = 4_000_000
_MAX_STRINGS = 512 << 20
# One name has one entry in a string table, and a few longer names that end in it.
_MAX_PLACES = 256
_MAX_NOTES = 64 << 10
# Texts of a TLS library lie in the read-only data of its program: 100 MB in the largest browser.
_MAX_SEARCHED = 256 << 20
_MAX_CODE = 64 << 10
_PIECE = 1 << 20
_SYMBOLS_A_PIECE = _PIECE // _SYM.size
# How far before an offset the walk begins that shows whether an instruction starts there. x86 code falls into step in a few.
_WALK = 64


class ELFError(Exception):
    """The file cannot be probed. `is_trap`: it is an ELF file, but one that is not examined, and the user should know why."""

    def __init__(self, reason: str, *, is_trap: bool = False) -> None:
        super().__init__(reason)
        self.is_trap = is_trap


class Function(NamedTuple):
    offset: int  # in the file: what a uprobe takes
    size: int
    table: str  # .dynsym or .symtab
    symbol_at: int = 0  # where its entry is in the file
    name_at: int = 0


class Evidence(NamedTuple):
    """A place in a file and what it holds, as a hash."""

    offset: int
    size: int
    digest: bytes


class ELFFile:
    """Use as a context manager, with a path or an open descriptor (which stays the caller's).

    Raises ELFError on anything that is not a sound 64-bit ELF file of this machine, OSError if it is unreadable.
    """

    def __init__(self, source: str | Path | int, machine: Machine = HOST) -> None:
        self.machine = machine
        self._own = not isinstance(source, int)
        # Without O_NONBLOCK the owner of a file could hold us up: by a lease, or with a FIFO in its place.
        self._fd = source if isinstance(source, int) else os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            self.size = _sound_size(os.fstat(self._fd))
            self._read_headers()
        except (struct.error, IndexError, OverflowError) as fault:
            self.close()
            raise ELFError("damaged headers") from fault
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._own:
            self._own = False
            os.close(self._fd)

    def read(self, offset: int, size: int) -> bytes:
        """These bytes. Raises ELFError where the file does not hold all of them."""
        if size < 0 or offset < 0 or offset + size > self.size:
            raise ELFError("a table lies outside the file")
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise ELFError("the file shrank while it was read")
            data += more
        return data

    def _read_headers(self) -> None:
        ident, _, machine, _, _, ph_at, sh_at, _, _, ph_size, ph_count, sh_size, sh_count, names = _EHDR.unpack(self.read(0, _EHDR.size))
        if ident[:4] != b"\x7fELF" or ident[4] != 2 or ident[5] != 1:
            raise ELFError("not a 64-bit little-endian ELF file")
        if machine != self.machine.ELF_MACHINE:
            raise ELFError(f"machine {machine}, not {self.machine.NAME}")
        if ph_size != _PHDR.size or (sh_at and sh_size != _SHDR.size):
            raise ELFError("damaged headers")
        self.segments = self._table(_PHDR, ph_at, min(ph_count, _MAX_SEGMENTS))
        self._headers_end = max(_EHDR.size, ph_at + ph_size * ph_count)
        headers = self._table(_SHDR, sh_at, min(sh_count, _MAX_SECTIONS)) if sh_at else []
        # What lies outside the file (damage) is as if it were empty.
        self.headers = [header if header[1] == _SHT_NOBITS or header[4] + header[5] <= self.size else _EMPTY_SECTION for header in headers]
        self.segments = [segment for segment in self.segments if segment[2] + segment[5] <= self.size]
        self.sections: dict[str, tuple[int, int, int]] = {}  # name -> (file offset, size, address)
        if names < len(self.headers):
            strings = self.read(self.headers[names][4], min(self.headers[names][5], _PIECE))
            for header in self.headers:
                end = strings.find(b"\0", header[0], header[0] + 256)
                if header[1] != _SHT_NOBITS and end >= 0:
                    self.sections[strings[header[0] : end].decode(errors="replace")] = (header[4], header[5], header[3])

    def _table(self, entry: struct.Struct, offset: int, count: int) -> list[tuple[int, ...]]:
        return list(entry.iter_unpack(self.read(offset, entry.size * count)))

    # --- addresses and functions --------------------------------------------------------------------------------------

    def file_offset(self, address: int, *, executable: bool = False) -> int | None:
        """Where a virtual address is in the file; None outside the loaded (or executable) segments."""
        for kind, flags, offset, base, _, in_file, _, _ in self.segments:
            if kind == _PT_LOAD and base <= address < base + in_file and (flags & _PF_X or not executable):
                return offset + address - base
        return None

    def _code_address(self, offset: int) -> int | None:
        """The virtual address of a place in executable code."""
        for kind, flags, start, base, _, in_file, _, _ in self.segments:
            if kind == _PT_LOAD and flags & _PF_X and start <= offset < start + in_file:
                return base + offset - start
        return None

    def functions(self, names: Iterable[str]) -> dict[str, Function]:
        """The defined functions of these names, exported or local. Versioned symbols count under their plain name.

        An executable such as node has hundreds of thousands of symbols, so names are found in the string table, and symbols by
        where their names are: one look at each entry.
        """
        found: dict[str, Function] = {}
        wanted = [name for name in names if name]
        for kind, table in ((_SHT_DYNSYM, ".dynsym"), (_SHT_SYMTAB, ".symtab")):
            # An object file has at most one of each kind; of more, all of which could name the same bytes, the first is read.
            header = next((header for header in self.headers if header[1] == kind), _EMPTY_SECTION)
            missing = [name for name in wanted if name not in found]
            if header[6] < len(self.headers) and missing:
                strings = self.headers[header[6]]
                places = self._places(missing, strings[4], strings[5])
                if places:
                    self._find(places, header[4], header[5], table, found, strings[4])
        return found

    def _places(self, names: Sequence[str], at: int, size: int) -> dict[int, str]:
        """Offset in a string table -> the wanted name that begins there (it may be the tail of a longer one)."""
        if size > _MAX_STRINGS:
            raise ELFError(f"its string table states {size >> 20} MiB", is_trap=True)
        texts = [(name, name.encode() + b"\0") for name in names]
        places: dict[int, str] = {}
        counts = dict.fromkeys(names, 0)
        for start, piece in self._pieces(at, size, overlap=max(len(text) for _, text in texts)):
            for name, text in texts:
                position = piece.find(text)
                while position >= 0:
                    if start + position - at not in places:
                        places[start + position - at] = name
                        counts[name] += 1
                        if counts[name] > _MAX_PLACES:
                            raise ELFError(f"its string table holds {name} more than {_MAX_PLACES} times", is_trap=True)
                    position = piece.find(text, position + 1)
        return places

    def _find(self, places: dict[int, str], at: int, size: int, table: str, found: dict[str, Function], strings_at: int) -> None:
        count = size // _SYM.size
        tried = 0
        if count > _MAX_SYMBOLS:
            raise ELFError(f"its symbol table states {count:,} entries", is_trap=True)
        for first in range(0, count, _SYMBOLS_A_PIECE):
            piece = self.read(at + first * _SYM.size, min(_SYMBOLS_A_PIECE, count - first) * _SYM.size)
            names = memoryview(piece).cast("I")[:: _SYM.size // 4].tolist()
            for index in [index for index, name in enumerate(names) if name in places]:
                place, info, _, section, value, length = _SYM.unpack_from(piece, index * _SYM.size)
                offset = self.file_offset(value, executable=True) if section and info & 15 == _STT_FUNC else None
                if offset is None or places[place] in found:
                    continue
                tried += 1
                if tried > _MAX_PLACES:
                    raise ELFError(f"more than {_MAX_PLACES} of its symbols name TLS functions", is_trap=True)
                if self.is_function(offset, is_named=True):
                    entry = at + (first + index) * _SYM.size
                    found[places[place]] = Function(offset, length, table, entry, strings_at + place)

    def evidence(self, name: str, function: Function) -> list[Evidence]:
        """What says that the function is there. A file that holds the same in these places says the same."""
        return [
            self.evidence_at(function.symbol_at, _SYM.size),
            self.evidence_at(function.name_at, len(name.encode()) + 1),
            self.evidence_at(max(0, function.offset - _WALK), min(_WALK, function.offset)),
            self.evidence_at(function.offset, max(min(function.size, _MAX_CODE), _WALK)),
        ]

    def names(self, name: str) -> bool:
        """Whether any symbol may have this name: it stands in a table of names."""
        text = name.encode() + b"\0"
        tables = {header[6] for header in self.headers if header[1] in (_SHT_DYNSYM, _SHT_SYMTAB)}
        # As `functions` reads them: an object file has one of each kind.
        strings = [self.headers[table] for table in sorted(tables)[:2] if table < len(self.headers)]
        return any(
            text in piece for header in strings for _, piece in self._pieces(header[4], min(header[5], _MAX_STRINGS), overlap=len(text))
        )

    def evidence_at(self, offset: int, size: int) -> Evidence:
        """Of these bytes, as far as the file goes."""
        offset = min(offset, self.size)
        size = min(size, self.size - offset)
        digest = hashlib.blake2b(digest_size=16)
        for _, piece in self._pieces(offset, size, overlap=0):
            digest.update(piece)
        return Evidence(offset, size, digest.digest())

    def holds(self, evidence: Iterable[Evidence]) -> bool:
        return all(item == self.evidence_at(item.offset, item.size) for item in evidence)

    def code(self, function: Function) -> bytes:
        """The function's bytes; a very long one's beginning."""
        return self.read(function.offset, min(function.size, _MAX_CODE, self.size - function.offset))

    def is_function(self, offset: int, *, is_named: bool = False) -> bool:
        """Whether a function begins there, as far as can be told. A symbol's word counts (`is_named`) where nothing contradicts it.

        A probe in the middle of an instruction would damage the process, so doubt is a no.
        """
        address = self._code_address(offset)
        if address is None or offset < self._headers_end or offset % self.machine.ALIGNMENT:
            return False
        with contextlib.suppress(ELFError, struct.error):
            known = self._unwind_range(address)
            if known is not None and known[0] != address:
                return False
            before = self.read(max(0, offset - _WALK), min(_WALK, offset))
            head = self.read(offset, min(_WALK, self.size - offset))
            if not self.machine.begins(head):
                return False
            if known is not None or is_named:
                return True
            return (offset % 16 == 0 or self.machine.ends(before)) and self.machine.falls_on(before, head)
        return False

    def _unwind_range(self, address: int) -> tuple[int, int] | None:
        """The function that holds this address (first, end) by the unwind table; None where the table does not know."""
        table = next((segment for segment in self.segments if segment[0] == _PT_GNU_EH_FRAME), None)
        if table is None or table[5] < 12:
            return None
        at, base = table[2], table[3]
        kinds, _, count = struct.unpack("<4siI", self.read(at, 12))
        if kinds != _EH_TABLE or 12 + count * _EH_ENTRY.size > table[5] or not count:
            return None
        low, high = 0, count
        while high - low > 1:  # the last entry that begins at or before the address
            middle = (low + high) // 2
            if base + _EH_ENTRY.unpack(self.read(at + 12 + middle * 8, 8))[0] <= address:
                low = middle
            else:
                high = middle
        start, entry = _EH_ENTRY.unpack(self.read(at + 12 + low * 8, 8))
        described = self.file_offset(base + entry)
        if base + start > address or described is None:
            return None
        # length, its common part, the beginning (relative to this very field), the length of the code
        _, _, begins, length = struct.unpack("<IIiI", self.read(described, 16))
        if base + entry + 8 + begins != base + start or address >= base + start + length:
            return None
        return base + start, base + start + length

    # --- notes and texts ----------------------------------------------------------------------------------------------

    def build_id(self) -> str | None:
        """The GNU build id in hexadecimal."""
        for kind, _, offset, _, _, size, _, _ in self.segments:
            if kind != _PT_NOTE:
                continue
            data = self.read(offset, min(size, _MAX_NOTES))
            at = 0
            while at + 12 <= len(data):
                name_size, content_size, note = struct.unpack_from("<III", data, at)
                content = at + 12 + (name_size + 3 & ~3)
                if note == _NT_GNU_BUILD_ID and data[at + 12 : at + 16] == b"GNU\0" and content + content_size <= len(data):
                    return data[content : content + content_size].hex()
                at = content + (content_size + 3 & ~3)
        return None

    def section(self, name: str, most: int = _PIECE) -> bytes:
        """A section's first bytes; empty where there is none."""
        at, size, _ = self.sections.get(name, (0, 0, 0))
        return self.read(at, min(size, most))

    def which(self, texts: Sequence[bytes]) -> bytes | None:
        """The first of these texts, in their order, that the read-only data holds."""
        found: set[bytes] = set()
        room = _MAX_SEARCHED
        for at, size in self._read_only():
            for _, piece in self._pieces(at, min(size, room), overlap=max(map(len, texts))):
                found.update(text for text in texts if text not in found and text in piece)
                if texts[0] in found:
                    return texts[0]
            room -= min(size, room)
        return next((text for text in texts if text in found), None)

    def _read_only(self) -> Iterator[tuple[int, int]]:
        """Where constant texts are: .rodata where it is named, and what is loaded neither to be written nor run."""
        if ".rodata" in self.sections:
            yield self.sections[".rodata"][:2]
            for name in (".gopclntab", ".noptrdata"):
                if name in self.sections:
                    yield self.sections[name][:2]
            return
        loaded = [segment for segment in self.segments if segment[0] == _PT_LOAD and not segment[1] & _PF_W]
        for segment in sorted(loaded, key=lambda segment: segment[1] & _PF_X):
            yield segment[2], segment[5]

    def _pieces(self, at: int, size: int, *, overlap: int) -> Iterator[tuple[int, bytes]]:
        """A range piece by piece, each with the end of the one before it: (where it begins, its bytes)."""
        end = at + size
        tail = b""
        while at < end:
            piece = tail + self.read(at, min(_PIECE, end - at))
            yield at - len(tail), piece
            at += len(piece) - len(tail)
            tail = piece[-overlap:] if overlap else b""


def _sound_size(status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise ELFError("not a regular file")
    size = status.st_size
    if size > MAX_FILE_BYTES:
        raise ELFError(f"it is larger than {MAX_FILE_BYTES >> 30} GiB", is_trap=True)
    if size > _SPARSE_ABOVE and status.st_blocks * 512 * _SPARSE_RATIO < size:
        raise ELFError(f"it is sparse ({size >> 20} MiB, of which {status.st_blocks * 512 >> 20} on disk)", is_trap=True)
    if size < _EHDR.size:
        raise ELFError("too short")
    return size
