"""The analyzer's rules and model, in a process of their own, on the records of one recorder.

All but `stats` runs on the recorder's thread. A process that is slow, hangs or dies costs findings and nothing else: records go on with
`risk_score` null and say why in `anomalies`, as a tap's do.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Final

from llmsec_analyzer.settings import DetectionSettings, InjectionSettings, ModelSettings, PIISettings, RequestTimeSettings
from llmsec_analyzer.worker.batches import AnswerListener
from llmsec_analyzer.worker.child import ChildDetector, Detector
from llmsec_analyzer.worker.client import DetectionProcess
from llmsec_analyzer.worker.running import Bounds
from llmsec_tap.errors import ConfigError
from llmsec_tap.exchange.assembly import ExchangeAssembly
from llmsec_tap.journal import Event, Journal, Level
from llmsec_tap.model import Exchange, Finding
from llmsec_trace.config import SecurityConfig

log = logging.getLogger("llmsec_trace")

# A process that makes no progress for so long is ended, where analysis_timeout_seconds is less: starting another costs more.
_LEAST_PATIENCE_S: Final = 5.0
_DRAIN_S: Final = 3.0
_QUEUE_BYTES: Final = 16 << 20


def settings_of(config: SecurityConfig) -> DetectionSettings:
    """What the detection process is asked to do."""
    return DetectionSettings(
        prompt_injection=InjectionSettings(model=ModelSettings(confidence_threshold=float(config.prompt_injection_threshold))),
        pii_detection=PIISettings(enabled=config.pii_detection_enabled),
        request_time=RequestTimeSettings(enabled=config.real_time_analysis),
    )


class Detection:
    """`add` takes records, `deliver` gets them back in order with what was found. The process is started with the first call."""

    def __init__(
        self,
        config: SecurityConfig,
        deliver: Callable[[Exchange], None],
        on_finding: Callable[[Finding], None],
        start: Callable[[], Detector] = ChildDetector,
    ) -> None:
        self._config = config
        self._deliver = deliver
        self._on_finding = on_finding
        self._start = start
        self._key = secrets.token_bytes(32)
        self._clear()

    def _clear(self) -> None:
        self._process: DetectionProcess | None = None
        self._is_off = False
        self.waiting = 0
        self._detectors: list[Detector] = []

    def forked(self) -> None:
        """In a child: the process is the parent's, and must not be kept alive by what we inherited of it."""
        for detector in self._detectors:
            abandon = getattr(detector, "abandon", None)
            if abandon is not None:
                abandon()
        self._clear()

    def listener(self, assembly: ExchangeAssembly) -> AnswerListener | None:
        process = self._started() if self._config.real_time_analysis else None
        return process.listener(assembly) if process is not None else None

    def requested(self, exchange: Exchange) -> None:
        process = self._started()
        if process is not None and self._config.real_time_analysis:
            process.ask(exchange)
            process.tick()

    def add(self, exchange: Exchange) -> None:
        process = self._started()
        if process is None:
            self._deliver(exchange)
            return
        self.waiting += 1
        process.add(exchange)

    def tick(self) -> None:
        if self._process is not None:
            self._process.tick()

    def drain(self, until: float) -> bool:
        """Wait for what is out, until that moment of time.monotonic() at most."""
        process = self._process
        while process is not None and self.waiting and time.monotonic() < until:
            process.go_on(0.05)
        return not self.waiting

    def close(self) -> None:
        process, self._process = self._process, None
        self._is_off = True
        if process is not None:
            process.hurry()
            process.close()

    def _delivered(self, exchange: Exchange) -> None:
        self.waiting -= 1
        self._deliver(exchange)

    def _started(self) -> DetectionProcess | None:
        if self._process is None and not self._is_off:
            patience_s = max(_LEAST_PATIENCE_S, self._config.analysis_timeout_seconds)
            try:
                self._process = DetectionProcess(
                    settings_of(self._config),
                    self._key,
                    self._delivered,
                    may_wait=False,
                    journal=Journal(_told),
                    on_early=self._on_finding,
                    early_from="info",
                    start=self._begin,
                    bounds=Bounds(queue_bytes=_QUEUE_BYTES, exchanges=10_000, patience_s=patience_s, drain_s=_DRAIN_S, hurry_s=_DRAIN_S),
                )
            except (ConfigError, OSError, RuntimeError):
                self._is_off = True
                log.warning("detection could not be started: records go on without findings", exc_info=True)
        return self._process

    def _begin(self) -> Detector:
        detector = self._start()
        self._detectors = [*self._detectors[-3:], detector]
        return detector


def _told(event: Event) -> None:
    log.log(logging.WARNING if event.level >= Level.WARNING else logging.DEBUG, "%s", event.text)
