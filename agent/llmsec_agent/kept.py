"""Two processes beside the agent: one that works without rights and may die, and one that keeps it running.

The first gives its rights up before it starts the second, touches neither network nor records, and hears from the agent over a socket:
another plan, or the end. A death of the second costs a start.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from llmsec_agent.text import leave
from llmsec_tap import privileges
from llmsec_tap.journal import Journal
from llmsec_tap.storage.handover import owner_of
from llmsec_tap.storage.store import INFO_NAME

LOOK_S: Final = 0.25
# The agent's own end takes two seconds; the last of the work may take so long after it.
_DRAIN_S: Final = 2.0
# For work that is under way when the plan changes.
_CHANGE_S: Final = 10.0
# Between a death and the next start: doubled each time, and forgotten after a life of the longest.
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_END: Final = b"end"

P = TypeVar("P")


@dataclass(frozen=True)
class Work(Generic[P]):
    """What the second process does with a plan.

    `load`: import what may lie where its user cannot read. `place`: the plan for a folder that is the current one now, and how that is
    called. `change`: the plan after a message. `run`: until `goes_on` is over or SIGTERM, with how often it was started again; its code.
    """

    name: str
    load: Callable[[], None]
    place: Callable[[P, str], P]
    change: Callable[[P, bytes], P]
    run: Callable[[P, Journal, Callable[[], bool], int], int]


class Kept:
    """The processes, as children of the agent."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control

    @classmethod
    def start(cls, work: Work[P], plan: P, folder: str, journal: Journal) -> Kept:
        """Fork the first, before there are threads and sockets that it should not have."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            leave(lambda: _Keeper(work, plan, folder, journal, theirs).run())
        theirs.close()
        return cls(pid, ours)

    def say(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # it is gone, which its metric says
            self.control.send(message)


def end(kept: Sequence[Kept]) -> None:
    """Have them finish what waits, for a bounded time: a server may be slow, and what is not sent now the next run sends."""
    for one in kept:
        one.say(_END)
    deadline = time.monotonic() + _DRAIN_S + 1.0
    for one in kept:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(one.pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                time.sleep(LOOK_S / 10)


class _Keeper(Generic[P]):
    """The first of the two processes."""

    def __init__(self, work: Work[P], plan: P, folder: str, journal: Journal, control: socket.socket) -> None:
        self._work = work
        self._plan = plan
        self._folder = folder
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
        self._work.load()
        privileges.load_encodings()
        while not (Path(self._folder) / INFO_NAME).exists():  # the capture makes it
            self._hear()
            if self._is_over:
                return 0
        os.chdir(self._folder)  # its path may lead through places where its owner may not look
        privileges.become(owner_of(self._folder) or privileges.unprivileged_user())
        self._plan = self._work.place(self._plan, self._folder)
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
            text = f"the {self._work.name} {_how(code)}; it is started again in {pause:g} s"
            self._journal.error(f"{self._work.name.replace(' ', '_')}_ended", text, code=code)
            self._restarts += 1
            start_at, pause = time.monotonic() + pause, min(2 * pause, _LONGEST_PAUSE_S)
        self._end()
        return 0

    def _start(self) -> None:
        keeper = os.getpid()
        self._worker = os.fork()
        if self._worker == 0:
            self._control.close()
            leave(lambda: self._work.run(self._plan, self._journal, lambda: os.getppid() == keeper, self._restarts))

    def _hear(self) -> None:
        """Wait a moment for what the agent has to say."""
        ready, _, _ = select.select([self._control], (), (), LOOK_S)
        if ready:
            try:
                said = self._control.recv(1 << 20)
            except OSError:
                said = b""
            if said in (b"", _END):
                self._is_over = True
            else:
                self._plan = self._work.change(self._plan, said)
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
            time.sleep(LOOK_S / 10)
        self._tell(signal.SIGKILL)


def _how(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"has ended with code {code}"
