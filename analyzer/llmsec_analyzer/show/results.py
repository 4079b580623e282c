"""Results as a table, JSON lines, CSV or Parquet. All but the table stream: one batch in memory, whatever the size."""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, TextIO

import msgspec

from llmsec_analyzer.show.terminal import cut, json_visible, pad, visible, width
from llmsec_analyzer.stored.stores import Result, Session
from llmsec_tap.errors import ConfigError

TABLE_ROWS = 200
MIN_COLUMN = 6
NO_ROWS = "(no rows)"
# A cell of a table that does not go to a terminal: wide enough to be useful, bounded so that a table stays one.
PIPE_CELL = 120
_NUMERIC = ("INT", "DOUBLE", "FLOAT", "DECIMAL", "HUGEINT", "BIGINT", "REAL")


def _plain(value: Any) -> Any:
    """What msgspec does not know how to write."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dt.timedelta):
        return str(value)
    return str(value)


_encoder = msgspec.json.Encoder(enc_hook=_plain, decimal_format="number")


def json_text(value: Any) -> str:
    """One line of JSON. Values that JSON does not have (NaN) are null; integers of any size are kept."""
    try:
        return _encoder.encode(value).decode()
    except (OverflowError, TypeError, UnicodeEncodeError):
        return json.dumps(_finite(value), default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_lines(lines: Iterable[str], out: TextIO) -> None:
    """JSON lines. On a terminal, what could steer it is written as escapes, which mean the same in JSON."""
    on_terminal = out.isatty()
    out.writelines((json_visible(line) if on_terminal else line) + "\n" for line in lines)


def or_no_rows(lines: Iterable[str]) -> Iterator[str]:
    """Lines of a table; where there is none, one that says so."""
    found = iter(lines)
    yield next(found, NO_ROWS)
    yield from found


def write_json(result: Result, out: TextIO) -> None:
    names = unique(result.names)
    write_lines((json_text(dict(zip(names, row, strict=True))) for row in result.rows()), out)


# What a spreadsheet takes for the beginning of a formula (OWASP, CSV Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_csv(result: Result, out: TextIO, *, safe: bool = False) -> None:
    """RFC 4180 with a header; null is an empty cell; lists and structs are JSON. `safe`: no text begins as a formula does."""
    on_terminal = out.isatty()
    writer = csv.writer(out, lineterminator="\n")
    names = [no_formula(name) for name in result.names] if safe else result.names
    writer.writerow([visible(name) for name in names] if on_terminal else names)
    for row in result.rows():
        cells = [no_formula(_csv_cell(value)) if safe and isinstance(value, str) else _csv_cell(value) for value in row]
        writer.writerow([visible(cell) for cell in cells] if on_terminal else cells)


def no_formula(text: str) -> str:
    """For a cell of a spreadsheet."""
    return "'" + text if text.startswith(_FORMULA) else text


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict | tuple):
        return json_text(value)
    if isinstance(value, bytes | bytearray):
        return value.hex()
    return str(value)


def write_parquet(session: Session, sql: str) -> None:
    """The result as one Parquet file on standard output; refused on a terminal."""
    if sys.stdout.isatty():
        raise ConfigError("Parquet is binary and standard output is a terminal", "redirect it: > result.parquet")
    import pyarrow.parquet as pq  # type: ignore[import-untyped] # noqa: PLC0415

    reader = session.batches(sql)
    with pq.ParquetWriter(sys.stdout.buffer, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)
    sys.stdout.buffer.flush()


def unique(names: Iterable[str]) -> list[str]:
    """Names for a JSON object: a second `a` becomes `a_1`, as DuckDB names it itself."""
    taken: list[str] = []
    for name in names:
        candidate, number = name, 0
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.append(candidate)
    return taken


def write_table(result: Result, out: TextIO, *, max_rows: int = TABLE_ROWS, columns: int | None = None) -> None:
    """A table fitted to the terminal; more than `max_rows` rows are left off with a note."""
    rows: list[list[str]] = []
    more = False
    for row in result.rows():
        if len(rows) >= max_rows:
            more = True
            break
        rows.append([_table_cell(value) for value in row])
    on_terminal = out.isatty()
    limit = columns or (shutil.get_terminal_size().columns if on_terminal else None)
    right = [any(kind in name for kind in _NUMERIC) and "[" not in name and "(" not in name.split("DECIMAL")[0] for name in result.types]
    out.write(render([visible(name) for name in result.names], rows, right, limit))
    if more:
        out.write(f"(first {max_rows} rows; --format json or csv gives all, LIMIT fewer)\n")
    elif not rows:
        out.write(f"{NO_ROWS}\n")


def _table_cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e15 else repr(value)
    return visible(_csv_cell(value)[:4096])


def render(header: list[str], rows: list[list[str]], right: list[bool], limit: int | None) -> str:
    """Lines of text, no wider than `limit` columns where that is possible at all."""
    widths = [
        max([width(name), *(min(width(row[at]), PIPE_CELL if limit is None else 10_000) for row in rows)]) for at, name in enumerate(header)
    ]
    if limit is not None:
        widths = _fit(widths, limit - 2 * (len(widths) - 1))
    lines = [header, ["─" * size for size in widths], *rows]
    text = []
    for line in lines:
        cells = [pad(cut(cell, size), size, right=flush) for cell, size, flush in zip(line, widths, right, strict=True)]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text) + "\n"


def _fit(widths: list[int], room: int) -> list[int]:
    """Take from the widest columns first; none gets narrower than MIN_COLUMN by this."""
    widths = list(widths)
    excess = sum(widths) - room
    while excess > 0:
        widest = max(widths)
        if widest <= MIN_COLUMN:
            break
        at_widest = [index for index, size in enumerate(widths) if size == widest]
        lower = max([size for size in widths if size < widest] + [MIN_COLUMN])
        step = max(1, min(widest - lower, -(-excess // len(at_widest))))
        for index in at_widest:
            widths[index] -= step
            excess -= step
    return widths
