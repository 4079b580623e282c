"""What an application checks by itself: `custom_rules` and a subclass of `SecurityPolicy`, on a thread of their own with a time limit.

Nobody waits for them, unless a rule says `block` or the configuration names `block_on`: then the caller waits for the answer, for
`analysis_timeout_seconds` at most, and its request goes on where there is none (fail open, counted).
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from llmsec_analyzer.risk import OWN_RULES, add_findings, rank
from llmsec_tap.model import Exchange, Finding, Location, Severity, Taxonomy
from llmsec_trace.call import Asked
from llmsec_trace.config import SEVERITIES, SecurityConfig
from llmsec_trace.suppressing import suppress

log = logging.getLogger("llmsec_trace")

# Of one request so much is looked at; a context window's text is smaller.
MAX_TEXT_BYTES: Final = 4 << 20
MAX_VIOLATIONS: Final = 64
_MAX_CHARS: Final = 512
_MAX_WAITING: Final = 1_000
# Threads that a policy holds up for longer than its time; beyond them requests go on unlooked at.
_MAX_STUCK: Final = 4
_IDLE_S: Final = 10.0


class RequestBlocked(Exception):  # noqa: N818 - the name says what happened, as the design's words do
    """A request did not leave: a rule with the action `block`, or a violation as severe as `block_on`. Never holds the text that matched."""

    def __init__(self, type: str, message: str) -> None:  # noqa: A002 - the design's name
        super().__init__(f"the request was blocked ({type}): {message}")
        self.type = type
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return RequestBlocked, (self.type, self.message)


@dataclass(frozen=True)
class Violation:
    """`rule_id` of its finding is `sdk.custom.<type>` for a rule, `sdk.policy.<type>` for a policy."""

    type: str
    severity: Severity
    message: str
    source: str = "policy"
    is_blocking: bool = False


@dataclass
class PolicyResults:
    """What one look at a request found."""

    violations: list[Violation] = field(default_factory=list)

    def add_violation(self, type: str, severity: Severity, message: str) -> None:  # noqa: A002 - the design's name
        """`severity`: info, low, medium, high or critical. Raises ValueError for another. MAX_VIOLATIONS are kept, texts are cut."""
        if severity not in SEVERITIES:
            raise ValueError(f"severity must be one of {', '.join(SEVERITIES)}, not {str(severity)[:32]!r}")
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(Violation(str(type)[:64], severity, str(message)[:_MAX_CHARS]))


class SecurityPolicy:
    """Derive from it, and name the class as `policy_class`. One object serves all requests, perhaps of several threads at once."""

    def analyze_request(self, request_data: dict[str, Any]) -> PolicyResults:
        """`request_data`: the request's JSON. What is raised is logged and counted, and the request goes on."""
        return PolicyResults()


@dataclass
class Looked:
    """`is_cut`: the text was longer than what is looked at. `faults`: what a policy raised, by number."""

    violations: list[Violation] = field(default_factory=list)
    blocked: RequestBlocked | None = None
    is_cut: bool = False


@dataclass
class GuardStats:
    blocked: int = 0
    unchecked: int = 0
    policy_faults: int = 0


