"""Alerts for tests, and an outbox as the deciding process writes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from llmsec_analyzer.alerts.alert import Alert, AlertFinding
from llmsec_tap.model import Deviation

AT_NS = 1_764_115_200_000_000_000  # 2025-11-26 00:00:00 UTC


def an_alert(number: int = 1, **changes: Any) -> Alert:
    finding = AlertFinding(
        finding_id="f1",
        rule_id="inject.ignore_instructions",
        category="prompt_injection",
        type="ignore_instructions",
        severity="critical",
        part="request",
        explanation="tells the model to leave its instructions",
        preview="ignore all p*** instructions",
    )
    deviation = Deviation(
        kind="cost", severity="medium", scope="tenant", subject="acme", value=6.0, usual=1.0, explanation="6 times its baseline"
    )
    given: dict[str, Any] = {
        "alert_id": f"a{number}",
        "rule": "high_risk_prompt_injection",
        "priority": "critical",
        "dedup_key": "high_risk_prompt_injection:acme",
        "at_ns": AT_NS,
        "condition": "security_score > 90",
        "summary": "a prompt injection of security score 95",
        "exchange_id": f"e{number}",
        "tenant": "acme",
        "node": "host-1",
        "process": "python3",
        "client": "10.0.0.1:40000",
        "server": "api.openai.com:443",
        "provider": "openai",
        "model": "gpt-4o",
        "security_score": 95,
        "pii_types": ["ssn"],
        "findings": [finding],
        "deviations": [deviation],
        "channels": ["webhook"],
    }
    return Alert(**{**given, **changes})


def write_outbox(root: Path, *alerts: Alert | bytes, file: str = "outbox-001.jsonl") -> None:
    """Each in one write, as one line; bytes as they are."""
    folder = root / "alerts"
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if os.geteuid() == 0:  # as the one who keeps the folder
        owner = root.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    for alert in alerts:
        os.write(descriptor, alert if isinstance(alert, bytes) else msgspec.json.encode(alert) + b"\n")
    os.close(descriptor)


def lines(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []
