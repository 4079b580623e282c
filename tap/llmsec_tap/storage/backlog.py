"""What of a folder waits to be delivered, as whoever deletes parts has to know it: nothing that waits goes without being declared lost.

A database that a folder is delivered to has a cursor there (cursor.py), whether its deliverer runs or not. Where there is none, nothing waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from llmsec_tap.errors import StorageError
from llmsec_tap.storage.cursor import PATTERN, Cursor, State, locked, path_of
from llmsec_tap.storage.store import Store

OVER_BUFFER: Final = "beyond max_buffer_size"
OVER_BYTES: Final = "beyond retention.bytes"


class _Target(msgspec.Struct):
    target: str


@dataclass(frozen=True)
class Waiting:
    """Of one moment, and true for as long as `Backlog.look` holds its lock."""

    store: Store
    cursors: tuple[Cursor, ...]

    def __contains__(self, path: Path) -> bool:
        name = _name(path)
        return any(name in cursor.state.waiting for cursor in self.cursors)

    def drop(self, path: Path, why: str) -> int:
        """Delete a part and declare it lost to each database that has not had it; the most rows that one of them lacks.

        A kill in the middle leaves a part that waited and is gone, which the next look declares lost with the same rows.
        """
        name = _name(path)
        for cursor in self.cursors:
            cursor.doubt(name)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return max((cursor.lose(name, why) for cursor in self.cursors if name in cursor.state.waiting), default=0)

    def forget(self, path: Path) -> None:
        """Its last row was deleted on purpose, which somebody else has put on record."""
        for cursor in self.cursors:
            cursor.forget(_name(path))


class Backlog:
    """Keep one for as long as there is something to delete: it reads the footer of each part once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cursors: dict[str, Cursor] = {}

    def states(self) -> list[State]:
        """What each cursor says now, as far as it can be read. It waits for no lock."""
        return list(self._states())

    @property
    def max_bytes(self) -> int | None:
        """The least cap of what waits, as the deliverers were told; None: there is none. It waits for no lock."""
        return min((size for state in self._states() if (size := state.max_bytes) is not None), default=None)

    @contextmanager
    def look(self) -> Iterator[Waiting]:
        """What waits now; nobody delivers, and nobody else drops, until the block ends. Raises StorageError."""
        if not any(self._store.root.glob(PATTERN)):
            yield Waiting(self._store, ())
            return
        with locked(self._store):
            list(self._states())
            cursors = tuple(self._cursors.values())
            for cursor in cursors:
                cursor.look()
            _save(cursors)  # what is dropped next was known to wait, with its rows
            try:
                yield Waiting(self._store, cursors)
            finally:
                _save(cursors)

    def _states(self) -> Iterator[State]:
        found: dict[str, Cursor] = {}
        for path in self._store.root.glob(PATTERN):
            # The deliverer says what is wrong with a cursor; nobody stops storing because of it.
            with contextlib.suppress(OSError, StorageError, msgspec.DecodeError):
                cursor = self._cursors.get(path.name)
                if cursor is None:
                    target = msgspec.json.decode(path.read_bytes(), type=_Target).target
                    if path_of(self._store, target).name != path.name:
                        continue
                    cursor = Cursor(self._store, target)
                else:
                    cursor.refresh()
                found[path.name] = cursor
        self._cursors = found
        for cursor in found.values():
            yield cursor.state


def _save(cursors: tuple[Cursor, ...]) -> None:
    """A full disk must not keep anybody from making room on it; what could not be written is, with the next look."""
    for cursor in cursors:
        with contextlib.suppress(StorageError):
            cursor.save()


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
