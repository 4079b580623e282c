"""What leaves the host for ClickHouse leaves from here: a process without capabilities that reads the store's folder as its owner.

The agent starts it, or a service of its own does (`llmsec-tap deliver`). It decodes nothing and holds no captured bytes but those of a batch.

In the agent there are two: one that keeps the other running, and the other. The first gives its rights up before it starts the second, touches
neither network nor records, and hears from the agent over a socket: another plan, or the end. A death of the second costs a start.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import msgspec
from msgspec.structs import replace as replace_struct

from llmsec_agent.config.schema import ClickHouse
from llmsec_agent.fleet import database_of
from llmsec_agent.text import leave
from llmsec_tap import privileges
from llmsec_tap.errors import ConfigError, LLMSecError, StorageError
from llmsec_tap.journal import Journal
from llmsec_tap.storage.handover import owner_of
from llmsec_tap.storage.store import INFO_NAME, open_store

_EVERY_S: Final = 1.0
# After a failure; the breaker's pause is longer (delivery.py).
_AFTER_FAILURE_S: Final = 5.0
_LOOK_S: Final = 0.25
# The agent's own end takes two seconds; the last batch may take so long after it.
_DRAIN_S: Final = 2.0
# For a batch that is under way when the plan changes.
_CHANGE_S: Final = 10.0
# Between a death and the next start: doubled each time, and forgotten after a life of the longest.
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_END: Final = b"end"
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


class Placed(Protocol):
    """What a sending process is to do; `store` is the folder that it sends from."""

    @property
    def store(self) -> str: ...


Plan = TypeVar("Plan", bound=Placed)


@dataclass(frozen=True)
class Task(Generic[Plan]):
    """What is done by a process that is kept running. `name` and `ended`: what the journal calls it, and the event of its death.

    `load` imports what the process needs, while it may; `placed` is a plan for the folder where the process is, which was called so before;
    `changed` a plan after what the agent said; `work` runs until its parent is another than the given one, and gives the exit code.
    """

    name: str
    ended: str
    load: Callable[[], None]
    placed: Callable[[Plan, str], Plan]
    changed: Callable[[Plan, bytes], Plan]
    work: Callable[[Plan, Journal, int, int], int]


def start_keeper(task: Task[Plan], plan: Plan, journal: Journal) -> tuple[int, socket.socket]:
    """Fork the first of the two processes, before there are threads and sockets that it should not have: its pid, and the way to tell it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        leave(lambda: Keeper(task, plan, journal, theirs).run())
    theirs.close()
    return pid, ours


def end_keeper(pid: int, control: socket.socket) -> None:
    """Have it send what waits, for a bounded time: a server may be slow, and what is not sent now the next run sends."""
    with contextlib.suppress(OSError):
        control.send(_END)
    deadline = time.monotonic() + _DRAIN_S + 1.0
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(_LOOK_S / 10)


class Deliverer:
    """The processes, as children of the agent."""

    def __init__(self, pid: int, control: socket.socket, plan: DeliveryPlan) -> None:
        self.pid = pid
        self._control = control
        self._plan = plan

    @classmethod
    def start(cls, plan: DeliveryPlan, journal: Journal) -> Deliverer:
        pid, control = start_keeper(_DELIVERY, plan, journal)
        return cls(pid, control, plan)

    def change(self, plan: DeliveryPlan) -> Iterator[str]:
        """Go over to another plan for the same folder. A sentence for what in it somebody else has to do."""
        before, self._plan = self._plan, replace(plan, store=self._plan.store)
        if self._plan == before:
            return
        for name in ("ttl", "cluster"):
            if getattr(before.settings, name) != getattr(plan.settings, name):
                yield f"storage.clickhouse.{name} is told to the server by llmsec-analyze db migrate"
        with contextlib.suppress(OSError):  # it is gone, which its metric says
            self._control.send(msgspec.msgpack.encode((plan.settings, plan.password)))

    def end(self) -> None:
        end_keeper(self.pid, self._control)


