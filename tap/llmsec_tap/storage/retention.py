"""What is deleted from a store, and when: days that are too old, then the oldest parts of one that is too large.

Only files that a writer made are touched (parts, and parts set aside as damaged). A reader that has opened a part reads it to its end; one that
listed it and comes too late leaves it out, as it does with one that compaction replaced.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmsec_tap.storage.compact import alone, seq_of
from llmsec_tap.storage.damage import DAMAGED_SUFFIX
from llmsec_tap.storage.store import Store

_NS_PER_DAY = 86_400_000_000_000


@dataclass(frozen=True)
class Retention:
    """`days`: a day of exchanges goes when all of it is older. `max_bytes`: of all parts together. None: no bound."""

    days: float | None = None
    max_bytes: int | None = None

    @property
    def is_bounded(self) -> bool:
        return self.days is not None or self.max_bytes is not None


@dataclass(frozen=True)
class Pruned:
    parts: int = 0
    bytes: int = 0


def prune(store: Store, now_ns: int, keep: Retention) -> Pruned:
    """Delete what `keep` does not keep. Does nothing while another process compacts or prunes. Raises StorageError where it cannot read."""
    count = size = 0
    with alone(store) as is_alone:
        if not is_alone:
            return Pruned()
        left: list[tuple[int, int, Path]] = []
        for folder in _days(store.exchanges):
            is_old = keep.days is not None and _ends_ns(folder.name) <= now_ns - keep.days * _NS_PER_DAY
            for path, bytes_ in _files(folder):
                if is_old:
                    count, size = count + 1, size + _delete(path, bytes_)
                else:
                    left.append((seq_of(Path(path.name.removesuffix(DAMAGED_SUFFIX))), bytes_, path))
            if is_old:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # unless somebody else's files are in it
        if keep.max_bytes is not None:
            total = sum(bytes_ for _, bytes_, _ in left)
            for _, bytes_, path in sorted(left):
                if total <= keep.max_bytes:
                    break
                total -= bytes_
                count, size = count + 1, size + _delete(path, bytes_)
    return Pruned(count, size)


def _days(exchanges: Path) -> Iterator[Path]:
    for folder in sorted(exchanges.glob("day=*")):
        if folder.is_dir() and not folder.is_symlink():
            yield folder


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in folder.glob("part-*.parquet*"):
        if path.name.endswith((".parquet", DAMAGED_SUFFIX)):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.lstat().st_size


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
