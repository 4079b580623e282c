"""A store to ask, whatever keeps it: a folder, or a ClickHouse database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from llmsec_analyzer.stored.dialect import Dialect
from llmsec_tap.journal import WARNINGS, Journal
from llmsec_tap.storage.clickhouse.address import is_clickhouse

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


class Result(Protocol):
    """Column names, their types as the engine prints them, and the rows as they come: nothing is held but one batch."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def types(self) -> tuple[str, ...]: ...

    def rows(self) -> Iterator[tuple[Any, ...]]: ...


class Session(Protocol):
    """Reads only. A context manager."""

    @property
    def dialect(self) -> Dialect: ...

    def run(self, sql: str) -> Result:
        """Run one statement of a user's. ConfigError where it is wrong or does more than read."""

    def select(self, sql: str, parameters: list[Any] | None = None) -> Result:
        """Run a statement of our own; user input belongs in `parameters`."""

    def batches(self, sql: str) -> pa.RecordBatchReader:
        """As `run`, but Arrow record batches, as they come."""

    def narrowed(self, since_ns: int | None, until_ns: int | None) -> AbstractContextManager[None]:
        """What is asked within has these bounds of `started_ns` in its own words too, and is answered before the end: so less may be looked into."""

    def reach(self, before_ns: int | None, rows: int) -> int | None:
        """A time since which there are at least so many exchanges before that one (None: before none), where it is known at once; else None."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_session(location: str | Path, journal: Journal = WARNINGS) -> Session:
    """For the folder, or the database behind a `clickhouse://` address. Raises StorageError or ConfigError."""
    if is_clickhouse(location):
        from llmsec_analyzer.stored.clickhouse import ClickHouseSession  # noqa: PLC0415

        return ClickHouseSession.open(str(location), journal)
    from llmsec_analyzer.stored.session import QuerySession  # noqa: PLC0415

    return QuerySession.open(location, journal)
