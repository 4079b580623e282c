"""Whether what a folder holds is in the database: every exchange's key is asked for, and what is missing is named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmsec_tap.storage.clickhouse.client import translated
from llmsec_tap.storage.clickhouse.tables import EXCHANGE_TABLE, Layout

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


def compare(rows: Iterable[tuple[str, int]], client: Client, layout: Layout) -> Compared:
    """`rows`: id and row_key of each exchange that the folder holds. Memory does not grow with them. Raises StorageError."""
    folder = database = 0
    missing: list[str] = []
    chunk: dict[int, str] = {}

    def ask() -> None:
        nonlocal folder, database
        with translated(layout.database):
            found = client.query(
                f"SELECT DISTINCT row_key FROM {layout.table(EXCHANGE_TABLE)} WHERE row_key IN {{keys:Array(Int64)}}",  # noqa: S608 - a name of ours
                parameters={"keys": list(chunk)},
            ).result_rows
        there = {row[0] for row in found}
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
