"""A BPF ring buffer, read by its descriptor alone: the process that reads needs no capability and makes no bpf(2) call.

Layout (linux/kernel/bpf/ringbuf.c): a page with the consumer's position, a page with the producer's, then the data, mapped twice
over so that no record is cut at its end. A record: length and two flags (32 bits), page offset (32 bits), the bytes, padding to 8.
Positions only grow. x86-64 orders loads and stores of aligned words as they are written here; aarch64 does not, and is made to by `_Fence`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import threading
from collections.abc import Callable
from typing import Final

from llmsec_tap.capture.ebpf.events import HEADER_BYTES

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_BUSY, _DISCARDED, _LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1
# Per `consume`, so that one call neither holds the interpreter for long nor takes much memory at once.
_MAX_RECORDS = 4096
_MAX_CONSUMED_BYTES = 4 << 20
_COPY_WHOLE_BELOW = 2048


class _Fence:
    """What stands before a call of it is done before what stands behind it, on any machine: a release of a lock and then its acquisition (RCsc)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def __call__(self) -> None:
        self._lock.release()
        self._lock.acquire()


def _no_fence() -> None:
    return None


class Ring:
    """`descriptor` is duplicated, so it may be closed. Raises OSError where it is not a ring of this size."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._mask = size - 1
        self._consumer = mmap.mmap(descriptor, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data = mmap.mmap(descriptor, _PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE)
        self._view = memoryview(self._data)
        self._words = self._view.cast("I")  # of the producer's page and the data
        self._produced = self._view[:_PAGE].cast("Q")
        # Set as a word of memory. `struct.pack_into` writes zeros first, and the kernel takes a position of 0 for a full ring.
        self._consumed = memoryview(self._consumer)[:8].cast("Q")
        self._position = self._consumed[0]
        # By edges, so that only a wake-up ends a wait: the descriptor itself is ready as long as anything lies in the ring.
        self._descriptor = os.dup(descriptor)
        self._wakeups = select.epoll()
        self._wakeups.register(self._descriptor, select.EPOLLIN | select.EPOLLET)
        self._fence: Callable[[], None] = _no_fence if os.uname().machine == "x86_64" else _Fence()
        self._closed = False

    def fileno(self) -> int:
        """Becomes readable at a wake-up; `wait` clears it."""
        return self._wakeups.fileno()

    def wait(self, timeout_s: float) -> None:
        """Until the kernel half wakes its reader, or the time has passed."""
        with contextlib.suppress(InterruptedError):
            self._wakeups.poll(timeout_s)

    def consume(self) -> list[bytes]:
        """The records since the last call, oldest first, up to a bound.

        A record is as long as its size class; where that is much more than its payload, only the payload is copied.
        """
        records: list[bytes] = []
        if self._closed:
            return records
        data, words, mask = self._data, self._words, self._mask
        position, room = self._position, _MAX_CONSUMED_BYTES
        produced, fence = self._produced[0], self._fence
        fence()  # records are there before the position says so
        while position < produced and room > 0 and len(records) < _MAX_RECORDS:
            at = _PAGE + (position & mask)
            head = words[at >> 2]
            if head & _BUSY:
                break  # being written; what is behind it waits, so that the order holds
            fence()  # the bytes are there before the flag goes
            length = head & _LENGTH
            position += length + 15 & ~7
            if head & _DISCARDED:
                continue
            at += 8
            if length > _COPY_WHOLE_BELOW:
                length = min(length, HEADER_BYTES + words[(at >> 2) + 1])  # events.LENGTH
            records.append(data[at : at + length])
            room -= length
        if position != self._position:
            self._position = position
            fence()  # the kernel writes there again once it reads the position
            self._consumed[0] = position
        return records

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._wakeups.close()
            os.close(self._descriptor)
            self._consumed.release()
            self._words.release()
            self._produced.release()
            self._view.release()
            self._data.close()
            self._consumer.close()
