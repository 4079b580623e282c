"""Findings as SARIF 2.1.0, for code scanning and its viewers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TextIO

from llmsec_tap import __version__

_LEVEL = {"info": "note", "low": "note", "medium": "warning", "high": "error", "critical": "error"}
_SECURITY_SEVERITY = {"info": "0.0", "low": "3.0", "medium": "5.5", "high": "8.0", "critical": "9.5"}


def write_sarif(rows: Iterable[dict[str, Any]], out: TextIO) -> None:
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
    mark = row["suppressed"]
    suppressed = (
        [{"kind": "external", "status": "accepted", "justification": f"{mark['reason']} ({mark['owner']}, until {mark['until']})"}]
        if mark is not None
        else []
    )
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
        "suppressions": suppressed,
        "partialFingerprints": {"llmsecMatch/v1": row["fingerprint"] or "", "llmsecFinding/v1": row["finding_id"] or ""},
        "properties": {"severity": row["severity"], "category": row["category"], "type": row["type"], "preview": row["preview"]},
    }
