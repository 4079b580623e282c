"""Findings on their way to the application: on the trace of their call, and to `on_finding`."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from llmsec_tap.model import Exchange, Finding
from llmsec_trace.suppressing import suppress
from llmsec_trace.trace import TraceContext

log = logging.getLogger("llmsec_trace")

_MAX_TRACES: Final = 10_000
_MAX_FINDINGS: Final = 64
_MAX_TO_TELL: Final = 1_000


class Telling:
    """`on_finding`, on a thread of its own: it may be slow, and may raise. `offer` never waits; what finds no room is counted."""

    def __init__(self, on_finding: Callable[[Finding, TraceContext], None]) -> None:
        self._on_finding = on_finding
        self._clear()

    def _clear(self) -> None:
        self.untold = 0
        self.faults = 0
        self._waiting: deque[tuple[Finding, TraceContext]] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._thread: threading.Thread | None = None

    forked = _clear

    def start(self) -> None:
        """As a lane's."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="llmsec-findings", daemon=True)
            thread.start()
            self._thread = thread

    def offer(self, finding: Finding, trace: TraceContext) -> None:
        with self._changed:
            if len(self._waiting) >= _MAX_TO_TELL:
                self.untold += 1
                return
            self._waiting.append((finding, trace))
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        with self._changed:
            return self._thread is None or self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout_s)

    def _run(self) -> None:
        suppress()
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting))
                finding, trace = self._waiting.popleft()
                self._busy = True
            try:
                self._on_finding(finding, trace)
            except Exception as fault:  # noqa: BLE001 - the application's own code
                self.faults += 1
                if self.faults == 1:
                    log.warning("on_finding failed (%s); later faults are only counted", type(fault).__name__)


class Traces:
    """Whose findings are whose: traces of calls that are under way, and what of each was told."""

    def __init__(self, telling: Telling | None) -> None:
        self._telling = telling
        self._known: OrderedDict[str, tuple[TraceContext, set[tuple[str, str]]]] = OrderedDict()

    def add(self, exchange_id: str, trace: TraceContext) -> None:
        self._known.setdefault(exchange_id, (trace, set()))
        if len(self._known) > _MAX_TRACES:
            self._known.popitem(last=False)

    def found(self, finding: Finding) -> None:
        """Before its exchange has ended, or when it has: it is told once."""
        known = self._known.get(finding.exchange_id)
        if finding.suppressed is not None:
            return
        if known is None:  # its trace has made room for later ones
            self._untold()
            return
        trace, told = known
        key = finding.rule_id, finding.fingerprint or finding.explanation
        if key in told:
            return
        if len(told) >= _MAX_FINDINGS:
            self._untold()
            return
        told.add(key)
        trace.findings.append(finding)
        if self._telling is not None:
            self._telling.offer(finding, trace)

    def _untold(self) -> None:
        if self._telling is not None:
            self._telling.untold += 1

    def ended(self, exchange: Exchange) -> None:
        for finding in exchange.findings:
            self.found(finding if finding.exchange_id else replace(finding, exchange_id=exchange.exchange_id))
        self._known.pop(exchange.exchange_id, None)

    def clear(self) -> None:
        self._known.clear()
