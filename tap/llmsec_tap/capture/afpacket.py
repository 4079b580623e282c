"""Plain HTTP from a network interface: AF_PACKET with a TPACKET_V3 ring, a block of packets at a time.

Rules
- The cooked socket type: every link type comes as an IP packet, VLAN tags taken off by the kernel.
- On the loopback interface each packet passes twice; the outgoing copy is dropped.
- A classic BPF filter drops other ports in the kernel; IPv4 fragments and IPv6 extension headers pass it and are judged later.
- What the kernel dropped is read with PACKET_STATISTICS and counted.
"""

from __future__ import annotations

import ctypes as ct
import errno
import mmap
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from llmsec_tap.capture.queue import BatchQueue
from llmsec_tap.errors import KernelError, SourceError
from llmsec_tap.reassembly.packet import PacketHandler

_SOL_PACKET, _PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION, _PACKET_IGNORE_OUTGOING = 263, 5, 6, 10, 23
_TPACKET_V3 = 2
_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 3, 0x0800, 0x86DD
_PACKET_OUTGOING = 4
_SO_ATTACH_FILTER = 26
_BLOCK_BYTES, _BLOCKS = 1 << 20, 32
_FRAME_BYTES = 1 << 14
_RETIRE_MS = 20
_STATUS_USER = 1
# struct tpacket_block_desc: version, offset to private, then status, packets, offset to the first, length
_BLOCK: Final = struct.Struct("=IIIIII")
# struct tpacket3_hdr: next offset, seconds, nanoseconds, captured, on the wire, status, link header, network header
_PACKET: Final = struct.Struct("=IIIIIIHH")
_LINK_AT: Final = 48  # TPACKET_ALIGN(sizeof(struct tpacket3_hdr)): struct sockaddr_ll
_ADDRESS: Final = struct.Struct("=HHiHB")  # family, protocol (as on the wire), interface, hardware type, packet type
_IP: Final = frozenset((socket.htons(_ETH_P_IP), socket.htons(_ETH_P_IPV6)))
_POLL_S = 0.2


class PacketSource(threading.Thread):
    """Reads one interface (`any`: all) and hands blocks to the queue; `handle` is called by the decoding thread."""

    def __init__(self, interface: str, ports: frozenset[int] | None, queue: BatchQueue, handle: PacketHandler) -> None:
        super().__init__(name=f"llmsec-{interface}", daemon=True)
        self._queue = queue
        self._handle = handle
        self._stopping = threading.Event()
        self._loopback = _loopback_index() if interface == "any" or _is_loopback(interface) else -1
        self.interface = interface
        self.fault: BaseException | None = None
        self.packets = 0
        self.dropped = 0
        self._socket = self._open(interface, ports)

    def _open(self, interface: str, ports: frozenset[int] | None) -> socket.socket:
        index = 0
        if interface != "any":
            try:
                index = socket.if_nametoindex(interface)
            except OSError:
                known = ", ".join(name for _, name in socket.if_nameindex())
                raise SourceError(f"there is no interface {interface}", f"There are: {known}, any.") from None
        try:
            # Protocol 0 receives nothing until bound, so nothing comes before filter and ring stand. All interfaces is what an
            # unbound socket of a protocol receives; what comes too early there is judged by the decoder's own rules.
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0 if index else socket.htons(_ETH_P_ALL))
        except PermissionError:
            raise KernelError("reading an interface is not permitted", "Run as root, or with CAP_NET_RAW.") from None
        try:
            if ports is not None:
                _attach_filter(sock, port_filter(ports))
            if index and index == self._loopback:
                sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
            frames = _BLOCK_BYTES // _FRAME_BYTES * _BLOCKS
            request = struct.pack("=IIIIIII", _BLOCK_BYTES, _BLOCKS, _FRAME_BYTES, frames, _RETIRE_MS, 0, 0)
            sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
            self._ring = mmap.mmap(sock.fileno(), _BLOCK_BYTES * _BLOCKS, mmap.MAP_SHARED)
            if index:
                sock.bind((interface, _ETH_P_ALL))
        except OSError as fault:
            sock.close()
            raise SourceError(f"cannot read interface {interface}: {fault.strerror}", "Is it up? `ip link` shows.") from None
        return sock

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        try:
            self._run()
        except Exception as fault:  # noqa: BLE001 - handed to the main thread, which reports it and ends the run
            self.fault = fault
        finally:
            self._read_drops()
            self._socket.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLERR)
        block = 0
        while True:
            at = block * _BLOCK_BYTES
            _, _, status, count, first, length = _BLOCK.unpack_from(self._ring, at)
            if not status & _STATUS_USER:
                if self._stopping.is_set():
                    return
                self._read_drops()
                found = poll.poll(_POLL_S * 1000)
                if found and found[0][1] & select.POLLERR and self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENETDOWN:
                    raise OSError(errno.ENETDOWN, f"interface {self.interface} went down")
                continue
            # Copied at once and given back: decoding may take longer than the ring can wait.
            data = self._ring[at : at + min(length, _BLOCK_BYTES)]
            taken = self._queue.put_call(self._decoding(data, first, count), len(data))
            while not taken and not self._stopping.wait(0.01):  # full: the ring fills up meanwhile, and the kernel counts what it drops
                taken = self._queue.put_call(self._decoding(data, first, count), len(data))
            struct.pack_into("=I", self._ring, at + 8, 0)
            block = (block + 1) % _BLOCKS

    def _decoding(self, data: bytes, first: int, count: int) -> Callable[[], None]:
        def decode() -> None:
            at = first
            handle = self._handle
            for _ in range(count):
                following, seconds, nanoseconds, captured, on_wire, _, _, network = _PACKET.unpack_from(data, at)
                _, protocol, index, _, kind = _ADDRESS.unpack_from(data, at + _LINK_AT)
                if protocol in _IP and not (kind == _PACKET_OUTGOING and index == self._loopback):
                    self.packets += 1
                    start = at + network
                    handle(seconds * 1_000_000_000 + nanoseconds, data, start, start + captured, on_wire)
                at += following

        return decode

    def _read_drops(self) -> None:
        """The kernel's counters begin anew at each reading."""
        _, dropped, _ = struct.unpack("=III", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 12))
        self.dropped += dropped


