"""Rows taken out of a part, or stripped of their texts, in place: the part keeps its name, its order and what its footer says.

The new file replaces the old one by rename, so a reader sees one or the other, and a kill leaves the old one whole. Call it under
`compact.alone`: a merge that goes on meanwhile would bring back what was taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntFlag
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from llmsec_tap.journal import Journal
from llmsec_tap.model import AnomalyCount, Exchange
from llmsec_tap.storage.damage import is_framed, set_aside
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.parquet import ROW_SCHEMA, WRITE_OPTIONS, no_rows, to_table, with_seq
from llmsec_tap.storage.publish import publishing
from llmsec_tap.storage.rows import encode_row, exchange_of

# In the footer of a part whose rows have all been stripped of their texts.
BARE_KEY = "llmsec.bare"
_EXPIRED = "content_expired"
# With one of these a row has no texts any more.
BARE_ANOMALIES = frozenset((_EXPIRED, "content_withheld", "content_degraded"))
# So many rows are decoded at once; one may hold megabytes of text.
_BATCH_ROWS = 64
_GROUP_BYTES = 8_000_000
_STORED_SCHEMA = ROW_SCHEMA.append(pa.field("stored_seq", pa.int64()))


class Action(IntFlag):
    """What is taken from a row."""

    NOTHING = 0
    CONTENT = 1  # texts and previews; counts, names and times stay
    FINDINGS = 2
    ROW = 4


class RowFacts(NamedTuple):
    """What decides over a row. `is_bare`: it has no texts any more."""

    exchange_id: str
    tenant: str | None
    end_user: str | None
    has_findings: bool
    is_bare: bool


Decide = Callable[[RowFacts], Action]


class Taken(NamedTuple):
    """Rows deleted and rows stripped (of texts or findings); bytes that the disk has back."""

    rows: int = 0
    stripped: int = 0
    bytes: int = 0
    parts: int = 0

    def __add__(self, other: object) -> Taken:
        if not isinstance(other, Taken):
            return NotImplemented
        return Taken(self.rows + other.rows, self.stripped + other.stripped, self.bytes + other.bytes, self.parts + other.parts)


def take(path: Path, decide: Decide, journal: Journal, *, really: bool = True) -> Taken:
    """Do with each row of a part what `decide` says; a part without rows is deleted. A damaged part is set aside and named.

    `really=False` only counts. Raises StorageError where the store cannot be written.
    """
    try:
        if not is_framed(path):
            raise pa.ArrowInvalid
        actions = [decide(facts) for facts in _facts(path)]
        gone = sum(Action.ROW in action for action in actions)
        stripped = sum(bool(action) and Action.ROW not in action for action in actions)
        if not gone + stripped:
            return Taken()
        before = path.stat().st_size
        if not really:
            return Taken(gone, stripped, 0, 1)
        if gone == len(actions):
            path.unlink()
            return Taken(gone, 0, before, 1)
        gone += _rewrite(path, actions)
        return Taken(gone, stripped, before - path.stat().st_size, 1)
    except FileNotFoundError:
        return Taken()  # byte retention was first
    except (pa.ArrowException, ValueError):
        set_aside(path, journal)
        return Taken()
    except OSError as fault:
        if fault.errno is None:  # Arrow's own, for a page that cannot be read
            set_aside(path, journal)
            return Taken()
        raise storage_error("cannot write", path, fault) from None


def is_bare(path: Path) -> bool:
    """Whether all rows of the part have been stripped of their texts, as its footer says."""
    try:
        return BARE_KEY.encode() in (pq.read_metadata(path).metadata or {})
    except (OSError, ValueError, pa.ArrowException):
        return False


def _facts(path: Path) -> Iterator[RowFacts]:
    with pq.ParquetFile(path, memory_map=False) as file:
        present = set(file.schema_arrow.names)
        wanted = ["exchange_id", *(name for name in ("tenant", "end_user", "findings", "anomalies") if name in present)]
        for batch in file.iter_batches(batch_size=1000, columns=wanted):
            columns = {name: batch.column(name) for name in batch.schema.names}
            texts = {name: columns[name].to_pylist() if name in columns else [None] * len(batch) for name in ("tenant", "end_user")}
            findings = columns["findings"].value_lengths().to_pylist() if "findings" in columns else [0] * len(batch)
            names = columns["anomalies"].to_pylist() if "anomalies" in columns else [[]] * len(batch)
            for number, exchange_id in enumerate(columns["exchange_id"].to_pylist()):
                bare = any(item["name"] in BARE_ANOMALIES for item in names[number] or ())
                yield RowFacts(exchange_id or "", texts["tenant"][number], texts["end_user"][number], bool(findings[number]), bare)


def _rewrite(path: Path, actions: list[Action]) -> int:
    """Write the part anew; how many more rows are gone, because nothing could be taken from them alone."""
    lost = 0
    left = iter(actions)
    with pq.ParquetFile(path, memory_map=False) as file:
        footer = {key: value for key, value in (file.metadata.metadata or {}).items() if key.startswith(b"llmsec.")}
        if all(action & (Action.CONTENT | Action.ROW) for action in actions):
            footer[BARE_KEY.encode()] = b"1"
        is_current = file.schema_arrow.names == _STORED_SCHEMA.names
        with publishing(path) as descriptor, open(descriptor, "wb", closefd=False) as sink:
            # The options leave the Arrow schema out, and with it the key-value pairs that a schema carries.
            with pq.ParquetWriter(sink, _STORED_SCHEMA, **WRITE_OPTIONS) as writer:
                group: list[pa.Table] = []
                for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                    table, missing = _taken(pa.Table.from_batches([batch]), [next(left) for _ in range(len(batch))], as_is=is_current)
                    lost += missing
                    group.append(table)
                    if sum(part.nbytes for part in group) >= _GROUP_BYTES:
                        writer.write_table(pa.concat_tables(group))
                        group = []
                if group:
                    writer.write_table(pa.concat_tables(group))
                writer.add_key_value_metadata(footer)
            sink.flush()
    return lost


def _taken(rows: pa.Table, actions: list[Action], *, as_is: bool) -> tuple[pa.Table, int]:
    """The rows after their actions, in their order, and how many could not be kept. `as_is`: untouched ones have every column."""
    pieces: list[pa.Table] = [no_rows(_STORED_SCHEMA)]
    lost = begin = 0
    seqs = rows.column("stored_seq").to_pylist()
    for number, action in enumerate([*actions, None]):
        if action == Action.NOTHING and as_is:
            continue
        if as_is and begin < number:
            pieces.append(rows.slice(begin, number - begin).cast(_STORED_SCHEMA))
        begin = number + 1
        if action is None or Action.ROW in action:
            continue
        line = _line(rows.slice(number, 1).to_pylist()[0], action)
        table = to_table([line])[0] if line is not None else no_rows(ROW_SCHEMA)
        lost += not table.num_rows
        pieces.append(with_seq(table, seqs[number]))
    return pa.concat_tables(pieces), lost


def _line(row: dict[str, Any], action: Action) -> bytes | None:
    try:
        return encode_row(stripped(exchange_of(row), action))
    except (msgspec.ValidationError, ValueError, TypeError):
        return None  # no row of ours; what is to go from it goes with all of it


def stripped(exchange: Exchange, action: Action) -> Exchange:
    """The record without what `action` takes."""
    if Action.FINDINGS in action:
        exchange = msgspec.structs.replace(exchange, findings=[])
    if Action.CONTENT in action:
        exchange = exchange.without_content()
        exchange.anomalies = [*exchange.anomalies, AnomalyCount(name=_EXPIRED, count=1)]
    return exchange
