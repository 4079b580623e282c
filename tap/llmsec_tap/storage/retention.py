"""What is deleted from a store, and when: whole days that are too old, classes of what is in rows, the oldest parts of a store that is too large.

Only files that a writer made are touched (parts, and parts set aside as damaged). A reader that has opened a part reads it to its end; one that
listed it and comes too late leaves it out, as it does with one that compaction replaced.

A part that waits to be delivered to a database (backlog.py) outlives its days; only the bounds in bytes take it, after all that has been
delivered, and then it is declared lost.

The policy is kept in the store itself (retention.json), so that whoever compacts it honours it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llmsec_tap.errors import StorageError
from llmsec_tap.journal import SILENT, Journal
from llmsec_tap.storage.backlog import OVER_BUFFER, OVER_BYTES, Backlog
from llmsec_tap.storage.compact import alone, seq_of
from llmsec_tap.storage.damage import DAMAGED_SUFFIX
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.publish import publishing, write_all
from llmsec_tap.storage.store import Store

if TYPE_CHECKING:
    from llmsec_tap.storage.rewrite import Decide

POLICY_NAME: Final = "retention.json"
_NS_PER_DAY = 86_400_000_000_000


class Keep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Days for each class of what a row holds; None: as long as the row. `metadata` is the row itself.

    A row with findings stays, without its texts, until its findings may go, too.
    """

    content: float | None = None
    findings: float | None = None
    metadata: float | None = None


