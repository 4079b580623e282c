"""Detection put together for a command that decodes: configuration read here, scanning in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

from llmsec_analyzer.config import load_config
from llmsec_analyzer.worker.child import ChildDetector, StartDetector
from llmsec_analyzer.worker.client import DetectionProcess
from llmsec_tap.model import Exchange, Severity


def start_detection(
    deliver: Callable[[Exchange], None],
    *,
    key: bytes,
    config: str | None,
    may_wait: bool,
    report: Callable[[str], None],
    redact: bool = False,
    fail_on: Severity | None = None,
    start: StartDetector = ChildDetector,
) -> DetectionProcess:
    """Raises ConfigError for a configuration, rule or model that is wrong. `key` makes the fingerprints. `may_wait`: the source can (a file), or cannot (live)."""
    settings = load_config(config).security
    process = DetectionProcess(settings, key, deliver, may_wait=may_wait, report=report, redact=redact, fail_on=fail_on, start=start)
    if config is not None:  # what ships is known to load, and need not be waited for
        process.await_ready()
    return process
