"""Stored findings: by filter, and as SARIF 2.1.0 or OCSF for other programs."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from llmsec_analyzer.risk import SEVERITIES, rank
from llmsec_analyzer.show.terminal import json_visible
from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap import __version__
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
    since: dt.datetime | None = None
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
        if self.since is not None:
            conditions.append("started >= ?")
            values.append(self.since)
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


# --- SARIF -----------------------------------------------------------------------------------------------------------------

_LEVEL = {"info": "note", "low": "note", "medium": "warning", "high": "error", "critical": "error"}
_SECURITY_SEVERITY = {"info": "0.0", "low": "3.0", "medium": "5.5", "high": "8.0", "critical": "9.5"}


def write_sarif(rows: Iterator[dict[str, Any]], out: TextIO) -> None:
    """One run; rules as they were met. An exchange is a logical location: there is no file that it stands in."""
    found = list(rows)
    rules: dict[str, dict[str, Any]] = {}
    for row in found:
        taxonomy = row["taxonomy"] or {}
        rules.setdefault(
            row["rule_id"],
            {
                "id": row["rule_id"],
                "shortDescription": {"text": (row["explanation"] or row["rule_id"]).split(": ")[0]},
                "defaultConfiguration": {"level": _LEVEL[row["severity"]]},
                "properties": {
                    "tags": ["security", row["category"], *(f"{name}:{value}" for name, value in sorted(taxonomy.items()) if value)],
                    "security-severity": _SECURITY_SEVERITY[row["severity"]],
                },
            },
        )
    numbers = {name: number for number, name in enumerate(rules)}
    run = {
        "tool": {"driver": {"name": "LLMSec Trace", "semanticVersion": __version__, "rules": list(rules.values())}},
        "columnKind": "unicodeCodePoints",
        "results": [_sarif_result(row, numbers) for row in found],
    }
    document = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    text = json.dumps(document, ensure_ascii=True, indent=1)
    out.write((text.replace("\x7f", "\\u007f") if out.isatty() else text) + "\n")


def _sarif_result(row: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    location = row["location"] or {}
    name = f"{row['exchange_id']}/{location.get('part', '')}"
    start, end = location.get("start") or 0, location.get("end") or 0
    return {
        "ruleId": row["rule_id"],
        "ruleIndex": numbers[row["rule_id"]],
        "level": _LEVEL[row["severity"]],
        "rank": round((row["confidence"] or 0) * 100, 1),
        "message": {"text": row["explanation"] or row["rule_id"]},
        "locations": [
            {
                "logicalLocations": [{"fullyQualifiedName": name, "kind": "member"}],
                "physicalLocation": {
                    "artifactLocation": {"uri": f"llmsec:exchange/{row['exchange_id']}"},
                    "region": {"charOffset": start, "charLength": max(0, end - start)},
                },
            }
        ],
        "partialFingerprints": {"llmsecMatch/v1": row["fingerprint"] or "", "llmsecFinding/v1": row["finding_id"] or ""},
        "properties": {"severity": row["severity"], "category": row["category"], "type": row["type"], "preview": row["preview"]},
    }


# --- OCSF ------------------------------------------------------------------------------------------------------------------

_OCSF_SEVERITY = {
    "info": (1, "Informational"),
    "low": (2, "Low"),
    "medium": (3, "Medium"),
    "high": (4, "High"),
    "critical": (5, "Critical"),
}


def ocsf(row: dict[str, Any]) -> dict[str, Any]:
    """A Detection Finding (class 2004) of OCSF 1.3."""
    number, caption = _OCSF_SEVERITY[row["severity"]]
    started = row["started"]
    moment = int(started.replace(tzinfo=dt.UTC).timestamp() * 1000) if started is not None else 0
    taxonomy = row["taxonomy"] or {}
    return {
        "class_uid": 2004,
        "class_name": "Detection Finding",
        "category_uid": 2,
        "category_name": "Findings",
        "activity_id": 1,
        "activity_name": "Create",
        "type_uid": 200401,
        "severity_id": number,
        "severity": caption,
        "confidence_score": round((row["confidence"] or 0) * 100),
        "time": moment,
        "status_id": 1,
        "metadata": {"version": "1.3.0", "product": {"name": "LLMSec Trace", "vendor_name": "LLMSec Trace", "version": __version__}},
        "finding_info": {
            "uid": row["finding_id"],
            "title": row["rule_id"],
            "desc": row["explanation"],
            "types": [row["category"], row["type"]],
            "created_time": moment,
            "analytic": {"type_id": 1, "type": "Rule", "uid": row["rule_id"], "version": row["rule_version"]},
        },
        "evidences": [{"data": {"exchange_id": row["exchange_id"], "location": row["location"], "preview": row["preview"]}}],
        "observables": [{"name": "fingerprint", "type_id": 8, "type": "Hash", "value": row["fingerprint"]}],
        "unmapped": taxonomy,
    }


def write_lines(rows: Sequence[dict[str, Any]] | Iterator[dict[str, Any]], out: TextIO) -> None:
    on_terminal = out.isatty()
    for row in rows:
        line = json.dumps(row, ensure_ascii=True)
        out.write((json_visible(line) if on_terminal else line) + "\n")
