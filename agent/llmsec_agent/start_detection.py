"""Detection put together for a command that decodes: scanning happens in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

from llmsec_analyzer.settings import DetectionSettings, Handling
from llmsec_analyzer.worker.child import ChildDetector, RemoteDetectors, StartDetector
from llmsec_analyzer.worker.client import DetectionProcess
from llmsec_analyzer.worker.running import Bounds
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange, Finding, Severity


def detection_starter(
    settings: DetectionSettings,
    journal: Journal,
    *,
    may_wait: bool,
    queue_bytes: int,
    is_built_in: bool,
    redact: bool = False,
    fail_on: Severity | None = None,
    remote: RemoteDetectors | None = None,
    early_from: Severity = "high",
    handling: Callable[[Exchange], Handling] = lambda _exchange: Handling(),
) -> Callable[[Callable[[Exchange], None], Callable[[Finding], None], bytes], DetectionProcess]:
    """What starts detection, given where exchanges and early findings go from there, and the key of fingerprints. Raises ConfigError for a rule or model that is wrong.

    `may_wait`: the source can (a file), or cannot (live). `is_built_in`: these settings are tested, so there is no need to wait for
    the process to load them. `remote` starts and ends processes where this one may start none.
    """
    start: StartDetector = ChildDetector if remote is None else remote

    def begin(deliver: Callable[[Exchange], None], on_early: Callable[[Finding], None], key: bytes) -> DetectionProcess:
        process = DetectionProcess(
            settings,
            key,
            deliver,
            may_wait=may_wait,
            journal=journal,
            redact=redact,
            fail_on=fail_on,
            on_early=on_early,
            early_from=early_from,
            start=start,
            handling=handling,
            bounds=Bounds(queue_bytes=queue_bytes),
        )
        if not is_built_in:
            process.await_ready()
        return process

    return begin
