"""Plain HTTP from a network interface: AF_PACKET with a TPACKET_V3 ring, a block of packets at a time.

Rules
- The cooked socket type: every link type comes as an IP packet, VLAN tags taken off by the kernel.
- On the loopback interface each packet passes twice; the outgoing copy is dropped.
- A classic BPF filter drops other ports in the kernel; IPv4 fragments and IPv6 extension headers pass it and are judged later.
- What the kernel dropped is read with PACKET_STATISTICS and counted.
- An interface that goes down ends the capture, unless it is to outlive that: then it is looked for again, at longer and longer
  intervals. One that comes up again goes on in the same socket; one that was removed and made anew needs another.
"""

from __future__ import annotations

import errno
import mmap
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from typing import Final

from llmsec_tap.capture.live.queue import BatchQueue
from llmsec_tap.capture.packets.packet_socket import (
    PACKET_STATISTICS,
    RING_BLOCK_BYTES,
    SOL_PACKET,
    index_of,
    is_loopback,
    is_up,
    loopback_index,
    ring_blocks,
)
from llmsec_tap.clock import Clock
from llmsec_tap.counters import Sample
from llmsec_tap.journal import SILENT, Journal
from llmsec_tap.wire.packet import PacketHandler

_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_PACKET_OUTGOING = 4
_STATUS_USER = 1
# struct tpacket_block_desc: version, offset to private, then status, packets, offset to the first, length
_BLOCK: Final = struct.Struct("=IIIIII")
# struct tpacket3_hdr: next offset, seconds, nanoseconds, captured, on the wire, status, link header, network header
_PACKET: Final = struct.Struct("=IIIIIIHH")
_LINK_AT: Final = 48  # TPACKET_ALIGN(sizeof(struct tpacket3_hdr)): struct sockaddr_ll
_ADDRESS: Final = struct.Struct("=HHiHB")  # family, protocol (as on the wire), interface, hardware type, packet type
_IP: Final = frozenset((socket.htons(_ETH_P_IP), socket.htons(_ETH_P_IPV6)))
_POLL_S = 0.2
# Between two looks at an interface that is down: at first, and at most.
_FIRST_LOOK_S, _LAST_LOOK_S = 0.1, 10.0


class PacketSource(threading.Thread):
    """Reads one interface (`any`: all) from its socket (packet_socket.py) and hands blocks to the queue; `handle` is called by the decoding thread."""

    def __init__(
        self,
        interface: str,
        sock: socket.socket,
        queue: BatchQueue,
        handle: PacketHandler,
        clock: Clock,
        *,
        reopen: Callable[[], socket.socket | None] | None = None,
        blocks: int = ring_blocks(1),
        journal: Journal = SILENT,
    ) -> None:
        """`blocks`: of the socket's ring. `reopen`: gives another socket where the interface was made anew, None where it cannot yet. Without it, a loss is a fault."""
        super().__init__(name=f"llmsec-{interface}", daemon=True)
        self._reopen = reopen
        self._blocks = blocks
        self._journal = journal
        self._index = index_of(interface)
        self.is_up = True
        self._queue = queue
        self._handle = handle
        self._clock = clock
        self._stopping = threading.Event()
        self._loopback = loopback_index() if interface == "any" or is_loopback(interface) else -1
        self.interface = interface
        self.fault: BaseException | None = None
        self.packets = 0
        self.dropped = 0
        self._socket = sock
        self._ring = _ring_of(sock, blocks)

    def stop(self) -> None:
        self._stopping.set()

    def samples(self) -> Iterable[Sample]:
        labels = (("interface", self.interface),)
        yield Sample("llmsec_packets_total", self.packets, labels)
        yield Sample("llmsec_packets_dropped_total", self.dropped, labels)
        yield Sample("llmsec_interface_up", float(self.is_up), labels)

    def run(self) -> None:
        try:
            self._run()
        except Exception as fault:  # noqa: BLE001 - handed to the main thread, which reports it and ends the run
            self.fault = fault
        finally:
            self._read_drops()
            self._socket.close()

    def _run(self) -> None:
        poll = self._polling()
        block = 0
        while True:
            at = block * RING_BLOCK_BYTES
            _, _, status, count, first, length = _BLOCK.unpack_from(self._ring, at)
            if not status & _STATUS_USER:
                if self._stopping.is_set():
                    return
                self._read_drops()
                found = poll.poll(_POLL_S * 1000)
                if found and found[0][1] & select.POLLERR and self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENETDOWN:
                    if self._reopen is None:
                        raise OSError(errno.ENETDOWN, f"interface {self.interface} went down")
                    if self._is_anew(self._reopen):
                        poll, block = self._polling(), 0
                continue
            # Copied at once and given back: decoding may take longer than the ring can wait.
            data = self._ring[at : at + min(length, RING_BLOCK_BYTES)]
            call = self._decoding(data, first, count, self._clock.stepped_ns())
            taken = self._queue.put_call(call, len(data))
            while not taken and not self._stopping.wait(0.01):  # full: the ring fills up meanwhile, and the kernel counts what it drops
                taken = self._queue.put_call(call, len(data))
            struct.pack_into("=I", self._ring, at + 8, 0)
            block = (block + 1) % self._blocks

    def _polling(self) -> select.poll:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLERR)
        return poll

    def _is_anew(self, reopen: Callable[[], socket.socket | None]) -> bool:
        """Wait until the interface is back, or for the end. Whether it is read by another socket now, whose ring begins anew."""
        self.is_up = False
        self._journal.warning("interface_down", f"interface {self.interface} went down; waiting for it", interface=self.interface)
        wait_s, sock = _FIRST_LOOK_S, None
        while not self._stopping.wait(wait_s):
            wait_s = min(2 * wait_s, _LAST_LOOK_S)
            if not is_up(self.interface):
                continue
            index = index_of(self.interface)
            if index != self._index:
                sock = reopen()
                if sock is None:
                    continue
                self._index = index
            self.is_up = True
            self._journal.info("interface_up", f"interface {self.interface} is back", interface=self.interface)
            break
        if sock is not None:
            self._read_drops()
            self._ring.close()
            self._socket.close()
            self._socket, self._ring = sock, _ring_of(sock, self._blocks)
        return sock is not None

    def _decoding(self, data: bytes, first: int, count: int, stepped_ns: int) -> Callable[[], None]:
        """The kernel stamps packets with the wall clock; `stepped_ns` is how far that was ahead of ours when they were read."""

        def decode() -> None:
            at = first
            handle = self._handle
            for _ in range(count):
                following, seconds, nanoseconds, captured, on_wire, _, _, network = _PACKET.unpack_from(data, at)
                _, protocol, index, _, kind = _ADDRESS.unpack_from(data, at + _LINK_AT)
                if protocol in _IP and not (kind == _PACKET_OUTGOING and index == self._loopback):
                    self.packets += 1
                    start = at + network
                    handle(seconds * 1_000_000_000 + nanoseconds - stepped_ns, data, start, start + captured, on_wire)
                at += following

        return decode

    def _read_drops(self) -> None:
        """The kernel's counters begin anew at each reading."""
        _, dropped, _ = struct.unpack("=III", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12))
        self.dropped += dropped


def _ring_of(sock: socket.socket, blocks: int) -> mmap.mmap:
    return mmap.mmap(sock.fileno(), RING_BLOCK_BYTES * blocks, mmap.MAP_SHARED)
