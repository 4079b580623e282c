"""Questions of pages to a store: how many at once, for how long, and what is still known from the last time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from llmsec_analyzer.stored.session import QuerySession
from llmsec_analyzer.stored.standing import StandingSession
from llmsec_analyzer.stored.stores import Session, open_session
from llmsec_tap.errors import StorageError
from llmsec_tap.journal import Journal
from llmsec_tap.storage.clickhouse.address import is_clickhouse

_T = TypeVar("_T")
# Each has a core's worth of work at most; who asks beyond that waits.
_AT_ONCE: Final = 3
_WAIT_S: Final = 10.0
# A question that takes longer is wrong for a page.
QUESTION_S: Final = 20.0
# A database does not say whether it has something new.
_FRESH_S: Final = 5.0
_SESSION_S: Final = 30.0
# Figures of a large folder that a capture writes to would be found out all the time; pages say of when they are.
_OLDEST_S: Final = 30.0
_MOST_KEPT: Final = 64


class BusyError(StorageError):
    """Everything that may ask the store does so."""


@dataclass
class _Kept:
    """An answer, and what it is of; `lock` is held by who finds it out."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    value: Any = None
    generation: int = -1
    at: float = 0.0
    keep_s: float = 0.0


class Asking:
    """One store, opened when it is first needed."""

    def __init__(self, location: str, journal: Journal) -> None:
        self.location = location
        self._journal = journal
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self._opening = threading.Lock()
        self._folder: StandingSession | None = None
        self._idle: list[tuple[Session, float]] = []
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    def ask(self, question: Callable[[Session], _T]) -> _T:
        """What it gives. Raises StorageError, ConfigError; BusyError where the store is asked too much."""
        if not self._places.acquire(timeout=_WAIT_S):
            raise BusyError("the store is asked too much at once", "try again in a moment")
        try:
            with self._session() as session, _limited(session):
                return question(session)
        finally:
            self._places.release()

    def known(self, about: Hashable, question: Callable[[Session], _T]) -> _T:
        """As `ask`, and the same again while a folder has nothing new, or for ten times as long as it took, half a minute at most (a database: for
        some seconds). Its readers change nothing of it.
        """
        with self._opening:
            kept = self._kept.setdefault(about, _Kept())
            self._kept.move_to_end(about)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        with kept.lock:  # who asks the same meanwhile waits for the answer
            if kept.at and time.monotonic() - kept.at < kept.keep_s:
                return cast("_T", kept.value)

            def asked(session: Session) -> _T:
                generation = self._folder.generation if self._folder is not None else -1
                if not kept.at or generation < 0 or generation != kept.generation:
                    began = time.monotonic()
                    kept.value, kept.generation, kept.at = question(session), generation, time.monotonic()
                    kept.keep_s = _FRESH_S if generation < 0 else min(_OLDEST_S, 10 * (kept.at - began))
                return cast("_T", kept.value)

            return self.ask(asked)

    def since(self, generation: int, question: Callable[[Session], _T]) -> tuple[int, _T | None]:
        """As `ask`, but only where a folder has something new since that generation (-1: in any case); with the generation to ask for next."""

        def asked(session: Session) -> tuple[int, _T | None]:
            now = self._folder.generation if self._folder is not None else -1
            return now, question(session) if now != generation or now < 0 else None

        return self.ask(asked)

    def close(self) -> None:
        with self._opening:
            if self._folder is not None:
                self._folder.close()
            self._folder = None
            idle, self._idle = self._idle, []
        for session, _ in idle:
            session.close()

    def _session(self) -> contextlib.AbstractContextManager[Session]:
        return self._of_database() if is_clickhouse(self.location) else contextlib.closing(self._of_folder())

    @contextlib.contextmanager
    def _of_database(self) -> Iterator[Session]:
        """A session is used again for some time: then its look at the database's version is old."""
        with self._opening:
            held = self._idle.pop() if self._idle else None
        if held is not None and time.monotonic() - held[1] > _SESSION_S:
            held[0].close()
            held = None
        if held is None:
            held = open_session(self.location, self._journal), time.monotonic()
        try:
            yield held[0]
        except BaseException:
            held[0].close()
            raise
        with self._opening:
            self._idle.append(held)

    def _of_folder(self) -> Session:
        with self._opening:
            if self._folder is None:
                self._folder = StandingSession.open(self.location, self._journal)
        try:
            return self._folder.lend()
        except StorageError:
            self.close()  # the folder may have been moved, or made anew
            raise


@contextlib.contextmanager
def _limited(session: Session) -> Iterator[None]:
    """A folder's question is interrupted after its time; a server limits its own."""
    if not isinstance(session, QuerySession):
        yield
        return
    timer = threading.Timer(QUESTION_S, session.give_up, (QUESTION_S,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
