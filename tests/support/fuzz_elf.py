"""The fuzz target of the ELF reader: a file with its bytes exchanged, by an owner who goes on changing it while it is read."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from llmsec_tap.capture.probes.elf import ELFError, ELFFile
from llmsec_tap.capture.probes.mapped import MappedFile
from llmsec_tap.capture.probes.needed import read_needs
from llmsec_tap.capture.probes.targets import Findings, TargetFinder
from support.elf import TEXT_AT, elf, symbol

LIBRARY = elf(
    b"\0SSL_read\0SSL_write\0SSL_read_ex\0SSL_write_ex\0BoringSSL\0",
    symbol(0, 0) + symbol(1, TEXT_AT) + symbol(10, TEXT_AT + 16) + symbol(20, TEXT_AT + 32) + symbol(32, TEXT_AT + 48),
    text=(b"\xf3\x0f\x1e\xfa\x55\xe8\x0b\x00\x00\x00\x5d\xc3\x90\x90\x90\x90" * 4).ljust(512, b"\xc3"),
)
_CHANGE = struct.Struct("<BHI")  # before which read (255: before the first), where, what (0xFFFFFFFF: cut the file there)


class _Changing(ELFFile):
    def __init__(self, descriptor: int, changes: list[tuple[int, int, int]]) -> None:
        self._changes = changes
        self._reads = 0
        super().__init__(descriptor)

    def read(self, offset: int, size: int) -> bytes:
        for when, at, what in self._changes:
            if when == self._reads:
                _change(self._fd, at, what)
        self._reads = min(self._reads + 1, 254)
        return super().read(offset, size)


def _change(descriptor: int, at: int, what: int) -> None:
    if what == 0xFFFFFFFF:
        os.ftruncate(descriptor, at)
    else:
        os.pwrite(descriptor, what.to_bytes(4, "little"), at)


@contextmanager
def _file() -> Iterator[int]:
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, LIBRARY)
        yield descriptor
    finally:
        os.close(descriptor)


def elf_file(data: bytes) -> None:
    """Never anything but ELFError, and a probe only inside the code that the file had when it was looked at."""
    changes = [_CHANGE.unpack_from(data, at) for at in range(0, len(data) - _CHANGE.size + 1, _CHANGE.size)][:64]
    for is_exe, name in ((False, "/usr/lib/libssl.so.3"), (True, "/usr/bin/program"), (False, "/lib64/ld-linux-x86-64.so.2")):
        with _file() as descriptor:
            for when, at, what in changes:
                if when == 255:
                    _change(descriptor, at, what)
            found = Findings()
            try:
                file = _Changing(descriptor, changes)
                finder, mapped = TargetFinder(), MappedFile(name, ("00:00", 1), name, is_exe)
                finder._examine_build(file, mapped, found)
                finder._examine_build(file, mapped, Findings())  # of a build that is known by now, where it has an id
                read_needs(file)
            except ELFError:
                continue
            for plan in (*found.plans, *found.linkers):
                for probe in plan.probes:
                    assert any(segment[1] & 1 and segment[2] <= probe.offset < segment[2] + segment[5] for segment in file.segments), (
                        "a probe outside of code"
                    )


def elf_seeds() -> list[bytes]:
    return [
        b"",
        _CHANGE.pack(255, 0x20, 0),
        _CHANGE.pack(3, 200, 0xFFFFFFFF),
        _CHANGE.pack(255, TEXT_AT, 0x90909090) + _CHANGE.pack(2, 40, 0xFFFFFF),
        b"".join(_CHANGE.pack(when, 64 + when * 8, 0x7FFFFFFF) for when in range(8)),
    ]
