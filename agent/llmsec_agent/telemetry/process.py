"""The process that sends telemetry: without capabilities, as the store's owner, kept running by another (kept.py)."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec

from llmsec_agent.kept import Kept, Work
from llmsec_agent.telemetry.plan import TelemetryPlan, elsewhere
from llmsec_tap.errors import LLMSecError, StorageError
from llmsec_tap.journal import Journal
from llmsec_tap.storage.store import open_store

_EVERY_S: Final = 1.0
_AFTER_FAILURE_S: Final = 5.0


def send(
    plan: TelemetryPlan, journal: Journal, *, once: bool = False, goes_on: Callable[[], bool] = lambda: True, restarts: int = 0
) -> int:
    """Until SIGTERM, SIGINT or the end of `goes_on`; `once`: until what is there now has been tried. The exit code.

    Raises StorageError where the folder cannot be read.
    """
    from llmsec_agent.telemetry.exporters import Exporters
    from llmsec_agent.telemetry.sending import Sending
    from llmsec_tap.storage.deliverer import BEAT_S, Status, write_status

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = replace(open_store(plan.store, journal), name=plan.name or plan.store)
    sending = Sending(store, plan, Exporters(plan.spans, plan.metrics), journal, is_bounded=not once)

    def beat() -> None:
        status = Status(
            pid=os.getpid(),
            alive_ns=time.time_ns(),
            failures=sending.failures,
            restarts=restarts,
            fault=sending.fault or sending.metrics_fault,
            spans=sending.spans,
            refused=sending.refused,
        )
        write_status(store, plan.target, status, "telemetry")

    def beat_on() -> None:
        while not stop.wait(BEAT_S):
            beat()

    if not once:
        beat()
        threading.Thread(target=beat_on, name="llmsec-telemetry", daemon=True).start()
    went_well = True
    try:
        while not once and goes_on() and not stop.is_set():
            begun = time.monotonic()
            went_well = sending.step()
            took = time.monotonic() - begun
            stop.wait(min(max(_EVERY_S, 20 * took), _AFTER_FAILURE_S) if went_well else _AFTER_FAILURE_S)
        # A collector that is away would hold up the end, and the next run sends what is left.
        went_well = went_well and sending.step(at_once=True)
        if not once:
            beat()
        return 0 if went_well and not sending.cursor.state.waiting else StorageError.exit_code
    finally:
        sending.close()


class TelemetrySender(Kept):
    """The processes, as children of the agent."""

    def __init__(self, pid: int, control: socket.socket, plan: TelemetryPlan) -> None:
        super().__init__(pid, control)
        self._plan = plan

    @classmethod
    def begin(cls, plan: TelemetryPlan, journal: Journal) -> TelemetrySender:
        """While there are no threads and sockets that it should not have."""
        kept = Kept.start(_WORK, plan, plan.store, journal)
        return cls(kept.pid, kept.control, plan)

    def change(self, plan: TelemetryPlan) -> None:
        """Go over to another plan for the same folder."""
        plan = replace(plan, store=self._plan.store, since_ns=self._plan.since_ns)
        before, self._plan = self._plan, plan
        if before != plan:
            self.say(msgspec.msgpack.encode(plan))


def _load_all() -> None:
    """What is imported later may lie where the user cannot read."""
    import grpc  # type: ignore[import-untyped]  # noqa: F401
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401
    from opentelemetry.exporter.otlp.proto.grpc import metric_exporter, trace_exporter  # noqa: F401
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as _metrics  # noqa: F401
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as _traces  # noqa: F401

    from llmsec_agent.telemetry import sending
    from llmsec_tap.storage import deliverer  # noqa: F401

    sending.rehearse()


def _work(plan: TelemetryPlan, journal: Journal, goes_on: Callable[[], bool], restarts: int) -> int:
    try:
        return send(plan, journal, goes_on=goes_on, restarts=restarts)
    except LLMSecError as fault:
        journal.error("telemetry_ended", f"telemetry has ended: {fault}")
        return fault.exit_code


def _changed(plan: TelemetryPlan, said: bytes) -> TelemetryPlan:
    changed = msgspec.msgpack.decode(said, type=TelemetryPlan)
    return replace(changed, store=plan.store, name=plan.name)


_WORK: Final = Work("telemetry process", _load_all, elsewhere, _changed, _work)
