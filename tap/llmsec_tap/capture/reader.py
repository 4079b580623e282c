"""The thread that empties the ring between kernel and tap, and places probes in processes as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from llmsec_tap.capture.base import ConnectionLoss, Loader
from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.queue import BatchQueue
from llmsec_tap.capture.selection import Observed

# Records do not wake the reader (an interrupt for each would cost the observed process 4 us): it comes by itself. 16 MiB hold
# 5 ms of 3 GB/s; when nothing has come for a while it sleeps longer, as an idle tap should cost nothing.
_BUSY_S = 0.005
_IDLE_S = 0.02
_IDLE_AFTER = 50
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
        quiet = 0
        while not self._stopping.is_set():
            timeout = _BUSY_S if quiet < _IDLE_AFTER else _IDLE_S
            due = self._observed.next_due_s()
            if due is not None:
                timeout = max(0.0, min(timeout, due))
            self._loader.wait(timeout)
            quiet = 0 if self._drain() else quiet + 1
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

    def _drain(self) -> bool:
        any_came = False
        while records := self._loader.consume():
            any_came = True
            for record in records:
                if record[events.TYPE_AT] in _PROCESS_EVENTS:
                    self._observed.on_event(events.decode(record))
            self._queue.put(records)
        return any_came
