"""What leaves the host for ClickHouse leaves from here: a process without capabilities that reads the store's folder as its owner.

The agent starts it, or a service of its own does (`llmsec-tap deliver`). It decodes nothing and holds no captured bytes but those of a batch.
In the agent another process keeps it running (kept.py).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Final

import msgspec
from msgspec.structs import replace as replace_struct

from llmsec_agent.config.schema import ClickHouse
from llmsec_agent.fleet import database_of
from llmsec_agent.kept import Kept, Work
from llmsec_tap.errors import ConfigError, LLMSecError, StorageError
from llmsec_tap.journal import Journal
from llmsec_tap.storage.store import open_store

_EVERY_S: Final = 1.0
# After a failure; the breaker's pause is longer (delivery.py).
_AFTER_FAILURE_S: Final = 5.0
_LIBRARIES: Final = ("clickhouse_connect", "pybreaker", "stamina")


@dataclass(frozen=True)
class DeliveryPlan:
    """`settings` have no password: it was read with the rights of whoever started the process, which may not be able to."""

    store: str
    settings: ClickHouse
    name: str = ""  # how the folder is called, where `store` is how this process reaches it
    password: str = field(default="", repr=False)


def plan_of(store: str, settings: ClickHouse) -> DeliveryPlan:
    """Raises ConfigError where an address is wrong, the password cannot be read, or a library is missing."""
    if not all(map(find_spec, _LIBRARIES)):
        raise ConfigError("delivery to ClickHouse needs its libraries", "pip install 'llmsec-trace[clickhouse]'")
    password = database_of(settings, None).address.password
    return DeliveryPlan(store, replace_struct(settings, password=None), password=password)


def deliver(
    plan: DeliveryPlan, journal: Journal, *, once: bool = False, goes_on: Callable[[], bool] = lambda: True, restarts: int = 0
) -> int:
    """Until SIGTERM, SIGINT or the end of `goes_on`; `once`: until what is there now has been tried. The exit code.

    Raises ConfigError, and StorageError where the folder cannot be read.
    """
    from llmsec_tap.storage.clickhouse.delivery import Batching, Delivery
    from llmsec_tap.storage.deliverer import BEAT_S, Status, write_status

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = plan.settings
    found = database_of(settings, None)
    delivery = Delivery(
        replace(open_store(plan.store, journal), name=plan.name or plan.store),
        replace(found.address, password=plan.password),
        journal,
        limits=found.limits,
        batching=Batching(settings.batch_size, min(settings.flush_interval, settings.max_batch_delay)),
        max_bytes=settings.max_buffer_size,
    )

    def beat() -> None:
        status = Status(pid=os.getpid(), alive_ns=time.time_ns(), failures=delivery.failures, restarts=restarts, fault=delivery.fault)
        write_status(delivery.store, str(found.address), status)

    def beat_on() -> None:
        while not stop.wait(BEAT_S):
            beat()

    if not once:
        beat()
        threading.Thread(target=beat_on, name="llmsec-deliverer", daemon=True).start()
    went_well = True
    try:
        while not once and goes_on() and not stop.is_set():
            begun = time.monotonic()
            went_well = delivery.step()
            # A folder of very many parts is looked at less often, which costs a twentieth of a core at most.
            took = time.monotonic() - begun
            stop.wait(min(max(_EVERY_S, 20 * took), _AFTER_FAILURE_S) if went_well else _AFTER_FAILURE_S)
        # A server that is away would hold up the end, and the next run sends what is left.
        went_well = went_well and delivery.step(at_once=True)
        return 0 if went_well and not delivery.cursor.state.waiting else StorageError.exit_code
    finally:
        delivery.close()


class Deliverer(Kept):
    """The processes, as children of the agent."""

    def __init__(self, pid: int, control: socket.socket, plan: DeliveryPlan) -> None:
        super().__init__(pid, control)
        self._plan = plan

    @classmethod
    def begin(cls, plan: DeliveryPlan, journal: Journal) -> Deliverer:
        """Fork the first, before there are threads and sockets that it should not have."""
        kept = Kept.start(_WORK, plan, plan.store, journal)
        return cls(kept.pid, kept.control, plan)

    def change(self, plan: DeliveryPlan) -> Iterator[str]:
        """Go over to another plan for the same folder. A sentence for what in it somebody else has to do."""
        before, self._plan = self._plan, replace(plan, store=self._plan.store)
        if self._plan == before:
            return
        for name in ("ttl", "cluster"):
            if getattr(before.settings, name) != getattr(plan.settings, name):
                yield f"storage.clickhouse.{name} is told to the server by llmsec-analyze db migrate"
        self.say(msgspec.msgpack.encode((plan.settings, plan.password)))


def _placed(plan: DeliveryPlan, folder: str) -> DeliveryPlan:
    return replace(plan, store=".", name=folder)


def _changed(plan: DeliveryPlan, said: bytes) -> DeliveryPlan:
    settings, password = msgspec.msgpack.decode(said, type=tuple[ClickHouse, str])
    return replace(plan, settings=settings, password=password)


def _work(plan: DeliveryPlan, journal: Journal, goes_on: Callable[[], bool], restarts: int) -> int:
    try:
        return deliver(plan, journal, goes_on=goes_on, restarts=restarts)
    except LLMSecError as fault:
        journal.error("delivery_ended", f"delivery to ClickHouse has ended: {fault}")
        return fault.exit_code


def _load_all() -> None:
    """What is imported later may lie where the user cannot read."""
    import clickhouse_connect  # noqa: F401
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401
    import pybreaker  # noqa: F401
    import stamina  # noqa: F401

    import llmsec_tap.storage.clickhouse.delivery
    import llmsec_tap.storage.clickhouse.migrations
    import llmsec_tap.storage.deliverer  # noqa: F401


_WORK: Final = Work("deliverer", _load_all, _placed, _changed, _work)
