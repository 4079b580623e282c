"""What holds for one tenant instead of what holds for all, from the file's rules and from the database's `security_config`."""

from __future__ import annotations

from typing import Any, Final, Literal, Protocol

import msgspec

from llmsec_agent.config.schema import Config
from llmsec_analyzer.settings import Handling, Profile, Sensitivity
from llmsec_tap.model import Exchange, Severity

ContentPolicy = Literal["full", "redacted", "none"]


class TenantPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """None: as for all. `content` can keep less than `storage.content` does, never more."""

    content: ContentPolicy | None = None
    sensitivity: Sensitivity = Sensitivity()
    alert_threshold: Severity | None = None


NO_POLICY: Final = TenantPolicy()
_STRICTNESS: Final = (None, "full", "redacted", "none")


class TenantContext(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the database says of the tenant of a key. `rate_limit`: requests a minute."""

    tenant: str
    plan: str | None = None
    rate_limit: int | None = None
    policy: TenantPolicy = NO_POLICY


class Contexts(Protocol):
    def context(self, tenant: str) -> TenantContext | None:
        """What the database said last of the tenant; at once."""


class FilePolicies(msgspec.Struct, frozen=True):
    """What the file says: by tenant, and of exchanges whose tenant the database had not told."""

    named: dict[str, TenantPolicy] = {}
    unresolved: TenantPolicy = NO_POLICY


class Policies:
    """Of exchanges, by their tenants: what the file says of them, else what the database does."""

    def __init__(self, file: FilePolicies | None = None, contexts: Contexts | None = None) -> None:
        self._file = file or FilePolicies()
        self._contexts = contexts

    def of(self, exchange: Exchange) -> TenantPolicy:
        tenant = exchange.tenant
        found = self._file.named.get(tenant) if tenant is not None else None
        if found is None and tenant is not None and self._contexts is not None:
            context = self._contexts.context(tenant)
            found = context.policy if context is not None else None
        if found is None and self._file.unresolved != NO_POLICY and any(mark.name == "tenant_unresolved" for mark in exchange.anomalies):
            return self._file.unresolved
        return found or NO_POLICY

    def handling(self, exchange: Exchange) -> Handling:
        """What detection does otherwise."""
        policy = self.of(exchange)
        return Handling(None if policy.sensitivity == Sensitivity() else policy.sensitivity, policy.content == "redacted")


def file_policies(config: Config) -> FilePolicies:
    """Of several rules for one tenant, the first that says something counts, and of `content` the strictest."""
    named: dict[str, dict[str, Any]] = {}
    for rule in config.tenants.rules:
        given = named.setdefault(rule.tenant, {})
        for name in ("alert_threshold", "profile", "confidence_threshold"):
            if given.get(name) is None:
                given[name] = getattr(rule, name)
        given["content"] = max(given.get("content"), rule.content, key=_STRICTNESS.index)
    policies = {
        tenant: TenantPolicy(
            content=given["content"],
            sensitivity=Sensitivity(profile=given["profile"], confidence_threshold=given["confidence_threshold"]),
            alert_threshold=given["alert_threshold"],
        )
        for tenant, given in named.items()
    }
    unresolved = config.tenants.unresolved_content
    return FilePolicies(
        {tenant: policy for tenant, policy in policies.items() if policy != NO_POLICY},
        NO_POLICY if unresolved == "full" else TenantPolicy(content=unresolved),
    )


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    """`security_config` of a row. Other keys in it are another program's."""

    content: ContentPolicy | None = None
    profile: Profile | None = None
    confidence_threshold: float | None = None
    alert_threshold: Severity | None = None


def stored_policy(text: str | None) -> tuple[TenantPolicy, str]:
    """Of a row, and a sentence where something in it cannot be used: then nothing of it is, and what holds for all does."""
    if not text:
        return NO_POLICY, ""
    try:
        found = msgspec.json.decode(text, type=_Stored)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as fault:
        return NO_POLICY, str(fault)
    threshold = found.confidence_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        return NO_POLICY, "`confidence_threshold` must be between 0 and 1"
    sensitivity = Sensitivity(profile=found.profile, confidence_threshold=threshold)
    return TenantPolicy(content=found.content, sensitivity=sensitivity, alert_threshold=found.alert_threshold), ""
