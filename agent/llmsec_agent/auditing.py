"""Who did what with a store, for its audit log (llmsec_tap.storage.audit)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from llmsec_analyzer.risk import rank
from llmsec_tap.errors import StorageError
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange
from llmsec_tap.storage import audit
from llmsec_tap.storage.store import Store

if TYPE_CHECKING:
    from llmsec_analyzer.stored.stores import Session

_TEXTS: Final = re.compile(r"'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$", re.DOTALL)
_MAX_SQL: Final = 2000


def record(store: Store, journal: Journal, event: str, **facts: Any) -> None:
    """Add one entry. Who may read a store and not write it is told that this was not recorded; the command goes on."""
    try:
        audit.append(store, [(event, facts)])
    except StorageError as fault:
        journal.warning("not_audited", f"not in the audit log: {fault}")


def record_reading(session: Session, journal: Journal, event: str, **facts: Any) -> None:
    """Add that somebody read content of a folder, or decided over it. A database server keeps a log of its own of who asked what."""
    from llmsec_analyzer.stored.session import QuerySession

    if isinstance(session, QuerySession):
        record(session.store, journal, event, **facts)


def statement(sql: str) -> str:
    """SQL without its texts, which may be what somebody looked for in content."""
    return _TEXTS.sub("'…'", sql)[:_MAX_SQL]


def found(exchange: Exchange, severity: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """An entry for each finding of this severity or a graver one that counts; never what was matched."""
    least = rank(severity)
    for finding in exchange.findings:
        if rank(finding.severity) >= least and finding.suppressed is None:
            yield (
                "finding",
                {
                    "exchange_id": exchange.exchange_id,
                    "finding_id": finding.finding_id,
                    "rule_id": finding.rule_id,
                    "rule_version": finding.rule_version,
                    "severity": finding.severity,
                    "type": finding.type,
                    "fingerprint": finding.fingerprint,
                    "tenant": exchange.tenant,
                },
            )
