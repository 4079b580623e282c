"""Which parts of a folder one database has had: a file beside the store's, replaced in one step whenever that changes.

Compaction moves rows from part to part while they wait. A merged part names all the parts whose rows it holds, through every merge
(compact.HOLDS_KEY), so each row is sent from one part: the merged one where not all of those had been sent, none where they had.

Two kinds of process change the file, each under a lock and from what the file says then: the one that delivers, and whoever deletes parts
(backlog.py), which declares lost what it deletes undelivered.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import msgspec

from llmsec_tap.errors import StorageError
from llmsec_tap.storage.compact import HOLDS_KEY, MERGED_SUFFIX, REPLACES_KEY, seq_of
from llmsec_tap.storage.damage import DAMAGED_SUFFIX, is_framed
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.publish import give, publishing, write_all
from llmsec_tap.storage.store import Store

# Parts lost that are remembered by name; beyond it the oldest are counted only.
MAX_NAMED: Final = 1000
PATTERN: Final = "delivery-*.json"
# What parts go to: a database, which must have each row, or a collector of telemetry, which nobody keeps parts for.
Kind = Literal["delivery", "telemetry"]
DELETED: Final = "deleted before it was delivered"
DAMAGED: Final = "damaged"
# Row keys of parts that are lost in doubt, about a hundred thousand; beyond it such a part counts as lost, and may be there as well.
MAX_DOUBTFUL_BYTES: Final = 800_000
# A merge adds one to the stored_seq of a row (compact.py): the rest of it says which part a writer had put the row into.
_MERGES_BITS: Final = 8


class Lost(msgspec.Struct, frozen=True):
    """One part that will not be delivered: rows that the database has from no other part."""

    rows: int
    why: str


class State(msgspec.Struct, kw_only=True):
    """Parts are named `day=…/part-….parquet`. `waiting`: with the rows that no delivered part held. `lost`: parts that will not be delivered,
    the newest so many; `rows_lost` and `parts_lost` count all, `parts_told` those that the journal has heard of.

    `rows_deleted`: deleted on purpose before they were delivered. `max_bytes`: cap of what waits. `sending`: parts of inserts that the server has
    not acknowledged, so that nobody knows whether it has them; `doubtful`: of such parts that are lost, the row keys to ask it for.
    """

    target: str
    max_bytes: int | None = None
    delivered: set[str] = set()
    waiting: dict[str, int] = {}
    sending: set[str] = set()
    doubtful: dict[str, bytes] = {}
    rows_delivered: int = 0
    rows_lost: int = 0
    rows_deleted: int = 0
    parts_lost: int = 0
    parts_told: int = 0
    lost: dict[str, Lost] = {}


@dataclass(frozen=True)
class _Part:
    """What its footer says: rows, and the parts whose rows these are (none for a part that no merge made)."""

    changed_ns: int
    rows: int
    holds: frozenset[str]


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """Nobody else changes a cursor of this folder, nor deletes a part that waits, until the block ends. Raises StorageError."""
    try:
        descriptor = os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
    except OSError as fault:
        raise storage_error("cannot read", store.root, fault) from None


def path_of(store: Store, target: str, kind: Kind = "delivery") -> Path:
    return store.root / f"{kind}-{hashlib.sha256(target.encode()).hexdigest()[:12]}.json"


@dataclass
class Cursor:
    """Change it inside `changing`, or under `locked` between `refresh` and `save`. `state` alone may be read at any time."""

    store: Store
    target: str  # the database, without its password
    kind: Kind = "delivery"
    state: State = field(init=False)
    _seen: dict[str, _Part] = field(default_factory=dict)
    _counted: dict[str, tuple[_Part, frozenset[str], int]] = field(default_factory=dict)  # see _rows_without
    _version: tuple[int, int] | None = None  # of the file that `state` was read from or written to
    _unsaved: dict[str, int] = field(default_factory=dict)  # acknowledged, and not in the file yet
    _is_changed: bool = False

    def __post_init__(self) -> None:
        """Raises StorageError where the file of an earlier run cannot be read."""
        self.state = State(target=self.target)
        self.refresh()

    @property
    def path(self) -> Path:
        return path_of(self.store, self.target, self.kind)

    @contextmanager
    def changing(self) -> Iterator[State]:
        """Alone with the file, from what it says now; saved at the end. Raises StorageError where it cannot be read or written."""
        with locked(self.store):
            self.refresh()
            yield self.state
            self.save()

    def refresh(self) -> None:
        """Read what another process has written meanwhile. Raises StorageError."""
        try:
            facts = self.path.stat()
            version = facts.st_ino, facts.st_mtime_ns
            if version == self._version:
                return
            state = msgspec.json.decode(self.path.read_bytes(), type=State)
        except FileNotFoundError:
            self._version = None
            return
        except OSError as fault:
            raise storage_error("cannot read", self.path, fault) from None
        except msgspec.DecodeError:
            raise StorageError(
                f"{self.path} is damaged", "delete that one file: everything is delivered again, which stores nothing twice"
            ) from None
        self.state, self._version, self._is_changed = state, version, False
        unsaved, self._unsaved = self._unsaved, {}
        self.deliver({name: rows for name, rows in unsaved.items() if name not in state.delivered})

    def save(self) -> None:
        """Write it where it has changed. Raises StorageError; what is not written now is with the next call."""
        if not self._is_changed and self._version is not None:
            return
        try:
            with publishing(self.path) as descriptor:
                give(descriptor, self.store.root)
                write_all(descriptor, msgspec.json.encode(self.state))
            facts = self.path.stat()
        except OSError as fault:
            raise storage_error("cannot write", self.path, fault) from None
        self._version, self._is_changed = (facts.st_ino, facts.st_mtime_ns), False
        self._unsaved.clear()

    # --- what is there, and what became of it ---------------------------------------------------------------------------------

    def look(self) -> dict[str, int]:
        """What is there now: rows of each part that waits, the oldest first. Parts that went away undelivered are lost."""
        state = self.state
        present, unreadable = self._list()
        if any(name not in present for name in state.waiting):
            # A listing that a merge came into may have neither the merged part nor its originals.
            again, unreadable = self._list()
            present |= again
            present = {name: part for name, part in present.items() if name in again or name not in unreadable}
        self._seen = present
        self._counted = {name: counted for name, counted in self._counted.items() if name in present}
        held = frozenset[str]().union(*(part.holds for part in present.values()))
        for name, part in present.items():
            self._take_in(name, part, held)
        for name in [name for name in state.waiting if name in held]:
            del state.waiting[name]  # the part that holds its rows waits, or has been sent
            self._is_changed = True
        for name in [name for name in state.waiting if name not in present and name not in unreadable]:
            is_damaged = (self.store.exchanges / f"{name}{DAMAGED_SUFFIX}").exists()
            self.lose(name, DAMAGED if is_damaged else DELETED)
        for name in unreadable:
            # One of another user's is no damaged one.
            is_ours = os.access(self.store.exchanges / name, os.R_OK)
            if is_ours and name not in state.delivered and name not in held and name not in state.lost:
                self.lose(name, DAMAGED)  # of a part that was never read nobody knows how many rows it had
        undelivered = (part.holds for name, part in present.items() if name not in state.delivered)
        known = frozenset[str]({*present, *unreadable}).union(*undelivered)
        # What a delivered part is made of is read again where another merge takes it: a folder of months has a name for every five seconds.
        for name in state.delivered & present.keys():
            if present[name].holds:
                present[name] = replace(present[name], holds=frozenset())
        if not (state.delivered <= known and state.sending <= known):
            state.delivered &= known
            state.sending &= known
            self._is_changed = True
        return self.waiting()

    def bound(self, max_bytes: int | None) -> None:
        """Set the cap of what waits, for whoever writes and prunes the folder."""
        self._is_changed |= self.state.max_bytes != max_bytes
        self.state.max_bytes = max_bytes

    def waiting(self) -> dict[str, int]:
        """Rows of each part that waits, the oldest first."""
        return {name: self.state.waiting[name] for name in sorted(self.state.waiting, key=lambda name: (seq_of(Path(name)), name))}

    def is_new(self, name: str) -> Callable[[int | None], bool]:
        """Whether a row of this part is to be sent, by its stored_seq: a merged part may hold rows that were sent from another."""
        part = self._seen.get(name)
        came_with = {seq_of(Path(other)) >> _MERGES_BITS for other in (self._elsewhere(part) if part is not None else ())}
        return lambda seq: seq is None or seq >> _MERGES_BITS not in came_with

    def send(self, names: Iterable[str]) -> None:
        """They are about to be sent: until they are acknowledged, nobody knows whether the database has them."""
        new = set(names) - self.state.sending
        self.state.sending |= new
        self._is_changed |= bool(new)

    def deliver(self, names: Mapping[str, int]) -> None:
        """These have been acknowledged, with so many rows: also one that was declared lost while it was under way."""
        state = self.state
        for name, rows in names.items():
            state.waiting.pop(name, None)
            self._find(name)
            state.delivered.add(name)
            if name in self._seen:
                state.delivered |= self._seen[name].holds
            state.sending -= {name}
            state.rows_delivered += rows
            self._unsaved[name] = rows
            self._is_changed = True

    def lose(self, name: str, why: str, rows: int | None = None) -> int:
        """It will not be delivered, or `rows` of it will not: counted, and named. How many rows."""
        state = self.state
        waited = state.waiting.pop(name, 0)
        rows = waited if rows is None else rows
        state.lost.pop(name, None)
        state.lost[name] = Lost(rows, why)
        state.rows_lost += rows
        state.parts_lost += 1
        state.sending -= {name}
        while len(state.lost) > MAX_NAMED:
            oldest = next(iter(state.lost))
            del state.lost[oldest]
            state.doubtful.pop(oldest, None)
        self._is_changed = True
        return rows

    def doubt(self, name: str) -> None:
        """It is about to be lost: where an insert of it was not acknowledged, note its rows, so that the server can be asked which of them it has."""
        state = self.state
        if name not in state.sending or name not in self._seen:
            return
        keys = self._column(name, "row_key", self._elsewhere(self._seen[name]))
        if sum(map(len, state.doubtful.values())) + 8 * len(keys) <= MAX_DOUBTFUL_BYTES:
            state.doubtful[name] = array("q", keys).tobytes()
            self._is_changed = True

    def settle(self, name: str, found: int) -> None:
        """The database has so many rows of a part that was declared lost in doubt."""
        state = self.state
        state.doubtful.pop(name, None)
        lost = state.lost.get(name)
        if lost is not None and found:
            state.lost[name] = Lost(max(0, lost.rows - found), lost.why)
            state.rows_lost -= min(found, lost.rows)
            state.rows_delivered += found
            if found >= lost.rows:
                del state.lost[name]
                state.parts_lost -= 1
                state.parts_told = min(state.parts_told, state.parts_lost)
        self._is_changed = True

    def forget(self, name: str) -> None:
        """Its rows were deleted on purpose, by whoever may: it neither waits nor is lost."""
        if name in self.state.lost and self.state.lost[name].why == DELETED:  # somebody looked in between
            self.state.waiting[name] = self.state.lost[name].rows
            self._find(name)
        if name in self.state.waiting:
            self.state.rows_deleted += self.state.waiting.pop(name)
            self._is_changed = True

    def tell(self) -> dict[str, Lost]:
        """What was lost since this was last asked, by name, as far as names are remembered."""
        state = self.state
        new = state.parts_lost - state.parts_told
        if not new:
            return {}
        state.parts_told = state.parts_lost
        self._is_changed = True
        return dict(list(state.lost.items())[-new:])

    def _find(self, name: str) -> None:
        """What was thought lost is there after all."""
        lost = self.state.lost.pop(name, None)
        self.state.doubtful.pop(name, None)
        if lost is not None:
            self.state.rows_lost -= lost.rows
            self.state.parts_lost -= 1
            self.state.parts_told = min(self.state.parts_told, self.state.parts_lost)
            self._is_changed = True

    def _take_in(self, name: str, part: _Part, held: frozenset[str]) -> None:
        state = self.state
        if name in state.delivered or name in state.lost or name in held:
            return
        for other in part.holds & state.lost.keys():
            if state.lost[other].why == DELETED:
                self._find(other)
        others = self._elsewhere(part)
        if part.holds and part.holds <= others - state.lost.keys():
            state.delivered.add(name)
            self._is_changed = True
            return
        if part.holds & state.sending:
            self.send([name])
        rows = self._rows_without(name, part, others) if others else part.rows
        if state.waiting.get(name) != rows:
            if not others:
                state.rows_deleted += max(0, state.waiting.get(name, 0) - rows)  # the part was written anew without them
            state.waiting[name] = rows
            self._is_changed = True

    def _elsewhere(self, part: _Part) -> frozenset[str]:
        """Of the parts that one was merged from, those whose rows the database has, or that are declared lost."""
        state = self.state
        found = set(part.holds & (state.delivered | state.lost.keys()))
        for name in [name for name in found if name.endswith(MERGED_SUFFIX) and name in state.delivered]:
            merged = _read(self.store.exchanges / name)
            if merged is not None:
                found |= merged.holds & part.holds
        return frozenset(found)

    def _list(self) -> tuple[dict[str, _Part], list[str]]:
        """What is there, and what of it cannot be read."""
        present: dict[str, _Part] = {}
        unreadable: list[str] = []
        for path in self.store.exchanges.glob("day=*/part-*.parquet"):
            name = f"{path.parent.name}/{path.name}"
            part = self._part(path, name)
            if part is not None:
                present[name] = part
            elif path.exists():
                unreadable.append(name)
        return present, unreadable

    def _part(self, path: Path, name: str) -> _Part | None:
        """None for one that cannot be read."""
        try:
            if name in self._seen and self._seen[name].changed_ns == path.stat().st_mtime_ns:
                return self._seen[name]
        except OSError:
            return None
        return _read(path)

    def _rows_without(self, name: str, part: _Part, others: frozenset[str]) -> int:
        """Rows of a merged part that came from none of `others`."""
        if name not in self._counted or self._counted[name][:2] != (part, others):
            self._counted[name] = part, others, len(self._column(name, "stored_seq", others))
        return self._counted[name][2]

    def _column(self, name: str, column: str, others: frozenset[str]) -> list[int]:
        """A column of a part, without the rows that came from `others`; empty where it cannot be read."""
        import pyarrow as pa  # type: ignore[import-untyped] # noqa: PLC0415
        import pyarrow.parquet as pq  # type: ignore[import-untyped] # noqa: PLC0415

        came_with = {seq_of(Path(other)) >> _MERGES_BITS for other in others}
        try:
            with pq.ParquetFile(self.store.exchanges / name, memory_map=False) as file:
                table = file.read(columns=list({column, "stored_seq"}), use_threads=False)
        except (OSError, ValueError, pa.ArrowException):
            return []
        rows = zip(table.column("stored_seq").to_pylist(), table.column(column).to_pylist(), strict=True)
        return [value for seq, value in rows if seq is not None and value is not None and seq >> _MERGES_BITS not in came_with]


def _read(path: Path) -> _Part | None:
    """A part's footer; None where it cannot be read."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        changed = path.stat().st_mtime_ns
        if not is_framed(path):
            return None
        found = pq.read_metadata(path)
        said = found.metadata or {}
        merged = path.name.endswith(MERGED_SUFFIX)
        holds = json.loads(said.get(HOLDS_KEY.encode()) or said.get(REPLACES_KEY.encode()) or b"[]") if merged else []
    except (OSError, ValueError, pa.ArrowException):
        return None
    return _Part(changed, found.num_rows, frozenset(f"{path.parent.name}/{held}" for held in holds if isinstance(held, str)))
