"""Months in seconds: a million records through lanes whose sinks are quick, slow, stuck and full; every table stays within its bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

import pytest

from llmsec_agent.lane import Lane, SinkError
from llmsec_agent.stop import Stop
from llmsec_tap.counters import Sample
from llmsec_tap.model import Exchange
from support.journal import Said

RECORDS = 1_000_000
BOUND = 1 << 20
EXCHANGE = Exchange(exchange_id="e", client="c", server="s")


class Sink:
    name = "sink"

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.taken = 0
        self.released = threading.Event()

    def encode(self, exchange: Exchange) -> tuple[str, int]:
        return exchange.exchange_id, 200

    def write(self, items: Sequence[str]) -> int:
        if self.kind == "stuck":
            self.released.wait()
        if self.kind == "full":
            raise SinkError("no space left")
        if self.kind == "slow":
            time.sleep(0.005)
        self.taken += len(items)
        return len(items)

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass

    def samples(self) -> Iterable[Sample]:
        return ()


@pytest.mark.parametrize("kind", ["quick", "slow", "stuck", "full"])
def test_a_million_records_are_written_or_counted_and_no_more_than_the_bound_waits(kind: str) -> None:
    sink, stop, journal = Sink(kind), Stop(), Said()
    lane = Lane(sink, journal, stop, max_bytes=BOUND)
    for _ in range(RECORDS):
        lane.offer(EXCHANGE)
    assert lane.peak_bytes <= BOUND
    stop.request()
    lane.close()
    assert lane.written + lane.dropped.total() == RECORDS
    assert len(journal.events) <= 2, "a fault that stays is reported once"
    if kind == "quick":
        assert lane.written > 0
    if kind in ("stuck", "full"):
        assert lane.written == 0
    sink.released.set()