class Screening:
    """One request that is looked at."""

    __slots__ = ("_guard", "_is_late", "_until", "future")

    def __init__(self, guard: Guard, future: Future[Looked], until: float) -> None:
        self._guard = guard
        self._until = until
        self._is_late = False
        self.future = future

    def late(self) -> None:
        """Nobody waits for it any longer: it counts as unchecked, once."""
        if not self._is_late:
            self._is_late = True
            self._guard.stats.unchecked += 1

    def wait(self) -> RequestBlocked | None:
        """Why the request must not leave; None: it goes on."""
        try:
            looked = self.future.result(max(0.0, self._until - time.monotonic()))
        except FutureTimeoutError:
            self.late()
            return None
        return self._guard.decided(looked)

    async def wait_async(self) -> RequestBlocked | None:
        """As `wait`. Of loops other than asyncio's it holds up the loop."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self.wait()
        done, _ = await asyncio.wait([asyncio.wrap_future(self.future)], timeout=max(0.0, self._until - time.monotonic()))
        if not done:
            self.late()
            return None
        return self._guard.decided(done.pop().result())

    def known(self) -> Looked | None:
        """What was found; None: it is not known yet."""
        return self.future.result() if self.future.done() else None


class Guard:
    """One configuration's. `screen` may be called by any thread, and never waits."""

    def __init__(self, config: SecurityConfig) -> None:
        import re2  # type: ignore[import-untyped]  # noqa: PLC0415 - most applications have no rules

        self._config = config
        options = re2.Options()
        options.log_errors = False
        self._rules = [
            (re2.compile(rule["pattern"], options), rule["type"][:64], rule["action"] == "block") for rule in config.custom_rules
        ]
        self.may_block = config.block_on is not None or any(blocks for _, _, blocks in self._rules)
        self._policy: Any = None
        self.stats = GuardStats()
        self._said = False
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._work: queue.Queue[tuple[Asked, Future[Looked]]] = queue.Queue(_MAX_WAITING)
        self._threads = 0
        self._begun: dict[int, float] = {}  # by thread, when what it does was begun

    def forked(self) -> None:
        self._lock = threading.Lock()
        self.stats = GuardStats()
        self._clear()

    def screen(self, asked: Asked) -> Screening | None:
        """None where there is nothing to look at. Where nobody can look at it, it is late from the beginning."""
        future: Future[Looked] = Future()
        now = time.monotonic()
        if asked.body is None:
            return self._hopeless(future, now)
        if not asked.body:
            return None
        limit_s = self._config.analysis_timeout_seconds
        try:
            with self._lock:
                stuck = sum(now - begun > limit_s for begun in list(self._begun.values()))
                if stuck == self._threads:
                    if stuck >= _MAX_STUCK:
                        raise queue.Full  # noqa: TRY301
                    threading.Thread(target=self._run, args=(self._work,), name="llmsec-policy", daemon=True).start()
                    self._threads += 1
                self._work.put_nowait((asked, future))
        except (queue.Full, RuntimeError):
            return self._hopeless(future, now)
        return Screening(self, future, now + limit_s)

    def _hopeless(self, future: Future[Looked], now: float) -> Screening:
        screening = Screening(self, future, now)
        screening.late()
        return screening

    def decided(self, looked: Looked) -> RequestBlocked | None:
        if looked.blocked is not None:
            self.stats.blocked += 1
        return looked.blocked

    # --- the guard's threads ------------------------------------------------------------------------------------------------

    def _run(self, work: queue.Queue[tuple[Asked, Future[Looked]]]) -> None:
        suppress()
        own = threading.get_ident()
        while True:
            try:
                asked, future = work.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if work.empty():  # what is asked from now on starts another
                        self._threads -= 1
                        return
                continue
            self._begun[own] = time.monotonic()
            looked = Looked()
            try:
                self._look(asked, looked)
            except Exception as fault:  # noqa: BLE001 - of ours: the request goes on
                self._failed(fault)
            self._begun.pop(own, None)
            future.set_result(looked)

    def _look(self, asked: Asked, looked: Looked) -> None:
        body = (asked.body or b"")[: MAX_TEXT_BYTES * 2]
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            data = None
        text, looked.is_cut = _text_of(body if data is None else data)
        if len(asked.body or b"") > len(body):
            looked.is_cut = True
        for pattern, kind, blocks in self._rules:
            if pattern.search(text):
                severity: Severity = "high" if blocks else "medium"
                looked.violations.append(Violation(kind, severity, "a rule of the application's own matches", "custom", blocks))
        if self._config.policy_class is not None and isinstance(data, dict):
            looked.violations += self._ask(data)
        blocking = next((one for one in looked.violations if self._blocks(one)), None)
        if blocking is not None:
            looked.blocked = RequestBlocked(blocking.type, blocking.message)

    def _blocks(self, one: Violation) -> bool:
        least = self._config.block_on
        return one.is_blocking or (least is not None and one.source == "policy" and rank(one.severity) >= rank(least))

    def _ask(self, data: dict[str, Any]) -> list[Violation]:
        try:
            if self._policy is None and self._config.policy_class is not None:
                self._policy = self._config.policy_class()
            results = self._policy.analyze_request(data)
            if not isinstance(results, PolicyResults):
                raise TypeError(f"analyze_request returned {type(results).__name__}, not the results of super().analyze_request")  # noqa: TRY301
            return results.violations[:MAX_VIOLATIONS]
        except Exception as fault:  # noqa: BLE001 - the application's own code
            self._failed(fault)
            return []

    def _failed(self, fault: Exception) -> None:
        self.stats.policy_faults += 1
        if not self._said:
            self._said = True
            # No traceback and no text of it: either may hold what was in the request.
            log.warning("the security policy failed (%s); requests go on, later faults are only counted", type(fault).__name__)


def _text_of(data: Any) -> tuple[str, bool]:
    """All texts of a request, a line each, and whether some were left out."""
    if isinstance(data, bytes):
        return data[:MAX_TEXT_BYTES].decode("utf-8", "replace"), len(data) > MAX_TEXT_BYTES
    texts: list[str] = []
    size = 0
    for text in _strings(data):
        texts.append(text[: MAX_TEXT_BYTES - size].encode("utf-8", "replace").decode())
        size += len(text)
        if size > MAX_TEXT_BYTES:
            return "\n".join(texts), True
    return "\n".join(texts), False


def _strings(data: Any) -> Iterator[str]:
    waiting = [data]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting.extend(reversed(one.values()))
        elif isinstance(one, list):
            waiting.extend(reversed(one))


def put_on(exchange: Exchange, violations: list[Violation]) -> None:
    """Violations as findings on a record."""
    add_findings(exchange, [_finding(exchange.exchange_id, one) for one in violations])


def _finding(exchange_id: str, one: Violation) -> Finding:
    rule_id = f"{OWN_RULES}{one.source}.{one.type}"
    return Finding(
        finding_id=blake2b(f"{exchange_id}:{rule_id}:{one.message}".encode("utf-8", "replace"), digest_size=16).hexdigest(),
        exchange_id=exchange_id,
        rule_id=rule_id,
        rule_version="1",
        category="anomaly",
        type=one.type,
        severity=one.severity,
        confidence=1.0,
        location=Location(part="request", start=0, end=0),
        preview="",
        fingerprint="",
        taxonomy=Taxonomy(),
        explanation=one.message,
    )
