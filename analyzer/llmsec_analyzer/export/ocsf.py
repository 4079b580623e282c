"""Findings as OCSF 1.3, for security data lakes."""

from __future__ import annotations

import datetime as dt
from typing import Any

from llmsec_tap import __version__

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
        "status_id": 3 if row["suppressed"] is not None else 1,
        **({"comment": row["suppressed"]["reason"]} if row["suppressed"] is not None else {}),
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
