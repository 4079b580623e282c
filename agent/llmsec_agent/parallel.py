"""`llmsec-analyze replay --jobs N`: N processes read the same files, each decodes and judges its connections, and this one stores and prints.

The exchanges come out in the order in which one process gives them: each carries its place (llmsec_tap.pipeline.Order), and the processes' streams,
which are in that order, are merged. A process that is ahead waits for room in its pipe, so memory stays bounded.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import pickle
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, Final, NamedTuple

from llmsec_agent.lane import Lane, ReaderGoneError, Sink
from llmsec_agent.metrics import together
from llmsec_agent.replay import INTERRUPTED, FileSource, ReplaySettings, alerts_of, signals, sinks_of, summarise
from llmsec_agent.run import Deliver, Detection, OnEarly, Run
from llmsec_agent.shares import Shares
from llmsec_agent.stop import Stop
from llmsec_agent.watching import Watch
from llmsec_analyzer.alerts.alert import Alert
from llmsec_analyzer.watch.watcher import Gauge
from llmsec_analyzer.worker.statistics import summary as detected
from llmsec_tap.counters import Sample, Snapshot
from llmsec_tap.errors import SourceError, StorageError
from llmsec_tap.install_key import install_key
from llmsec_tap.journal import Event, Journal
from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Order, Share
from llmsec_tap.storage.handover import give_to_caller, is_callers
from llmsec_tap.tokens import TokenEstimator

StartDetection = Callable[[Deliver, OnEarly, bytes], Detection]
_LENGTH: Final = 4
# What all processes meet alike, and the first one says.
_OF_ALL: Final = frozenset(("source_failed",))
_COUNTED_BY_FIRST: Final = frozenset(("llmsec_packets_total",))


class _End(NamedTuple):
    """The last word of a process."""

    samples: list[Sample]
    source_failed: bool
    has_findings: bool
    lost: bool


class _Process:
    """One that decodes: `items` until its end, `end` then; None where it died."""

    def __init__(self, pid: int, pipe: BinaryIO) -> None:
        self.pid = pid
        self._pipe = pipe
        self.end: _End | None = None

    def leave(self) -> None:
        """In another process: so that each of them sees when the one that merges is gone."""
        self._pipe.close()

    def items(self) -> Iterator[tuple[Order, Exchange]]:
        while len(head := self._pipe.read(_LENGTH)) == _LENGTH:
            size = int.from_bytes(head, "big")
            data = self._pipe.read(size)
            if len(data) < size:
                return
            item = pickle.loads(data)  # noqa: S301 - of our own fork, which has the same rights
            if isinstance(item, _End):
                self.end = item
                return
            yield item


class _PipeSink:
    """To the process that merges."""

    name = "merge"
    takes_events = False

    def __init__(self, descriptor: int, orders: deque[Order], on_gone: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._orders = orders
        self._on_gone = on_gone

    def encode(self, exchange: Exchange) -> tuple[bytes, int]:
        data = _framed((self._orders.popleft(), exchange))
        return data, len(data)

    def write(self, items: Sequence[bytes]) -> int:
        for data in items:
            try:
                _write(self._descriptor, data)
            except BrokenPipeError:
                self._on_gone()
                raise ReaderGoneError("the process that merges is gone") from None
        return len(items)

    def tick(self) -> None: ...

    def close(self) -> None: ...

    def samples(self) -> Iterable[Sample]:
        return ()


def replay_in_parallel(
    settings: ReplaySettings,
    journal: Journal,
    jobs: int,
    *,
    print_to: Callable[[Callable[[], None]], Sink] | None,
    start_detection: StartDetection | None,
) -> int:
    """As `replay.replay`, by so many processes. The memory cap is shared out over them."""
    begun = time.monotonic()
    stop = Stop()
    key = install_key(journal)
    callers_store = settings.store if settings.store is not None and is_callers(settings.store) else None
    own = replace(settings, memory_cap_bytes=settings.memory_cap_bytes // jobs)
    sinks = sinks_of(settings, journal, stop, print_to, detects=start_detection is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads begin with the lanes, after the last fork.
    processes: list[_Process] = []
    for number in range(jobs):
        process = _fork(own, journal, key, number, jobs, start_detection, processes)
        processes.append(process)
    if settings.directory is not None:
        settings.directory.sit(None)
    with signals(stop) as interrupted:
        stop.on_request(lambda: _tell(processes, signal.SIGTERM))
        lanes = [Lane(sink, journal, stop, max_bytes=Shares.of(settings.memory_cap_bytes).lane, may_wait=True) for sink in sinks]
        watch = Watch(settings.watch, journal, memory_cap_bytes=settings.memory_cap_bytes) if settings.watch is not None else None
        decided = alerts_of(settings, journal)
        if decided is not None and decided.sink is not None:
            told = Lane(decided.sink, journal, stop, max_bytes=Shares.of(settings.memory_cap_bytes).lane, may_wait=True)
        else:
            told = None

        all_lanes = [*lanes, *([told] if told is not None else [])]

        def tell(alerts: Iterable[Alert]) -> None:
            for alert in alerts:
                if told is not None:
                    told.offer(alert)

        try:
            for _, exchange in heapq.merge(*(process.items() for process in processes), key=lambda item: item[0]):
                if watch is not None:
                    watch.look(exchange)
                if decided is not None:
                    gauge = watch.gauge if watch is not None else Gauge()
                    tell(decided.look(exchange, cost_multiplier=gauge.cost_multiplier, error_rate_5m=gauge.error_rate_5m))
                for lane in lanes:
                    lane.offer(exchange)
        finally:
            if decided is not None:
                tell(decided.close())
            for lane in all_lanes:
                lane.close()
            _tell(processes, signal.SIGTERM)
            for process in processes:
                os.waitpid(process.pid, 0)
            if callers_store is not None:
                give_to_caller(callers_store)
        ends = [process.end for process in processes if process.end is not None]
        known = [*(lane.samples for lane in all_lanes), *([decided.samples] if decided is not None else [])]
        counts = Snapshot([lambda: together([end.samples for end in ends]), *known])
        lines = detected(counts, is_live=False) if start_detection is not None else []
        summarise(journal, counts, settings, lines, time.monotonic() - begun, interrupted=bool(interrupted))
    if len(ends) < jobs:
        journal.error(
            "process_died", f"{jobs - len(ends)} of {jobs} processes ended before they had read all: their connections are missing"
        )
        return SourceError.exit_code
    if any(lane.lost for lane in all_lanes) or any(end.lost for end in ends):
        return StorageError.exit_code
    if any(end.source_failed for end in ends):
        return SourceError.exit_code
    if interrupted:
        return INTERRUPTED
    return 1 if any(end.has_findings for end in ends) else 0


def _tell(processes: Sequence[_Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _fork(
    settings: ReplaySettings,
    journal: Journal,
    key: bytes,
    number: int,
    jobs: int,
    start_detection: StartDetection | None,
    earlier: Sequence[_Process],
) -> _Process:
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return _Process(pid, os.fdopen(read, "rb"))
    code = 1
    try:
        os.setpgid(0, 0)  # the terminal's Ctrl-C goes to the process that merges, which tells the others
        os.close(read)
        for other in earlier:
            other.leave()
        _work(
            settings, journal if number == 0 else _quieter(journal), key, Share(number, jobs, lambda _order: None), write, start_detection
        )
        code = 0
    except BaseException as fault:  # noqa: BLE001 - this process ends here, whatever it was
        journal.error("process_failed", f"process {number} failed: {type(fault).__name__}")
    finally:
        os._exit(code)


def _work(
    settings: ReplaySettings, journal: Journal, key: bytes, share: Share, descriptor: int, start_detection: StartDetection | None
) -> None:
    stop = Stop()
    if settings.directory is not None:
        settings.directory.sit(share.number)
    orders: deque[Order] = deque()
    run = Run(
        journal,
        stop,
        key=key,
        sinks=[_PipeSink(descriptor, orders, stop.request)],
        shares=Shares.of(settings.memory_cap_bytes),
        memory_cap_bytes=settings.memory_cap_bytes,
        may_wait=True,
        ports=settings.ports,
        keys=settings.keys,
        content=settings.content,
        whose=settings.whose,
        directory=settings.directory,
        policies=settings.policies,
        estimator=TokenEstimator(settings.tokenizer),
        share=share._replace(on_order=orders.append),
        start_detection=(lambda deliver, on_early: start_detection(deliver, on_early, key)) if start_detection is not None else None,
    )
    source = FileSource(settings, run, shows_progress=share.number == 0)
    with signals(stop):
        run.run(source)
    samples = [sample for sample in run.snapshot_samples() if share.number == 0 or sample.name not in _COUNTED_BY_FIRST]
    has_findings = run.detection is not None and run.detection.failed
    _write(descriptor, _framed(_End(samples, source.fault is not None, has_findings, run.lost)))


def _framed(item: Any) -> bytes:
    data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(_LENGTH, "big") + data


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _quieter(journal: Journal) -> Journal:
    def write(event: Event) -> None:
        if event.name not in _OF_ALL:
            journal.write(event)

    return Journal(write)
