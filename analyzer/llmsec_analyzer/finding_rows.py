"""Findings as lines for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmsec_analyzer.terminal import cut, pad, visible
from llmsec_tap.model import Finding

if TYPE_CHECKING:
    from llmsec_analyzer.scan import Result


def finding_line(finding: Finding) -> str:
    """`HIGH  secret  github  text 12-52  preview`."""
    place = f"{finding.location.part} {finding.location.start}-{finding.location.end}"
    preview = cut(visible(finding.preview), 72)
    return f"{pad(finding.severity.upper(), 8)}  {pad(cut(finding.category, 18), 18)}  {pad(cut(visible(finding.type), 24), 24)}  {pad(cut(visible(place), 30), 30)}  {preview}"


def scan_rows(result: Result) -> Iterable[str]:
    name = cut(visible(str(result.id)), 24)
    if isinstance(result.error, str):
        yield f"{pad(name, 24)}  error: {visible(result.error)}"
        return
    score = "" if result.injection_score is None else f"  injection {result.injection_score:.2f}"
    yield f"{pad(name, 24)}  risk {result.risk_score:>3}{score}  {len(result.findings)} findings"
    for finding in result.findings:
        yield "  " + finding_line(finding)
