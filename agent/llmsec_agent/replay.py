"""`llmsec-analyze replay`: capture files through a run, with progress, signals and the closing summary."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from llmsec_agent import summary
from llmsec_agent.alerts_lane import Alerts, AlertsSink
from llmsec_agent.key_use import KeyUse
from llmsec_agent.lane import Sink
from llmsec_agent.outbox import Outbox
from llmsec_agent.run import Deliver, Detection, OnEarly, Run
from llmsec_agent.shares import Shares
from llmsec_agent.sinks.audit import AuditSink
from llmsec_agent.sinks.store import StoreSink
from llmsec_agent.stop import Stop
from llmsec_agent.watching import Watch, WatchPlan
from llmsec_tap import limits
from llmsec_tap.capture.files.pcap import CaptureReader
from llmsec_tap.counters import Sample, Snapshot
from llmsec_tap.errors import SourceError, StorageError
from llmsec_tap.identity.whose import WhoseSettings
from llmsec_tap.install_key import install_key
from llmsec_tap.journal import Journal
from llmsec_tap.memory import MemoryWatch, limit_address_space
from llmsec_tap.storage.audit import whoami
from llmsec_tap.storage.handover import give_to_caller, is_callers
from llmsec_tap.storage.store import create_store
from llmsec_tap.storage.writer import StoreWriter
from llmsec_tap.tokens import TokenEstimator
from llmsec_tap.wire.tls.key_log import KeyLog

if TYPE_CHECKING:
    from rich.progress import Progress

    from llmsec_agent.alerts_lane import AlertPlan
    from llmsec_agent.tenants.directory import RemoteDirectory
    from llmsec_agent.tenants.policy import Policies

# Above this share of the memory cap all that is under way is handed on as far as it came.
_SHED_AT = 0.85
INTERRUPTED = 130  # 128 + SIGINT, as shells count
_FINDINGS = 1


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """What a replay reads, keeps and may take. `ports`: None for all. `keys`: secrets of TLS."""

    files: tuple[str, ...]
    ports: frozenset[int] | None = None
    keys: KeyLog | None = None
    store: str | None = None
    content: bool = True
    tokenizer: str | None = None
    memory_cap_bytes: int = limits.MEMORY_CAP_BYTES
    whose: WhoseSettings | None = None
    watch_keys: bool = False  # say where a key is used by a new workload, or by several
    directory: RemoteDirectory | None = None  # of the tenants of keys; with a seat for each process of a replay in parallel
    policies: Policies | None = None  # what holds for tenants
    audit: str | None = None  # least severity of findings for the store's audit log
    watch: WatchPlan | None = None  # deviations
    alerts: AlertPlan | None = None  # what somebody is told
    send_by: str | None = None  # the command that sends alerts; None: they are decided and stored only

    @property
    def follows(self) -> bool:
        """The source may be a live capture (standard input), so what is known is shown and stored soon."""
        return "-" in self.files


def replay(
    settings: ReplaySettings,
    journal: Journal,
    *,
    print_to: Callable[[Callable[[], None]], Sink] | None,
    start_detection: Callable[[Deliver, OnEarly, bytes], Detection] | None,
) -> int:
    """Read all files; the exit code, as docs/cli.md has them. A fault of one file or of a sink does not stop the rest."""
    begun = time.monotonic()
    stop = Stop()
    key = install_key(journal)
    callers_store = settings.store if settings.store is not None and is_callers(settings.store) else None
    sinks = sinks_of(settings, journal, stop, print_to, detects=start_detection is not None)
    run = Run(
        journal,
        stop,
        key=key,
        sinks=sinks,
        shares=Shares.of(settings.memory_cap_bytes),
        memory_cap_bytes=settings.memory_cap_bytes,
        may_wait=True,
        follows=settings.follows,
        ports=settings.ports,
        keys=settings.keys,
        content=settings.content,
        whose=settings.whose,
        key_use=KeyUse() if settings.watch_keys else None,
        watch=Watch(settings.watch, journal, memory_cap_bytes=settings.memory_cap_bytes) if settings.watch is not None else None,
        alerts=alerts_of(settings, journal),
        directory=settings.directory,
        policies=settings.policies,
        estimator=TokenEstimator(settings.tokenizer),
        start_detection=(lambda deliver, on_early: start_detection(deliver, on_early, key)) if start_detection is not None else None,
    )
    source = FileSource(settings, run)
    with signals(stop) as interrupted:
        try:
            run.run(source)
        finally:
            if callers_store is not None:
                give_to_caller(callers_store)
        detected = run.detection.summary() if run.detection is not None else []
        summarise(journal, run.snapshot(), settings, detected, time.monotonic() - begun, interrupted=bool(interrupted))
    if run.lost:
        return StorageError.exit_code
    if source.fault is not None:
        return SourceError.exit_code
    if interrupted:
        return INTERRUPTED
    return _FINDINGS if run.detection is not None and run.detection.failed else 0


def sinks_of(
    settings: ReplaySettings,
    journal: Journal,
    stop: Stop,
    print_to: Callable[[Callable[[], None]], Sink] | None,
    *,
    detects: bool,
) -> list[Sink]:
    """Where exchanges go. Raises StorageError."""
    sinks: list[Sink] = []
    if settings.store is not None:
        writer = StoreWriter.open(settings.store, journal)
        sinks.append(StoreSink(writer))
        if settings.audit is not None and detects:
            sinks.append(AuditSink(writer.store, settings.audit, whoami()))
    if print_to is not None:
        sinks.append(print_to(stop.request))
    return sinks


def alerts_of(settings: ReplaySettings, journal: Journal) -> Alerts | None:
    """By the capture's time. The store is there. Raises StorageError."""
    if settings.alerts is None:
        return None
    if settings.store is None:
        return Alerts(settings.alerts, journal, policies=settings.policies)
    store = create_store(settings.store, journal, views=False)
    outbox = Outbox(store.root) if settings.send_by is not None else None
    return Alerts(settings.alerts, journal, policies=settings.policies, root=store.root, sink=AlertsSink(store, journal, whoami(), outbox))


