"""Exchanges on their way out: in the order they came, with what was found in them, and masked where that is asked for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable

from llmsec_analyzer.judge.redact import redacted, withheld
from llmsec_analyzer.risk import rank
from llmsec_analyzer.worker.fair import Waiting
from llmsec_tap.model import Exchange, Severity

# Of an exchange with one of these, not all is known that would have to be masked.
_UNSCANNED = frozenset(("detection_skipped", "detection_secrets_only", "detection_fault", "detection_set_aside"))


class InOrder:
    """`failed`: something as severe as `fail_on` was found. `masks`: something is to be masked, whatever is found."""

    def __init__(self, deliver: Callable[[Exchange], None], *, redact: bool, fail_on: Severity | None) -> None:
        self._deliver = deliver
        self._redact = redact
        self._fail_on = fail_on
        self._waiting: deque[Waiting] = deque()
        self.masks = redact
        self.failed = False
        self.findings: Counter[str] = Counter()
        self.suppressed = 0
        self.marks: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, entry: Waiting) -> None:
        self._waiting.append(entry)

    def unanswered(self) -> Iterable[Waiting]:
        return (entry for entry in self._waiting if entry.report is None)

    def hand_on(self) -> None:
        """Deliver up to the first one without a report."""
        waiting = self._waiting
        while waiting and waiting[0].report is not None:
            self._deliver(self._finished(waiting[0]))
            waiting.popleft()

    def _finished(self, entry: Waiting) -> Exchange:
        report, exchange = entry.report, entry.exchange
        assert report is not None
        if not entry.is_llm:
            return exchange
        self.marks.update(report.marks)
        exchange = report.applied(exchange)
        for finding in exchange.findings:
            if finding.suppressed is not None:
                self.suppressed += 1
                continue
            self.findings[finding.severity] += 1
            self.failed = self.failed or (self._fail_on is not None and rank(finding.severity) >= rank(self._fail_on))
        if (self.masks or entry.masks) and not _UNSCANNED.isdisjoint(report.marks):
            return withheld(exchange)
        redact = self._redact or entry.redact
        if redact or report.redacting:
            return redacted(exchange, report.masks, everything=redact, rules=report.redacting)
        return exchange
