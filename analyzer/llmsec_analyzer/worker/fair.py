"""Exchanges that wait for the detection process, in lines by whom they come from: a flood waits behind itself, and costs its own detection.

An exchange has two sources, the client's address and the fingerprint of its key: one address may try many keys, one key may be
used from many addresses. Whoever was served least is next (start-time fair queueing). Where there is no room, the largest
exchanges of whoever holds most go out, and small ones pass large ones of their own source: what is small and follows a flood is scanned.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import chain

import msgspec

from llmsec_analyzer.judge.exchange_parts import Report, TextPart
from llmsec_analyzer.settings import Sensitivity
from llmsec_tap.model import Exchange

# Above these shares of the queue the process is asked to leave out more and more (budget.py).
_PRESSURE = (0.25, 0.5, 0.75)
# After an overflow there is room for a while, so that not every exchange has to look for somebody to make way.
_ROOM_SHARE = 8
_MAX_REMEMBERED = 65_536
# What passes the large exchanges of its own source: a prompt of ten thousand words.
_SMALL_BYTES = 64 << 10
# What an exchange costs besides its texts.
COST_BYTES = 512


class Waiting(msgspec.Struct):
    """An exchange in line. `size`: of its texts, or its message; `report` once there is one; `masks`: something was to be masked when it came."""

    number: int
    exchange: Exchange
    size: int
    since: float
    report: Report | None = None
    is_llm: bool = True
    parts: list[TextPart] = []
    stream: int = 0
    masks: bool = False
    sensitivity: Sensitivity | None = None  # of its tenant
    redact: bool = False  # all that is secret or personal in it is masked, whatever holds for others
    is_request: bool = False  # its answer is still out, and nobody waits for the exchange

    @property
    def sources(self) -> tuple[str, ...]:
        if self.exchange.capture_kind == "sdk":  # of which another process writes all but whose it is
            process = self.exchange.process
            return (f"p{process.pid if process is not None else 0}",)
        address = "a" + self.exchange.client.rpartition(":")[0]
        key = self.exchange.api_key_fingerprint
        return (address, "k" + key) if key else (address,)


class _Line:
    """One source's exchanges: small ones pass large ones, up to the bytes of the large one that they pass. Each kind keeps its order."""

    def __init__(self, small_bytes: int, entries: Iterable[Waiting] = ()) -> None:
        self._small_bytes = small_bytes
        self._small: deque[Waiting] = deque()
        self._large: deque[Waiting] = deque()
        self._passed = 0  # bytes of small ones that went before the first large one
        for entry in entries:
            self.append(entry)

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def __iter__(self) -> Iterator[Waiting]:
        return chain(self._small, self._large)

    def append(self, entry: Waiting) -> None:
        (self._small if entry.size <= self._small_bytes else self._large).append(entry)

    def take(self) -> Waiting:
        if self._small and not (self._large and self._passed >= self._large[0].size):
            entry = self._small.popleft()
            self._passed += entry.size
        else:
            entry = self._large.popleft()
            self._passed = 0
        return entry

    @property
    def first(self) -> Waiting:
        return self._small[0] if self._small else self._large[0]


class FairQueue:
    """`add` says who has to make way; `next` takes one out; `done` when it is answered: until then it counts as load of its sources."""

    def __init__(self, limit: int, small_bytes: int = _SMALL_BYTES) -> None:
        self._limit = limit
        self._small_bytes = small_bytes
        self.load = 0  # bytes that wait or are being scanned
        self._loads: Counter[str] = Counter()  # by source
        self._lines: dict[tuple[str, ...], _Line] = {}
        self._heap: list[tuple[int, int, tuple[str, ...]]] = []
        self._served: dict[str, int] = {}
        self._forget_at = _MAX_REMEMBERED
        self._floor = 0  # what whoever was next had been served

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def add(self, entry: Waiting) -> list[Waiting]:
        """Those that go without, this one perhaps among them."""
        sources = entry.sources
        line = self._lines.get(sources)
        if line is None:
            line = self._lines[sources] = _Line(self._small_bytes)
            for source in sources:
                self._served[source] = max(self._served.get(source, 0), self._floor)
            heappush(self._heap, (self._turn(sources), entry.number, sources))
        line.append(entry)
        self._count(entry, entry.size)
        return self._make_room() if self._limit < self.load != entry.size else []

    def next(self) -> Waiting | None:
        while self._heap:
            turn, number, sources = heappop(self._heap)
            line = self._lines.get(sources)
            if not line:
                self._lines.pop(sources, None)
                continue
            now = self._turn(sources)
            if now > turn:  # served in the meantime, by way of the other source
                heappush(self._heap, (now, number, sources))
                continue
            entry = line.take()
            self._floor = max(self._floor, turn)
            for source in sources:
                self._served[source] = max(self._served.get(source, 0), self._floor) + entry.size
            if line:
                heappush(self._heap, (self._turn(sources), line.first.number, sources))
            else:
                del self._lines[sources]
                self._forget()
            return entry
        return None

    def done(self, entry: Waiting) -> None:
        self._count(entry, -entry.size)

    def pressure(self, entry: Waiting) -> int:
        """What is to be left out of it: by how much its own sources hold, and by all only for those that hold more than others."""
        own = max(self._loads[source] for source in entry.sources)
        load = self.load if own * len(self._loads) >= self.load else own
        return sum(load >= share * self._limit for share in _PRESSURE)

    def clear(self) -> list[Waiting]:
        """All that wait, in the order they came."""
        entries = sorted((entry for line in self._lines.values() for entry in line), key=lambda entry: entry.number)
        self._lines.clear()
        self._heap.clear()
        for entry in entries:
            self.done(entry)
        return entries

    def _turn(self, sources: tuple[str, ...]) -> int:
        return max(self._served.get(source, 0) for source in sources)

    def _count(self, entry: Waiting, size: int) -> None:
        self.load += size
        for source in entry.sources:
            self._loads[source] += size
            if not self._loads[source]:
                del self._loads[source]

    def _forget(self) -> None:
        """Sources that nobody waits behind. Only when their number has doubled: looking at all of them costs milliseconds."""
        if len(self._served) <= self._forget_at:
            return
        busy = {source for sources in self._lines for source in sources}
        kept = {source: served for source, served in self._served.items() if served > self._floor or source in busy}
        if len(kept) > _MAX_REMEMBERED:
            kept = {source: self._served[source] for source in busy}
        self._served = kept
        self._forget_at = max(_MAX_REMEMBERED, 2 * len(kept))

    def _make_room(self) -> list[Waiting]:
        out: list[Waiting] = []
        wanted = self._limit - self._limit // _ROOM_SHARE
        while self.load > wanted:
            waiting: Counter[str] = Counter()
            for sources, line in self._lines.items():
                size = sum(entry.size for entry in line)
                for source in sources:
                    waiting[source] += size
            if not waiting:
                break
            source = max(waiting, key=lambda name: (self._loads[name], name))
            mine = sorted(
                (entry for sources, line in self._lines.items() if source in sources for entry in line), key=lambda entry: -entry.size
            )
            # At most half of what it holds before the next look: another may be the heaviest then.
            least = self._loads[source] // 2
            gone: set[int] = set()
            for entry in mine:
                gone.add(entry.number)
                out.append(entry)
                self.done(entry)
                if self.load <= wanted or self._loads[source] <= least:
                    break
            for sources, line in list(self._lines.items()):
                if source in sources:
                    kept = _Line(self._small_bytes, [entry for entry in line if entry.number not in gone])
                    if kept:
                        self._lines[sources] = kept
                    else:
                        del self._lines[sources]
        return out
