"""A lane holds up nobody: not decoding, not another sink, not the end; what it drops is counted, and a fault is made good where it can be."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from llmsec_agent.lane import Lane, ReaderGoneError, SinkError
from llmsec_agent.sinks.standard_output import StandardOutput
from llmsec_agent.stop import Stop
from llmsec_tap.counters import Sample, Snapshot
from llmsec_tap.model import Exchange
from support.journal import Said


class FakeSink:
    """`allowed` gates each write; `faults` are raised first, one a write."""

    name = "fake"

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.taken: list[str] = []
        self.allowed = threading.Event()
        self.allowed.set()
        self.closed = False

    def encode(self, exchange: Exchange) -> tuple[str, int]:
        return exchange.exchange_id, 100

    def write(self, items: Sequence[str]) -> int:
        self.allowed.wait()
        if self.faults:
            raise self.faults.pop(0)
        self.taken += items
        return len(items)

    def tick(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def samples(self) -> Iterable[Sample]:
        return ()


def exchange(number: int) -> Exchange:
    return Exchange(exchange_id=str(number), client="10.0.0.1:1", server="10.0.0.2:2")


def dropped(lane: Lane, reason: str) -> int:
    return Snapshot([lane.samples]).get("llmsec_sink_dropped_records_total", sink=lane.name, reason=reason)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


def test_everything_is_written_in_order() -> None:
    sink = FakeSink()
    lane = Lane(sink, Said(), Stop(), max_bytes=1 << 20)
    for number in range(10_000):
        assert lane.offer(exchange(number))
    lane.close()
    assert sink.taken == [str(number) for number in range(10_000)]
    assert sink.closed
    assert not lane.lost


def test_a_stuck_sink_costs_what_does_not_fit_and_no_time() -> None:
    sink = FakeSink()
    sink.allowed.clear()
    stop = Stop()
    lane = Lane(sink, Said(), stop, max_bytes=1_000)
    with within(5):
        took = sum(lane.offer(exchange(number)) for number in range(1_000))
        stop.request()
        lane.close()
    assert took == 10
    assert dropped(lane, "full") == 990
    assert dropped(lane, "late") == 10
    assert lane.lost
    sink.allowed.set()


def test_a_source_that_can_wait_loses_nothing() -> None:
    sink = FakeSink()
    sink.allowed.clear()
    threading.Timer(0.3, sink.allowed.set).start()
    lane = Lane(sink, Said(), Stop(), max_bytes=1_000, may_wait=True)
    for number in range(200):
        lane.offer(exchange(number))
    lane.close()
    assert len(sink.taken) == 200


def test_it_waits_for_nobody_once_the_run_is_to_end() -> None:
    sink = FakeSink()
    sink.allowed.clear()
    stop = Stop()
    lane = Lane(sink, Said(), stop, max_bytes=1_000, may_wait=True)
    threading.Timer(0.2, stop.request).start()
    with within(8):
        for number in range(200):
            lane.offer(exchange(number))
        lane.close()
    assert dropped(lane, "full") + dropped(lane, "late") == 200
    sink.allowed.set()


def test_a_fault_that_passes_costs_nothing_and_is_reported_once() -> None:
    sink = FakeSink(SinkError("the disk is full"), SinkError("the disk is full"))
    journal = Said()
    lane = Lane(sink, journal, Stop(), max_bytes=1 << 20)
    for number in range(5):
        lane.offer(exchange(number))
    deadline = time.monotonic() + 20
    while len(sink.taken) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    lane.close()
    assert sink.taken == ["0", "1", "2", "3", "4"]
    assert not lane.lost
    assert [event.name for event in journal.events] == ["sink_failed", "sink_recovered"]


def test_a_fault_at_the_end_is_a_counted_loss() -> None:
    sink = FakeSink(*[SinkError("the disk is full")] * 100)
    lane = Lane(sink, Said(), Stop(), max_bytes=1 << 20)
    for number in range(5):
        lane.offer(exchange(number))
    with within(5):
        lane.close()
    assert sink.taken == []
    assert dropped(lane, "failed") == 5
    assert lane.lost


def test_a_reader_that_is_gone_is_no_loss() -> None:
    sink = FakeSink(ReaderGoneError("gone"))
    journal = Said()
    lane = Lane(sink, journal, Stop(), max_bytes=1 << 20)
    for number in range(5):
        lane.offer(exchange(number))
    lane.close()
    lane.offer(exchange(6))
    assert not lane.lost
    assert journal.events == []


# --- standard output --------------------------------------------------------------------------------------------------------


def to_descriptor(descriptor: int, stop: Stop, *, header: bytes | None = None, size: int = 10) -> Lane:
    sink = StandardOutput(
        lambda exchange: exchange.exchange_id.encode().rjust(size, b"."), header=header, on_reader_gone=stop.request, descriptor=descriptor
    )
    return Lane(sink, Said(), stop, max_bytes=1 << 20)


def test_a_pipe_that_nobody_reads_holds_up_nothing() -> None:
    reader, writer = os.pipe()
    stop = Stop()
    lane = to_descriptor(writer, stop, size=10_000)
    with within(6):
        for number in range(1_000):
            lane.offer(exchange(number))
        time.sleep(0.5)
        stop.request()
        lane.close()
    os.close(writer)
    seen = b""
    while piece := os.read(reader, 1 << 16):
        seen += piece
    os.close(reader)
    written = Snapshot([lane.samples]).get("llmsec_sink_records_total")
    assert seen.count(b"\n") == written
    assert written + dropped(lane, "full") + dropped(lane, "late") == 1_000


@pytest.mark.parametrize("size", [1, 100, 4_095, 4_096, 70_000])
def test_a_slow_reader_gets_every_line_whole(size: int) -> None:
    reader, writer = os.pipe()
    stop = Stop()
    lane = to_descriptor(writer, stop, header=b"header", size=size)
    seen = bytearray()

    def read_slowly() -> None:
        while piece := os.read(reader, 3_000):
            seen.extend(piece)
            time.sleep(0.0005)

    thread = threading.Thread(target=read_slowly)
    thread.start()
    for number in range(14):
        lane.offer(exchange(number))
    lane.close()
    os.close(writer)
    thread.join()
    os.close(reader)
    assert bytes(seen).split(b"\n") == [b"header", *(str(number).encode().rjust(size, b".") for number in range(14)), b""]
    assert not lane.lost


def test_a_full_disk_behind_it_is_counted() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    stop = Stop()
    lane = to_descriptor(full, stop)
    for number in range(5):
        lane.offer(exchange(number))
    with within(5):
        lane.close()
    assert dropped(lane, "failed") == 5
    assert lane.lost
    os.close(full)


def test_a_closed_pipe_asks_the_run_to_end_and_is_no_fault() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stop = Stop()
    lane = to_descriptor(writer, stop)
    lane.offer(exchange(1))
    lane.close()
    assert stop.is_requested
    assert not lane.lost
    os.close(writer)
