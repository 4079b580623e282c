"""What a folder's cursors and its deliverer say, as metrics: the process that decodes reads them, since it is the one that is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from llmsec_tap.counters import Sample
from llmsec_tap.storage.backlog import Backlog
from llmsec_tap.storage.compact import seq_of
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
