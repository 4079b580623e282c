"""Tables made of storage/schema.py: the same columns under the same names, with what ClickHouse needs to keep billions of them.

A row's place is (started_key, exchange_id): questions ask for a time first, and both are the same whenever an exchange is delivered again, so
ReplacingMergeTree keeps one row of it, that with the highest stored_seq. The tenant is not part of the key: a rule may name it later, and then
the new row would stand beside the old one. Partitions are days of the exchange's start, which fall out of the key.

ClickHouse has no null for a struct: one that is absent has null in each field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from llmsec_tap.errors import ConfigError
from llmsec_tap.storage.schema import BOOL, DICTIONARY_COLUMNS, FLOAT, INT, STORED_COLUMNS, TAP_COLUMNS, TEXT, ColumnType, ListOf, StructOf

EXCHANGE_TABLE: Final = "exchange_rows"
TAP_TABLE: Final = "tap_rows"
MIGRATION_TABLE: Final = "llmsec_migrations"
LOCAL_SUFFIX: Final = "_local"  # of a cluster: the part of a table that one shard holds

_SCALARS: Final = {TEXT: "String", INT: "Int64", FLOAT: "Float64", BOOL: "Bool"}
# What every row has. Keys must not be null, and a null costs a byte a row.
_NEVER_NULL: Final = {
    EXCHANGE_TABLE: frozenset({"exchange_id", "row_key", "stored_seq"}),
    TAP_TABLE: frozenset({"node", "pid", "heartbeat_ns"}),
}
# Dictionaries of a Parquet part hold some hundred values; over all hosts these have too many for one.
_MANY_VALUES: Final = frozenset({"client", "path", "request.parameters"})
_DICTIONARY: Final = frozenset(DICTIONARY_COLUMNS) - _MANY_VALUES
_TIMES: Final = re.compile(r".*_ns|stored_seq")
CONTENT: Final = frozenset(
    {"input_text", "output_text", "reasoning_text", "refusal_text", "tool_calls", "request", "response", "other_texts", "tags"}
)
FINDINGS: Final = frozenset({"findings"})
_NS: Final = 1_000_000_000
_LAST_SECOND: Final = 4_294_967_295  # of a DateTime; a capture may say anything


@dataclass(frozen=True)
class Keep:
    """Days after which the server deletes: whole rows (`metadata`), their texts, their findings. None: never, or with the row."""

    metadata: float | None = None
    content: float | None = None
    findings: float | None = None

    def check(self) -> None:
        """A part of a row cannot outlive the row. Raises ConfigError."""
        for name in ("content", "findings"):
            days = getattr(self, name)
            if days is not None and self.metadata is not None and days > self.metadata:
                raise ConfigError(
                    f"{name} would be kept for {days:g} days and the row that holds it for {self.metadata:g}",
                    f"keep {name} no longer than metadata",
                )


@dataclass(frozen=True)
class Layout:
    """How the tables of one database are made. `cluster`: its name on the server, for replicated tables on every shard."""

    database: str
    cluster: str | None = None
    keep: Keep = Keep()

    @property
    def on_cluster(self) -> str:
        return f" ON CLUSTER {quoted(self.cluster)}" if self.cluster else ""

    def table(self, name: str) -> str:
        return f"{quoted(self.database)}.{quoted(name)}"

    def local(self, name: str) -> str:
        """The table that holds the rows: itself, or one shard's share."""
        return self.table(name + LOCAL_SUFFIX if self.cluster else name)


