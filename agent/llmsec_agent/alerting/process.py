"""The sending process as a child of the agent: without capabilities, as the owner of the store's folder, and kept running (kept.py)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from llmsec_agent.alerting.plan import SenderPlan, decode, encode
from llmsec_agent.alerting.sender import send_alerts
from llmsec_agent.kept import Kept, Work
from llmsec_tap import privileges
from llmsec_tap.errors import LLMSecError
from llmsec_tap.journal import Journal
from llmsec_tap.storage.store import open_store

_POKE: Final = b"\0"


class AlertSender(Kept):
    """`poke` may be called in every process that is forked after `begin`."""

    def __init__(self, pid: int, control: socket.socket, plan: SenderPlan, waking: socket.socket) -> None:
        super().__init__(pid, control)
        self._plan = plan
        self._waking = waking

    @classmethod
    def begin(cls, plan: SenderPlan, journal: Journal) -> AlertSender:
        """Fork, before there are threads and sockets that it should not have."""
        waking, wake = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        waking.setblocking(False)

        def work(plan: SenderPlan, journal: Journal, goes_on: Callable[[], bool], restarts: int) -> int:
            waking.close()
            return _send(plan, journal, wake, goes_on, restarts)

        has_apprise = any(channel.name == "apprise" for channel in plan.channels)
        kept = Kept.start(Work("alert sender", lambda: load_all(apprise=has_apprise), placed, decode, work), plan, plan.store, journal)
        wake.close()
        return cls(kept.pid, kept.control, plan, waking)

    def poke(self) -> None:
        """There is something new in the outbox. It never waits, and never fails: the sender also looks by itself."""
        with contextlib.suppress(OSError):
            os.write(self._waking.fileno(), _POKE)

    def change(self, plan: SenderPlan) -> None:
        """Go over to another plan for the same folder."""
        before, self._plan = self._plan, replace(plan, store=self._plan.store)
        if self._plan != before:
            self.say(encode(plan))


def send_here(plan: SenderPlan, journal: Journal, *, once: bool) -> int:
    """In this process, for a folder without an agent; as its owner, where root says so. Raises StorageError."""
    folder = plan.store
    load_all(apprise=any(channel.name == "apprise" for channel in plan.channels))
    privileges.load_encodings()
    open_store(folder, journal)  # raises where it is none
    os.chdir(folder)
    privileges.become_owner_of(Path())
    return send_alerts(placed(plan, folder), journal, once=once)


def _send(plan: SenderPlan, journal: Journal, wake: socket.socket, goes_on: Callable[[], bool], restarts: int) -> int:
    try:
        return send_alerts(plan, journal, wake=wake, goes_on=goes_on, restarts=restarts)
    except LLMSecError as fault:
        journal.error("alerts_ended", f"sending alerts has ended: {fault}")
        return fault.exit_code


def placed(plan: SenderPlan, folder: str) -> SenderPlan:
    return replace(plan, store=".", name=folder)


def load_all(*, apprise: bool) -> None:
    """What is imported later may lie where the user cannot read."""
    import smtplib  # noqa: F401

    import jinja2.sandbox  # noqa: F401
    import pybreaker  # noqa: F401
    import stamina  # noqa: F401
    import urllib3  # noqa: F401

    import llmsec_agent.alerting.channels.chat
    import llmsec_agent.alerting.channels.hooks
    import llmsec_agent.alerting.channels.mail
    import llmsec_agent.alerting.channels.others
    import llmsec_agent.alerting.channels.paging
    import llmsec_agent.alerting.channels.syslog
    import llmsec_agent.alerting.channels.web  # noqa: F401

    if apprise:
        import apprise as library

        library.Apprise().add("json://localhost")  # loads all that it knows
