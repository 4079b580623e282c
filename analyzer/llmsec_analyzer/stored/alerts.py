"""Finding stored alerts by filter, by id."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmsec_analyzer.stored.dialect import Dialect
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.errors import ConfigError

COLUMNS = ("alert_id", "rule", "priority", "dedup_key", "state", "count", "started", "ended")
# Of the states of its exchanges, the first of these is the alert's.
_STATES = ("resolved", "firing", "limited", "silenced")
_STATE = " ".join(f"WHEN max(CASE WHEN state = '{state}' THEN 1 ELSE 0 END) = 1 THEN '{state}'" for state in _STATES)


@dataclass(frozen=True)
class AlertFilter:
    rule: str | None = None  # * and ? are wildcards
    key: str | None = None  # likewise
    priority: str | None = None
    since_ns: int | None = None
    limit: int | None = 100

    def statement(self, sql: Dialect) -> tuple[str, list[Any]]:
        """Rows of COLUMNS, newest first: one for each alert. `started`, `ended`: of its first and last exchange, as they began."""
        conditions: list[str] = []
        values: list[Any] = []
        for column, value in (("rule", self.rule), ("dedup_key", self.key)):
            if value is not None:
                conditions.append(sql.matches.format(column))
                values.append(sql.pattern(value))
        if self.priority is not None:
            conditions.append("priority = ?")
            values.append(self.priority)
        if self.since_ns is not None:
            conditions.append("started >= ?")
            values.append(dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=self.since_ns // 1000))  # noqa: DTZ001 - the column has no zone
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        limit = f" LIMIT {self.limit:d}" if self.limit is not None else ""
        counted = 'max("count") AS exchanges, min(started) AS first_started, max(started) AS last_started'
        columns = f"alert_id, rule, priority, dedup_key, CASE {_STATE} ELSE 'firing' END AS alert_state, {counted}"
        grouped = "GROUP BY alert_id, rule, priority, dedup_key ORDER BY first_started DESC, alert_id"
        return f"SELECT {columns} FROM alerts{where} {grouped}{limit}", values  # noqa: S608 - names of ours


def stored_alerts(session: Session, wanted: AlertFilter) -> Iterator[dict[str, Any]]:
    statement, values = wanted.statement(session.dialect)
    for row in session.select(statement, values).rows():
        yield dict(zip(COLUMNS, row, strict=True))


def find_alert(session: Session, prefix: str, *, most: int = 20) -> tuple[dict[str, Any], list[tuple[str, str]]] | None:
    """The one alert whose id begins so, and (exchange_id, state) of its first exchanges; None where there is none. ConfigError where there are several."""
    begins = session.dialect.starts_with.format("alert_id")
    statement = f"SELECT DISTINCT alert_id FROM alerts WHERE {begins} ORDER BY alert_id LIMIT 4"  # noqa: S608 - our own clauses
    ids = [row[0] for row in session.select(statement, [prefix]).rows()]
    if len(ids) > 1 and prefix not in ids:
        some = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
        raise ConfigError(f"more than one alert has an id that begins with {prefix!r}", f"one of {some}")
    if not ids:
        return None
    alert_id = prefix if prefix in ids else ids[0]
    columns = "rule, priority, dedup_key, state, exchange_id, started"
    statement = f'SELECT {columns}, "count" FROM alerts WHERE alert_id = ? ORDER BY started, exchange_id'  # noqa: S608 - the same
    exchanges: list[tuple[str, str]] = []
    states: set[str] = set()
    found: dict[str, Any] = {}
    for rule, priority, key, state, exchange_id, started, count in session.select(statement, [alert_id]).rows():
        found = found or {"alert_id": alert_id, "rule": rule, "priority": priority, "dedup_key": key, "started": started, "count": 0}
        found["count"] = max(found["count"], count)
        found["ended"] = started
        states.add(state)
        if len(exchanges) < most:
            exchanges.append((exchange_id, state))
    found["state"] = next((state for state in _STATES if state in states), "firing")
    return found, exchanges