def quoted(name: str) -> str:
    """A name as ClickHouse reads it between backticks."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def clickhouse_type(kind: ColumnType, *, nullable: bool = True) -> str:
    if isinstance(kind, ListOf):
        return f"Array({clickhouse_type(kind.item)})"
    if isinstance(kind, StructOf):
        return "Tuple(" + ", ".join(f"{quoted(name)} {clickhouse_type(inner)}" for name, inner in kind.fields) + ")"
    return f"Nullable({_SCALARS[kind]})" if nullable else _SCALARS[kind]


def column_type(table: str, name: str, kind: ColumnType) -> str:
    plain = clickhouse_type(kind, nullable=name not in _NEVER_NULL[table])
    return f"LowCardinality({plain})" if name in _DICTIONARY and kind == TEXT else plain


def _codec(name: str, kind: ColumnType) -> str:
    if kind == INT and _TIMES.fullmatch(name):
        return "CODEC(Delta(8), ZSTD(1))"
    return "CODEC(ZSTD(3))" if name in CONTENT | FINDINGS else "CODEC(ZSTD(1))"


def _days_of(name: str, keep: Keep) -> float | None:
    return keep.content if name in CONTENT else keep.findings if name in FINDINGS else None


def _until(days: float) -> str:
    return f"stored_from + toIntervalSecond({round(days * 86_400)})"


def column(table: str, name: str, kind: ColumnType, keep: Keep = Keep()) -> str:
    days = _days_of(name, keep) if table == EXCHANGE_TABLE else None
    return f"{quoted(name)} {column_type(table, name, kind)} {_codec(name, kind)}" + (f" TTL {_until(days)}" if days is not None else "")


def _engine(layout: Layout, name: str, version: str) -> str:
    if layout.cluster:
        # The macros are the server's own: which shard it is, and which replica.
        return f"ReplicatedReplacingMergeTree('/clickhouse/tables/{{shard}}/{layout.database}/{name}', '{{replica}}', {version})"
    return f"ReplacingMergeTree({version})"


def _distributed(layout: Layout, name: str, sharding: str) -> list[str]:
    if not layout.cluster:
        return []
    where = f"{quoted(layout.cluster)}, {quoted(layout.database)}, {quoted(name + LOCAL_SUFFIX)}"
    return [
        f"CREATE TABLE IF NOT EXISTS {layout.table(name)}{layout.on_cluster} AS {layout.local(name)} ENGINE = Distributed({where}, {sharding})"
    ]


def create_tables(layout: Layout) -> list[str]:
    """Statements that make what is not there yet, in order."""
    layout.keep.check()
    columns = ",\n  ".join(column(EXCHANGE_TABLE, name, kind, layout.keep) for name, kind in STORED_COLUMNS)
    taps = ",\n  ".join(column(TAP_TABLE, name, kind) for name, kind in TAP_COLUMNS)
    ttl = f"\nTTL {_until(layout.keep.metadata)}" if layout.keep.metadata is not None else ""
    return [
        f"CREATE DATABASE IF NOT EXISTS {quoted(layout.database)}{layout.on_cluster}",
        f"""CREATE TABLE IF NOT EXISTS {layout.local(EXCHANGE_TABLE)}{layout.on_cluster} (
  {columns},
  `started_key` Int64 MATERIALIZED ifNull(started_ns, 0) CODEC(Delta(8), ZSTD(1)),
  `stored_from` DateTime('UTC') MATERIALIZED toDateTime(least(intDiv(if(started_ns > 0, assumeNotNull(started_ns), stored_seq), {_NS}), {_LAST_SECOND}), 'UTC'),
  INDEX ids exchange_id TYPE bloom_filter GRANULARITY 4,
  INDEX sessions session_id TYPE bloom_filter GRANULARITY 4
) ENGINE = {_engine(layout, EXCHANGE_TABLE, "stored_seq")}
PARTITION BY toDate(intDiv(started_key, {_NS}), 'UTC')
ORDER BY (started_key, exchange_id){ttl}""",
        *_distributed(layout, EXCHANGE_TABLE, "cityHash64(exchange_id)"),
        f"""CREATE TABLE IF NOT EXISTS {layout.local(TAP_TABLE)}{layout.on_cluster} (
  {taps},
  `started_key` Int64 MATERIALIZED ifNull(started_ns, 0)
) ENGINE = {_engine(layout, TAP_TABLE, "heartbeat_ns")}
ORDER BY (node, started_key, pid)""",
        *_distributed(layout, TAP_TABLE, "cityHash64(node)"),
        f"""CREATE TABLE IF NOT EXISTS {layout.local(MIGRATION_TABLE)}{layout.on_cluster} (
  `name` String,
  `version` Int64,
  `applied` DateTime('UTC') DEFAULT now('UTC')
) ENGINE = {_engine(layout, MIGRATION_TABLE, "version")}
ORDER BY name""",
        *_distributed(layout, MIGRATION_TABLE, "cityHash64(name)"),
    ]


def keep_statements(layout: Layout) -> list[str]:
    """What brings tables that are there already to what `keep` says now; rows stored before follow as the server merges."""
    layout.keep.check()
    table = f"ALTER TABLE {layout.local(EXCHANGE_TABLE)}{layout.on_cluster}"
    statements = [f"{table} MODIFY TTL {_until(layout.keep.metadata)}"] if layout.keep.metadata is not None else []
    for name, kind in STORED_COLUMNS:
        days = _days_of(name, layout.keep)
        if days is not None:
            statements.append(f"{table} MODIFY COLUMN {quoted(name)} {column_type(EXCHANGE_TABLE, name, kind)} TTL {_until(days)}")
    return statements


def add_columns(layout: Layout, there: frozenset[str]) -> list[str]:
    """Columns of the schema that tables of an older version do not have."""
    statements = []
    for table, columns in ((EXCHANGE_TABLE, STORED_COLUMNS), (TAP_TABLE, TAP_COLUMNS)):
        for name, kind in columns:
            if f"{table}.{name}" in there:
                continue
            of = [layout.local(table), layout.table(table)] if layout.cluster else [layout.table(table)]
            statements += [f"ALTER TABLE {target}{layout.on_cluster} ADD COLUMN IF NOT EXISTS {column(table, name, kind)}" for target in of]
    return statements
