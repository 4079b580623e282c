"""What is known of an exchange beside its texts: who asked whom for what. Suppressions go by it, and conditions of alerts may."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from llmsec_analyzer.expressions import Kind, Words
from llmsec_analyzer.risk import SEVERITIES
from llmsec_tap.model import Exchange, Finding


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """Of an exchange, as soon as its request is whole; with the record's names. `model`: as asked for, else as answered."""

    client: str | None = None
    server: str | None = None
    provider: str | None = None
    api: str | None = None
    operation: str | None = None
    method: str | None = None
    path: str | None = None
    model: str | None = None
    tenant: str | None = None
    api_key_fingerprint: str | None = None
    session_id: str | None = None
    end_user: str | None = None
    client_agent: str | None = None
    deployment: str | None = None
    capture_kind: str | None = None
    node: str | None = None
    comm: str | None = None
    container_id: str | None = None
    pod: str | None = None
    namespace: str | None = None


# What a finding adds. `role`: of the text that it stands in, as on the wire.
FINDING_KINDS: Final[dict[str, Kind]] = {
    "rule_id": "text",
    "category": Words(
        (*("prompt_injection", "jailbreak", "system_prompt_leak", "pii", "secret", "data_exfiltration", "unsafe_output", "anomaly"),)
    ),
    "type": "text",
    "severity": Words(SEVERITIES),
    "confidence": "number",
    "part": "text",
    "role": "text",
    "in_answer": "bool",
    "fingerprint": "text",
    "at_output_token": "number",
}
FACT_KINDS: Final[dict[str, Kind]] = dict.fromkeys(Facts.__struct_fields__, "text")


def facts_of(exchange: Exchange) -> Facts:
    process = exchange.process
    return Facts(
        client=exchange.client,
        server=exchange.server,
        provider=exchange.provider,
        api=exchange.api,
        operation=exchange.operation,
        method=exchange.method,
        path=exchange.path,
        model=exchange.request_model or exchange.response_model,
        tenant=exchange.tenant,
        api_key_fingerprint=exchange.api_key_fingerprint,
        session_id=exchange.session_id,
        end_user=exchange.end_user,
        client_agent=exchange.client_agent,
        deployment=exchange.deployment,
        capture_kind=exchange.capture_kind,
        node=exchange.node,
        comm=process.comm if process else None,
        container_id=process.container_id if process else None,
        pod=process.pod if process else None,
        namespace=process.namespace if process else None,
    )


def values_of(finding: Finding, facts: Facts | None, role: str | None) -> dict[str, Any]:
    """The fields of FINDING_KINDS and FACT_KINDS, for one finding."""
    return {
        **(msgspec.structs.asdict(facts) if facts is not None else {}),
        "rule_id": finding.rule_id,
        "category": finding.category,
        "type": finding.type,
        "severity": finding.severity,
        "confidence": finding.confidence,
        "part": finding.location.part,
        "role": role,
        "in_answer": finding.location.is_in_answer,
        "fingerprint": finding.fingerprint,
        "at_output_token": finding.at_output_token,
    }
