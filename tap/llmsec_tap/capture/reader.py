"""The thread that empties the ring between kernel and tap, and places probes in processes as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from llmsec_tap.capture.base import ConnectionLoss, Loader
from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.queue import BatchQueue
from llmsec_tap.capture.selection import Observed

# Data does not wake the reader (an interrupt for each record would cost the observed process 4 us): it comes by itself, and the
# kernel half wakes it where the ring fills sooner. Seldom enough that an idle tap costs next to nothing and a busy one reads in
# batches, often enough that what is shown is fresh.
_PAUSE_S = 0.02
_CHECK_LOSS_S = 0.5
_PROCESS_EVENTS = frozenset((events.EXEC, events.FORK, events.EXIT, events.MAP))


class Reader(threading.Thread):
    """Runs until `stop`, then empties the ring a last time. A defect here must not end the capture silently: see `fault`."""

    def __init__(self, loader: Loader, observed: Observed, queue: BatchQueue, on_loss: Callable[[list[ConnectionLoss]], None]) -> None:
        super().__init__(name="llmsec-reader", daemon=True)
        self._loader = loader
        self._observed = observed
        self._queue = queue
        self._on_loss = on_loss
        self._lost = 0
        self._next_check = 0.0
        self._stopping = threading.Event()
        self.fault: BaseException | None = None

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        try:
            self._run()
        except Exception as fault:  # noqa: BLE001 - handed to the main thread, which reports it and ends the run
            self.fault = fault

    def _run(self) -> None:
        while not self._stopping.is_set():
            due = self._observed.next_due_s()
            self._loader.wait(_PAUSE_S if due is None else max(0.0, min(_PAUSE_S, due)))
            self._drain()
            self._observed.look_at_due()
            if time.monotonic() >= self._next_check:
                self._check_loss()
        # Calls that had begun when the probes were taken out are over by now.
        self._drain()
        self._check_loss()

    def _check_loss(self) -> None:
        """Losses are read before the ring is emptied and told after its records: so no record still on its way counts as lost."""
        self._next_check = time.monotonic() + _CHECK_LOSS_S
        lost = self._loader.totals().lost_records
        if lost != self._lost:
            self._lost = lost
            losses = self._loader.losses()
            self._drain()
            self._queue.put_call(lambda: self._on_loss(losses), 0)

    def _drain(self) -> None:
        while records := self._loader.consume():
            for record in records:
                if record[events.TYPE_AT] in _PROCESS_EVENTS:
                    self._observed.on_event(events.decode(record))
            self._queue.put(records)
