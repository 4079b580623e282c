"""Finding stored exchanges: by filter, by id."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from llmsec_analyzer.stored.dialect import Dialect
from llmsec_analyzer.stored.stores import Result, Session
from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Exchange
from llmsec_tap.storage.rows import exchange_of
from llmsec_tap.storage.schema import EXCHANGE_COLUMNS

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


# Tokens as all views show them: what the server stated, or else an estimate.
INPUT_TOKENS: Final = "coalesce(input_tokens, usage_estimated.input_tokens)"
OUTPUT_TOKENS: Final = "coalesce(output_tokens, usage_estimated.output_tokens)"


def _list_columns(sql: Dialect) -> str:
    return f"""
    substring(exchange_id, 1, 12) AS id,
    {sql.time_text.format("started")} AS started,
    {sql.whole.format("duration_ms")} AS ms,
    provider,
    model,
    status,
    {INPUT_TOKENS} AS "in",
    {OUTPUT_TOKENS} AS "out",
    CASE WHEN error_type IS NOT NULL THEN error_type WHEN completeness <> 'complete' THEN completeness ELSE '' END AS note,
    {sql.left.format("input_text", 200)} AS input
"""


class Position(NamedTuple):
    """Where an exchange stands in a walk over all of a store: by its start (0 where none is known), then its id."""

    started_ns: int
    exchange_id: str


_COLUMNS: Final = {"key": "api_key_fingerprint", "session": "session_id", "process": "process.comm"}


@dataclass(frozen=True)
class Filter:
    model: str | None = None
    provider: str | None = None
    api: str | None = None
    tenant: str | None = None
    status: int | None = None
    has_error: bool = False
    completeness: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    text: str | None = None  # in what was asked or answered, in either case
    risk: int | None = None  # at least
    rule: str | None = None  # with a finding of it
    key: str | None = None  # fingerprint of the API key
    end_user: str | None = None  # its fingerprint
    session: str | None = None
    process: str | None = None  # its name
    node: str | None = None
    before: Position | None = None  # older than this one, for the next page
    limit: int = 50

    def where(self, sql: Dialect) -> tuple[str, list[Any]]:
        conditions: list[str] = []
        parameters: list[Any] = []
        if self.model is not None:
            conditions.append(f"({sql.matches.format('request_model')} OR {sql.matches.format('response_model')})")
            parameters += [sql.pattern(self.model)] * 2
        for name in ("provider", "api", "tenant", "status", "completeness", "key", "end_user", "session", "process", "node"):
            value = getattr(self, name)
            if value is not None:
                conditions.append(f"{_COLUMNS.get(name, name)} = ?")
                parameters.append(value)
        if self.has_error:
            conditions.append("(error_type IS NOT NULL OR status >= 400)")
        if self.since_ns is not None:
            conditions.append("started_ns >= ?")
            parameters.append(self.since_ns)
        if self.until_ns is not None:
            conditions.append("started_ns < ?")
            parameters.append(self.until_ns)
        if self.text is not None:
            conditions.append(f"({sql.contains.format('input_text')} OR {sql.contains.format('output_text')})")
            parameters += [self.text] * 2
        if self.risk is not None:
            conditions.append("risk_score >= ?")
            parameters.append(self.risk)
        if self.rule is not None:
            conditions.append(sql.has_rule)
            parameters.append(self.rule)
        if self.before is not None:
            conditions.append("(coalesce(started_ns, 0) < ? OR (coalesce(started_ns, 0) = ? AND exchange_id > ?))")
            parameters += [self.before.started_ns, self.before.started_ns, self.before.exchange_id]
        return (f"WHERE {' AND '.join(conditions)}" if conditions else ""), parameters


def parse_time(text: str, option: str, now_ns: int | None = None) -> int:
    """`2h` (ago), or an ISO 8601 date or time, UTC where it names no zone; epoch nanoseconds, from 1970 to 2262."""
    ago = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip())
    if ago:
        now = time.time_ns() if now_ns is None else now_ns
        return max(0, now - int(ago[1]) * _UNITS[ago[2]] * 1_000_000_000)
    try:
        moment = dt.datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        since_epoch = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        raise ConfigError(f"{option}: {text!r} is not a valid time", "write 30m, 2h, 7d (ago) or 2026-11-24T10:00 (UTC)") from None
    return min(max(0, (since_epoch // dt.timedelta(microseconds=1)) * 1000), _LAST_NS)


@dataclass(frozen=True)
class _Marked:
    """A list whose last two columns say that `in` and `out` are estimates: they go, and ~ marks the estimate."""

    found: Result

    @property
    def names(self) -> tuple[str, ...]:
        return self.found.names[:-2]

    @property
    def types(self) -> tuple[str, ...]:
        return self.found.types[:-2]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        places = self.names.index("in"), self.names.index("out")
        for *row, in_is_estimate, out_is_estimate in self.found.rows():
            for place, is_estimate in zip(places, (in_is_estimate, out_is_estimate), strict=True):
                if is_estimate and row[place] is not None:
                    row[place] = f"~{row[place]}"
            yield tuple(row)


def listed(session: Session, wanted: Filter) -> Result:
    """A row for each exchange, newest first: what a list shows of it, ~ before tokens that are estimates."""
    where, parameters = wanted.where(session.dialect)
    columns = f"{_list_columns(session.dialect)}, input_tokens IS NULL AS in_is_estimate, output_tokens IS NULL AS out_is_estimate"
    found = session.select(
        f"SELECT {columns} FROM exchanges {where} {_NEWEST_FIRST}",  # noqa: S608 - values are parameters
        [*parameters, wanted.limit],
    )
    return _Marked(found)


def page(session: Session, wanted: Filter) -> list[dict[str, Any]]:
    """A page of a list, newest first, as dicts: what a list shows of each, its whole id and where it stands."""
    return _widened(session, wanted, _page)


def records(session: Session, wanted: Filter) -> Iterator[Exchange]:
    """Whole records, newest first."""
    where, parameters = wanted.where(session.dialect)
    return _records(session, f"{where} {_NEWEST_FIRST}", [*parameters, wanted.limit])


def records_page(session: Session, wanted: Filter) -> list[Exchange]:
    """A page of whole records, newest first."""
    return _widened(session, wanted, lambda session, wanted: list(records(session, wanted)))


_NEWEST_FIRST: Final = "ORDER BY started_ns DESC NULLS LAST, exchange_id LIMIT ?"
_T = TypeVar("_T")


def _widened(session: Session, wanted: Filter, asked: Callable[[Session, Filter], list[_T]]) -> list[_T]:
    """The page, once it is full. A large store is asked for its newest part first, then for sixteen times as much, until the page is full."""
    before = wanted.before.started_ns if wanted.before is not None else wanted.until_ns
    rows = wanted.limit * 2
    while (since_ns := session.reach(before, rows)) is not None and since_ns > (wanted.since_ns or 0):
        until_ns = wanted.until_ns if wanted.before is None else min(wanted.before.started_ns + 1, wanted.until_ns or _LAST_NS)
        with session.narrowed(since_ns, until_ns):
            found = asked(session, dataclasses.replace(wanted, since_ns=since_ns, until_ns=until_ns))
        if len(found) >= wanted.limit:
            return found
        rows *= 16
    with session.narrowed(wanted.since_ns, wanted.until_ns):
        return asked(session, wanted)


_LAST_NS: Final = 2**63 - 1


def _page(session: Session, wanted: Filter) -> list[dict[str, Any]]:
    where, parameters = wanted.where(session.dialect)
    found = session.select(
        f"""
        SELECT {_list_columns(session.dialect)}, exchange_id, coalesce(started_ns, 0) AS started_ns, tenant, risk_score, cost_usd,
            {session.dialect.length.format("findings")} AS finding_count,
            method, path, tls.server_name AS server_name, tls.transport AS transport, server
        FROM exchanges {where} {_NEWEST_FIRST}
        """,  # noqa: S608 - our own clauses
        [*parameters, wanted.limit],
    )
    # ClickHouse takes an alias that is a column's name for that column, in conditions too.
    names = ["findings" if name == "finding_count" else name for name in found.names]
    return [dict(zip(names, row, strict=True)) for row in found.rows()]


def of_anomalies(session: Session, names: Sequence[str] | None) -> Iterator[Exchange]:
    """Whole records with one of these anomalies, oldest first; all records where `names` is None."""
    if names is None:
        return _records(session, "ORDER BY started_ns, exchange_id", [])
    return _records(session, f"WHERE {session.dialect.any_anomaly} ORDER BY started_ns, exchange_id", [list(names)])


BEGINNING: Final = Position(-1, "")


def positions(session: Session, after: Position, names: Sequence[str] | None, limit: int) -> list[Position]:
    """Of the next exchanges with a language model behind `after`, in their order; `names` as of `of_anomalies`."""
    conditions, parameters = ["provider IS NOT NULL", "(coalesce(started_ns, 0), exchange_id) > (?, ?)"], [*after]
    if names is not None:
        conditions.append(session.dialect.any_anomaly)
        parameters.append(list(names))
    sql = f"SELECT coalesce(started_ns, 0), exchange_id FROM exchanges WHERE {' AND '.join(conditions)} ORDER BY 1, 2 LIMIT ?"  # noqa: S608 - our own clauses
    return [Position(int(started), exchange_id) for started, exchange_id in session.select(sql, [*parameters, limit]).rows()]


def at_positions(session: Session, wanted: Sequence[Position]) -> Iterator[Exchange]:
    """The whole records of these, in their order. One that was deleted meanwhile is left out."""
    among = session.dialect.among.format("exchange_id")
    clauses = f"WHERE coalesce(started_ns, 0) BETWEEN ? AND ? AND {among} ORDER BY coalesce(started_ns, 0), exchange_id"
    return _records(session, clauses, [wanted[0].started_ns, wanted[-1].started_ns, [position.exchange_id for position in wanted]])


def still_there(session: Session, exchanges: Sequence[Exchange], without: Sequence[str]) -> set[str]:
    """Ids of those of them that the store has, and has without any of these anomalies."""
    if not exchanges:
        return set()
    starts = [exchange.started_ns or 0 for exchange in exchanges]
    sql = session.dialect
    conditions = f"coalesce(started_ns, 0) BETWEEN ? AND ? AND {sql.among.format('exchange_id')} AND NOT {sql.any_anomaly}"
    parameters = [min(starts), max(starts), [exchange.exchange_id for exchange in exchanges], list(without)]
    return {row[0] for row in session.select(f"SELECT exchange_id FROM exchanges WHERE {conditions}", parameters).rows()}  # noqa: S608 - our own clauses


def find(session: Session, prefix: str) -> Exchange:
    """The one exchange whose id begins so. ConfigError where there is none or more than one."""
    prefix = prefix.strip()
    if not prefix:
        raise ConfigError("an empty id matches everything", "give at least its first characters")
    millisecond = _time_of(prefix)
    exchange = None
    if millisecond is not None:
        exchange = _found(session, prefix, millisecond * 1_000_000, (millisecond + 1) * 1_000_000)
    exchange = exchange or _found(session, prefix, None, None)
    if exchange is None:
        raise ConfigError(f"no exchange with an id that begins with {prefix!r}", "llmsec-analyze exchanges lists ids")
    return exchange


_ID_DIGITS: Final = 32


def _time_of(exchange_id: str) -> int | None:
    """The millisecond of its start, which its first twelve digits are (exchange/ids.py): so few parts of a store are looked into."""
    return int(exchange_id[:12], 16) if re.match(r"[0-9a-f]{12}", exchange_id) else None


def _found(session: Session, prefix: str, since_ns: int | None, until_ns: int | None) -> Exchange | None:
    clause, values = ("", []) if since_ns is None else ("AND started_ns >= ? AND started_ns < ?", [since_ns, until_ns])
    with session.narrowed(since_ns, until_ns):
        found = prefix if len(prefix) == _ID_DIGITS else _only(session, prefix, clause, values)
        return next(_records(session, f"WHERE exchange_id = ? {clause}", [found, *values]), None) if found is not None else None


def _only(session: Session, prefix: str, clause: str, values: list[Any]) -> str | None:
    """The one id that begins so; None where there is none. ConfigError where there are more."""
    rows = session.select(
        f"SELECT exchange_id FROM exchanges WHERE {session.dialect.starts_with.format('exchange_id')} {clause} ORDER BY exchange_id LIMIT 4",  # noqa: S608 - our own clauses
        [prefix, *values],
    ).rows()
    found = [str(row[0]) for row in rows]
    if len(found) > 1 and prefix not in found:
        some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise ConfigError(f"more than one exchange has an id that begins with {prefix!r}", f"one of {some}")
    return prefix if prefix in found else next(iter(found), None)


def _records(session: Session, clauses: str, parameters: list[Any]) -> Iterator[Exchange]:
    names = ", ".join(f'"{name}"' for name, _ in EXCHANGE_COLUMNS)
    result = session.select(f"SELECT {names} FROM exchanges {clauses}", parameters)  # noqa: S608 - our own clauses
    for row in result.rows():
        yield exchange_of(dict(zip(result.names, row, strict=True)))
