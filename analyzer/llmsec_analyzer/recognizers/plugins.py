"""Detectors of other packages, by the entry point `llmsec_analyzer.detectors`: for what rules cannot say.

A plug-in is a callable made by its entry point without arguments, with `rule` (a Rule) and `scan(text, role)`, which yields
(start, end) or (start, end, confidence) in characters. One that fails is caught, named and counted, and the rest go on.
docs/rules.md has a whole example.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from typing import Protocol

from llmsec_analyzer.engine.recognizer_api import Match
from llmsec_analyzer.rules.schema import Rule

GROUP = "llmsec_analyzer.detectors"
# A plug-in that fails so often in an hour is left out for ten minutes.
FAULTS_ALLOWED = 20
FAULTS_IN_S = 3600.0
PAUSE_S = 600.0


class Detector(Protocol):
    rule: Rule

    def scan(self, text: str, role: str) -> Iterable[tuple[int, int] | tuple[int, int, float]]: ...


class Plugins:
    def __init__(
        self,
        *,
        enabled: bool = True,
        on_fault: Callable[[str, Exception], None],
        found: dict[str, Detector] | None = None,
        ours: dict[str, Detector] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ours`: detectors that the configuration asks for, whether plug-ins are loaded or not."""
        self._on_fault = on_fault
        self._clock = clock
        self._faults: dict[str, deque[float]] = {}  # when each failed, since its last pause
        self._back_at: dict[str, float] = {}
        self.detectors: dict[str, Detector] = dict(ours or {})
        if found is not None:
            self.detectors.update(found)
        elif enabled:
            for point in entry_points(group=GROUP):
                try:
                    self.detectors[point.name] = point.load()()
                except Exception as fault:  # noqa: BLE001 - somebody else's code
                    on_fault(f"plug-in {point.name}", fault)

    def scan(self, text: str, role: str) -> Iterator[Match]:
        for name, detector in self.detectors.items():
            if name in self._back_at and self._clock() < self._back_at[name]:
                continue
            try:
                for found in detector.scan(text, role):
                    start, end = int(found[0]), int(found[1])
                    if not 0 <= start <= end <= len(text):
                        raise ValueError("a span outside the text")  # noqa: TRY301 - counted as its fault
                    confidence = float(found[2]) if len(found) > 2 else detector.rule.confidence
                    yield Match(rule=detector.rule, start=start, end=end, severity=detector.rule.severity, confidence=confidence)
            except Exception as fault:  # noqa: BLE001 - as above
                self._failed(name)
                self._on_fault(f"plug-in {name}", fault)

    def _failed(self, name: str) -> None:
        now = self._clock()
        faults = self._faults.setdefault(name, deque(maxlen=FAULTS_ALLOWED))
        faults.append(now)
        if len(faults) == FAULTS_ALLOWED and now - faults[0] <= FAULTS_IN_S:
            self._back_at[name] = now + PAUSE_S
            faults.clear()