class Retention(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`days`: a day of exchanges goes when all of it is older. `max_bytes`: of all parts together. None: no bound.

    `content_bytes`: of the parts with texts; the oldest lose theirs. `tenants`: instead of `keep`, for these tenants' rows.
    """

    days: float | None = None
    max_bytes: int | None = None
    keep: Keep = Keep()
    content_bytes: int | None = None
    tenants: dict[str, Keep] = {}
    audit_days: float | None = None
    audit_bytes: int | None = None

    @property
    def is_bounded(self) -> bool:
        return self != Retention()

    @property
    def takes_from_rows(self) -> bool:
        """Something in it looks into the parts, and rewrites them."""
        return self.keep != Keep() or self.content_bytes is not None or any(keep != Keep() for keep in self.tenants.values())


# Parts dropped undelivered that a result names.
_MAX_NAMED: Final = 20


class Pruned(msgspec.Struct, frozen=True, omit_defaults=True):
    """Files deleted and bytes that the disk has back; rows deleted and rows stripped, out of parts that stay.

    `dropped`: of the files, those that were not delivered yet, with `dropped_rows` rows; `names` of the newest of them.
    """

    parts: int = 0
    bytes: int = 0
    rows: int = 0
    stripped: int = 0
    dropped: int = 0
    dropped_rows: int = 0
    names: tuple[str, ...] = ()

    def __add__(self, other: object) -> Pruned:
        if not isinstance(other, Pruned):
            return NotImplemented
        return Pruned(
            self.parts + other.parts,
            self.bytes + other.bytes,
            self.rows + other.rows,
            self.stripped + other.stripped,
            self.dropped + other.dropped,
            self.dropped_rows + other.dropped_rows,
            (*self.names, *other.names)[-_MAX_NAMED:],
        )

    def since(self, earlier: Pruned) -> Pruned:
        """What was added to `earlier` to give this."""
        new = self.dropped - earlier.dropped
        return Pruned(
            self.parts - earlier.parts,
            self.bytes - earlier.bytes,
            self.rows - earlier.rows,
            self.stripped - earlier.stripped,
            new,
            self.dropped_rows - earlier.dropped_rows,
            self.names[-new:] if new else (),
        )


def write_policy(store: Store, retention: Retention) -> None:
    """Keep it with the store. Raises StorageError."""
    try:
        with publishing(store.root / POLICY_NAME) as file:
            write_all(file, msgspec.json.format(msgspec.json.encode(retention)) + b"\n")
    except OSError as fault:
        raise storage_error("cannot write", store.root / POLICY_NAME, fault) from None


def read_policy(store: Store) -> Retention:
    """That of the store; without bounds where it has none. Raises StorageError."""
    path = store.root / POLICY_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Retention)
    except FileNotFoundError:
        return Retention()
    except OSError as fault:
        raise storage_error("cannot read", path, fault) from None
    except msgspec.DecodeError:
        raise StorageError(f"{path} is damaged", "delete that one file: the next capture writes it anew") from None


def prune(
    store: Store, now_ns: int, keep: Retention, journal: Journal = SILENT, *, wait_s: float = 0.0, backlog: Backlog | None = None
) -> Pruned:
    """Delete what `keep` does not keep. Days and rows wait while another process compacts or prunes. Raises StorageError where it cannot read."""
    pruned = Pruned()
    backlog = backlog or Backlog(store)
    if keep.days is not None or keep.takes_from_rows:
        with alone(store, wait_s) as is_alone:
            if is_alone:
                if keep.days is not None:
                    pruned += _prune_days(store, now_ns, keep.days, backlog)
                if keep.takes_from_rows:
                    pruned += _prune_rows(store, now_ns, keep, journal, backlog)
    return pruned + make_room(store, 0, keep.max_bytes, backlog)


def make_room(store: Store, size: int, max_bytes: int | None, backlog: Backlog) -> Pruned:
    """Delete parts until `size` more bytes fit, both into `max_bytes` and into the cap of what waits: the oldest, those first that were delivered.

    It waits for nobody that compacts: a part that compaction reads meanwhile is only older than others.
    """
    cap = backlog.max_bytes
    least = min((bound for bound in (max_bytes, cap) if bound is not None), default=None)
    if least is None:
        return Pruned()
    parts = sorted((_age(path), bytes_, path) for folder in _days(store.exchanges) for path, bytes_ in _files(folder))
    total = size + sum(bytes_ for _, bytes_, _ in parts)
    if total <= least:
        return Pruned()
    pruned = Pruned()
    with backlog.look() as waiting:
        waits = [part for part in parts if part[2] in waiting]
        for _, bytes_, path in parts:
            if max_bytes is None or total <= max_bytes:
                break
            if path not in waiting:
                total -= bytes_
                pruned += Pruned(1, _delete(path, bytes_))
        waiting_bytes = size + sum(bytes_ for _, bytes_, _ in waits)
        for _, bytes_, path in waits:
            is_over = cap is not None and waiting_bytes > cap
            if not is_over and (max_bytes is None or total <= max_bytes):
                break
            total, waiting_bytes = total - bytes_, waiting_bytes - bytes_
            rows = waiting.drop(path, OVER_BUFFER if is_over else OVER_BYTES)
            pruned += Pruned(1, bytes_, dropped=1, dropped_rows=rows, names=(f"{path.parent.name}/{path.name}",))
    for folder in {path.parent for _, _, path in parts}:
        with contextlib.suppress(OSError):
            folder.rmdir()  # unless something is left in it
    return pruned


def _prune_days(store: Store, now_ns: int, days: float, backlog: Backlog) -> Pruned:
    count = size = 0
    over = {folder: list(_files(folder)) for folder in _days(store.exchanges) if _ends_ns(folder.name) <= now_ns - days * _NS_PER_DAY}
    if not over:
        return Pruned()
    with backlog.look() as waiting:
        for folder, files in over.items():
            for path, bytes_ in files:
                if path not in waiting:
                    count, size = count + 1, size + _delete(path, bytes_)
            with contextlib.suppress(OSError):
                folder.rmdir()  # unless somebody else's files are in it
    return Pruned(count, size)


def decide_at(keep: Retention, age_days: float) -> Decide | None:
    """What the classes of `keep` take from rows of a day that was over so long ago; None: nothing."""
    from llmsec_tap.storage.rewrite import Action, RowFacts  # noqa: PLC0415

    def due(classes: Keep) -> Action:
        action = Action.NOTHING
        for days, what in ((classes.content, Action.CONTENT), (classes.findings, Action.FINDINGS), (classes.metadata, Action.ROW)):
            if days is not None and age_days >= days:
                action |= what
        if Action.ROW in action and classes.findings is not None and Action.FINDINGS not in action:
            # Only rows with findings stay; `decide` knows which those are.
            action |= Action.CONTENT
        return action

    usual = due(keep.keep)
    by_tenant = {name: due(classes) for name, classes in keep.tenants.items()}
    if not usual and not any(by_tenant.values()):
        return None

    def decide(row: RowFacts) -> Action:
        classes = keep.tenants.get(row.tenant, keep.keep) if row.tenant is not None else keep.keep
        action = by_tenant.get(row.tenant, usual) if row.tenant is not None else usual
        if Action.ROW in action:
            outlives = row.has_findings and classes.findings is not None and Action.FINDINGS not in action
            if not outlives:
                return Action.ROW
            action &= ~Action.ROW
        if row.is_bare:
            action &= ~Action.CONTENT
        if not row.has_findings:
            action &= ~Action.FINDINGS
        return action

    return decide


def _prune_rows(store: Store, now_ns: int, keep: Retention, journal: Journal, backlog: Backlog) -> Pruned:
    from llmsec_tap.storage.rewrite import Action, RowFacts, Taken, is_bare, take  # noqa: PLC0415

    def undelivered(decide: Decide) -> Decide:
        """The texts of a row go when they are due, the row itself after it was delivered."""

        def decide_later(row: RowFacts) -> Action:
            action = decide(row)
            if Action.ROW in action:
                return Action.NOTHING if row.is_bare else Action.CONTENT
            return action

        return decide_later

    taken = Taken()
    over: list[tuple[Path, Decide, list[Path]]] = []
    for folder in _days(store.exchanges):
        decide = decide_at(keep, (now_ns - _ends_ns(folder.name)) / _NS_PER_DAY)
        if decide is not None:
            over.append((folder, decide, sorted(path for path in folder.glob("part-*.parquet") if not path.is_symlink())))
    # What was listed before and does not wait now was delivered; writing parts anew is too slow to hold up who delivers.
    with backlog.look() as waiting:
        pass
    for folder, decide, paths in over:
        for path in paths:
            taken += take(path, undelivered(decide) if path in waiting else decide, journal)
        with contextlib.suppress(OSError):
            folder.rmdir()
    if keep.content_bytes is not None:
        whole = sorted(
            (_age(path), bytes_, path)
            for folder in _days(store.exchanges)
            for path, bytes_ in _files(folder)
            if path.suffix == ".parquet" and not path.is_symlink() and not is_bare(path)
        )
        total = sum(bytes_ for _, bytes_, _ in whole)
        for _, bytes_, path in whole:
            if total <= keep.content_bytes:
                break
            total -= bytes_
            taken += take(path, lambda row: Action.NOTHING if row.is_bare else Action.CONTENT, journal)
    return Pruned(0, taken.bytes, taken.rows, taken.stripped)


def _days(exchanges: Path) -> Iterator[Path]:
    for folder in sorted(exchanges.glob("day=*")):
        if folder.is_dir() and not folder.is_symlink():
            yield folder


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in folder.glob("part-*.parquet*"):
        if path.name.endswith((".parquet", DAMAGED_SUFFIX)):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.lstat().st_size


def _age(path: Path) -> int:
    return seq_of(Path(path.name.removesuffix(DAMAGED_SUFFIX)))


def _ends_ns(name: str) -> float:
    """When the day of a folder is over; never for one that names none."""
    try:
        day = dt.datetime.fromisoformat(name.removeprefix("day=")).replace(tzinfo=dt.UTC)
    except ValueError:
        return float("inf")
    return (day.timestamp() + 86_400) * 1e9


def _delete(path: Path, size: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return size
