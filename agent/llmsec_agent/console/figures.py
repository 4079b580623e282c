"""The figures of the overview, by SQL that a folder and a database answer alike."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

from llmsec_analyzer.stored.exchanges import INPUT_TOKENS, OUTPUT_TOKENS
from llmsec_analyzer.stored.session import QuerySession
from llmsec_analyzer.stored.stores import Session

_BUCKETS: Final = 48
# Widths of a chart's columns, in seconds.
_WIDTHS: Final = (1, 5, 15, 60, 300, 900, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400)
_NS: Final = 1_000_000_000
_GRAVEST_FIRST: Final = "CASE severity WHEN 'critical' THEN 0 WHEN 'high' THEN 1 WHEN 'medium' THEN 2 WHEN 'low' THEN 3 ELSE 4 END"
# Each sum by itself: a store may hold counts that one addition cannot.
_TOKENS: Final = f"coalesce(sum({INPUT_TOKENS}), 0) + coalesce(sum({OUTPUT_TOKENS}), 0)"
_IS_REQUEST: Final = "provider IS NOT NULL AND method IS NOT NULL"


@dataclass(frozen=True)
class Span:
    """From, and before, in epoch nanoseconds; None: as far as the store goes."""

    since_ns: int | None = None
    until_ns: int | None = None
    tenant: str | None = None

    def where(self, *more: str) -> tuple[str, list[Any]]:
        conditions, values = [*more], list[Any]()
        if self.since_ns is not None:
            conditions.append("started_ns >= ?")
            values.append(self.since_ns)
        if self.until_ns is not None:
            conditions.append("started_ns < ?")
            values.append(self.until_ns)
        if self.tenant is not None:
            conditions.append("tenant = ?")
            values.append(self.tenant)
        return (f"WHERE {' AND '.join(conditions)}" if conditions else ""), values


@dataclass(frozen=True)
class Totals:
    exchanges: int
    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    errors: int
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    worst_risk: int | None
    whole: int
    unscanned: int
    closed: int
    future: int  # begun after now, by clocks that are ahead
    first_ns: int | None
    last_ns: int | None


@dataclass(frozen=True)
class Column:
    """One column of a chart."""

    begin_ns: int
    requests: int
    errors: int
    tokens: int
    cost_usd: float
    ttft_p95_ms: float | None
    worst_risk: int | None


def totals(session: Session, span: Span) -> Totals:
    where, values = span.where()
    quantile = session.dialect.quantile
    row = next(
        session.select(
            f"""
            SELECT count(*),
                count(*) FILTER (WHERE {_IS_REQUEST}),
                coalesce(sum({INPUT_TOKENS}), 0),
                coalesce(sum({OUTPUT_TOKENS}), 0),
                sum(cost_usd),
                count(*) FILTER (WHERE error_type IS NOT NULL OR status >= 400),
                {quantile.format("ttft_ms", 0.5)}, {quantile.format("ttft_ms", 0.95)},
                max(risk_score),
                count(*) FILTER (WHERE completeness = 'complete'),
                count(*) FILTER (WHERE {_IS_REQUEST} AND risk_score IS NULL),
                count(*) FILTER (WHERE method IS NULL AND completeness = 'unreadable'),
                count(*) FILTER (WHERE started_ns > {time.time_ns()}),
                min(started_ns), max(started_ns)
            FROM exchanges {where}
            """,  # noqa: S608 - our own clauses
            values,
        ).rows()
    )
    return Totals(*row)


def columns(session: Session, span: Span, known: Totals) -> tuple[int, list[Column]]:
    """The width of a column in seconds, and the columns that are not empty. What is dated after now is in none."""
    first, last = span.since_ns or known.first_ns, span.until_ns or known.last_ns
    if first is None or last is None or not known.exchanges:
        return _WIDTHS[0], []
    last = max(first, min(last, time.time_ns()))
    width = next((width for width in _WIDTHS if (last - first) / _NS / width <= _BUCKETS), _WIDTHS[-1])
    where, values = span.where("started_ns IS NOT NULL", f"started_ns <= {last}")
    bucket = session.dialect.quotient.format("started_ns", width * _NS)
    found = session.select(
        f"""
        SELECT {bucket} AS bucket, count(*) FILTER (WHERE {_IS_REQUEST}), count(*) FILTER (WHERE error_type IS NOT NULL OR status >= 400),
            {_TOKENS},
            coalesce(sum(cost_usd), 0), {session.dialect.quantile.format("ttft_ms", 0.95)}, max(risk_score)
        FROM exchanges {where} GROUP BY 1 ORDER BY 1
        """,  # noqa: S608 - our own clauses
        values,
    )
    return width, [Column(int(bucket) * width * _NS, *rest) for bucket, *rest in found.rows()]


def top(session: Session, span: Span, column: str, limit: int = 8) -> list[tuple[str, int, int]]:
    """Names with their requests and tokens, the most requests first. `column` is ours."""
    where, values = span.where(_IS_REQUEST)
    found = session.select(
        f"""
        SELECT {column} AS name, count(*) AS n,
            {_TOKENS}
        FROM exchanges {where} GROUP BY 1 ORDER BY n DESC, name LIMIT {limit}
        """,  # noqa: S608 - our own clauses
        values,
    )
    return [(str(name) if name is not None else "", int(count), int(tokens)) for name, count, tokens in found.rows()]


def by_tenant(session: Session, span: Span, limit: int) -> list[tuple[Any, ...]]:
    """Tenant, requests, keys, tokens in and out, cost, errors, highest risk."""
    where, values = span.where(_IS_REQUEST)
    found = session.select(
        f"""
        SELECT tenant, count(*) AS n, count(DISTINCT api_key_fingerprint), coalesce(sum({INPUT_TOKENS}), 0),
            coalesce(sum({OUTPUT_TOKENS}), 0), sum(cost_usd),
            count(*) FILTER (WHERE error_type IS NOT NULL OR status >= 400), max(risk_score)
        FROM exchanges {where} GROUP BY tenant ORDER BY n DESC, tenant LIMIT {limit}
        """,  # noqa: S608 - our own clauses
        values,
    )
    return list(found.rows())


def by_workload(session: Session, span: Span, limit: int) -> list[tuple[Any, ...]]:
    """Process, pod or container, namespace, node, whom it talks to, model, requests, tokens, highest risk; live captures alone know processes."""
    where, values = span.where(_IS_REQUEST, "process.comm IS NOT NULL")
    found = session.select(
        f"""
        SELECT process.comm AS comm, coalesce(process.pod, process.container_id) AS pod, process.namespace AS namespace, node, provider, model, count(*) AS n,
            {_TOKENS}, max(risk_score)
        FROM exchanges {where} GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY n DESC, comm LIMIT {limit}
        """,  # noqa: S608 - our own clauses
        values,
    )
    return list(found.rows())


def rules(session: Session, span: Span, limit: int | None = None) -> list[tuple[str, str, str, int, int]]:
    """Rule, category, severity, findings and exchanges, the gravest first; suppressed ones are left out."""
    where, values = span.where()
    among = f"WHERE exchange_id IN (SELECT exchange_id FROM exchanges {where})" if where else ""  # noqa: S608 - our own clauses
    found = session.select(
        f"""
        SELECT rule_id, category, severity, count(*) AS n, count(DISTINCT exchange_id)
        FROM findings {among} {"AND" if among else "WHERE"} (suppressed.until IS NULL OR suppressed.until < ?)
        GROUP BY 1, 2, 3 ORDER BY {_GRAVEST_FIRST}, n DESC, rule_id {f"LIMIT {limit}" if limit else ""}
        """,  # noqa: S608 - our own clauses
        [*values, _today()],
    )
    return [tuple(row) for row in found.rows()]


FindingsBy = Literal["fingerprint", "tenant"]


def findings_by(session: Session, span: Span, by: FindingsBy, limit: int) -> list[tuple[str | None, str, str, int, int]]:
    """The same match, or the tenant; rule, severity, findings and exchanges, the gravest first; suppressed ones are left out."""
    where, values = span.where()
    named = "e.tenant" if by == "tenant" else "f.fingerprint"
    among = f"(SELECT exchange_id, tenant FROM exchanges {where}) e"  # noqa: S608 - our own clauses
    found = session.select(
        f"""
        SELECT {named} AS name, f.rule_id AS rule, f.severity AS severity, count(*) AS n, count(DISTINCT f.exchange_id) AS exchanges
        FROM findings f JOIN {among} ON e.exchange_id = f.exchange_id WHERE (f.suppressed.until IS NULL OR f.suppressed.until < ?)
        GROUP BY 1, 2, 3 ORDER BY {_GRAVEST_FIRST}, n DESC, name, rule LIMIT {limit}
        """,  # noqa: S608 - our own clauses
        [*values, _today()],
    )
    return [tuple(row) for row in found.rows()]


def _today() -> str:
    """A suppression holds until the end of its last day (UTC)."""
    return dt.datetime.now(dt.UTC).date().isoformat()


def lost_by_taps(session: Session, span: Span) -> tuple[int, int]:
    """Pieces that taps lost before decoding, and exchanges that they could not store: of runs that were alive in this time, for all of each run."""
    found = session.select(
        "SELECT coalesce(sum(lost_records), 0), coalesce(sum(not_stored), 0) FROM taps WHERE heartbeat_ns >= ? AND started_ns < ?",
        [span.since_ns or 0, span.until_ns if span.until_ns is not None else 2**63 - 1],
    )
    lost, not_stored = next(found.rows())
    return int(lost), int(not_stored)


def damaged(session: Session) -> int:
    """Parts of a folder that were set aside, or are left out, because they cannot be read."""
    return session.damaged() if isinstance(session, QuerySession) else 0


def losses(session: Session, span: Span, limit: int = 12) -> list[tuple[str, int]]:
    """Oddities of the wire that cost something, with the exchanges that have them."""
    where, values = span.where()
    among = f"WHERE exchange_id IN (SELECT exchange_id FROM exchanges {where})" if where else ""  # noqa: S608 - our own clauses
    found = session.select(
        f"SELECT name, count(DISTINCT exchange_id) AS n FROM anomalies {among} GROUP BY 1 ORDER BY n DESC, name LIMIT {limit}",  # noqa: S608 - our own clauses
        values,
    )
    return [(str(name), int(count)) for name, count in found.rows()]


def taps(session: Session, limit: int = 200) -> list[dict[str, Any]]:
    """Runs, without what they read from."""
    names = "node, pid, version, started_ns, heartbeat_ns, stopped_ns, exchanges, not_stored, lost_records, degradation, probed, unprobed"
    found = session.select(f"SELECT {names} FROM taps ORDER BY heartbeat_ns DESC LIMIT {limit}")  # noqa: S608 - names and a number of ours
    return [dict(zip(found.names, row, strict=True)) for row in found.rows()]


def probes(session: Session, started_ns: int, pid: int) -> list[dict[str, Any]]:
    """What this run read from at its last heartbeat, and what it could not."""
    found = session.select("SELECT probes FROM taps WHERE started_ns = ? AND pid = ? LIMIT 1", [started_ns, pid])
    return [each for row in found.rows() for each in row[0] or []]
