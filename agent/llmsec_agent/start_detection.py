"""Detection put together for a command that decodes: configuration read here, scanning in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

from llmsec_agent.config import load_all
from llmsec_analyzer.worker.child import ChildDetector, RemoteDetector, StartDetector
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
    queue_bytes: int | None = None,
    remote: tuple[Callable[[], tuple[int, int]], Callable[[], None]] | None = None,
) -> DetectionProcess:
    """Raises ConfigError for a configuration, rule or model that is wrong. `key` makes the fingerprints. `may_wait`: the source can (a file), or cannot (live).

    `remote` starts and ends the process where this one may start none (worker/child.py).
    """
    start: StartDetector = ChildDetector if remote is None else lambda: RemoteDetector(*remote)
    loaded = load_all(config, report)
    settings = loaded.config.security
    process = DetectionProcess(
        settings, key, deliver, may_wait=may_wait, report=report, redact=redact, fail_on=fail_on, start=start, queue_bytes=queue_bytes
    )
    if any(name.startswith("security.") for name in loaded.origins):  # what ships is known to load, and need not be waited for
        process.await_ready()
    return process
