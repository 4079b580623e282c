"""Questions of pages to a store: a few sessions that requests share, and a time after which a question is given up."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from llmsec_analyzer.stored.session import QuerySession
from llmsec_analyzer.stored.stores import Session, open_session
from llmsec_tap.errors import StorageError
from llmsec_tap.journal import Journal

_T = TypeVar("_T")
# Each has a core's worth of work at most; who asks beyond that waits.
_SESSIONS: Final = 3
_WAIT_S: Final = 10.0
# A question that takes longer is wrong for a page.
QUESTION_S: Final = 20.0
# New parts are seen at once; what a session looks at when it begins (taps, damaged parts) is looked at again after so long.
_FRESH_S: Final = 30.0


class BusyError(StorageError):
    """Everything that may ask the store does so."""


class Asking:
    """Sessions of one store, opened when they are first needed."""

    def __init__(self, location: str, journal: Journal) -> None:
        self.location = location
        self._journal = journal
        self._free: queue.LifoQueue[tuple[Session, float] | None] = queue.LifoQueue()
        for _ in range(_SESSIONS):
            self._free.put(None)

    def ask(self, question: Callable[[Session], _T]) -> _T:
        """What it gives. Raises StorageError, ConfigError; BusyError where the store is asked too much."""
        with self._session() as session, _limited(session):
            return question(session)

    def close(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                held = self._free.get_nowait()
                if held is not None:
                    held[0].close()

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        try:
            held = self._free.get(timeout=_WAIT_S)
        except queue.Empty:
            raise BusyError("the store is asked too much at once", "try again in a moment") from None
        if held is not None and time.monotonic() - held[1] > _FRESH_S:
            held[0].close()
            held = None
        try:
            if held is None:
                held = open_session(self.location, self._journal), time.monotonic()
            yield held[0]
        except BaseException:
            if held is not None:
                held[0].close()
            held = None
            raise
        finally:
            self._free.put(held)


@contextlib.contextmanager
def _limited(session: Session) -> Iterator[None]:
    """A folder's question is interrupted after its time; a server limits its own."""
    if not isinstance(session, QuerySession):
        yield
        return
    timer = threading.Timer(QUESTION_S, session.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
