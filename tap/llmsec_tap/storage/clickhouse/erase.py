"""What is deleted from a database, and what loses its texts: what erase.py and retention.py do to a folder, by the same decisions.

Whole days go as partitions. Else rows go by mutations (ALTER … DELETE) that are waited for: they write the parts anew, so that nothing of what
was to go is left on the server's disk, as it would be after a lightweight DELETE. A row loses its texts by a new version of it, whose stored_seq
is one higher, and the old version goes with a mutation. A kill leaves both, of which the views show the new one, and the next call finishes it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmsec_tap.errors import ConfigError
from llmsec_tap.storage.clickhouse.client import translated
from llmsec_tap.storage.clickhouse.rows import null_if_empty
from llmsec_tap.storage.clickhouse.tables import EXCHANGE_TABLE, Layout
from llmsec_tap.storage.erase import Erased, Subject
from llmsec_tap.storage.retention import Pruned, Retention, decide_at
from llmsec_tap.storage.rewrite import BARE_ANOMALIES, Action, RowFacts, stripped
from llmsec_tap.storage.rows import encode_row, exchange_of
from llmsec_tap.storage.schema import EXCHANGE_COLUMNS

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

_NS_PER_DAY: Final = 86_400_000_000_000
_NO_DAY: Final = dt.date(1970, 1, 1)  # the partition of exchanges whose start was not seen: it goes by bytes only
# Pairs of integers in one statement, which may have 256 KiB.
_KEYS: Final = 4_000
# Rows that are rewritten at once; each may hold megabytes of text.
_REWRITTEN: Final = 200
_BARE: Final = ", ".join(f"'{name}'" for name in sorted(BARE_ANOMALIES))
_FACTS: Final = f"row_key, stored_seq, exchange_id, tenant, end_user, notEmpty(findings), arrayExists(a -> a.name IN ({_BARE}), anomalies)"
_COLUMNS: Final = ", ".join(f"`{name}`" for name, _ in EXCHANGE_COLUMNS)


class _Scope(NamedTuple):
    """Rows that are looked at: a condition, and what it is asked with."""

    where: str
    parameters: dict[str, Any]


class _Row(NamedTuple):
    """One version of a row."""

    key: int
    seq: int
    facts: RowFacts


def erase(client: Client, layout: Layout, subject: Subject, *, content_only: bool = False, really: bool = True) -> Erased:
    """Take the subject's rows out of the database, or their texts out of the rows. Raises StorageError."""
    work = _Work(client, layout)
    scope = _Scope(f"{subject.kind} IN {_texts(subject.values)}", {})
    rows = list(work.rows(scope))
    if not content_only:
        if really and rows:
            work.delete(scope.where)
        return Erased(len(rows), 0, 0, 0)
    wordy = {row.key: Action.CONTENT for row in rows if not row.facts.is_bare}
    if really:
        work.rewrite(scope, wordy)
    return Erased(0, len(wordy), 0, 0)


def prune(client: Client, layout: Layout, now_ns: int, keep: Retention) -> Pruned:
    """Delete what `keep` does not keep: `parts` counts days that went whole. Raises StorageError, and ConfigError for what only a folder can do."""
    if keep.content_bytes is not None:
        raise ConfigError("content.bytes bounds a folder: a database keeps texts by days", "give --content-days, or set content.days")
    work = _Work(client, layout)
    pruned = Pruned()
    for day, size in work.days().items():
        age_days = (now_ns - _ends_ns(day)) / _NS_PER_DAY
        if day == _NO_DAY:
            continue
        if keep.days is not None and age_days >= keep.days:
            work.drop(day)
            pruned += Pruned(1, size)
        elif keep.takes_from_rows:
            pruned += _prune_rows(work, day, keep, age_days)
    if keep.max_bytes is not None:
        days = work.days()
        total = sum(days.values())
        for day in sorted(days):
            if total <= keep.max_bytes:
                break
            work.drop(day)
            total -= days[day]
            pruned += Pruned(1, days[day])
    return pruned


