"""Which taps wrote to a store, and when each was last alive: a small file for each run, replaced in one step at every beat.

A tap that ends in order says so with its last beat. One without an end, whose last beat is old, has died or cannot write.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.publish import publishing, write_all
from llmsec_tap.storage.schema import TAP_COLUMNS, TAPS
from llmsec_tap.storage.store import Store

BEAT_S: Final = 15.0
# Runs that are remembered; a store of an agent that is restarted every minute would be full of them else.
MAX_RUNS: Final = 1000


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What a tap reads from, or could not: a library or program with TLS, plain HTTP at sockets, an interface.

    `processes`: how many map the file; None where it is no file. `problem`: why it is not read; None where it is.
    """

    reads: str
    target: str
    symbols: str = ""
    processes: int | None = None
    problem: str | None = None


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a tap at one moment; times are epoch nanoseconds, `pid` is the process that decodes.

    `not_stored`: exchanges that this store could not take. `lost_records`: pieces of calls that were dropped before they were decoded.
    `degradation`: 0 normal to 3 emergency. `probes`: the first of those `probed`, which it reads from, and of the `unprobed`.
    """

    node: str
    pid: int
    version: str
    started_ns: int
    heartbeat_ns: int
    stopped_ns: int | None = None
    exchanges: int = 0
    not_stored: int = 0
    lost_records: int = 0
    degradation: int = 0
    probes: tuple[Probe, ...] = ()
    probed: int = 0
    unprobed: int = 0


def write_beat(store: Store, beat: Beat) -> None:
    """Raises StorageError where the store cannot be written."""
    from llmsec_tap.storage import parquet  # noqa: PLC0415

    folder = store.exchanges / TAPS
    target = folder / f"tap-{beat.started_ns:019d}-{beat.pid}.parquet"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not target.exists():
            _forget_oldest(folder)
        with publishing(target) as descriptor:
            write_all(descriptor, parquet.small_table(TAP_COLUMNS, [msgspec.to_builtins(beat)]))
    except OSError as fault:
        raise storage_error("cannot write", store.shown / "exchanges" / TAPS, fault) from None


def _forget_oldest(folder: Path) -> None:
    for path in sorted(folder.glob("tap-*.parquet"))[: -MAX_RUNS + 1]:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
