"""The process that asks Redis and PostgreSQL: no capabilities, a user of its own, and the only one of a capture that knows their passwords.

Decoders ask it for fingerprints and read its answers when they next look. One statement is under way at a time, for all keys that were asked
for meanwhile, and not more than so many a second: however many keys somebody makes up, the database is asked no more often.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import signal
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from llmsec_agent.config.schema import Storage
from llmsec_agent.tenants.directory import RemoteDirectory
from llmsec_agent.tenants.messages import Answer, pair, receive_questions, send_answers, send_hello
from llmsec_agent.tenants.tiers import TierPlan, Tiers, tier_plan
from llmsec_agent.text import leave
from llmsec_tap import privileges
from llmsec_tap.errors import ConfigError
from llmsec_tap.journal import Journal

_BATCH: Final = 256
# Between two statements to the database: twenty a second at most.
_PACE_S: Final = 0.05
# What is loaded at the first use: names of hosts are looked up in a thread of asyncio's.
_LATE: Final = ("concurrent.futures.thread", "ssl", "stringprep")
_LATE_OF_REDIS: Final = ("redis.asyncio.cluster", "redis.asyncio.sentinel")
# So long a command waits for a database that does not answer, once.
_WAIT_S: Final = 2.0
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{32}")


class TenantHelper:
    """The process, and the decoders' sockets to it, one each. It ends with the last of them."""

    def __init__(self, sockets: Sequence[socket.socket], pid: int) -> None:
        self.sockets = sockets
        self.pid = pid

    def keep(self, number: int | None) -> None:
        """Close the sockets that are not of this decoder; all of them in a process that is none."""
        for other, sock in enumerate(self.sockets):
            if other != number:
                sock.close()

    @classmethod
    def start(cls, plan: TierPlan, journal: Journal, *, decoders: int = 1) -> TenantHelper:
        """Fork it while there are no threads."""
        pairs = [pair() for _ in range(decoders)]
        pid = os.fork()
        if not pid:
            leave(lambda: _run(plan, journal, [ours for ours, _ in pairs], [theirs for _, theirs in pairs]))
        for _, theirs in pairs:
            theirs.close()
        return cls([ours for ours, _ in pairs], pid)


def _run(plan: TierPlan, journal: Journal, ours: Sequence[socket.socket], theirs: Sequence[socket.socket]) -> int:
    for sock in ours:
        sock.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # What is imported later may lie where the user cannot read; and in root's home folder libpq must not look for certificates.
    for name in (*_LATE, *(_LATE_OF_REDIS if plan.redis is not None else ())):
        importlib.import_module(name)
    import psycopg

    psycopg.pq.version()
    privileges.load_encodings()
    os.environ["HOME"] = "/nonexistent"
    privileges.become(privileges.unprivileged_user())
    privileges.confine(network=True)
    asyncio.run(Resolver(Tiers(plan, journal), theirs).run())
    return 0


def directory_of(storage: Storage, journal: Journal, *, seats: int = 1) -> RemoteDirectory | None:
    """For a command that can wait, with a seat for each process that decodes; None where no database is named. Call it while there are no threads.

    Where it cannot be asked, the journal says why, and each record that nobody was asked (`tenant_unresolved`).
    """
    try:
        plan = tier_plan(storage.postgres, storage.redis)
    except ConfigError as fault:
        journal.warning("tenants_not_asked", f"tenants are not looked up: {fault}", tier="resolver")
        pairs = [pair() for _ in range(seats)]
        for _, theirs in pairs:
            theirs.close()
        return RemoteDirectory([ours for ours, _ in pairs])
    if plan is None:
        return None
    return RemoteDirectory(TenantHelper.start(plan, journal, decoders=seats).sockets, journal=journal, wait_s=_WAIT_S)


class Resolver:
    def __init__(self, tiers: Tiers, sockets: Sequence[socket.socket]) -> None:
        self._tiers = tiers
        self._sockets = set(sockets)
        self._asked: dict[str, set[socket.socket]] = {}  # who waits for which key
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Until all of the sockets are closed."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            sock.setblocking(False)
            loop.add_reader(sock, self._read, sock)
            with contextlib.suppress(OSError):  # gone already, which reading finds, too
                send_hello(sock)
        try:
            while self._sockets:
                await self._news.wait()
                self._news.clear()
                while self._asked and self._sockets:
                    await self._answer(list(self._asked)[:_BATCH])
        finally:
            await self._tiers.close()

    def _leave(self, sock: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(sock)
        self._sockets.discard(sock)
        self._asked = {name: waiting - {sock} for name, waiting in self._asked.items()}

    def _read(self, sock: socket.socket) -> None:
        try:
            while True:
                for fingerprint in receive_questions(sock):
                    if _FINGERPRINT.fullmatch(fingerprint):
                        self._asked.setdefault(fingerprint, set()).add(sock)
        except BlockingIOError:
            pass
        except (OSError, EOFError, msgspec.MsgspecError):
            self._leave(sock)
        self._news.set()

    async def _answer(self, fingerprints: list[str]) -> None:
        # Each socket has so many questions open at most (limits.MAX_ASKED_KEYS), so what waits here is bounded, too.
        answers = await self._tiers.look_up(fingerprints)
        by_socket: dict[socket.socket, list[Answer]] = {}
        for answer in answers:
            for sock in self._asked.pop(answer.fingerprint, ()):
                by_socket.setdefault(sock, []).append(answer)
        for sock, found in by_socket.items():
            try:
                send_answers(sock, found)
            except BlockingIOError:
                continue  # the decoder does not read: it asks again
            except OSError:
                self._leave(sock)
        if self._tiers.asked_database:
            await asyncio.sleep(_PACE_S)
