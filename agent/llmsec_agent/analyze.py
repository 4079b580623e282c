"""`llmsec-analyze analyze`: detection over what a store holds. What changes is stored anew; of two rows for one exchange the later one counts.

The store is walked in the order of time. Several detection processes judge a batch side by side; when all of it is stored, the place is noted,
so that a run that was killed is gone on with. What is examined twice is stored once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self

import msgspec

from llmsec_agent.analysis_place import Place, alone, in_folder, of_database
from llmsec_agent.auditing import found, record
from llmsec_agent.replay import INTERRUPTED, signals
from llmsec_agent.stop import Stop
from llmsec_analyzer.judge.rule_set import rule_set
from llmsec_analyzer.risk import OWN_RULES
from llmsec_analyzer.settings import BudgetSettings, DetectionSettings, Handling
from llmsec_analyzer.stored.exchanges import BEGINNING, Position, at_positions, positions, still_there
from llmsec_analyzer.stored.stores import open_session
from llmsec_analyzer.worker.client import DetectionProcess
from llmsec_tap import __version__
from llmsec_tap.errors import StorageError
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange
from llmsec_tap.storage import audit, compact
from llmsec_tap.storage.clickhouse.address import is_clickhouse, parse
from llmsec_tap.storage.clickhouse.writer import DatabaseWriter
from llmsec_tap.storage.erase import WAIT_S
from llmsec_tap.storage.store import Store, open_store
from llmsec_tap.storage.writer import StoreWriter

# What says that detection left something out that it can look at now.
LEFT_OUT: Final = ("detection_skipped", "detection_secrets_only", "detection_without_model", "detection_fault", "detection_set_aside")
_OF_DETECTION: Final = frozenset((*LEFT_OUT, "detection_incomplete", "findings_limit"))
# Their texts were left out when they were stored, so there is nothing to look at.
_WITHOUT_TEXTS: Final = ("content_withheld", "content_degraded", "content_expired")
# Nobody has looked at it: what the store has of it is better.
_NOT_EXAMINED: Final = frozenset(("detection_skipped", "detection_set_aside", "content_withheld"))
# Read, judged and stored together. Whole records may be large, places are small.
_BATCH: Final = 200
_PLACES: Final = 10_000
# Stored and noted so often.
_NOTE_S: Final = 10.0


@dataclass
class Counts:
    """`without_texts`: stored without content. `not_examined`: ended their detection process, and stay as they were."""

    examined: int = 0
    changed: int = 0
    without_texts: int = 0
    not_examined: int = 0
    resumed: bool = False
    interrupted: bool = False


class _Target(Protocol):
    """Where what has changed goes."""

    def alone(self) -> AbstractContextManager[None]:
        """Nobody deletes from it meanwhile, as far as it can say."""

    def write(self, exchanges: list[Exchange]) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class _Folder:
    def __init__(self, store: Store) -> None:
        self._writer = StoreWriter(store)
        self._store = store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with compact.alone(self._store, WAIT_S) as is_alone:
            if not is_alone:
                raise StorageError(f"{self._store.shown} is being compacted or pruned by another process", "try again when that has ended")
            yield

    def write(self, exchanges: list[Exchange]) -> None:
        for exchange in exchanges:
            self._writer.add(exchange)
        self._writer.flush()


class _Database(DatabaseWriter):
    @contextmanager
    def alone(self) -> Iterator[None]:
        """A server has no such lock: what is deleted in the moment between the look and the write comes back."""
        yield


def analyze(
    store: str,
    settings: DetectionSettings,
    key: bytes,
    journal: Journal,
    *,
    everything: bool = False,
    jobs: int = 1,
    audited: str | None = None,
    handling: Callable[[Exchange], Handling] = lambda _exchange: Handling(),
) -> tuple[Counts, int]:
    """Examine what was left out, or `everything`; and the exit code. It may be killed and called again: what is done stays done.

    `audited`: least severity of new findings for the audit log of a folder. Raises StorageError, and ConfigError for rules that are wrong.
    """
    settings = msgspec.structs.replace(settings, budget=BudgetSettings())
    folder = None if is_clickhouse(store) else open_store(store, journal)
    path = of_database(_name(store)) if folder is None else in_folder(folder.root)
    place = Place(path, _run_of(settings, key, everything=everything))
    counts = Counts()
    stop = Stop()
    with alone(path), signals(stop):
        after = place.read()
        counts.resumed = after != BEGINNING
        detection = _Detection(settings, key, journal, jobs, handling)
        try:
            with _Database(parse(store)) if folder is None else _Folder(folder) as target:
                after = _walk(store, journal, _Walk(after, place, target, detection, stop, counts, folder, audited), everything=everything)
        finally:
            detection.close()
            if folder is not None:
                facts = {name: getattr(counts, name) for name in ("examined", "changed", "resumed", "interrupted")}
                record(folder, journal, "analysis", all=everything, jobs=jobs, **facts)
        if not counts.interrupted:
            place.forget()
    return counts, INTERRUPTED if counts.interrupted else 0


@dataclass
class _Walk:
    after: Position
    place: Place
    target: _Target
    detection: _Detection
    stop: Stop
    counts: Counts
    folder: Store | None
    audited: str | None


def _walk(store: str, journal: Journal, walk: _Walk, *, everything: bool) -> Position:
    counts, names = walk.counts, None if everything else LEFT_OUT
    changed: list[Exchange] = []
    records: list[tuple[str, dict[str, object]]] = []
    noted_at = time.monotonic()

    def note() -> None:
        """The findings first: a kill between the two has them in the log twice, and never in the store alone."""
        nonlocal noted_at
        with walk.target.alone():
            there = still_there(session, changed, _WITHOUT_TEXTS)  # not what was deleted, or lost its texts, since it was read
            kept = [entry for entry in records if entry[1]["exchange_id"] in there]
            if walk.folder is not None and kept:
                audit.append(walk.folder, kept)
            walk.target.write([exchange for exchange in changed if exchange.exchange_id in there])
        counts.changed += len(there)
        walk.place.write(walk.after)
        changed.clear()
        records.clear()
        noted_at = time.monotonic()

    with open_session(store, journal) as session:
        while not counts.interrupted and (wanted := positions(session, walk.after, names, _PLACES)):
            for start in range(0, len(wanted), _BATCH):
                batch = wanted[start : start + _BATCH]
                before = []
                for exchange in at_positions(session, batch):
                    if has_texts(exchange):
                        before.append(exchange)
                    else:
                        counts.without_texts += 1
                for old, fresh in zip(before, walk.detection.examine([_bare(exchange) for exchange in before]), strict=True):
                    counts.examined += 1
                    if _is_unexamined(fresh):
                        counts.not_examined += 1
                    elif fresh != old:
                        changed.append(fresh)
                        if walk.audited is not None:
                            known = {finding.finding_id for finding in old.findings}
                            records += [entry for entry in found(fresh, walk.audited) if entry[1]["finding_id"] not in known]
                walk.after = batch[-1]
                if walk.stop.is_requested:
                    counts.interrupted = True
                    break
                if len(changed) >= _BATCH or time.monotonic() - noted_at >= _NOTE_S:
                    note()
        note()
    return walk.after


class _Detection:
    """Several detection processes. Each takes every n-th exchange of a batch."""

    def __init__(
        self, settings: DetectionSettings, key: bytes, journal: Journal, jobs: int, handling: Callable[[Exchange], Handling]
    ) -> None:
        """Raises ConfigError for rules or a model that are wrong."""
        self._results: list[list[Exchange]] = [[] for _ in range(jobs)]
        self._processes: list[DetectionProcess] = []
        for results in self._results:
            process = DetectionProcess(settings, key, results.append, may_wait=True, journal=journal, handling=handling)
            self._processes.append(process)
        try:
            for process in self._processes:
                process.await_ready()
        except BaseException:
            self.close()
            raise

    def examine(self, exchanges: Sequence[Exchange]) -> list[Exchange]:
        """In the same order."""
        jobs = len(self._processes)
        for number, exchange in enumerate(exchanges):
            self._processes[number % jobs].add(exchange)
        busy = list(self._processes)
        while busy:
            busy = [process for process in busy if process.go_on(0.02 / len(busy))]
        fresh = [self._results[number % jobs][number // jobs] for number in range(len(exchanges))]
        for results in self._results:
            results.clear()
        return fresh

    def close(self) -> None:
        for process in self._processes:
            process.close()


def has_texts(exchange: Exchange) -> bool:
    if any(anomaly.name in _WITHOUT_TEXTS for anomaly in exchange.anomalies):
        return False
    is_empty = not (exchange.request.messages or exchange.response.messages or exchange.other_texts)
    return not (is_empty and (exchange.request.body_bytes or exchange.response.body_bytes))


def _bare(exchange: Exchange) -> Exchange:
    """Without what detection said before; what rules of the application's own found stays (Report.applied)."""
    before = [anomaly for anomaly in exchange.anomalies if anomaly.name not in _OF_DETECTION]
    own = [finding for finding in exchange.findings if finding.rule_id.startswith(OWN_RULES)]
    return msgspec.structs.replace(exchange, anomalies=before, findings=own, risk_score=None, risk_reasons=[])


def _is_unexamined(exchange: Exchange) -> bool:
    marks = {anomaly.name for anomaly in exchange.anomalies}
    return not marks.isdisjoint(_NOT_EXAMINED) or ("detection_fault" in marks and exchange.risk_score is None)


def _name(store: str) -> str:
    address = parse(store)
    return f"{address} {address.username}"


def _run_of(settings: DetectionSettings, key: bytes, *, everything: bool) -> str:
    """A digest of all that the result depends on: settings, rules, suppressions, model and version."""
    import hashlib

    digest = hashlib.sha256(key)
    digest.update(msgspec.json.encode([__version__, everything, settings, sorted(rule_set(settings).by_id.values(), key=lambda r: r.id)]))
    model = settings.prompt_injection.model.path
    for name in (*settings.suppressions, *([model] if model is not None else ())):
        path = Path(name)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                facts = file.stat()
                digest.update(f"{file} {facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
