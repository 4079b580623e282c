"""Finding stored findings: by filter, by id."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from llmsec_analyzer.risk import SEVERITIES, rank
from llmsec_analyzer.stored.dialect import Dialect
from llmsec_analyzer.stored.exchanges import find
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Exchange, Finding
from llmsec_tap.storage.schema import FINDING

# Columns of the view, in its order: the exchange's, then the finding's own.
COLUMNS = ("exchange_id", "started", *(name for name, _ in FINDING.fields))
# What suppressions go by of the exchange (judge/facts.py).
FACTS = {
    **{
        name: f"e.{name}"
        for name in (
            *("client", "server", "provider", "api", "operation", "method", "path", "tenant", "api_key_fingerprint", "session_id"),
            *("end_user", "client_agent", "deployment", "capture_kind", "node"),
        )
    },
    "model": "coalesce(e.request_model, e.response_model)",
    **{name: f"e.process.{name}" for name in ("comm", "container_id", "pod", "namespace")},
}


@dataclass(frozen=True)
class FindingFilter:
    severity: str | None = None  # at least
    category: str | None = None
    rule: str | None = None
    exchange: str | None = None  # how its id begins
    fingerprint: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    tenant: str | None = None
    limit: int | None = 100
    suppressed: bool = False  # also those

    def statement(self, sql: Dialect, *, with_facts: bool = False) -> tuple[str, list[Any]]:
        """Rows of COLUMNS, and of FACTS behind them."""
        conditions: list[str] = []
        values: list[Any] = []
        if self.severity is not None:
            wanted = SEVERITIES[rank(self.severity) :]
            conditions.append(f"severity IN ({', '.join('?' * len(wanted))})")
            values += wanted
        for column, value in (("category", self.category), ("fingerprint", self.fingerprint)):
            if value is not None:
                conditions.append(f"{column} = ?")
                values.append(value)
        if self.rule is not None:
            conditions.append(sql.matches.format("rule_id"))
            values.append(sql.pattern(self.rule))
        if self.exchange is not None:
            conditions.append(sql.starts_with.format("exchange_id"))
            values.append(self.exchange)
        if not self.suppressed:
            conditions.append("(suppressed.until IS NULL OR suppressed.until < ?)")
            values.append(dt.datetime.now(dt.UTC).date().isoformat())
        for bound, compared in ((self.since_ns, ">="), (self.until_ns, "<")):
            if bound is not None:
                conditions.append(f"started {compared} ?")
                values.append(dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=bound // 1000))  # noqa: DTZ001 - the column has no zone
        if self.tenant is not None:
            conditions.append("exchange_id IN (SELECT exchange_id FROM exchanges WHERE tenant = ?)")
            values.append(self.tenant)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        order = ", ".join(f"WHEN '{name}' THEN {number}" for number, name in enumerate(SEVERITIES)).replace(",", "")
        columns = ", ".join(f'"{name}"' for name in COLUMNS)
        found = f"SELECT {columns} FROM findings{where}"  # noqa: S608 - names and numbers of ours
        if with_facts:
            facts = ", ".join(f'{fact} AS "exchange_{name}"' for name, fact in FACTS.items())
            found = f"SELECT f.*, {facts} FROM ({found}) f JOIN exchanges e ON e.exchange_id = f.exchange_id"  # noqa: S608 - the same
        return f"SELECT * FROM ({found}) ORDER BY CASE severity {order} END DESC, started DESC, finding_id", values  # noqa: S608 - the same


def stored_findings(
    session: Session, wanted: FindingFilter, mark: Callable[[Finding, dict[str, Any]], Finding] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows as dicts. `mark` says of each, with FACTS of its exchange, whether it is suppressed now; a stored mark holds until its last day."""
    statement, values = wanted.statement(session.dialect, with_facts=mark is not None)
    today = dt.datetime.now(dt.UTC).date().isoformat()
    left = wanted.limit
    for values_of_row in session.select(statement, values).rows():
        if left == 0:
            return
        row = dict(zip(COLUMNS, values_of_row, strict=False))
        if row["suppressed"] is not None and row["suppressed"]["until"] < today:
            row["suppressed"] = None
        if row["suppressed"] is None and mark is not None:
            found = mark(finding_of(row), dict(zip(FACTS, values_of_row[len(COLUMNS) :], strict=True))).suppressed
            row["suppressed"] = msgspec.structs.asdict(found) if found is not None else None
        if wanted.suppressed or row["suppressed"] is None:
            left = left - 1 if left is not None else None
            yield row


def finding_of(row: dict[str, Any]) -> Finding:
    return msgspec.convert({name: value for name, value in row.items() if value is not None and name != "started"}, Finding)


def find_finding(session: Session, prefix: str) -> tuple[Finding, Exchange]:
    """The one finding whose id begins so, and its exchange. ConfigError where there is none or more than one."""
    prefix = prefix.strip()
    if not prefix:
        raise ConfigError("an empty id matches everything", "give at least its first characters")
    begins = session.dialect.starts_with.format("finding_id")
    statement = f"SELECT finding_id, exchange_id FROM findings WHERE {begins} ORDER BY finding_id, exchange_id LIMIT 4"  # noqa: S608 - our own clauses
    rows = list(session.select(statement, [prefix]).rows())
    exact = [row for row in rows if row[0] == prefix]
    rows = exact or rows
    if not rows:
        raise ConfigError(f"no finding with an id that begins with {prefix!r}", "llmsec-analyze findings --format jsonl has their ids")
    if len(rows) > 1:
        some = ", ".join(row[0] for row in rows[:3]) + (", …" if len(rows) > 3 else "")
        raise ConfigError(f"more than one finding has an id that begins with {prefix!r}", f"one of {some}")
    exchange = find(session, rows[0][1])
    return next(finding for finding in exchange.findings if finding.finding_id == rows[0][0]), exchange


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its time as text, for JSON."""
    started = row["started"]
    return {**row, "started": started.isoformat() + "Z" if started is not None else None}