class Keeper(Generic[Plan]):
    """The first of the two processes. `task` says what the second does."""

    def __init__(self, task: Task[Plan], plan: Plan, journal: Journal, control: socket.socket) -> None:
        self._task = task
        self._plan = plan
        self._journal = journal
        self._control = control
        self._parent = os.getppid()
        self._worker = 0
        self._is_over = False
        self._change_until: float | None = None  # the worker is to end by then, for another plan
        self._restarts = 0

    def run(self) -> int:
        # The agent says when it is over: whoever signals all processes of a service ends the agent first.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._task.load()
        while not (Path(self._plan.store) / INFO_NAME).exists():  # the capture makes it
            self._hear()
            if self._is_over:
                return 0
        folder = self._plan.store
        os.chdir(folder)  # its path may lead through places where its owner may not look
        privileges.become(owner_of(folder) or privileges.unprivileged_user())
        self._plan = self._task.placed(self._plan, folder)
        pause, start_at, started = _FIRST_PAUSE_S, 0.0, 0.0
        while not self._is_over:
            if not self._worker and time.monotonic() >= start_at:
                started = time.monotonic()
                self._start()
            self._hear()
            code = self._reap()
            if code is None:
                continue
            if code == 0 or self._change_until is not None:  # asked to, by us or by whoever signals all processes of a service
                self._change_until = None
                continue
            if time.monotonic() - started >= _LONGEST_PAUSE_S:
                pause = _FIRST_PAUSE_S
            self._journal.error(self._task.ended, f"{self._task.name} {_how(code)}; it is started again in {pause:g} s", code=code)
            self._restarts += 1
            start_at, pause = time.monotonic() + pause, min(2 * pause, _LONGEST_PAUSE_S)
        self._end()
        return 0

    def _start(self) -> None:
        keeper = os.getpid()
        self._worker = os.fork()
        if self._worker == 0:
            self._control.close()
            leave(lambda: self._task.work(self._plan, self._journal, keeper, self._restarts))

    def _hear(self) -> None:
        """Wait a moment for what the agent has to say."""
        ready, _, _ = select.select([self._control], (), (), _LOOK_S)
        if ready:
            try:
                said = self._control.recv(1 << 20)
            except OSError:
                said = b""
            if said in (b"", _END):
                self._is_over = True
            else:
                self._plan = self._task.changed(self._plan, said)
                self._tell(signal.SIGTERM)
                self._change_until = time.monotonic() + _CHANGE_S if self._worker else None
        if os.getppid() != self._parent:
            self._is_over = True
        if self._change_until is not None and time.monotonic() >= self._change_until:
            self._tell(signal.SIGKILL)

    def _reap(self) -> int | None:
        """The exit code of a worker that has ended."""
        if not self._worker:
            return None
        pid, status = os.waitpid(self._worker, os.WNOHANG)
        if not pid:
            return None
        self._worker = 0
        return os.waitstatus_to_exitcode(status)

    def _tell(self, number: signal.Signals) -> None:
        if self._worker:
            os.kill(self._worker, number)

    def _end(self) -> None:
        self._tell(signal.SIGTERM)
        deadline = time.monotonic() + _DRAIN_S
        while self._worker and self._reap() is None and time.monotonic() < deadline:
            time.sleep(_LOOK_S / 10)
        self._tell(signal.SIGKILL)


def _work(plan: DeliveryPlan, journal: Journal, keeper: int, restarts: int) -> int:
    try:
        return deliver(plan, journal, goes_on=lambda: os.getppid() == keeper, restarts=restarts)
    except LLMSecError as fault:
        journal.error("delivery_ended", f"delivery to ClickHouse has ended: {fault}")
        return fault.exit_code


def _how(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"has ended with code {code}"


def _load_all() -> None:
    """What is imported later may lie where the user cannot read."""
    import clickhouse_connect  # noqa: F401
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401
    import pybreaker  # noqa: F401
    import stamina  # noqa: F401

    import llmsec_tap.storage.clickhouse.delivery
    import llmsec_tap.storage.clickhouse.migrations
    import llmsec_tap.storage.deliverer  # noqa: F401

    privileges.load_encodings()


def _changed(plan: DeliveryPlan, said: bytes) -> DeliveryPlan:
    settings, password = msgspec.msgpack.decode(said, type=tuple[ClickHouse, str])
    return replace(plan, settings=settings, password=password)


_DELIVERY: Final[Task[DeliveryPlan]] = Task(
    name="the delivering process",
    ended="deliverer_ended",
    load=_load_all,
    placed=lambda plan, folder: replace(plan, store=".", name=folder),
    changed=_changed,
    work=_work,
)