def _loopback_index() -> int:
    return next((index for index, name in socket.if_nameindex() if _is_loopback(name)), -1)


def _is_loopback(interface: str) -> bool:
    try:
        return int(Path(f"/sys/class/net/{interface}/flags").read_text(), 16) & 8 != 0
    except (OSError, ValueError):
        return False


Instruction = tuple[int, int, int, int]


def port_filter(ports: frozenset[int]) -> list[Instruction]:
    """A classic BPF program over an IP packet: TCP from or to one of the ports, plus what it cannot judge.

    Loads: 0x30 byte, 0x28 half word, 0x48 half word at X+k, 0xB1 4*([k]&15) into X. Jumps: 0x15 equal, 0x45 bits set. 0x06 return.
    """
    numbers = sorted(ports)
    both = 2 * (len(numbers) + 1)  # one side: load, compare each
    program: list[Instruction] = [
        (0x30, 0, 0, 0),  # version
        (0x54, 0, 0, 0xF0),
        (0x15, 0, 6 + both, 0x40),  # not IPv4: to the IPv6 part
        (0x30, 0, 0, 9),  # protocol
        (0x15, 0, 255, 6),  # patched: reject
        (0x28, 0, 0, 6),
        (0x45, 255, 0, 0x1FFF),  # patched: a later fragment: accept, so that it is counted
        (0xB1, 0, 0, 0),
        *_sides(numbers, 0x48),
        (0x06, 0, 0, 0),
        (0x30, 0, 0, 6),  # IPv6: next header
        (0x15, 0, 255, 6),  # patched: not TCP: accept if it may be an extension header, judged later
        *_sides(numbers, 0x28, 40),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 0),  # reject
        (0x06, 0, 0, 0x7FFFFFFF),  # accept
    ]
    accept, reject = len(program) - 1, len(program) - 2
    patched = []
    for at, (code, true, false, value) in enumerate(program):
        if (code, value) == (0x15, 6) and false == 255:
            # Another number in IPv6 may be an extension header with TCP behind it: the decoder judges.
            false = (reject if at < 8 else accept) - at - 1
        elif code == 0x45 or true == 254:
            true = accept - at - 1
        patched.append((code, true, false, value))
    if len(patched) > 250:
        raise SourceError(f"{len(ports)} ports are too many for one filter", "Leave --port out, and every port is read.")
    return patched


def _sides(numbers: list[int], load: int, base: int = 0) -> list[Instruction]:
    out: list[Instruction] = []
    for offset in (0, 2):
        out.append((load, 0, 0, base + offset))
        out += [(0x15, 254, 0, number) for number in numbers]
    return out


class _Filter(ct.Structure):
    _fields_ = (("count", ct.c_uint16), ("program", ct.c_void_p))


def _attach_filter(sock: socket.socket, program: list[Instruction]) -> None:
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ct.create_string_buffer(code, len(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(_Filter(len(program), ct.addressof(buffer))))
