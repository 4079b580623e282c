"""Read-only SQL over a store.

Queries run on an in-memory connection with the same views as `llmsec.duckdb`, so they take no lock and none can refuse
them. The connection can reach the store's parts and nothing else: no other file, no network, no extension, no setting.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import duckdb

from llmsec_analyzer.stored.dialect import DUCKDB, Dialect
from llmsec_analyzer.stored.read_only import check_read_only
from llmsec_analyzer.stored.sql_errors import sql_error
from llmsec_tap.errors import ConfigError, StorageError
from llmsec_tap.journal import WARNINGS, Journal
from llmsec_tap.storage import Store, open_store
from llmsec_tap.storage.damage import DAMAGED_SUFFIX, TAP_FILES, parts, set_aside_damaged
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.views import create_views, these_parts

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa  # type: ignore[import-untyped]

BATCH_ROWS = 1_000
_ATTEMPTS = 4

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


# What no state of a store explains.
_ABOUT_THE_QUESTION = (
    *(duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException, duckdb.ConversionException, duckdb.OutOfRangeException),
    *(duckdb.PermissionException, duckdb.InterruptException, duckdb.OutOfMemoryException, duckdb.NotImplementedException),
)


@dataclass(frozen=True)
class Result:
    """Column names, their types as DuckDB prints them, and the rows as they come: nothing is held but one batch."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    cursor: duckdb.DuckDBPyConnection
    first: list[tuple[Any, ...]]
    is_damage: Callable[[duckdb.Error | RuntimeError], bool]
    translated: Callable[[duckdb.Error | RuntimeError], BaseException]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        batch = self.first
        while batch:
            yield from batch
            try:
                batch = self.cursor.fetchmany(BATCH_ROWS)
            except (duckdb.Error, RuntimeError) as fault:
                if self.is_damage(fault):
                    raise StorageError(
                        "a part of the store is damaged, and this answer ends before its end", "Ask again: the part is left out by now."
                    ) from None
                raise self.translated(fault) from None


class QuerySession:
    """A locked connection to one store. Use as a context manager. `journal` hears of damaged parts, which are set aside."""

    dialect: Dialect = DUCKDB
    _too_long: StorageError | None = None

    def __init__(self, store: Store, journal: Journal = WARNINGS) -> None:
        self.store = store
        self._journal = journal
        try:
            self._folder = os.open(store.exchanges, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as fault:
            raise storage_error("cannot read", store.exchanges, fault) from None
        try:
            self._left_out = set_aside_damaged(store.exchanges, journal)
            self._connection = self._connect()
        except BaseException:
            os.close(self._folder)
            raise

    def _connect(self) -> duckdb.DuckDBPyConnection:
        for _ in range(_ATTEMPTS - 2):  # a part may have gone between two looks
            with suppress(duckdb.Error):
                return self._locked()
        try:
            return self._locked()
        except duckdb.Error as fault:
            if not self._look_for_damage():
                raise sql_error(fault) from None
        try:
            return self._locked()
        except duckdb.Error as fault:
            raise sql_error(fault) from None

    def _locked(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect()
        # By a descriptor: DuckDB takes some characters of a path for a pattern or a separator, and these names have none of them.
        exchanges = f"/proc/self/fd/{self._folder}"
        files = f"'{exchanges}/*/part-*.parquet'"
        tap_files = [path for path in parts(self.store.exchanges, TAP_FILES) if path not in self._left_out]
        if self._left_out:
            files = self._named(exchanges, [path for path in parts(self.store.exchanges) if path not in self._left_out])
        try:
            for setting in _SETTINGS:
                connection.execute(setting)
            connection.execute(f"SET allowed_directories = ['{exchanges}/']")
            connection.execute("SET enable_external_access = false")
            create_views(connection, files, self._named(exchanges, tap_files) if tap_files else None)
            connection.execute("SET lock_configuration = true")
        except duckdb.Error:
            connection.close()
            raise
        return connection

    def _named(self, exchanges: str, paths: list[Path]) -> str:
        return these_parts([Path(exchanges, path.relative_to(self.store.exchanges)) for path in paths])

    def _is_damage(self, fault: duckdb.Error | RuntimeError) -> bool:
        return not isinstance(fault, _ABOUT_THE_QUESTION) and isinstance(fault, duckdb.Error) and self._look_for_damage()

    def _look_for_damage(self) -> bool:
        """Read every part; True where one was damaged, and is set aside or left out from now on."""
        before = self._count()
        self._left_out = set_aside_damaged(self.store.exchanges, self._journal, thoroughly=True)
        return self._count() != before

    def _count(self) -> int:
        found = (*parts(self.store.exchanges), *parts(self.store.exchanges, TAP_FILES))
        return len(found) - len(self._left_out)

    @classmethod
    def open(cls, location: str | Path, journal: Journal = WARNINGS) -> QuerySession:
        return cls(open_store(location, journal), journal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def give_up(self, after_s: float) -> None:
        """From another thread: the statement that runs now, and any that follows, ends with a StorageError that says how long it took."""
        self._too_long = StorageError(f"this took longer than {after_s:g} s and was given up", "Ask for a shorter time, or for less.")
        self._connection.interrupt()

    def damaged(self) -> int:
        """Parts that are set aside or left out: their rows are missing from every answer."""
        return len(self._left_out) + sum(1 for _ in parts(self.store.exchanges, f"*{DAMAGED_SUFFIX}"))

    def narrowed(self, since_ns: int | None, until_ns: int | None) -> AbstractContextManager[None]:
        return nullcontext()

    def reach(self, before_ns: int | None, rows: int) -> int | None:
        return None

    def run(self, sql: str) -> Result:
        """Run one statement of a user's. ConfigError where it is wrong or does more than read."""
        check_read_only(sql)
        return self.select(sql)

    def select(self, sql: str, parameters: list[Any] | None = None) -> Result:
        """Run a statement of our own; user input belongs in `parameters`."""
        return self._select(sql, parameters, _ATTEMPTS)

    def _select(self, sql: str, parameters: list[Any] | None, attempts: int) -> Result:
        if self._too_long is not None:
            raise self._too_long
        try:
            cursor = self._connection.execute(sql, parameters or [])
            first = cursor.fetchmany(BATCH_ROWS) if cursor.description else []
        except (duckdb.Error, RuntimeError) as fault:
            # A damaged page shows only when it is read; and a part that retention deletes or writes anew may fail a reader between two looks at it.
            is_of_store = isinstance(fault, duckdb.Error) and not isinstance(fault, _ABOUT_THE_QUESTION)
            if not is_of_store or (attempts <= 1 and not self._is_damage(fault)):
                raise self._translated(fault) from None
            self._connection.close()
            self._connection = self._connect()
            return self._select(sql, parameters, max(1, attempts - 1))
        description = cursor.description or []
        names, types = tuple(column[0] for column in description), tuple(str(column[1]) for column in description)
        return Result(names, types, cursor, first, self._is_damage, self._translated)

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
            raise self._translated(fault) from None
        if relation is None:
            raise ConfigError("this statement has no result", "ask for one with SELECT")
        return relation

    def _translated(self, fault: duckdb.Error | RuntimeError) -> BaseException:
        """DuckDB answers Ctrl-C, and `give_up`, with an exception of its own, by one of two names."""
        if isinstance(fault, duckdb.InterruptException) or str(fault) == "Query interrupted":
            return self._too_long or KeyboardInterrupt()
        return sql_error(fault) if isinstance(fault, duckdb.Error) else fault
