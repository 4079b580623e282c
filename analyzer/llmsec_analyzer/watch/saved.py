"""What is known of subjects, over restarts: one file, written beside and renamed, for the owner alone.

The file is pieces of a thousand subjects, each with its length before it, so that a run that must not stop writes a piece now and then.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from llmsec_analyzer.watch.subjects import MAX_SUBJECTS, AnySubject, Subjects
from llmsec_tap.storage.publish import publishing, write_all

VERSION: Final = 1
# 100,000 subjects take about a tenth of it.
_MAX_BYTES: Final = 512 << 20
_LENGTH: Final = struct.Struct("<I")
_PIECE: Final = 1000


class _Piece(msgspec.Struct):
    version: int
    subjects: list[tuple[str, AnySubject]]


class Saving:
    """Call `step` until it says that it is done; what changes meanwhile is saved as it is when its piece comes."""

    def __init__(self, subjects: Subjects, path: Path) -> None:
        self._path = path
        self._pieces = _pieces(subjects)
        self._written: list[bytes] = []

    def step(self) -> bool:
        """A piece, or the file in its place. Raises OSError."""
        piece = next(self._pieces, None)
        if piece is not None:
            self._written += (_LENGTH.pack(len(piece)), piece)
            return False
        with publishing(self._path) as descriptor:
            write_all(descriptor, b"".join(self._written))
        return True


def save(subjects: Subjects, path: Path) -> None:
    """At once. Raises OSError."""
    saving = Saving(subjects, path)
    while not saving.step():
        pass


def _pieces(subjects: Subjects) -> Iterator[bytes]:
    items = subjects.items()
    for at in range(0, len(items), _PIECE):
        yield msgspec.msgpack.encode(_Piece(VERSION, items[at : at + _PIECE]))


def load(path: Path, most: int = MAX_SUBJECTS) -> tuple[Subjects, str]:
    """What was saved, and what is wrong with it: then nothing is known, and all begins anew. No file is nothing wrong.

    `most`: so many subjects are known, those seen last.
    """
    subjects, count = Subjects(most), 0
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return subjects, ""
    except OSError as fault:
        return subjects, fault.strerror or str(fault)
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            return subjects, "it is larger than what is ever written"
        try:
            while head := file.read(_LENGTH.size):
                (size,) = _LENGTH.unpack(head)
                piece = msgspec.msgpack.decode(file.read(min(size, _MAX_BYTES)), type=_Piece)
                if piece.version != VERSION:
                    return Subjects(most), "another version wrote it"
                count += len(piece.subjects)
                if count > MAX_SUBJECTS:
                    return Subjects(most), "it holds more than what is ever written"
                for name, subject in piece.subjects:
                    subjects.put(name, subject)
        except (msgspec.MsgspecError, struct.error, OSError, RecursionError):
            return Subjects(most), "it is damaged"
    return subjects, ""
