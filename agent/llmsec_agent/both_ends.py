"""A folder and the database that it is delivered to, side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from llmsec_agent.fleet import Database
from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.errors import StorageError
from llmsec_tap.journal import Journal
from llmsec_tap.storage.clickhouse.client import READ_ONLY, connect
from llmsec_tap.storage.clickhouse.migrations import check_version
from llmsec_tap.storage.clickhouse.verify import RUN_COLUMNS, Account, Compared, TapRun, account, compare
from llmsec_tap.storage.cursor import Cursor, State
from llmsec_tap.storage.deliverer import Status, read_status
from llmsec_tap.storage.rows import row_key
from llmsec_tap.storage.store import Store


@dataclass(frozen=True)
class BothEnds:
    """`total`: of all that the folder holds. `deliverer`: how the process is that delivers, where one ever did. `account`: of what its taps saw; None where no tap ever wrote to it."""

    folder: str
    database: str
    total: Compared
    state: State
    account: Account | None
    deliverer: Status | None

    def lines(self) -> Iterator[str]:
        state = self.state
        yield (
            f"{self.folder}: {self.total.folder} exchanges, of which {self.total.database} are in {self.database}; "
            f"{sum(state.waiting.values())} rows wait in {len(state.waiting)} parts; "
            f"{state.rows_lost} rows of {state.parts_lost} parts are declared lost"
        )
        if self.deliverer is not None:
            age_s = (time.time_ns() - self.deliverer.alive_ns) / 1e9
            said = f": {self.deliverer.fault}" if self.deliverer.fault else ""
            yield f"delivering process {self.deliverer.pid}, last alive {age_s:.0f} s ago, {self.deliverer.failures} failures{said}"
        for name, lost in state.lost.items():
            yield f"declared lost: {name}: {lost.rows} rows, {lost.why}"
        if state.parts_lost > len(state.lost):
            yield f"declared lost: {state.parts_lost - len(state.lost)} older parts, whose names are not kept"
        if self.account is not None:
            yield str(self.account)

    def check(self) -> None:
        """Raise StorageError where something is missing that nobody declared lost."""
        if not self.total.is_whole:
            some = ", ".join(self.total.missing)
            raise StorageError(
                f"{self.total.folder - self.total.database} exchanges of the folder are not in the database: {some}",
                "llmsec-tap deliver --once sends what waits",
            )
        if self.account is not None and self.account.is_settled and self.account.missing > 0:
            raise StorageError(
                f"{self.account.missing} exchanges that taps saw are in neither store, and nobody declared them lost",
                "what the database was told to delete (its ttl, db prune, db delete) is among them",
            )


def look_at(store: Store, wanted: Database, journal: Journal) -> BothEnds:
    """Ask both. Raises StorageError, and ConfigError where the server refuses the user."""
    state = Cursor(store, str(wanted.address)).state
    client, _ = connect(wanted.address, wanted.limits, READ_ONLY)
    try:
        check_version(client, wanted.layout)
        with QuerySession(store, journal) as session:

            def compared(which: str) -> Compared:
                ids = (row[0] for row in session.select(f"SELECT exchange_id FROM exchanges WHERE node IS {which}").rows())  # noqa: S608 - words of ours
                return compare(((found, row_key(found)) for found in ids), client, wanted.layout)

            captured = compared("NOT NULL")
            total = captured + compared("NULL")
            runs = [TapRun(*row) for row in session.select(f"SELECT {RUN_COLUMNS} FROM taps").rows()]  # noqa: S608 - names of ours
        books = account(runs, captured, state, store, client, wanted.layout)
    finally:
        client.close()
    return BothEnds(str(store.shown), str(wanted.address), total, state, books, read_status(store, str(wanted.address)))
