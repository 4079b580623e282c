"""Rules of alerts: conditions over what an exchange, its findings and its tenant's traffic say, read and checked once.

A rule is about exchanges, or about state where its condition asks for a figure of the tenant's traffic (STATE_FIELDS): then what it told is
over once the condition was false for a whole window. docs/alerts.md has every field and key.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from llmsec_analyzer.alerts.alert import Priority
from llmsec_analyzer.expressions import Expression, Kind, Words, compile_expression
from llmsec_analyzer.risk import SEVERITIES, rank, risk_score, security_score, types_of
from llmsec_tap.model import Exchange, Finding, Severity
from llmsec_tap.visible import visible

NS_PER_S: Final = 1_000_000_000
# A name that a stranger chose is cut here in an alert.
MAX_NAME: Final = 128
THRESHOLD_RULE: Final = "tenant_threshold"

# Known when a request is whole, and the same when its answer has ended.
REQUEST_FIELDS: Final[dict[str, Kind]] = {
    **dict.fromkeys(
        (
            *("tenant", "provider", "api", "operation", "model", "client", "server", "api_key_fingerprint", "end_user", "session_id"),
            *("client_agent", "deployment", "node", "process", "container_id", "pod", "namespace", "capture_kind", "server_name", "ja4"),
        ),
        "text",
    ),
    "end_user_known": "bool",
    "streaming": "bool",
}
# Of findings that count. They only grow while an answer comes.
FINDING_FIELDS: Final[dict[str, Kind]] = {
    "security_score": "number",
    "risk_score": "number",
    "severity": Words(SEVERITIES),
    "findings_count": "number",
    **dict.fromkeys(("pii_types", "secret_types", "categories", "rule_ids", "types"), "texts"),
}
STATE_FIELDS: Final[dict[str, Kind]] = {"cost_multiplier": "number", "error_rate_5m": "number"}
FIELDS: Final[dict[str, Kind]] = {
    **REQUEST_FIELDS,
    **FINDING_FIELDS,
    **STATE_FIELDS,
    "deviation_kinds": "texts",
    "deviation_severity": Words(SEVERITIES),
    **dict.fromkeys(("status", "cost_usd", "duration_ms", "ttft_ms", "input_tokens", "output_tokens"), "number"),
    **dict.fromkeys(("error_type", "completeness"), "text"),
    "anomalies": "texts",
    "tools": "texts",
}
# What makes two alerts of a rule one.
KEY_FIELDS: Final = tuple(sorted(name for name, kind in FIELDS.items() if kind == "text"))


class Rule(NamedTuple):
    """`dedup`: fields whose values make, with the rule's name, the key of an alert; None for the tenant, or the upstream where it is about one.
    `for_tenants`: patterns; empty for all.

    `per_minute`: alerts at most. `condition` None: any finding from its tenant's threshold on.
    """

    name: str
    condition: Expression | None
    written: str
    priority: Priority
    channels: tuple[str, ...]
    dedup: tuple[str, ...] | None = None
    window_ns: int = 600 * NS_PER_S
    per_minute: int = 10
    for_tenants: tuple[re.Pattern[str], ...] = ()

    @property
    def is_of_state(self) -> bool:
        return self.condition is not None and not self.condition.fields.isdisjoint(STATE_FIELDS)

    @property
    def is_early(self) -> bool:
        """It can be answered while the answer is out."""
        if self.condition is None:
            return True
        asked = self.condition.fields
        return asked <= REQUEST_FIELDS.keys() | FINDING_FIELDS.keys() and not asked.isdisjoint(FINDING_FIELDS)

    def is_for(self, tenant: str | None) -> bool:
        return not self.for_tenants or any(pattern.fullmatch(tenant or "") for pattern in self.for_tenants)


def compile_condition(source: str) -> Expression:
    """Raises ExpressionError with the column."""
    return compile_expression(source, FIELDS)


def wildcards(patterns: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    """`*` and `?`; brackets mean themselves."""
    return tuple(re.compile(fnmatch.translate(pattern.replace("[", "[[]"))) for pattern in patterns)


def threshold_rule(channels: Sequence[str]) -> Rule:
    """Findings from the `alert_threshold` of their exchange's tenant on."""
    return Rule(THRESHOLD_RULE, None, "severity >= alert_threshold of the tenant", "high", tuple(channels))


