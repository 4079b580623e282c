"""What leaves the host for ClickHouse leaves from here: a process without capabilities that reads the store's folder as its owner.

The agent starts it, or a service of its own does (`llmsec-tap deliver`). It decodes nothing and holds no captured bytes but those of a batch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace as replace_struct

from llmsec_agent.fleet import database_of
from llmsec_agent.text import leave
from llmsec_tap import privileges
from llmsec_tap.errors import LLMSecError, StorageError
from llmsec_tap.storage.handover import owner_of
from llmsec_tap.storage.store import INFO_NAME, open_store

if TYPE_CHECKING:
    from llmsec_agent.config.schema import ClickHouse
    from llmsec_tap.journal import Journal

_EVERY_S: Final = 1.0
# After a failure; the breaker's pause is longer (delivery.py).
_AFTER_FAILURE_S: Final = 5.0


@dataclass(frozen=True)
class DeliveryPlan:
    """`password` was read with the rights of whoever started it; the process may not be able to."""

    store: str
    settings: ClickHouse
    name: str = ""  # how the folder is called, where `store` is how this process reaches it
    password: str = field(default="", repr=False)


def plan_of(store: str, settings: ClickHouse) -> DeliveryPlan:
    """Raises ConfigError where an address is wrong or the password cannot be read."""
    return DeliveryPlan(store, settings, password=database_of(settings, None).address.password)


def deliver(plan: DeliveryPlan, journal: Journal, *, once: bool = False, goes_on: Callable[[], bool] = lambda: True) -> int:
    """Until SIGTERM, SIGINT or the end of `goes_on`; `once`: until what is there now has been tried. The exit code.

    Raises ConfigError, and StorageError where the folder cannot be read.
    """
    from llmsec_tap.storage.clickhouse.delivery import Batching, Delivery

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = plan.settings
    found = database_of(replace_struct(settings, password=None), None)
    delivery = Delivery(
        replace(open_store(plan.store, journal), name=plan.name or plan.store),
        replace(found.address, password=plan.password),
        journal,
        limits=found.limits,
        batching=Batching(settings.batch_size, min(settings.flush_interval, settings.max_batch_delay)),
        max_bytes=settings.max_buffer_size,
    )
    went_well = True
    try:
        while not once and goes_on() and not stop.is_set():
            went_well = delivery.step()
            stop.wait(_EVERY_S if went_well else _AFTER_FAILURE_S)
        # A server that is away would hold up the end, and the next run sends what is left.
        went_well = went_well and delivery.step(at_once=True)
        return 0 if went_well and not delivery.cursor.state.waiting else StorageError.exit_code
    finally:
        delivery.close()


class Deliverer:
    """The process, as a child of the agent."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @classmethod
    def start(cls, plan: DeliveryPlan, journal: Journal) -> Deliverer:
        """Fork it, before there are threads and sockets that it should not have."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            leave(lambda: _child(plan, journal, parent))
        return cls(pid)

    def end(self) -> None:
        """Ask it to send what waits. It is not waited for: a server may be slow, and what is not sent now the next run sends."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, os.WNOHANG)


def _child(plan: DeliveryPlan, journal: Journal, parent: int) -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # What is imported later may lie where the user cannot read.
    import clickhouse_connect  # noqa: F401
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401
    import pybreaker  # noqa: F401
    import stamina  # noqa: F401

    import llmsec_tap.storage.clickhouse.delivery
    import llmsec_tap.storage.clickhouse.migrations  # noqa: F401

    privileges.load_encodings()

    while not (Path(plan.store) / INFO_NAME).exists():  # the capture makes it
        if os.getppid() != parent:
            return 0
        time.sleep(_EVERY_S / 4)
    try:
        os.chdir(plan.store)  # its path may lead through places where its owner may not look
        privileges.become(owner_of(plan.store) or privileges.unprivileged_user())
        return deliver(replace(plan, store=".", name=plan.store), journal, goes_on=lambda: os.getppid() == parent)
    except LLMSecError as fault:
        journal.error("delivery_ended", f"delivery to ClickHouse has ended: {fault}")
        return fault.exit_code
