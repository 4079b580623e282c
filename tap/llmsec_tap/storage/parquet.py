"""All that touches Arrow: column types, lines of JSON to a table, a table to the bytes of one part.

Imported only inside functions of the other modules: the libraries take 0.1 s and 30 MB, which `--help` must not pay.
Arrow rather than polars: for 4,000 exchanges (27 MB of rows) 0.4 CPU s with its import against 1.7 s, at half the memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.json as pj  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from llmsec_tap.storage.rows import repair_row
from llmsec_tap.storage.schema import (
    BOOL,
    DICTIONARY_COLUMNS,
    FLOAT,
    INT,
    ROW_COLUMNS,
    STATISTICS_COLUMNS,
    TEXT,
    ColumnType,
    ListOf,
    StructOf,
)

_SCALARS: dict[str, Any] = {TEXT: pa.string(), INT: pa.int64(), FLOAT: pa.float64(), BOOL: pa.bool_()}
# The system's allocator gives memory back after a flush; Arrow's own keeps it for batches that may be minutes away.
_POOL = pa.system_memory_pool()


def arrow_type(kind: ColumnType) -> pa.DataType:
    if isinstance(kind, ListOf):
        return pa.list_(arrow_type(kind.item))
    if isinstance(kind, StructOf):
        return pa.struct([(name, arrow_type(inner)) for name, inner in kind.fields])
    return _SCALARS[kind]


ROW_SCHEMA: pa.Schema = pa.schema([(name, arrow_type(kind)) for name, kind in ROW_COLUMNS])
# Statistics only where queries filter: over all columns they triple the size of a small part, and would put the first bytes
# of texts into every footer. The Arrow schema is left out for its size; the Parquet types say the same.
WRITE_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": list(DICTIONARY_COLUMNS),
    "write_statistics": list(STATISTICS_COLUMNS),
    "store_schema": False,
}


# Arrow makes arrays of Python's objects with pandas' help, where pandas is installed: a quarter of a second and 50 MB at the first one. So
# tables here are made of lines of JSON, of buffers, or of nothing.
def no_rows(schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([], schema)


def with_seq(table: pa.Table, seq: int) -> pa.Table:
    """The rows with this `stored_seq`, each."""
    values = pa.py_buffer(array("q", [seq]) * table.num_rows)
    return table.append_column("stored_seq", pa.Array.from_buffers(pa.int64(), table.num_rows, [None, values]))


def empty_part() -> pa.Buffer:
    """A part with every column and no row."""
    return to_parquet(no_rows(ROW_SCHEMA), 0)


def small_table(columns: Sequence[tuple[str, ColumnType]], rows: list[dict[str, Any]]) -> pa.Buffer:
    """A file of its own for these rows, whose values fit their columns."""
    sink = pa.BufferOutputStream(_POOL)
    schema = pa.schema([(name, arrow_type(kind)) for name, kind in columns])
    table = _parse([msgspec.json.encode(row) for row in rows], schema) if rows else no_rows(schema)
    pq.write_table(table, sink, compression="none", store_schema=False)
    return sink.getvalue()


def to_table(lines: list[bytes]) -> tuple[pa.Table, int, int]:
    """The rows as a table; how many were dropped; how many were repaired (rows.repair_row)."""
    try:
        return _parse(lines), 0, 0
    except pa.ArrowException:
        # Some value does not fit its column: find it row by row. Hostile input may make this path common, so it must
        # only be slow (1 ms a row), never wrong.
        tables = [no_rows(ROW_SCHEMA)]
        dropped = repaired = 0
        for line in lines:
            try:
                tables.append(_parse([line]))
            except pa.ArrowException:
                try:
                    tables.append(_parse([repair_row(line)]))
                    repaired += 1
                except (pa.ArrowException, ValueError, RecursionError):
                    dropped += 1
        return pa.concat_tables(tables), dropped, repaired


def _parse(lines: list[bytes], schema: pa.Schema = ROW_SCHEMA) -> pa.Table:
    data = b"\n".join(lines)
    return pj.read_json(
        pa.BufferReader(data),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        memory_pool=_POOL,
    )


def to_parquet(table: pa.Table, seq: int) -> pa.Buffer:
    """The bytes of a part whose rows all carry `seq` as stored_seq."""
    sink = pa.BufferOutputStream(_POOL)
    pq.write_table(with_seq(table, seq), sink, **WRITE_OPTIONS)
    return sink.getvalue()
