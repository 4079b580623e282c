"""The reader's side of a BPF ring, on memory that stands in for the kernel's: its position only grows, whoever looks, and whenever."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import struct
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from typing import Any

import pytest

from llmsec_tap.capture.ebpf import ring as ring_module
from llmsec_tap.capture.ebpf.ring import Ring

PAGE, SIZE = mmap.PAGESIZE, 1 << 16
RECORD = 32  # eight bytes of header, twenty-four of data


class _Ready:
    """In place of epoll, which takes no plain file."""

    def register(self, *_: Any) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(ring_module.select, "epoll", _Ready)
    descriptor = os.memfd_create("ring")
    os.ftruncate(descriptor, 2 * PAGE + 2 * SIZE)
    yield descriptor
    os.close(descriptor)


def _look(descriptor: int, begun: Event, over: Event, least: Any) -> None:
    position = memoryview(mmap.mmap(descriptor, PAGE, mmap.MAP_SHARED, mmap.PROT_READ)).cast("Q")
    last = 0
    begun.set()
    while not over.is_set():
        for _ in range(20_000):
            now = position[0]
            if now < last:
                least.value = now
                return
            last = now


def test_the_position_never_goes_back_while_it_is_written(memory: int) -> None:
    """The kernel takes a position of 0, be it for nanoseconds, for a full ring, and drops a record."""
    context = multiprocessing.get_context("fork")
    begun, over, least = context.Event(), context.Event(), context.Value("q", -1)
    looking = context.Process(target=_look, args=(memory, begun, over, least))
    looking.start()
    begun.wait(10)
    kernel = mmap.mmap(memory, 2 * PAGE + 2 * SIZE)
    for at in range(2 * PAGE, 2 * PAGE + 2 * SIZE, RECORD):
        struct.pack_into("=II", kernel, at, RECORD - 8, 0)
    ring, produced = Ring(memory, SIZE), 0
    try:
        for _ in range(300_000):
            produced += RECORD
            struct.pack_into("=Q", kernel, PAGE, produced)
            assert len(ring.consume()) == 1
            if least.value >= 0:
                break
    finally:
        over.set()
        looking.join()
        ring.close()
    assert least.value == -1, f"it was {least.value} for a moment"


def test_a_fence_is_passed_by_one_thread_any_number_of_times(memory: int) -> None:
    ring = Ring(memory, SIZE)
    ring._fence = ring_module._Fence()
    kernel = mmap.mmap(memory, 2 * PAGE + 2 * SIZE)
    for number in range(3):
        struct.pack_into("=II24s", kernel, 2 * PAGE + number * RECORD, RECORD - 8, 0, b"%d" % number)
    struct.pack_into("=Q", kernel, PAGE, 3 * RECORD)
    assert [record[:1] for record in ring.consume()] == [b"0", b"1", b"2"]
    assert ring.consume() == []
    ring.close()
