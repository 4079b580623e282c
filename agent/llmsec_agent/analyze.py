"""`llmsec-analyze analyze`: detection over what a store holds. What changes is stored anew; of two rows for one exchange the later one counts."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from llmsec_analyzer.judge.exchange import ExchangeDetector
from llmsec_analyzer.judge.exchange_parts import noted, text_parts, unread
from llmsec_analyzer.judge.facts import facts_of
from llmsec_analyzer.judge.redact import redacted
from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.judge.suppressions import Suppressions
from llmsec_analyzer.stored.exchanges import of_anomalies
from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange
from llmsec_tap.storage.writer import StoreWriter

# What says that detection left something out that it can look at now.
_LEFT_OUT: Final = ("detection_skipped", "detection_secrets_only", "detection_without_model", "detection_fault", "detection_set_aside")
_OF_DETECTION: Final = frozenset((*_LEFT_OUT, "detection_incomplete", "findings_limit"))
# Their texts were left out when they were stored, so there is nothing to look at.
_WITHOUT_TEXTS: Final = frozenset(("content_withheld", "content_degraded", "content_expired"))


class Counts(NamedTuple):
    """`without_texts`: exchanges that were stored without content."""

    examined: int = 0
    changed: int = 0
    without_texts: int = 0


def analyze(
    store: str, scanner: Scanner, journal: Journal, *, everything: bool = False, suppressions: Suppressions | None = None
) -> Counts:
    """Examine what was left out, or `everything`. It may be ended and called again: what is done stays done. Raises StorageError."""
    detector = ExchangeDetector(scanner)
    examined = changed = without_texts = 0
    with QuerySession.open(store, journal) as session, StoreWriter.open(store, journal) as writer:
        for exchange in of_anomalies(session, None if everything else _LEFT_OUT):
            if exchange.provider is None:
                continue
            if not has_texts(exchange):
                without_texts += 1
                continue
            examined += 1
            fresh = _examined(detector, exchange, suppressions or Suppressions())
            if fresh != exchange:
                changed += 1
                writer.add(fresh)
    return Counts(examined, changed, without_texts)


def has_texts(exchange: Exchange) -> bool:
    if any(anomaly.name in _WITHOUT_TEXTS for anomaly in exchange.anomalies):
        return False
    is_empty = not (exchange.request.messages or exchange.response.messages or exchange.other_texts)
    return not (is_empty and (exchange.request.body_bytes or exchange.response.body_bytes))


def _examined(detector: ExchangeDetector, exchange: Exchange, suppressions: Suppressions) -> Exchange:
    before = [anomaly for anomaly in exchange.anomalies if anomaly.name not in _OF_DETECTION]
    bare = msgspec.structs.replace(exchange, anomalies=before, findings=[], risk_score=None, risk_reasons=[])
    parts = list(text_parts(bare))
    report = detector.examine(exchange.exchange_id, parts, unread=unread(bare), noted=noted(bare))
    suppressions.apply(report, facts_of(bare), parts)
    fresh = report.applied(bare)
    return redacted(fresh, report.masks, everything=False, rules=report.redacting) if report.redacting else fresh
