"""The report: one HTML file that holds all it shows, for those who were not there. The same figures as the console's and as SQL gives."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmsec_agent.console import charts, figures, templates
from llmsec_analyzer.risk import SEVERITIES
from llmsec_analyzer.stored.findings import FindingFilter, stored_findings
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.storage.audit import whoami

_STYLE: Final = Path(__file__).parent / "static" / "console.css"
_MAX_FINDINGS: Final = 500
_LISTS: Final = (("owasp_llm_2025", "OWASP LLM 2025"), ("owasp_llm_2026", "OWASP LLM 2026"), ("mitre_atlas", "MITRE ATLAS"))


@dataclass(frozen=True)
class ReportSettings:
    """`content`: previews of findings, which are redacted; without, only their counts."""

    store: str
    span: figures.Span
    tenant: str | None = None
    content: bool = True


def report(session: Session, settings: ReportSettings, now: dt.datetime) -> str:
    """An HTML file. Raises StorageError, ConfigError."""
    span = dataclasses.replace(settings.span, tenant=settings.tenant)
    known = figures.totals(session, span)
    width, columns = figures.columns(session, span, known)
    rules = figures.rules(session, span)
    wanted = FindingFilter(since_ns=span.since_ns, until_ns=span.until_ns, tenant=settings.tenant, limit=None)
    shown: list[dict[str, Any]] = []
    lists: dict[str, Counter[str]] = {name: Counter() for name, _ in _LISTS}
    for row in stored_findings(session, wanted):
        for name, counted in lists.items():
            if row["taxonomy"] and row["taxonomy"].get(name):
                counted[row["taxonomy"][name]] += 1
        if settings.content and len(shown) < _MAX_FINDINGS:
            shown.append(row)
    return (
        templates.made()
        .get_template("report.html")
        .render(
            settings=settings,
            style=_STYLE.read_text(),
            at=now,
            by=whoami(),
            totals=known,
            columns=columns,
            labels=[charts.moment(column.begin_ns, width) for column in columns],
            pictures=[
                (title, base64.b64encode(charts.draw(name, columns, width, "light")).decode()) for name, (title, _) in charts.NAMES.items()
            ],
            models=figures.top(session, span, "model"),
            tenants=figures.top(session, span, "tenant"),
            workloads=figures.top(session, span, "process.comm"),
            rules=rules,
            losses=figures.losses(session, span, 50),
            lost=figures.lost_by_taps(session, span),
            damaged=figures.damaged(session),
            shown=shown,
            lists=[(title, sorted(lists[name].items())) for name, title in _LISTS],
            severities=[(grade, sum(count for _, _, severity, count, _ in rules if severity == grade)) for grade in reversed(SEVERITIES)],
        )
    )
