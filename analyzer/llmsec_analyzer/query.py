"""Read-only SQL over a store.

Queries run on an in-memory connection with the same views as `llmsec.duckdb`, so they take no lock and none can refuse
them. The connection can reach the store's parts and nothing else: no other file, no network, no extension, no setting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import duckdb

from llmsec_analyzer.read_only import check_read_only
from llmsec_analyzer.sql_errors import sql_error
from llmsec_tap.errors import ConfigError
from llmsec_tap.storage import Store, open_store
from llmsec_tap.storage.views import create_views

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl
    import pyarrow as pa  # type: ignore[import-untyped]

BATCH_ROWS = 1_000

# Set in this order: the folder list cannot change once outside access is off, and nothing can once it is locked.
# temp_directory is emptied because content must not spill into files outside the store.
_SETTINGS = (
    "SET temp_directory = ''",
    "SET TimeZone = 'UTC'",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET python_enable_replacements = false",
    "SET enable_progress_bar = false",
    "SET parquet_metadata_cache = true",
)


@dataclass(frozen=True)
class Result:
    """Column names, their types as DuckDB prints them, and the rows as they come: nothing is held but one batch."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    cursor: duckdb.DuckDBPyConnection

    def rows(self) -> Iterator[tuple[Any, ...]]:
        while True:
            try:
                batch = self.cursor.fetchmany(BATCH_ROWS)
            except (duckdb.Error, RuntimeError) as fault:
                raise _translated(fault) from None
            if not batch:
                return
            yield from batch


class QuerySession:
    """A locked connection to one store. Use as a context manager."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._connection = duckdb.connect()
        folder = str(store.exchanges.resolve()).replace("'", "''")
        try:
            for setting in _SETTINGS:
                self._connection.execute(setting)
            self._connection.execute(f"SET allowed_directories = ['{folder}/']")
            self._connection.execute("SET enable_external_access = false")
            create_views(self._connection, store.root)
            self._connection.execute("SET lock_configuration = true")
        except duckdb.Error as fault:
            self._connection.close()
            raise sql_error(fault) from None

    @classmethod
    def open(cls, location: str | Path) -> QuerySession:
        return cls(open_store(location))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def run(self, sql: str) -> Result:
        """Run one statement of a user's. ConfigError where it is wrong or does more than read."""
        check_read_only(sql)
        return self.select(sql)

    def select(self, sql: str, parameters: list[Any] | None = None) -> Result:
        """Run a statement of our own; user input belongs in `parameters`."""
        try:
            cursor = self._connection.execute(sql, parameters or [])
            description = cursor.description or []
        except (duckdb.Error, RuntimeError) as fault:
            raise _translated(fault) from None
        return Result(tuple(column[0] for column in description), tuple(str(column[1]) for column in description), cursor)

    def batches(self, sql: str) -> pa.RecordBatchReader:
        """As `run`, but Arrow record batches, as they come."""
        return self._relation(sql).to_arrow_reader(BATCH_ROWS * 10)

    def frame(self, sql: str) -> pl.DataFrame:
        """As `run`, but the whole result as a polars frame, for reports and notebooks."""
        frame: pl.DataFrame = self._relation(sql).pl()
        return frame

    def _relation(self, sql: str) -> duckdb.DuckDBPyRelation:
        check_read_only(sql)
        try:
            relation = self._connection.sql(sql)
        except (duckdb.Error, RuntimeError) as fault:
            raise _translated(fault) from None
        if relation is None:
            raise ConfigError("this statement has no result", "ask for one with SELECT")
        return relation


def _translated(fault: duckdb.Error | RuntimeError) -> BaseException:
    """DuckDB answers Ctrl-C with an exception of its own, by one of two names."""
    if isinstance(fault, duckdb.InterruptException) or str(fault) == "Query interrupted":
        return KeyboardInterrupt()
    return sql_error(fault) if isinstance(fault, duckdb.Error) else fault
