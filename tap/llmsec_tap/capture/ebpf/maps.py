"""The maps and the ring of a loaded kernel half, whichever loader loaded it: read and written over libbpf by their descriptors."""

from __future__ import annotations

import contextlib
import ctypes as ct
import errno
import select
import struct
from collections.abc import Callable
from typing import Final

from llmsec_tap.capture.base import ConnectionLoss, KernelTotals
from llmsec_tap.capture.ebpf.events import HEADER_BYTES, LENGTH
from llmsec_tap.capture.ebpf.libbpf import LibBPF, SampleCallback, explain

_CONNECTION_KEY: Final = struct.Struct("=QII")
_CONNECTION: Final = struct.Struct("=QQQII")  # struct connection: epoch, offsets, lost, fresh; the socket after it is not needed
_CONNECTION_BYTES: Final = 32 + 48 + 16
_TOTALS: Final = 7  # enum tap_total
# Per `consume`, so that one call neither holds the interpreter for long nor takes much memory at once.
_MAX_RECORDS = 4096
_MAX_CONSUMED_BYTES = 4 << 20
_COPY_WHOLE_BELOW = 2048
_MAX_CONNECTIONS = 65_536
_ONE: Final = b"\1\0\0\0"


class KernelMaps:
    """`descriptor_of` gives a map's descriptor by name. Raises KernelError where the ring cannot be mapped."""

    def __init__(self, library: LibBPF, descriptor_of: Callable[[str], int]) -> None:
        self._library = library
        self._fd = descriptor_of
        self._records: list[bytes] = []
        self._room = 0
        self._callback = SampleCallback(self._sample)
        self._ring: int | None = library.ring_buffer__new(descriptor_of("events"), self._callback, None, None)
        if not self._ring:
            raise explain(errno.ENOMEM, library.log)
        # By edges, so that only a wake-up ends a wait: libbpf's own descriptor is ready as long as anything lies in the ring.
        self._wakeups = select.epoll()
        self._wakeups.register(descriptor_of("events"), select.EPOLLIN | select.EPOLLET)

    def watch(self, pid: int) -> None:
        self._update("targets", struct.pack("=I", pid), _ONE)

    def select_comm(self, comm: str) -> None:
        self._update("comms", comm.encode()[:15].ljust(16, b"\0"), _ONE)

    def _update(self, name: str, key: bytes, value: bytes) -> None:
        self._library.bpf_map_update_elem(self._fd(name), key, value, 0)

    def wait(self, timeout_s: float) -> None:
        with contextlib.suppress(InterruptedError):
            self._wakeups.poll(timeout_s)

    def consume(self) -> list[bytes]:
        records: list[bytes] = []
        self._records = records
        self._room = _MAX_CONSUMED_BYTES
        if self._ring is not None:
            self._library.ring_buffer__consume(self._ring)
        return records

    def _sample(self, _context: int | None, address: int, size: int) -> int:
        """A record is as long as its size class; where that is much more than its payload, only the payload is copied."""
        if size > _COPY_WHOLE_BELOW:
            size = min(size, HEADER_BYTES + LENGTH.unpack(ct.string_at(address, 8))[0])
        self._records.append(ct.string_at(address, size))
        self._room -= size
        return 0 if self._room > 0 and len(self._records) < _MAX_RECORDS else -1

    def totals(self) -> KernelTotals:
        buffer = (ct.c_uint64 * int(self._library.libbpf_num_possible_cpus()))()
        values = []
        for index in range(_TOTALS):
            self._library.bpf_map_lookup_elem(self._fd("totals"), struct.pack("=I", index), buffer)
            values.append(sum(buffer))
        calls, moved, lost_records, lost_bytes, lost_calls, unreadable, cut = values
        return KernelTotals(
            calls=calls,
            bytes=moved,
            lost_records=lost_records,
            lost_bytes=lost_bytes,
            lost_calls=lost_calls,
            unreadable_calls=unreadable,
            cut_calls=cut,
        )

    def losses(self) -> list[ConnectionLoss]:
        found = []
        descriptor = self._fd("connections")
        key, following = ct.create_string_buffer(_CONNECTION_KEY.size), ct.create_string_buffer(_CONNECTION_KEY.size)
        value = ct.create_string_buffer(_CONNECTION_BYTES + 64)
        previous: ct.Array[ct.c_char] | None = None
        for _ in range(_MAX_CONNECTIONS):
            if self._library.bpf_map_get_next_key(descriptor, previous, following):
                break
            key.raw = following.raw
            previous = key
            if self._library.bpf_map_lookup_elem(descriptor, key, value) == 0:
                epoch, read, written, lost, _ = _CONNECTION.unpack_from(value)
                if lost:
                    connection, pid, _ = _CONNECTION_KEY.unpack_from(key)
                    found.append(ConnectionLoss(pid, connection, epoch, lost, read, written))
        return found

    def close(self) -> None:
        if self._ring is not None:
            self._wakeups.close()
            self._library.ring_buffer__free(self._ring)
            self._ring = None
