"""What a folder's cursors say, and the processes that send from it, as metrics: the process that decodes reads them, since it is the one that is asked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llmsec_tap.counters import Sample
from llmsec_tap.storage.backlog import Backlog
from llmsec_tap.storage.compact import seq_of
from llmsec_tap.storage.cursor import State, path_of
from llmsec_tap.storage.deliverer import read_status
from llmsec_tap.storage.store import Store


class DeliveryMetrics:
    """Any thread may ask. Nothing where the folder is delivered nowhere; of several databases the sums, and the worst."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._backlog = Backlog(store)
        self._lock = threading.Lock()

    def samples(self) -> Iterator[Sample]:
        with self._lock:
            states = self._backlog.states()
        if not states:
            return
        now_ns = time.time_ns()
        said = [read_status(self._store, state.target) for state in states]
        alive = [status for status in said if status is not None and status.is_alive(now_ns)]
        oldest = min((seq_of(Path(name)) for state in states for name in state.waiting), default=now_ns)  # a part's time, in its name
        yield Sample("llmsec_delivery_up", float(len(alive) == len(states)))
        yield Sample("llmsec_delivery_failing", float(any(status.fault for status in alive)))
        yield Sample("llmsec_delivery_failures_total", sum(status.failures for status in alive))
        yield Sample("llmsec_delivery_restarts_total", sum(status.restarts for status in alive))
        yield Sample("llmsec_delivery_rows_total", sum(state.rows_delivered for state in states))
        yield Sample("llmsec_delivery_lost_rows_total", sum(state.rows_lost for state in states))
        yield Sample("llmsec_delivery_waiting_parts", sum(len(state.waiting) for state in states))
        yield Sample("llmsec_delivery_waiting_rows", sum(sum(state.waiting.values()) for state in states))
        yield Sample("llmsec_delivery_lag_seconds", max(0.0, (now_ns - oldest) / 1e9))


class TelemetryMetrics:
    """Any thread may ask. Nothing where no telemetry is sent from the folder."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def samples(self) -> Iterator[Sample]:
        states = list(self._states())
        if not states:
            return
        now_ns = time.time_ns()
        said = [read_status(self._store, state.target, "telemetry") for state in states]
        # A cursor of a collector that is configured no longer has nobody who is alive, and says nothing.
        alive = [(state, status) for state, status in zip(states, said, strict=True) if status is not None and status.is_alive(now_ns)]
        yield Sample("llmsec_telemetry_up", float(bool(alive)))
        yield Sample("llmsec_telemetry_failing", float(any(status.fault for _, status in alive)))
        yield Sample("llmsec_telemetry_failures_total", sum(status.failures for _, status in alive))
        yield Sample("llmsec_telemetry_restarts_total", sum(status.restarts for _, status in alive))
        yield Sample("llmsec_telemetry_spans_total", sum(status.spans for _, status in alive))
        yield Sample("llmsec_telemetry_refused_spans_total", sum(status.refused for _, status in alive))
        yield Sample("llmsec_telemetry_exchanges_total", sum(state.rows_delivered for state, _ in alive))
        yield Sample("llmsec_telemetry_lost_exchanges_total", sum(state.rows_lost for state, _ in alive))
        yield Sample("llmsec_telemetry_waiting_exchanges", sum(sum(state.waiting.values()) for state, _ in alive))

    def _states(self) -> Iterator[State]:
        for path in self._store.root.glob("telemetry-*.json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                state = msgspec.json.decode(path.read_bytes(), type=State)
                if path_of(self._store, state.target, "telemetry").name == path.name:
                    yield state
