"""Findings as lines for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llmsec_analyzer.show.terminal import cut, pad, visible
from llmsec_tap.model import Finding

if TYPE_CHECKING:
    from llmsec_analyzer.judge.texts import Result


def place_of(part: str, start: int, end: int) -> str:
    """`text 12-52`; what is of the whole has no characters."""
    return f"{part} {start}-{end}" if end else part


def finding_line(finding: Finding) -> str:
    """`HIGH  secret  github  text 12-52  preview`; why it is one, where there is no preview."""
    place = place_of(finding.location.part, finding.location.start, finding.location.end)
    preview = cut(visible(finding.preview or finding.explanation), 72)
    note = "" if finding.suppressed is None else f"  suppressed until {finding.suppressed.until}"
    return f"{pad(finding.severity.upper(), 8)}  {pad(cut(finding.category, 18), 18)}  {pad(cut(visible(finding.type), 24), 24)}  {pad(cut(visible(place), 30), 30)}  {preview}{note}"


def scan_rows(result: Result) -> Iterable[str]:
    name = cut(visible(str(result.id)), 24)
    if isinstance(result.error, str):
        yield f"{pad(name, 24)}  error: {visible(result.error)}"
        return
    risk = "-" if result.risk_score is None else result.risk_score
    score = "" if result.injection_score is None else f"  injection {result.injection_score:.2f}"
    yield f"{pad(name, 24)}  risk {risk:>3}{score}  {len(result.findings)} findings"
    for finding in result.findings:
        yield "  " + finding_line(finding)


def stored_line(row: dict[str, Any]) -> str:
    """One stored finding: time, severity, what, where, preview."""
    location = row["location"] or {}
    place = f"{row['exchange_id'][:12]} {place_of(location.get('part') or '', location.get('start') or 0, location.get('end') or 0)}"
    started = row["started"]
    when = f"{started:%Y-%m-%d %H:%M:%S}" if started is not None else ""
    cells = ((when, 19), (row["severity"].upper(), 8), (row["category"], 18), (row["type"] or "", 22), (place, 58))
    line = "  ".join(pad(cut(visible(str(cell)), width), width) for cell, width in cells)
    mark = row["suppressed"]
    note = f"  suppressed until {mark['until']}: {cut(visible(mark['reason']), 48)}" if mark is not None else ""
    return f"{line}  {cut(visible(row['preview'] or row['explanation'] or ''), 72)}{note}".rstrip()


def deviation_line(row: dict[str, Any]) -> str:
    """One stored deviation: time, severity, kind, whose, why."""
    started = row["started"]
    when = f"{started:%Y-%m-%d %H:%M:%S}" if started is not None else ""
    cells = ((when, 19), (row["severity"].upper(), 8), (row["kind"], 24), (f"{row['scope']} {row['subject']}", 40))
    line = "  ".join(pad(cut(visible(str(cell)), width), width) for cell, width in cells)
    return f"{line}  {visible(row['explanation'] or '')}".rstrip()
