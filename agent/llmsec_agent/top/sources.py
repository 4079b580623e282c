"""Where the live view's events come from: lines of `--format events`, or a store that is looked at.

A source has one thread, which waits while the screen is behind: what fills up then is the pipe, and the capture counts what it leaves out.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from llmsec_agent.auditing import record_reading
from llmsec_agent.console.asking import Asking, BusyError
from llmsec_agent.top.facts import Ended, Event, ExchangeFacts, event_of
from llmsec_analyzer.show.conversation import render
from llmsec_analyzer.stored import exchanges as listing
from llmsec_analyzer.stored.stores import Session
from llmsec_tap.errors import LLMSecError, SourceError, where
from llmsec_tap.journal import SILENT
from llmsec_tap.model import Exchange

_MAX_WAITING: Final = 5000
# An event of a record that is as large as records may be has a line of this size.
_MAX_LINE: Final = 64 << 20
# Whole records that can be opened later; a store has them anyway.
_MAX_KEPT: Final = 32 << 20
_READ: Final = 1 << 16
_CLOSING_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Stored:
    """What a look at a store found: rows in the order of their end, and what its taps say they lost."""

    rows: list[ExchangeFacts]
    losses: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    """A line for the user, `""` for none any more. `is_end`: nothing comes any more."""

    text: str
    is_end: bool = False


Told = Event | Stored | Said


class Source(Protocol):
    name: str

    def start(self) -> None: ...

    def told(self, within_s: float) -> Iterator[Told]:
        """What has come, for so long at most."""
        ...

    def show(self, exchange_id: str) -> str:
        """The whole record as text, harmless. Raises LLMSecError. Called on any thread; may take seconds."""
        ...

    def close(self) -> bool:
        """Whether its thread has ended, after a moment at most."""
        ...


class _Queue:
    def __init__(self) -> None:
        self._waiting: queue.Queue[Told] = queue.Queue(_MAX_WAITING)
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, item: Told) -> None:
        """Waits for room until the source is closed."""
        while not self._is_closed.is_set():
            try:
                self._waiting.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def told(self, within_s: float) -> Iterator[Told]:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            try:
                yield self._waiting.get_nowait()
            except queue.Empty:
                return

    @property
    def is_closed(self) -> bool:
        return self._is_closed.is_set()

    def wait(self, seconds: float) -> None:
        self._is_closed.wait(seconds)

    def start(self, run: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=run, name="top", daemon=True)
        self._thread.start()

    def close(self) -> bool:
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join(_CLOSING_S)
        return self._thread is None or not self._thread.is_alive()


class Lines:
    """Events from a descriptor, which it takes over."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self._descriptor = descriptor
        self._queue = _Queue()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        self._queue.start(self._run)

    def told(self, within_s: float) -> Iterator[Told]:
        return self._queue.told(within_s)

    def show(self, exchange_id: str) -> str:
        with self._lock:
            line = self._kept.get(exchange_id)
        if line is None:
            raise SourceError(
                "this record is not at hand", "it has not ended, or was too long ago; a store keeps all: llmsec-analyze exchanges show"
            )
        try:
            return render(msgspec.json.decode(line, type=_Whole).exchange)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise SourceError(f"the record cannot be read: {str(fault)[:200]}") from None

    def close(self) -> bool:
        return self._queue.close()

    def _run(self) -> None:
        try:
            for number, line in enumerate(self._lines(), 1):
                self._take(number, line)
        except OSError as fault:
            self._queue.put(Said(f"{self.name} cannot be read: {fault.strerror}", is_end=True))
        else:
            self._queue.put(Said(f"{self.name} has ended", is_end=True))

    def _take(self, number: int, line: bytes) -> None:
        try:
            event = event_of(line)
        except SourceError as fault:
            self._queue.put(Said(f"{self.name}, line {number}: {fault.lines()[0]}"))
            return
        if isinstance(event, Ended):
            self._keep(event.exchange.exchange_id, line)
        self._queue.put(event)

    def _lines(self) -> Iterator[bytes]:
        """Lines that are not empty, without their ends. One that is too long is left out to its end, and said."""
        parts: list[bytes] = []
        size = 0
        while not self._queue.is_closed:
            if not select.select([self._descriptor], [], [], 0.2)[0]:
                continue
            piece = os.read(self._descriptor, _READ)
            if not piece:
                break
            *ended, rest = piece.split(b"\n")
            for end in ended:
                line = b"".join((*parts, end))
                if line.strip() and size <= _MAX_LINE:
                    yield line
                parts, size = [], 0
            size += len(rest)
            if size > _MAX_LINE:
                if parts:
                    self._queue.put(Said(f"{self.name}: a line is longer than {_MAX_LINE >> 20} MiB and is left out"))
                parts = []
            elif rest:
                parts.append(rest)
        last = b"".join(parts)
        if last.strip() and not self._queue.is_closed:
            yield last

    def _keep(self, exchange_id: str, line: bytes) -> None:
        with self._lock:
            self._kept_bytes += len(line) - len(self._kept.pop(exchange_id, b""))
            self._kept[exchange_id] = line
            while self._kept_bytes > _MAX_KEPT:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])