def _prune_rows(work: _Work, day: dt.date, keep: Retention, age_days: float) -> Pruned:
    decide = decide_at(keep, age_days)
    if decide is None:
        return Pruned()
    first = (dt.datetime.combine(day, dt.time(), dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).days * _NS_PER_DAY
    scope = _Scope(f"started_key >= {first} AND started_key < {first + _NS_PER_DAY}", {})
    gone: list[_Row] = []
    less: dict[int, Action] = {}
    for row in work.rows(scope):
        action = decide(row.facts)
        if Action.ROW in action:
            gone.append(row)
        elif action:
            less[row.key] = less.get(row.key, Action.NOTHING) | action
    for begin in range(0, len(gone), _KEYS):
        work.delete(
            f"{scope.where} AND (row_key, stored_seq) IN ({', '.join(f'({row.key}, {row.seq})' for row in gone[begin : begin + _KEYS])})"
        )
    work.rewrite(scope, less)
    return Pruned(0, 0, len(gone), len(less))


class _Work:
    """Statements over the table of exchanges."""

    def __init__(self, client: Client, layout: Layout) -> None:
        self._client = client
        self._layout = layout
        self._table = layout.table(EXCHANGE_TABLE)
        self._local = layout.local(EXCHANGE_TABLE)

    def days(self) -> dict[dt.date, int]:
        """Bytes on the disk of each day."""
        cluster = self._layout.cluster
        parts = f"clusterAllReplicas('{cluster}', system.parts)" if cluster else "system.parts"
        name = self._local.rpartition(".")[2].strip("`")
        found = self._query(
            f"SELECT toDate(partition), sum(bytes_on_disk) FROM {parts} WHERE active AND database = {{database:String}} AND table = {{table:String}} GROUP BY 1",  # noqa: S608 - names of ours
            {"database": self._layout.database, "table": name},
        )
        return {day: int(size) for day, size in found}

    def drop(self, day: dt.date) -> None:
        self._command(f"ALTER TABLE {self._local}{self._layout.on_cluster} DROP PARTITION '{day.isoformat()}'")

    def rows(self, scope: _Scope) -> Iterator[_Row]:
        """Every version of every row of the scope."""
        with translated(self._layout.database):
            stream = self._client.query_row_block_stream(
                f"SELECT {_FACTS} FROM {self._table} WHERE {scope.where}",  # noqa: S608 - of our making
                parameters=scope.parameters,
            )
            with stream as blocks:
                for block in blocks:
                    for key, seq, *facts in block:
                        yield _Row(key, seq, RowFacts(facts[0], facts[1], facts[2], bool(facts[3]), bool(facts[4])))

    def delete(self, where: str) -> None:
        self._command(f"ALTER TABLE {self._local}{self._layout.on_cluster} DELETE WHERE {where} SETTINGS mutations_sync = 2")

    def rewrite(self, scope: _Scope, actions: dict[int, Action]) -> None:
        """Store each row, by its key, once more without what is to go, and delete the versions before."""
        if not actions:
            return
        keys = list(actions)
        for begin in range(0, len(keys), _REWRITTEN):
            lines: list[bytes] = []
            seqs: list[int] = []
            for seq, key, row in self._whole(scope, keys[begin : begin + _REWRITTEN]):
                exchange, action = exchange_of(row), actions[key]
                if any(anomaly.name in BARE_ANOMALIES for anomaly in exchange.anomalies):
                    action &= ~Action.CONTENT  # an older version had texts, which goes below
                if action:
                    lines.append(encode_row(stripped(exchange, action)))
                    seqs.append(seq + 1)
            self._insert(lines, seqs)
        inner = f"SELECT row_key, max(stored_seq) FROM {self._table} WHERE {scope.where} GROUP BY row_key"  # noqa: S608 - of our making
        self.delete(f"{scope.where} AND (row_key, stored_seq) NOT IN ({inner})")

    def _whole(self, scope: _Scope, keys: Sequence[int]) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """stored_seq, row_key and the columns of the newest version of each."""
        wanted = ", ".join(map(str, keys))
        sql = f"SELECT stored_seq, row_key, {_COLUMNS} FROM {self._table} FINAL WHERE {scope.where} AND row_key IN ({wanted})"  # noqa: S608 - of our making
        names = [name for name, _ in EXCHANGE_COLUMNS]
        for seq, key, *values in self._query(sql, scope.parameters):
            yield seq, key, dict(zip(names, map(null_if_empty, values), strict=True))

    def _insert(self, lines: list[bytes], seqs: list[int]) -> None:
        import pyarrow as pa  # type: ignore[import-untyped] # noqa: PLC0415
        import pyarrow.parquet as pq  # type: ignore[import-untyped] # noqa: PLC0415

        from llmsec_tap.storage.parquet import to_table, with_seq  # noqa: PLC0415

        if not lines:
            return
        # One by one: a row that could not be stored again must not take the place of its neighbour's version.
        tables = [to_table([line])[0] for line in lines]
        rows = [with_seq(table, seq) for table, seq in zip(tables, seqs, strict=True)]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(rows), sink, compression="zstd", store_schema=False)
        with translated(self._layout.database):
            self._client.raw_insert(
                self._table, insert_block=sink.getvalue().to_pybytes(), fmt="Parquet", settings={"max_partitions_per_insert_block": 0}
            )

    def _query(self, sql: str, parameters: dict[str, Any]) -> Sequence[Sequence[Any]]:
        with translated(self._layout.database):
            return self._client.query(sql, parameters=parameters).result_rows

    def _command(self, sql: str) -> None:
        with translated(self._layout.database):
            self._client.command(sql)


def _texts(values: frozenset[str]) -> str:
    """As literals: ALTER takes no parameters."""
    return "(" + ", ".join("'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" for value in sorted(values)) + ")"


def _ends_ns(day: dt.date) -> int:
    return ((dt.datetime.combine(day, dt.time(), dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).days + 1) * _NS_PER_DAY
