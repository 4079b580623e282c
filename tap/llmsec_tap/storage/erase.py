"""Records of one tenant, end user or exchange, deleted from every part of a store, or stripped of their texts while counts stay."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

import msgspec

from llmsec_tap.errors import StorageError
from llmsec_tap.journal import Journal
from llmsec_tap.storage.backlog import Backlog
from llmsec_tap.storage.compact import alone
from llmsec_tap.storage.damage import DAMAGED_SUFFIX, parts
from llmsec_tap.storage.store import Store

# A merge of a large store takes so long at most.
WAIT_S = 120.0


class Subject(msgspec.Struct, frozen=True):
    """Whose records: rows in whose column `kind` one of `values` stands."""

    kind: Literal["tenant", "end_user", "exchange_id"]
    values: frozenset[str]


class Erased(msgspec.Struct, frozen=True):
    """`damaged`: parts set aside earlier, which may hold more of the subject's records and cannot be searched."""

    rows: int
    stripped: int
    parts: int
    damaged: int


def erase(
    store: Store, subject: Subject, journal: Journal, *, content_only: bool = False, really: bool = True, wait_s: float = WAIT_S
) -> Erased:
    """Take the subject's rows out of all parts. Raises StorageError where the store cannot be written, or somebody else changes it for too long."""
    from llmsec_tap.storage.rewrite import Action, RowFacts, Taken, take  # noqa: PLC0415

    def decide(row: RowFacts) -> Action:
        if getattr(row, subject.kind) not in subject.values:
            return Action.NOTHING
        if content_only:
            return Action.NOTHING if row.is_bare else Action.CONTENT
        return Action.ROW

    taken = Taken()
    with alone(store, wait_s) as is_alone:
        if not is_alone:
            raise StorageError(
                f"{store.shown} is being compacted or pruned by another process", "Try again when that has ended.", retryable=True
            )
        backlog = Backlog(store)
        for path in parts(store.exchanges):
            if path.parent.name.startswith("day=") and not path.is_symlink():
                taken += take(path, decide, journal, really=really)
                if really and not path.exists():
                    with backlog.look() as waiting:
                        waiting.forget(path)  # not lost on its way to a database: deleted, as the receipt says
                with contextlib.suppress(OSError):
                    path.parent.rmdir()
        damaged = len(damaged_parts(store))
    return Erased(taken.rows, taken.stripped, taken.parts, damaged)


def damaged_parts(store: Store) -> list[Path]:
    """Parts that were set aside."""
    return sorted(path for path in store.exchanges.glob(f"day=*/part-*{DAMAGED_SUFFIX}") if path.is_file() and not path.is_symlink())
