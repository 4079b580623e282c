"""Packet sockets with a TPACKET_V3 ring and a filter: what needs CAP_NET_RAW, and no look at any packet.

Several decoders read one interface by a socket each in one fan-out group: the kernel chooses the socket by a hash of addresses and
ports that is the same for both directions, after it has put IPv4 fragments together. It cannot see the ports of a later IPv6 fragment.

Links: packet(7), linux/Documentation/networking/packet_mmap.rst, net/packet/af_packet.c (fanout_demux_hash).
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import socket
import struct
from pathlib import Path
from typing import Final

from llmsec_tap.errors import KernelError, SourceError

SOL_PACKET, PACKET_STATISTICS = 263, 6
_SOL_PACKET, _PACKET_RX_RING, _PACKET_VERSION, _PACKET_IGNORE_OUTGOING = SOL_PACKET, 5, 10, 23
_TPACKET_V3 = 2
_ETH_P_ALL = 3
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_PACKET_FANOUT, _FANOUT_HASH = 18, 0
_FANOUT_NEW_ID, _FANOUT_WITHOUT_OUTGOING, _FANOUT_DEFRAGMENT = 0x2000, 0x4000, 0x8000
_IFF_UP, _IFF_LOOPBACK = 1, 8
RING_BLOCK_BYTES: Final = 1 << 20
_RING_BLOCKS, _LEAST_BLOCKS = 32, 8
_FRAME_BYTES = 1 << 14
_RETIRE_MS = 20


def ring_blocks(sockets: int) -> int:
    """How many blocks the ring of each has, where one interface is read by so many."""
    return max(_LEAST_BLOCKS, _RING_BLOCKS // sockets)


def open_packet_sockets(interface: str, ports: frozenset[int] | None, count: int = 1) -> list[socket.socket]:
    """Sockets that receive from now on into their rings, all that comes (or TCP of these ports), each packet into one of them.

    Raises SourceError, KernelError.
    """
    with contextlib.ExitStack() as undo:
        # Until all are in the group, nothing passes: one that is bound and not yet a member would get what the others get, too.
        sockets = [undo.enter_context(_open(interface, ports if count == 1 else frozenset(), ring_blocks(count))) for _ in range(count)]
        if count > 1:
            try:
                _join(sockets, without_outgoing=interface != "any" and is_loopback(interface))
                for sock in sockets:
                    _attach_filter(sock, port_filter(ports)) if ports is not None else sock.setsockopt(
                        socket.SOL_SOCKET, _SO_DETACH_FILTER, 0
                    )
            except OSError as fault:
                raise SourceError(
                    f"cannot read interface {interface} by {count} decoders: {fault.strerror}", "One can: --decoders 1."
                ) from None
        undo.pop_all()
    return sockets


def _join(sockets: list[socket.socket], *, without_outgoing: bool) -> None:
    """Make a fan-out group of them. The kernel finds a number for it that no other capture has. Raises OSError."""
    flags = _FANOUT_DEFRAGMENT | (_FANOUT_WITHOUT_OUTGOING if without_outgoing else 0)
    number, new = 0, _FANOUT_NEW_ID
    for sock in sockets:
        sock.setsockopt(_SOL_PACKET, _PACKET_FANOUT, struct.pack("=I", number | (_FANOUT_HASH | flags | new) << 16))
        number, new = sock.getsockopt(_SOL_PACKET, _PACKET_FANOUT) & 0xFFFF, 0


def _open(interface: str, ports: frozenset[int] | None, blocks: int) -> socket.socket:
    """One of them; with an empty set of ports nothing passes."""
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
            _attach_filter(sock, port_filter(ports) if ports else _NOTHING)
        if index and index == loopback_index():
            sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        frames = RING_BLOCK_BYTES // _FRAME_BYTES * blocks
        request = struct.pack("=IIIIIII", RING_BLOCK_BYTES, blocks, _FRAME_BYTES, frames, _RETIRE_MS, 0, 0)
        sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        if index:
            sock.bind((interface, _ETH_P_ALL))
    except OSError as fault:
        sock.close()
        raise SourceError(f"cannot read interface {interface}: {fault.strerror}", "Is it up? `ip link` shows.") from None
    return sock


def interface_of(sock: socket.socket) -> str:
    """What it reads; empty where it reads all, or where its interface is gone. One made anew under the same name is another."""
    return str(sock.getsockname()[0])


def loopback_index() -> int:
    """-1 where there is none."""
    return next((index_of(folder.name) for folder in Path("/sys/class/net").glob("*") if is_loopback(folder.name)), -1)


def index_of(interface: str) -> int:
    """Read from /sys: asking by a socket is not open to the decoder. -1 where there is no such interface."""
    try:
        return int(Path(f"/sys/class/net/{interface}/ifindex").read_text())
    except (OSError, ValueError):
        return -1


def is_loopback(interface: str) -> bool:
    return _flags(interface) & _IFF_LOOPBACK != 0


def is_up(interface: str) -> bool:
    return _flags(interface) & _IFF_UP != 0


def _flags(interface: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{interface}/flags").read_text(), 16)
    except (OSError, ValueError):
        return 0


Instruction = tuple[int, int, int, int]
_NOTHING: Final[list[Instruction]] = [(0x06, 0, 0, 0)]


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
