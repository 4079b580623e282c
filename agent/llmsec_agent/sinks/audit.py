"""The audit log of the store: an entry for each grave finding, in the order in which exchanges are stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llmsec_agent.auditing import found
from llmsec_tap.counters import Sample
from llmsec_tap.model import Exchange
from llmsec_tap.storage import audit
from llmsec_tap.storage.store import Store

Record = tuple[str, dict[str, Any]]


class AuditSink:
    name = "audit"
    takes_events = False
    _BYTES = 500  # of one entry in memory, about

    def __init__(self, store: Store, severity: str | None, actor: dict[str, Any]) -> None:
        """`severity`: the least one of findings that are logged; None: none is. `actor`: whom entries name."""
        self._actor = actor
        self._store = store
        self._severity = severity
        self._entries = 0

    def encode(self, exchange: Exchange) -> tuple[list[Record], int]:
        records = list(found(exchange, self._severity)) if exchange.findings and self._severity is not None else []
        return records, self._BYTES * len(records)

    def write(self, items: Sequence[list[Record]]) -> int:
        records = [record for item in items for record in item]
        if records:
            audit.append(self._store, records, self._actor)
            self._entries += len(records)
        return len(items)

    def add(self, event: str, **facts: Any) -> None:
        """At once, on the calling thread. Raises StorageError."""
        audit.append(self._store, [(event, facts)], self._actor)

    def tick(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is held back."""

    def samples(self) -> Iterable[Sample]:
        yield Sample("llmsec_audit_findings_total", self._entries)
