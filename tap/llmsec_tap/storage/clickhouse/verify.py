"""Whether what a folder holds is in the database, and whether what its taps saw is anywhere.

Every exchange's key is asked for, and what is missing is named. What runs of taps said that they saw (taps.py) is the other side of the account.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmsec_tap.storage.clickhouse.client import translated
from llmsec_tap.storage.clickhouse.tables import EXCHANGE_TABLE, Layout
from llmsec_tap.storage.cursor import State
from llmsec_tap.storage.store import Store

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# Keys of one question: 20 bytes each in an address or a body.
CHUNK: Final = 2_000
MAX_NAMED: Final = 20


@dataclass(frozen=True)
class Compared:
    """Exchanges of the folder, those of them in the database, and ids of some that are not."""

    folder: int
    database: int
    missing: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return self.folder == self.database

    def __add__(self, other: Compared) -> Compared:
        missing = (*self.missing, *other.missing)[:MAX_NAMED]
        return Compared(self.folder + other.folder, self.database + other.database, missing)


def present(keys: Iterable[int], client: Client, layout: Layout) -> set[int]:
    """Which of these row keys the database has; no more than CHUNK of them at once. Raises StorageError."""
    # In the statement itself, which is a body: as a parameter so many go in an address, or in a form that not every proxy lets through.
    wanted = ", ".join(str(int(key)) for key in keys)
    with translated(layout.database):
        found = client.query(f"SELECT DISTINCT row_key FROM {layout.table(EXCHANGE_TABLE)} WHERE row_key IN ({wanted})").result_rows  # noqa: S608 - numbers
    return {row[0] for row in found}


def compare(rows: Iterable[tuple[str, int]], client: Client, layout: Layout) -> Compared:
    """`rows`: id and row_key of each exchange that the folder holds. Memory does not grow with them. Raises StorageError."""
    folder = database = 0
    missing: list[str] = []
    chunk: dict[int, str] = {}

    def ask() -> None:
        nonlocal folder, database
        there = present(chunk, client, layout)
        folder += len(chunk)
        database += len(there)
        missing.extend([exchange_id for key, exchange_id in chunk.items() if key not in there][: MAX_NAMED - len(missing)])
        chunk.clear()

    for exchange_id, key in rows:
        chunk[key] = exchange_id
        if len(chunk) >= CHUNK:
            ask()
    if chunk:
        ask()
    return Compared(folder, database, tuple(missing))


@dataclass(frozen=True)
class TapRun:
    """What one run said last: a row of the view `taps`."""

    node: str
    started_ns: int
    pid: int
    heartbeat_ns: int
    stopped_ns: int | None
    exchanges: int
    not_stored: int


@dataclass(frozen=True)
class Account:
    """Exchanges that the taps of some nodes saw, and where they are. `is_settled`: all of their runs ended in order, so that it must be even."""

    nodes: tuple[str, ...]
    seen: int
    database: int
    waiting: int
    lost: int
    deleted: int
    not_stored: int
    is_settled: bool

    @property
    def missing(self) -> int:
        """Negative where a tap has not said yet that it saw what is stored already."""
        return self.seen - self.database - self.waiting - self.lost - self.deleted - self.not_stored

    def __str__(self) -> str:
        return (
            f"taps of {', '.join(self.nodes)} saw {self.seen} exchanges: {self.database} in the database, {self.waiting} waiting, "
            f"{self.lost} declared lost, {self.deleted} deleted before delivery, {self.not_stored} not stored, {self.missing} missing"
        )


RUN_COLUMNS: Final = "node, started_ns, pid, heartbeat_ns, stopped_ns, exchanges, not_stored"


def account(runs: Iterable[TapRun], here: Compared, state: State, store: Store, client: Client, layout: Layout) -> Account | None:
    """`runs` and `here`: of the folder, its exchanges with a node. None where no tap ever wrote to it. Raises StorageError."""
    newest = {(run.node, run.started_ns, run.pid): run for run in runs}
    nodes = sorted({run.node for run in newest.values()})
    if not nodes:
        return None
    with translated(layout.database):
        known = client.query(
            f"SELECT {RUN_COLUMNS} FROM {layout.table('taps')} WHERE node IN {{nodes:Array(String)}}",  # noqa: S608 - names of ours
            parameters={"nodes": nodes},
        ).result_rows
        ((database,),) = client.query(
            f"SELECT count() FROM {layout.table('exchanges')} WHERE node IN {{nodes:Array(String)}}",  # noqa: S608 - a name of ours
            parameters={"nodes": nodes},
        ).result_rows
    for run in (TapRun(*row) for row in known):
        key = run.node, run.started_ns, run.pid
        if key not in newest or newest[key].heartbeat_ns < run.heartbeat_ns:
            newest[key] = run
    # Parts with rows that the server refuses stay in the folder.
    lost_here = sum(lost.rows for name, lost in state.lost.items() if (store.exchanges / name).exists())
    return Account(
        nodes=tuple(nodes),
        seen=sum(run.exchanges for run in newest.values()),
        database=database,
        waiting=max(0, here.folder - here.database - lost_here),
        lost=state.rows_lost,
        deleted=state.rows_deleted,
        not_stored=sum(run.not_stored for run in newest.values()),
        is_settled=all(run.stopped_ns is not None for run in newest.values()),
    )