def name_of(text: str | None, most: int = MAX_NAME) -> str | None:
    """A stranger's name as an alert has it: bounded, without control characters."""
    return text and visible(text[: 2 * most])[:most]


def counting(exchange: Exchange, findings: Sequence[Finding] | None = None) -> list[Finding]:
    return [finding for finding in (exchange.findings if findings is None else findings) if finding.suppressed is None]


def gravest(findings: Sequence[Finding]) -> Severity | None:
    return max((finding.severity for finding in findings), key=rank, default=None)


def values_of(
    exchange: Exchange,
    *,
    cost_multiplier: float | None = None,
    error_rate_5m: float | None = None,
    findings: Sequence[Finding] | None = None,
) -> dict[str, Any]:
    """The fields of FIELDS. `findings`: what is known of a request while its answer is out; its scores are then of these."""
    counted = counting(exchange, findings)
    process = exchange.process
    values: dict[str, Any] = {
        "tenant": exchange.tenant,
        "provider": exchange.provider,
        "api": exchange.api,
        "operation": exchange.operation,
        "model": exchange.request_model or exchange.response_model,
        "client": exchange.client,
        "server": exchange.server,
        "api_key_fingerprint": exchange.api_key_fingerprint,
        "end_user": exchange.end_user,
        "end_user_known": exchange.end_user is not None,
        "session_id": exchange.session_id,
        "client_agent": exchange.client_agent,
        "deployment": exchange.deployment,
        "node": exchange.node,
        "process": process.comm if process else None,
        "container_id": process.container_id if process else None,
        "pod": process.pod if process else None,
        "namespace": process.namespace if process else None,
        "capture_kind": exchange.capture_kind,
        "server_name": exchange.tls.server_name if exchange.tls else None,
        "ja4": exchange.tls.ja4 if exchange.tls else None,
        "streaming": exchange.streaming,
        "security_score": exchange.security_score if findings is None else security_score(counted),
        "risk_score": exchange.risk_score if findings is None else risk_score(counted),
        "severity": gravest(counted),
        "findings_count": len(counted),
        "pii_types": exchange.pii_types if findings is None else types_of(counted, "pii"),
        "secret_types": exchange.secret_types if findings is None else types_of(counted, "secret"),
        "categories": sorted({finding.category for finding in counted}),
        "rule_ids": sorted({finding.rule_id for finding in counted}),
        "types": sorted({finding.type for finding in counted}),
    }
    if findings is not None:
        return values
    usage, estimated = exchange.usage, exchange.usage_estimated
    deviations = exchange.deviations
    values |= {
        "cost_multiplier": cost_multiplier,
        "error_rate_5m": error_rate_5m,
        "deviation_kinds": [deviation.kind for deviation in deviations],
        "deviation_severity": max((deviation.severity for deviation in deviations), key=rank, default=None),
        "status": exchange.status,
        "cost_usd": exchange.cost_usd,
        "duration_ms": (exchange.ended_ns - exchange.started_ns) / 1e6 if exchange.ended_ns and exchange.started_ns else None,
        "ttft_ms": exchange.ttft_ms,
        "input_tokens": usage.input_tokens if usage.input_tokens is not None or estimated is None else estimated.input_tokens,
        "output_tokens": usage.output_tokens if usage.output_tokens is not None or estimated is None else estimated.output_tokens,
        "error_type": exchange.error_type,
        "completeness": exchange.completeness,
        "anomalies": [anomaly.name for anomaly in exchange.anomalies],
        "tools": [call.name for call in exchange.tool_calls if call.name],
    }
    return values


def dedup_key(rule: Rule, values: Mapping[str, Any], *, of_upstream: bool = False) -> str:
    """`rule/tenant=acme`, with a field for each of the rule's; a value that is not known is `-`."""
    fields = rule.dedup if rule.dedup is not None else ("server",) if of_upstream else ("tenant",)
    return f"{rule.name}/" + ",".join(f"{name}={name_of(values.get(name)) or '-'}" for name in fields)


def priority_of(rule: Rule, values: Mapping[str, Any]) -> Priority:
    """A rule's own; of findings over a tenant's threshold, as grave as the gravest of them."""
    if rule.condition is not None:
        return rule.priority
    grave: dict[str, Literal["critical", "high", "medium"]] = {"critical": "critical", "high": "high", "medium": "medium"}
    return grave.get(values["severity"] or "", "low")
