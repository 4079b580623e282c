"""Finding stored deviations by filter."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmsec_analyzer.risk import SEVERITIES, rank
from llmsec_analyzer.stored.dialect import Dialect
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.storage.schema import DEVIATION

# Columns of the view, in its order: the exchange's, then the deviation's own.
COLUMNS = ("exchange_id", "started", *(name for name, _ in DEVIATION.fields))


@dataclass(frozen=True)
class DeviationFilter:
    severity: str | None = None  # at least
    kind: str | None = None  # * and ? are wildcards
    subject: str | None = None
    since_ns: int | None = None
    limit: int | None = 100

    def statement(self, sql: Dialect) -> tuple[str, list[Any]]:
        """Rows of COLUMNS, newest first."""
        conditions: list[str] = []
        values: list[Any] = []
        if self.severity is not None:
            wanted = SEVERITIES[rank(self.severity) :]
            conditions.append(f"severity IN ({', '.join('?' * len(wanted))})")
            values += wanted
        for column, value in (("kind", self.kind), ("subject", self.subject)):
            if value is not None:
                conditions.append(sql.matches.format(column))
                values.append(sql.pattern(value))
        if self.since_ns is not None:
            conditions.append("started >= ?")
            values.append(dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=self.since_ns // 1000))  # noqa: DTZ001 - the column has no zone
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        limit = f" LIMIT {self.limit:d}" if self.limit is not None else ""
        columns = ", ".join(f'"{name}"' for name in COLUMNS)
        return f"SELECT {columns} FROM deviations{where} ORDER BY started DESC, exchange_id, kind{limit}", values  # noqa: S608 - names of ours


def stored_deviations(session: Session, wanted: DeviationFilter) -> Iterator[dict[str, Any]]:
    statement, values = wanted.statement(session.dialect)
    for row in session.select(statement, values).rows():
        yield dict(zip(COLUMNS, row, strict=True))
