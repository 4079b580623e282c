"""The maps and rings of a loaded kernel half, whichever loader loaded it: read and written over libbpf by their descriptors."""

from __future__ import annotations

import contextlib
import ctypes as ct
import os
import struct
from collections.abc import Callable
from typing import Final

from llmsec_tap.capture.ebpf.libbpf import MAP_TYPE_RINGBUF, LibBPF
from llmsec_tap.capture.ebpf.loader_api import ConnectionLoss, KernelTotals
from llmsec_tap.capture.ebpf.ring import Ring
from llmsec_tap.capture.host import proc
from llmsec_tap.errors import KernelError

_CONNECTION_KEY: Final = struct.Struct("=QII")
_CONNECTION: Final = struct.Struct("=QQQII")  # struct connection: epoch, offsets, lost, fresh; the socket after it is not needed
_CONNECTION_BYTES: Final = 32 + 48 + 16 + 8
_TOTALS: Final = len(KernelTotals._fields)  # enum tap_total, in its order
PROCESS_RING_BYTES: Final = 1 << 20  # TAP_PROCESS_RING_BYTES
_MAX_CONNECTIONS = 65_536
_ONE: Final = b"\1\0\0\0"


def _comm_key(comm: str) -> bytes:
    return comm.encode()[:15].ljust(16, b"\0")


class KernelMaps:
    """`descriptor_of` gives a map's descriptor by name. Makes the rings of the records; raises KernelError where that is not possible."""

    def __init__(self, library: LibBPF, descriptor_of: Callable[[str], int], ring_bytes: int, rings: int) -> None:
        self._library = library
        self._fd = descriptor_of
        self.ring_bytes = ring_bytes
        self.rings: list[Ring] = []
        self._descriptors: list[int] = []
        try:
            for number in range(rings):
                self._descriptors.append(self._make_ring(number))
                self.rings.append(Ring(self._descriptors[number], ring_bytes))
            self.processes = Ring(descriptor_of("processes"), PROCESS_RING_BYTES)
        except (OSError, ValueError) as fault:
            self._close_rings()
            raise KernelError(f"the ring between kernel and tap cannot be made ({fault})", "Try a smaller --ring-size.") from None

    def _make_ring(self, number: int) -> int:
        descriptor = int(self._library.bpf_map_create(MAP_TYPE_RINGBUF, b"ring", 0, 0, self.ring_bytes, None))
        if descriptor < 0:
            raise OSError(-descriptor, os.strerror(-descriptor))
        self._update("rings", struct.pack("=I", number), struct.pack("=I", descriptor))
        return descriptor

    def ring_descriptor(self, number: int) -> int:
        """What another process needs to read the records of one ring."""
        return self._descriptors[number]

    def watch(self, pid: int) -> None:
        self._update("targets", struct.pack("=I", pid), _ONE)

    def unwatch(self, pid: int) -> None:
        self._delete("targets", struct.pack("=I", pid))
        # A thread that is known is not asked for again (tls_io.h).
        for thread in proc.threads_of(pid):
            self._delete("threads", struct.pack("=Q", pid << 32 | thread))

    def select_comm(self, comm: str) -> None:
        self._update("comms", _comm_key(comm), _ONE)

    def deselect_comm(self, comm: str) -> None:
        self._delete("comms", _comm_key(comm))

    def _delete(self, name: str, key: bytes) -> None:
        self._library.bpf_map_delete_elem(self._fd(name), key)

    def _update(self, name: str, key: bytes, value: bytes) -> None:
        self._library.bpf_map_update_elem(self._fd(name), key, value, 0)

    def totals(self) -> KernelTotals:
        buffer = (ct.c_uint64 * int(self._library.libbpf_num_possible_cpus()))()
        values = []
        for index in range(_TOTALS):
            self._library.bpf_map_lookup_elem(self._fd("totals"), struct.pack("=I", index), buffer)
            values.append(sum(buffer))
        return KernelTotals(*values)

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
        self._close_rings()
        self.processes.close()

    def _close_rings(self) -> None:
        for ring in self.rings:
            ring.close()
        with contextlib.suppress(IndexError):
            while True:
                os.close(self._descriptors.pop())
