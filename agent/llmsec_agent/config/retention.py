"""What the configuration keeps, in the store's own words."""

from __future__ import annotations

from llmsec_agent.config.schema import Config, TenantRetention
from llmsec_agent.config.schema import Retention as Configured
from llmsec_tap.storage.retention import Keep, Retention


def retention_of(config: Config) -> Retention:
    given = config.storage.retention
    return Retention(
        days=given.days,
        max_bytes=given.bytes,
        keep=_keep(given),
        content_bytes=given.content.bytes,
        tenants={name: _keep(tenant) for name, tenant in given.tenants.items()},
        audit_days=given.audit.days,
        audit_bytes=given.audit.bytes,
    )


def audited_severity(config: Config) -> str | None:
    """Least severity of findings for the audit log; None: none."""
    least = config.storage.audit.findings
    return None if least == "none" else least


def _keep(given: Configured | TenantRetention) -> Keep:
    return Keep(content=given.content.days, findings=given.findings.days, metadata=given.metadata.days)
