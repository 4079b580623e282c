"""Finding stored findings, by filter."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmsec_analyzer.risk import SEVERITIES, rank
from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.storage.schema import FINDING

# Columns of the view, in its order: the exchange's, then the finding's own.
COLUMNS = ("exchange_id", "started", *(name for name, _ in FINDING.fields))


@dataclass(frozen=True)
class FindingFilter:
    severity: str | None = None  # at least
    category: str | None = None
    rule: str | None = None
    exchange: str | None = None  # how its id begins
    fingerprint: str | None = None
    since_ns: int | None = None
    limit: int | None = 100

    def statement(self) -> tuple[str, list[Any]]:
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
            conditions.append("rule_id GLOB ?")
            values.append(self.rule)
        if self.exchange is not None:
            conditions.append("starts_with(exchange_id, ?)")
            values.append(self.exchange)
        if self.since_ns is not None:
            conditions.append("started >= ?")
            values.append(dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=self.since_ns // 1000))  # noqa: DTZ001 - the column has no zone
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        order = ", ".join(f"WHEN '{name}' THEN {number}" for number, name in enumerate(SEVERITIES)).replace(",", "")
        columns = ", ".join(f'"{name}"' for name in COLUMNS)
        limit = f" LIMIT {self.limit}" if self.limit is not None else ""
        return f"SELECT {columns} FROM findings{where} ORDER BY CASE severity {order} END DESC, started DESC, finding_id{limit}", values  # noqa: S608 - names and numbers of ours


def stored_findings(session: QuerySession, wanted: FindingFilter) -> Iterator[dict[str, Any]]:
    statement, values = wanted.statement()
    for row in session.select(statement, values).rows():
        yield dict(zip(COLUMNS, row, strict=True))


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its time as text, for JSON."""
    started = row["started"]
    return {**row, "started": started.isoformat() + "Z" if started is not None else None}
