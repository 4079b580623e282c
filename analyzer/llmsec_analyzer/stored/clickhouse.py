"""Read-only SQL over a ClickHouse database. The server keeps it read-only (readonly=2): no statement is judged here."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from llmsec_analyzer.stored.dialect import CLICKHOUSE, Dialect
from llmsec_tap.journal import WARNINGS, Journal
from llmsec_tap.storage.clickhouse.address import Node, parse
from llmsec_tap.storage.clickhouse.client import READ_ONLY, connect, statement_error, translated
from llmsec_tap.storage.clickhouse.migrations import check_version
from llmsec_tap.storage.clickhouse.rows import null_if_empty
from llmsec_tap.storage.clickhouse.tables import Layout

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from clickhouse_connect.driver.client import Client

_WRAPPED: Final = re.compile(r"(?:Nullable|LowCardinality)\((.*)\)")


@dataclass(frozen=True)
class ClickHouseResult:
    names: tuple[str, ...]
    types: tuple[str, ...]
    blocks: Iterator[list[tuple[Any, ...]]]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        for block in self.blocks:
            for row in block:
                yield tuple(map(null_if_empty, row))


class ClickHouseSession:
    """A connection that only reads. Use as a context manager."""

    dialect: Dialect = CLICKHOUSE

    def __init__(self, client: Client, node: Node) -> None:
        self._client = client
        self._node = node
        self._streams = contextlib.ExitStack()

    @classmethod
    def open(cls, location: str, journal: Journal = WARNINGS) -> ClickHouseSession:
        address = parse(location)
        client, node = connect(address, settings=READ_ONLY)
        if node.note:
            journal.info("clickhouse_port", node.note)
        try:
            check_version(client, Layout(address.database))
        except BaseException:
            client.close()
            raise
        return cls(client, node)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def narrowed(self, since_ns: int | None, until_ns: int | None) -> AbstractContextManager[None]:
        return nullcontext()

    def reach(self, before_ns: int | None, rows: int) -> int | None:
        return None

    def close(self) -> None:
        self._streams.close()
        self._client.close()

    def run(self, sql: str) -> ClickHouseResult:
        return self._query(sql.strip().rstrip(";"), {})

    def select(self, sql: str, parameters: list[Any] | None = None) -> ClickHouseResult:
        named: dict[str, Any] = {}
        pieces = sql.split("?")
        text = pieces[0]
        for number, (value, piece) in enumerate(zip(parameters or [], pieces[1:], strict=True)):
            kind, named[f"p{number}"] = _typed(value)
            text += f"{{p{number}:{kind}}}{piece}"
        return self._query(text, named)

    def _query(self, sql: str, parameters: dict[str, Any]) -> ClickHouseResult:
        with translated(str(self._node), statement_error):
            stream = self._client.query_row_block_stream(sql, parameters=parameters)
            source: Any = stream.source
            names, types = tuple(source.column_names), tuple(_plain_type(kind.name) for kind in source.column_types)
        if not names:  # without a row the server sends no header either
            names, types = self._described(sql, parameters)
        return ClickHouseResult(names, types, self._blocks(stream))

    def _described(self, sql: str, parameters: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        try:
            found = self._client.query(f"DESCRIBE TABLE ({sql})", parameters=parameters).result_rows
        except Exception:  # noqa: BLE001 - a statement that has no columns to describe
            return (), ()
        return tuple(str(row[0]) for row in found), tuple(_plain_type(str(row[1])) for row in found)

    def _blocks(self, stream: Any) -> Iterator[list[tuple[Any, ...]]]:
        with translated(str(self._node), statement_error), stream as blocks:
            for block in blocks:
                yield list(block)

    def batches(self, sql: str) -> pa.RecordBatchReader:
        import pyarrow as pa  # noqa: PLC0415

        with translated(str(self._node), statement_error):
            raw = self._streams.enter_context(self._client.raw_stream(sql.strip().rstrip(";"), fmt="ArrowStream"))
            return pa.ipc.open_stream(raw)


def _typed(value: Any) -> tuple[str, Any]:
    """ClickHouse's type of a parameter, and the value as the client writes it."""
    if isinstance(value, dt.datetime):
        return "DateTime64(6, 'UTC')", value.strftime("%Y-%m-%d %H:%M:%S.%f")
    if isinstance(value, int):
        return "Int64", value
    if isinstance(value, list):
        return "Array(String)", value
    return "String", value


def _plain_type(name: str) -> str:
    while found := _WRAPPED.fullmatch(name):
        name = found[1]
    return name.upper() if re.fullmatch(r"U?Int\d+|Float\d+", name) else name
