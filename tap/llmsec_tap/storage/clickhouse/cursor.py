"""Which parts of a folder one database has had: a file beside the store's, replaced in one step after every insert that was acknowledged.

Compaction moves rows from part to part while they wait. A merged part names all the parts whose rows it holds, through every merge
(compact.HOLDS_KEY), so each row is sent from one part: the merged one where not all of those had been sent, none where they had.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from llmsec_tap.errors import StorageError
from llmsec_tap.storage.compact import HOLDS_KEY, MERGED_SUFFIX, REPLACES_KEY, seq_of
from llmsec_tap.storage.damage import is_framed
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.publish import publishing, write_all
from llmsec_tap.storage.store import Store

# Parts lost that are remembered by name; beyond it the oldest are counted only.
MAX_NAMED: Final = 1000
DELETED: Final = "deleted before it was delivered"
DAMAGED: Final = "damaged"


class State(msgspec.Struct, kw_only=True):
    """`delivered` and `waiting` (its rows) by `day=…/part-….parquet`; `lost`: why, of parts that will not be delivered."""

    target: str
    delivered: set[str] = set()
    waiting: dict[str, int] = {}
    rows_delivered: int = 0
    rows_lost: int = 0
    lost: dict[str, str] = {}


@dataclass(frozen=True)
class _Part:
    """What its footer says: rows, and the parts whose rows these are (none for a part that no merge made)."""

    rows: int
    holds: frozenset[str]


@dataclass
class Cursor:
    store: Store
    target: str  # the database, without its password
    state: State = field(init=False)
    _seen: dict[str, _Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises StorageError where the file of an earlier run cannot be read."""
        self.state = State(target=self.target)
        try:
            self.state = msgspec.json.decode(self.path.read_bytes(), type=State)
        except FileNotFoundError:
            pass
        except OSError as fault:
            raise storage_error("cannot read", self.path, fault) from None
        except msgspec.DecodeError:
            raise StorageError(
                f"{self.path} is damaged", "delete that one file: everything is delivered again, which stores nothing twice"
            ) from None

    @property
    def path(self) -> Path:
        return self.store.root / f"delivery-{hashlib.sha256(self.target.encode()).hexdigest()[:12]}.json"

    def look(self) -> dict[str, int]:
        """What is there now: rows of each part that waits, the oldest first. `lost_now` are those that went away undelivered."""
        present: dict[str, _Part] = {}
        unreadable: list[str] = []
        for path in self.store.exchanges.glob("day=*/part-*.parquet"):
            name = f"{path.parent.name}/{path.name}"
            part = self._part(path, name)
            if part is not None:
                present[name] = part
            elif path.exists():
                unreadable.append(name)
        self._seen = dict(present)
        held = frozenset[str]().union(*(part.holds for part in present.values()))
        state = self.state
        for name, part in present.items():
            if name in state.delivered or name in state.lost or name in held:
                continue
            if part.holds and part.holds <= state.delivered:
                state.delivered.add(name)
            else:
                state.waiting[name] = part.rows
        for name in [name for name in state.waiting if name in held]:
            del state.waiting[name]  # the part that holds its rows waits, or has been sent
        for name in [name for name in state.waiting if name not in present and name not in unreadable]:
            self.lose(name, DELETED)
        for name in unreadable:
            if name not in state.delivered and name not in held and name not in state.lost:
                self.lose(name, DAMAGED)  # of a part that was never read nobody knows how many rows it had
        state.delivered &= {*present, *unreadable, *held}
        return {name: state.waiting[name] for name in sorted(state.waiting, key=lambda name: (seq_of(Path(name)), name))}

    def deliver(self, names: Mapping[str, int]) -> None:
        """These have been acknowledged, with so many rows."""
        for name, rows in names.items():
            self.state.waiting.pop(name, None)
            self.state.delivered.add(name)
            if name in self._seen:
                self.state.delivered |= self._seen[name].holds
            self.state.rows_delivered += rows

    def lose(self, name: str, why: str) -> None:
        """It will not be delivered: counted, and named."""
        self.state.rows_lost += self.state.waiting.pop(name, 0)
        self.state.lost[name] = why
        while len(self.state.lost) > MAX_NAMED:
            del self.state.lost[next(iter(self.state.lost))]

    def save(self) -> None:
        try:
            with publishing(self.path) as descriptor:
                write_all(descriptor, msgspec.json.encode(self.state))
        except OSError as fault:
            raise storage_error("cannot write", self.path, fault) from None

    def _part(self, path: Path, name: str) -> _Part | None:
        """None for one that cannot be read."""
        if name in self._seen:
            return self._seen[name]
        import pyarrow as pa  # type: ignore[import-untyped] # noqa: PLC0415
        import pyarrow.parquet as pq  # type: ignore[import-untyped] # noqa: PLC0415

        if not is_framed(path):
            return None
        try:
            found = pq.read_metadata(path)
            said = found.metadata or {}
            merged = path.name.endswith(MERGED_SUFFIX)
            holds = json.loads(said.get(HOLDS_KEY.encode()) or said.get(REPLACES_KEY.encode()) or b"[]") if merged else []
        except (OSError, ValueError, pa.ArrowException):
            return None
        return _Part(found.num_rows, frozenset(f"{path.parent.name}/{held}" for held in holds if isinstance(held, str)))
