"""One alert, as the process that decides hands it to the process that sends, and as channels take it."""

from __future__ import annotations

from typing import Literal

import msgspec

from llmsec_tap.model import Deviation, Severity

Priority = Literal["critical", "high", "medium", "low"]


class AlertFinding(msgspec.Struct, kw_only=True, frozen=True):
    """Of a finding what an alert tells. `preview` is redacted, and empty unless the configuration allows content in alerts."""

    finding_id: str
    rule_id: str
    category: str
    type: str
    severity: Severity
    part: str
    explanation: str
    preview: str = ""


class Alert(msgspec.Struct, kw_only=True, frozen=True):
    """No text of the exchange. Names that strangers chose (model, process, pod, tenant) are bounded and hold no control characters."""

    alert_id: str  # of rule, dedup key and the window that it opened: the same after a restart
    rule: str
    priority: Priority
    state: Literal["firing", "resolved"] = "firing"
    dedup_key: str
    count: int = 1  # exchanges that it stands for
    at_ns: int  # when it was decided, epoch nanoseconds
    condition: str  # the rule's, as written
    summary: str  # one line
    exchange_id: str
    trace_id: str | None = None
    tenant: str | None = None
    node: str | None = None
    process: str | None = None
    pod: str | None = None
    namespace: str | None = None
    client: str = ""
    server: str = ""
    provider: str | None = None
    model: str | None = None
    risk_score: int | None = None
    security_score: int | None = None
    pii_types: list[str] = []
    cost_multiplier: float | None = None
    error_rate_5m: float | None = None
    analysis_ms: float | None = None  # from the exchange's last byte (or its request's) to this decision
    findings: list[AlertFinding] = []
    deviations: list[Deviation] = []
    channels: list[str] = []  # names under alerting.channels
    opened_ns: int = 0  # capture time of the first exchange that it stands for
    is_test: bool = False  # somebody tries a channel: nothing happened
