"""The decoder's side: whose keys are, as far as it is remembered. What is not is asked for, and decoding goes on.

Memory is bounded, and nobody who makes up keys gets more out of it than his share: keys that no tenant has are remembered apart, each key
is asked for once at a time, and only so many questions are open.
"""

from __future__ import annotations

import select
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from llmsec_agent.tenants.messages import Answer, receive_answers, send_questions
from llmsec_agent.tenants.policy import TenantContext
from llmsec_tap import limits
from llmsec_tap.counters import Sample
from llmsec_tap.identity.tenants import Known
from llmsec_tap.journal import SILENT, Journal

# What is known is asked for again after so long, and goes on counting meanwhile.
KNOWN_S: Final = 60.0
# A key that was unknown may have been entered since.
UNKNOWN_S: Final = 30.0
# An answer that is later than this is called stale: the database did not say it again when it should have.
_LATE_S: Final = 10.0
# A question without an answer may be asked again after so long, one that nobody could answer after a second.
_ANSWERED_S, _FAILED_S = 10.0, 1.0
# The resolver's process is there after so long, on a machine that has much to do.
_START_S: Final = 9.0
_UNRESOLVED: Final = Known(None, "tenant_unresolved")
_NOBODYS: Final = Known(None)


class _Entry(NamedTuple):
    context: TenantContext
    until: float


class RemoteDirectory:
    """A `Directory` of the pipeline. `wait_s`: so long a source that can wait does, once, for a key that was never asked for."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        journal: Journal = SILENT,
        wait_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sockets`: one for each process that will decode; the first is used unless it chooses another (`sit`)."""
        self._sockets = sockets
        self._socket = sockets[0]
        for sock in sockets:
            sock.setblocking(False)
        self._journal = journal
        self._is_gone = False
        self._started_at: float | None = None  # the resolver, as far as it has said so
        self._wait_s = wait_s
        self._clock = clock
        self._known: OrderedDict[str, _Entry] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()  # until when
        self._asked: dict[str, float] = {}  # until when it is not asked again
        self._contexts: OrderedDict[str, TenantContext] = OrderedDict()  # by tenant
        self._counts = dict.fromkeys(("known", "unknown", "stale", "unresolved"), 0)
        self._questions = self._left_out = 0

    def sit(self, number: int | None) -> None:
        """In a process that was forked: take this socket. None: it decodes nothing. The resolver ends when the sockets are closed."""
        for other, sock in enumerate(self._sockets):
            if other != number:
                sock.close()
        if number is not None:
            self._socket = self._sockets[number]

    def expect(self, fingerprint: str) -> None:
        if fingerprint not in self._known and fingerprint not in self._unknown:
            self._ask(fingerprint, self._clock())

    def whose(self, fingerprint: str) -> Known:
        found = self._whose(fingerprint)
        self._counts[_COUNTED[found.mark] if found.mark is not None else "known" if found.tenant is not None else "unknown"] += 1
        return found

    def context(self, tenant: str) -> TenantContext | None:
        return self._contexts.get(tenant)

    def samples(self) -> Iterable[Sample]:
        for result, count in self._counts.items():
            yield Sample("llmsec_tenant_lookups_total", count, (("result", result),))
        yield Sample("llmsec_tenant_questions_total", self._questions)
        yield Sample("llmsec_tenant_questions_left_out_total", self._left_out)
        yield Sample("llmsec_tenant_keys", len(self._known), (("kind", "known"),))
        yield Sample("llmsec_tenant_keys", len(self._unknown), (("kind", "unknown"),))

    def _whose(self, fingerprint: str) -> Known:
        if self._asked:
            self._read()
        now = self._clock()
        entry = self._known.get(fingerprint)
        if entry is not None:
            self._known.move_to_end(fingerprint)
            if now >= entry.until:
                self._ask(fingerprint, now)
            return Known(entry.context.tenant, "tenant_stale" if now >= entry.until + _LATE_S else None)
        until = self._unknown.get(fingerprint)
        if until is None or now >= until:
            self._ask(fingerprint, now)
        if until is not None:
            return _NOBODYS if now < until + _LATE_S else _UNRESOLVED
        return self._waited(fingerprint) if self._wait_s else _UNRESOLVED

    def _waited(self, fingerprint: str) -> Known:
        begun = self._clock()
        while not self._is_gone and self._is_out(fingerprint):
            ends = begun + _START_S if self._started_at is None else max(begun, self._started_at) + self._wait_s
            left = ends - self._clock()
            if left <= 0:
                break
            select.select((self._socket,), (), (), left)
            self._read()
        entry = self._known.get(fingerprint)
        if entry is not None:
            return Known(entry.context.tenant)
        if fingerprint in self._unknown:
            return _NOBODYS
        if self._is_out(fingerprint):
            self._wait_s = 0.0  # whoever does not answer once is not waited for again
        return _UNRESOLVED

    def _is_out(self, fingerprint: str) -> bool:
        return self._asked.get(fingerprint, 0.0) > self._clock() + _FAILED_S

    def _ask(self, fingerprint: str, now: float) -> None:
        if self._asked.get(fingerprint, 0.0) > now:
            return
        if len(self._asked) >= limits.MAX_ASKED_KEYS:
            self._asked = {name: until for name, until in self._asked.items() if until > now}
        if len(self._asked) >= limits.MAX_ASKED_KEYS:
            self._left_out += 1
            return
        try:
            send_questions(self._socket, [fingerprint])
        except OSError as fault:
            self._left_out += 1
            if not isinstance(fault, BlockingIOError):
                self._gone()
            return
        self._questions += 1
        self._asked[fingerprint] = now + _ANSWERED_S

    def _read(self) -> None:
        try:
            while True:
                answers = receive_answers(self._socket)
                if self._started_at is None:
                    self._started_at = self._clock()
                for answer in answers:
                    self._take(answer)
        except BlockingIOError:
            return
        except (OSError, EOFError):
            self._gone()

    def _gone(self) -> None:
        self._wait_s = 0.0
        if not self._is_gone:
            self._is_gone = True
            text = "the process that asks for tenants has ended: what is known of them goes on counting, until this one is started anew"
            self._journal.warning("tenants_not_asked", text, tier="resolver")

    def _take(self, answer: Answer) -> None:
        now, fingerprint, context = self._clock(), answer.fingerprint, answer.context
        if answer.failed:
            self._asked[fingerprint] = now + _FAILED_S
            return
        self._asked.pop(fingerprint, None)
        if context is None:
            self._known.pop(fingerprint, None)
            self._unknown[fingerprint] = now + UNKNOWN_S
            self._unknown.move_to_end(fingerprint)
            if len(self._unknown) > limits.MAX_UNKNOWN_KEYS:
                self._unknown.popitem(last=False)
            return
        self._unknown.pop(fingerprint, None)
        self._known[fingerprint] = _Entry(context, now + KNOWN_S)
        self._known.move_to_end(fingerprint)
        if len(self._known) > limits.MAX_TENANT_KEYS:
            self._known.popitem(last=False)
        self._contexts[context.tenant] = context
        self._contexts.move_to_end(context.tenant)
        if len(self._contexts) > limits.MAX_TENANT_KEYS:
            self._contexts.popitem(last=False)


_COUNTED: Final = {"tenant_stale": "stale", "tenant_unresolved": "unresolved"}
