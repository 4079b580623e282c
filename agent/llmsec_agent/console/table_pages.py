"""Pages that are tables: findings, alerts, deviations, tenants, workloads, taps."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from llmsec_agent.console import figures
from llmsec_agent.console.access import user_of
from llmsec_agent.console.handling import Pages, audit, page_of, span_of
from llmsec_agent.console.triage import acknowledged
from llmsec_agent.suppressing import marking
from llmsec_analyzer.risk import SEVERITIES
from llmsec_analyzer.stored.alerts import AlertFilter, stored_alerts
from llmsec_analyzer.stored.deviations import DeviationFilter, stored_deviations
from llmsec_analyzer.stored.findings import FindingFilter, stored_findings
from llmsec_analyzer.stored.session import QuerySession
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.errors import ConfigError

_LONGEST: Final = 200  # rows of a table without pages
Columns = tuple[tuple[str, str], ...]


def findings(pages: Pages, request: Request) -> Response:
    query = {
        name: value
        for name in ("severity", "category", "rule", "fingerprint", "tenant")
        if (value := request.query_params.get(name, "").strip())
    }
    if query.get("severity", SEVERITIES[0]) not in SEVERITIES:
        raise ConfigError(f"there is no severity {query['severity']!r}", f"one of {', '.join(SEVERITIES)}")
    name, span = span_of(request)
    wanted = FindingFilter(
        query.get("severity"), query.get("category"), query.get("rule"), None, query.get("fingerprint"), since_ns=span.since_ns, tenant=query.get("tenant"), limit=200,
        suppressed=request.query_params.get("suppressed") == "1",
    )  # fmt: skip

    by = request.query_params.get("by", "rule")
    groups: list[Any]
    if by in ("fingerprint", "tenant"):
        grouped: figures.FindingsBy = "tenant" if by == "tenant" else "fingerprint"
        groups = pages.asking.known((by, span), lambda session: figures.findings_by(session, span, grouped, _LONGEST))
    elif by == "rule":
        groups = pages.asking.known(("rules", span), lambda session: figures.rules(session, span))
    else:
        raise ConfigError(f"findings are grouped by rule, fingerprint or tenant, not by {by!r}", "choose one on the page")
    mark = marking(pages.triage.entries())

    user = user_of(request)
    may_read = user is not None and user.may("analyst")

    def question(session: Session) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        if may_read:
            audit(pages, request, "query", page="findings", filter=sorted(query))
        found = list(stored_findings(session, wanted, mark))
        if not may_read:
            found = [{**row, "preview": ""} for row in found]
        return found, acknowledged(session.store) if isinstance(session, QuerySession) and found else {}

    found, seen = pages.asking.ask(question)
    return page_of(
        pages,
        request,
        "findings.html",
        groups=groups,
        by=by,
        found=found,
        acknowledged=seen,
        query=query,
        since=name,
        severities=SEVERITIES,
        suppressed=wanted.suppressed,
    )


def taps(pages: Pages, request: Request) -> Response:
    """Runs of taps; with `started` and `pid`, also what that run read from."""
    chosen: tuple[int, int] | None = None
    if request.query_params:
        given = [request.query_params.get(name, "") for name in ("started", "pid")]
        if not all(re.fullmatch(r"\d{1,18}|[1-8]\d{18}", value, re.ASCII) for value in given):
            raise ConfigError("a run is named by its start in nanoseconds and its process id", "choose one on the page of taps")
        chosen = int(given[0]), int(given[1])

    def question(session: Session) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return figures.taps(session), figures.probes(session, *chosen) if chosen else []

    runs, probes = pages.asking.ask(question)
    return page_of(pages, request, "taps.html", taps=runs, chosen=chosen, probes=probes, now=time.time_ns())


def _table(
    pages: Pages,
    request: Request,
    title: str,
    command: str,
    columns: Columns,
    question: Callable[[Session, figures.Span], list[Any]],
    empty: str,
) -> Response:
    name, span = span_of(request)
    rows = pages.asking.known((command, span), lambda session: question(session, span))
    return page_of(pages, request, "table.html", title=title, command=command, columns=columns, rows=rows, since=name, empty=empty)


def alerts(pages: Pages, request: Request) -> Response:
    def question(session: Session, span: figures.Span) -> list[Any]:
        found = stored_alerts(session, AlertFilter(since_ns=span.since_ns, limit=_LONGEST))
        return [(row["started"], row["priority"], row["rule"], row["state"], row["dedup_key"], row["count"], row["ended"]) for row in found]

    columns = (
        ("began", "day"), ("priority", "severity"), ("rule", "text"), ("state", "text"), ("about", "text"), ("exchanges", "number"), ("last", "day"),
    )  # fmt: skip
    return _table(pages, request, "Alerts", "alerts", columns, question, "No rule of alerts was met in this time.")


def deviations(pages: Pages, request: Request) -> Response:
    def question(session: Session, span: figures.Span) -> list[Any]:
        found = stored_deviations(session, DeviationFilter(since_ns=span.since_ns, limit=_LONGEST))
        return [
            (
                row["started"],
                row["severity"],
                row["kind"],
                f"{row['scope']} {row['subject']}",
                row["value"],
                row["usual"],
                row["explanation"],
                row["exchange_id"],
            )
            for row in found
        ]

    columns = (
        ("when", "day"), ("severity", "severity"), ("kind", "text"), ("of", "text"), ("value", "number"), ("usual", "number"), ("why", "text"), ("shown by", "exchange"),
    )  # fmt: skip
    return _table(
        pages,
        request,
        "Deviations",
        "deviations",
        columns,
        question,
        "Nothing deviated in this time, or too little is known of what is usual.",
    )


def tenants(pages: Pages, request: Request) -> Response:
    columns = (
        ("tenant", "tenant"), ("requests", "number"), ("keys", "number"), ("tokens in", "number"), ("tokens out", "number"), ("cost, US dollars", "number"),
        ("errors", "number"), ("highest risk", "number"),
    )  # fmt: skip
    return _table(
        pages,
        request,
        "Tenants",
        "tenants list",
        columns,
        lambda session, span: figures.by_tenant(session, span, _LONGEST),
        "No tenant is known in this time.",
    )


def workloads(pages: Pages, request: Request) -> Response:
    columns = (
        ("process", "text"), ("pod or container", "text"), ("namespace", "text"), ("node", "text"), ("talks to", "text"), ("model", "text"), ("requests", "number"),
        ("tokens", "number"), ("highest risk", "number"),
    )  # fmt: skip
    return _table(
        pages,
        request,
        "Workloads",
        "query",
        columns,
        lambda session, span: figures.by_workload(session, span, _LONGEST),
        "No process was captured live in this time.",
    )