class _Whole(msgspec.Struct):
    exchange: Exchange


_EVERY_S: Final = 0.5
# A part comes some time after its exchanges have ended, and those of another tap later still.
_BEHIND_NS: Final = 30_000_000_000
# The first look goes so far back: rates are of a minute.
REACH_NS: Final = 60_000_000_000
# More than this in half a minute is not all shown, which is said.
_AT_ONCE: Final = 5000
_REMEMBERED: Final = 50_000
_COLUMNS: Final = ", ".join(name for name in ExchangeFacts.__struct_fields__)


class Follower:
    """What a store gets, looked at twice a second; each exchange is told once."""

    def __init__(self, location: str, shown: str, began_ns: int) -> None:
        self.name = shown
        self._asking = Asking(location, SILENT)
        self._since_ns = began_ns - REACH_NS
        self._queue = _Queue()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._said = ""
        self._cut = self._unreadable = 0

    def check(self) -> None:
        """Raises what is wrong with the store, now rather than on the screen."""
        self._asking.ask(lambda session: session.select("SELECT 1", []).rows())

    def start(self) -> None:
        self._queue.start(self._run)

    def told(self, within_s: float) -> Iterator[Told]:
        return self._queue.told(within_s)

    def show(self, exchange_id: str) -> str:
        def found(session: Session) -> Exchange:
            exchange = listing.find(session, exchange_id)
            record_reading(session, SILENT, "query", command="top", exchange_id=exchange.exchange_id)
            return exchange

        return render(self._asking.ask(found))

    def close(self) -> bool:
        return self._queue.close()

    def _run(self) -> None:
        generation = -1
        while not self._queue.is_closed:
            since_ns = max(self._since_ns, time.time_ns() - _BEHIND_NS) if generation != -1 else self._since_ns
            try:
                seen, found = self._asking.since(generation, partial(_looked, since_ns=since_ns))
                if found is not None:
                    self._tell(*found)
                generation = seen
            except BusyError:
                pass
            except LLMSecError as fault:
                self._say(fault.lines()[0])
            except Exception as fault:  # noqa: BLE001 - the view goes on, and says that it does not follow
                self._say(f"the store cannot be followed: {type(fault).__name__} at {where(fault)}")
            else:
                self._say("")
            self._queue.wait(_EVERY_S)
        self._asking.close()

    def _tell(self, rows: list[dict[str, Any]], losses: dict[str, int]) -> None:
        new = [row for row in rows if row["exchange_id"] not in self._known]
        if len(rows) == _AT_ONCE and len(new) == _AT_ONCE:
            self._cut += 1
        for row in new:
            self._known[row["exchange_id"]] = None
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        self._queue.put(Stored(list(self._readable(new)), losses | {"looks cut short": self._cut, "not readable": self._unreadable}))

    def _readable(self, rows: list[dict[str, Any]]) -> Iterator[ExchangeFacts]:
        for row in rows:
            try:
                yield facts_of(row)
            except msgspec.ValidationError:  # such as a severity of a later version
                self._unreadable += 1

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._queue.put(Said(text))


def facts_of(row: dict[str, Any]) -> ExchangeFacts:
    return msgspec.convert(_without_nulls(row), ExchangeFacts)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _looked(session: Session, since_ns: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    found = session.select(
        # What a clock that is ahead has stamped comes last: it would be the newest at each look, and take the room of all others.
        f"SELECT {_COLUMNS} FROM exchanges WHERE ended_ns > ? ORDER BY ended_ns > ?, ended_ns DESC LIMIT {_AT_ONCE}",  # noqa: S608 - our own names
        [since_ns, time.time_ns()],
    )
    rows = sorted((dict(zip(found.names, row, strict=True)) for row in found.rows()), key=lambda row: int(row["ended_ns"]))
    # Runs that were heard of in the last minute: what an older one lost is of its own time.
    lost = session.select(
        "SELECT sum(not_stored) AS not_stored, sum(lost_records) AS lost_records FROM taps WHERE heartbeat_ns > ?",
        [time.time_ns() - REACH_NS],
    )
    sums = next(iter(lost.rows()), (0, 0))
    return rows, {"not stored": int(sums[0] or 0), "lost records": int(sums[1] or 0)}