class FileSource:
    """Capture files, one after the other. `fault` is that of the last one that could not be read whole."""

    def __init__(self, settings: ReplaySettings, run: Run, *, shows_progress: bool = True) -> None:
        self._shows_progress = shows_progress
        self._settings = settings
        self._run = run
        self._reader = CaptureReader(run.pipeline)
        self._watch = MemoryWatch(settings.memory_cap_bytes)
        self.fault: SourceError | None = None

    def run(self, run: Run) -> None:
        limit_address_space(self._settings.memory_cap_bytes)
        self._reader.on_chunk = self._look
        run.stop.on_request(self._reader.stop)
        with _progress(self._settings.files, self._reader) if self._shows_progress else nullcontext():
            for name in self._settings.files:
                try:
                    self._reader.read(name)
                except MemoryError:
                    run.pipeline.shed()
                    self._failed(
                        SourceError(
                            f"{name}: out of memory under a cap of {self._settings.memory_cap_bytes >> 20} MiB",
                            "What was read until then is kept; try a larger --memory-cap.",
                        )
                    )
                except SourceError as fault:
                    self._failed(fault)
                if self._reader.stopped:
                    break

    def samples(self) -> Iterable[Sample]:
        yield Sample("llmsec_packets_total", self._reader.packets)

    def _failed(self, fault: SourceError) -> None:
        self.fault = fault
        self._run.journal.error("source_failed", "; ".join(fault.lines()))

    def _look(self) -> None:
        if self._watch.look() > _SHED_AT:
            self._run.pipeline.shed()
        self._run.step()


@contextmanager
def signals(stop: Stop) -> Iterator[list[int]]:
    """SIGINT and SIGTERM end the reading; what was read is still completed, stored and summed up. A second one kills."""
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        for known in (signal.SIGINT, signal.SIGTERM):
            signal.signal(known, signal.SIG_DFL)
        stop.request()

    earlier = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def summarise(
    journal: Journal, counts: Snapshot, settings: ReplaySettings, detected: Sequence[str], elapsed_s: float, *, interrupted: bool
) -> None:
    connections = counts.get("llmsec_connections_total", source="packets")
    peak = counts.get("llmsec_peak_resident_memory_bytes") / 1e6
    first = f"{counts.get('llmsec_packets_total'):,} packets, {connections:,} connections, {summary.what_was_decoded(counts)}"
    lines = [f"{first}, {summary.gaps(counts)}, {elapsed_s:.1f} s, {peak:.0f} MB at most", *summary.oddities(counts)]
    lines += [*detected]
    lines += summary.alerts(counts)
    lines += summary.sinks(counts, settings.store)
    if settings.send_by is not None:
        lines += summary.waiting_alerts(counts, settings.store, settings.send_by)
    if interrupted:
        lines.append("interrupted: what was read until then is complete")
    for line in lines:
        journal.info("summary", line)


@contextmanager
def _progress(files: Sequence[str], reader: CaptureReader) -> Iterator[None]:
    """A bar on a terminal, nothing elsewhere. Standard output keeps its lines: the bar is on standard error."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    total = sum(Path(name).stat().st_size for name in files if name != "-" and Path(name).is_file())
    bar = Progress(
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    )
    with bar:
        reader.on_progress = _advancing(bar, total if "-" not in files else None)
        yield


def _advancing(bar: Progress, total: int | None) -> Callable[[int], None]:
    task = bar.add_task("replay", total=total)

    def advance(read: int) -> None:
        bar.update(task, advance=read)

    return advance
