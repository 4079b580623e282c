"""The thread that empties the ring between kernel and tap."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from llmsec_tap.capture.ebpf.loader_api import ConnectionLoss, KernelTotals
from llmsec_tap.capture.live.queue import BatchQueue

# Data does not wake the reader (an interrupt for each record would cost the observed process 4 us): it comes by itself, and the
# kernel half wakes it where the ring fills sooner. Seldom enough that an idle tap costs next to nothing and a busy one reads in
# batches, often enough that what is shown is fresh.
_PAUSE_S = 0.005
_CHECK_LOSS_S = 0.5


class Records(Protocol):
    """The kernel half as this side sees it (warden_client.WardenClient). No method raises."""

    def wait(self, timeout_s: float) -> None:
        """Until the ring fills up or the time has passed."""

    def consume(self) -> list[bytes]:
        """The records that came since the last call, oldest first, up to a bound."""

    def totals(self) -> KernelTotals: ...

    def losses(self) -> list[ConnectionLoss]: ...

    def detach_all(self) -> None: ...

    def close(self) -> None: ...


class Reader(threading.Thread):
    """Runs until `stop`, then empties the ring a last time. A defect here must not end the capture silently: see `fault`."""

    def __init__(self, records: Records, queue: BatchQueue, on_loss: Callable[[list[ConnectionLoss]], None]) -> None:
        super().__init__(name="llmsec-reader", daemon=True)
        self._records = records
        self._queue = queue
        self._on_loss = on_loss
        self._lost = 0
        self.totals = KernelTotals()  # as of the last look
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
            self._records.wait(_PAUSE_S)
            self._drain()
            if time.monotonic() >= self._next_check:
                self._check_loss()
        # Calls that had begun when the probes were taken out are over by now.
        self._drain()
        self._check_loss()

    def _check_loss(self) -> None:
        """Losses are read before the ring is emptied and told after its records: so no record still on its way counts as lost."""
        self._next_check = time.monotonic() + _CHECK_LOSS_S
        self.totals = self._records.totals()
        lost = self.totals.lost_records
        if lost != self._lost:
            self._lost = lost
            losses = self._records.losses()
            self._drain()
            self._queue.put_control(lambda: self._on_loss(losses))

    def _drain(self) -> None:
        while records := self._records.consume():
            self._queue.put(records)
