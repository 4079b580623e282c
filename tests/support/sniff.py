"""Records loopback traffic of one TCP port as a capture, with a packet socket (root or CAP_NET_RAW)."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

from support.wire import pcap

_ETH_P_ALL = 3
_OUTGOING = 4  # on loopback every packet is seen twice: as it leaves and as it arrives
_SO_TIMESTAMPNS = 35


def can_sniff() -> bool:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)).close()
    except (PermissionError, AttributeError, OSError):
        return False
    return True


class Recording:
    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.dropped = 0

    def capture(self) -> bytes:
        return pcap(self.frames)


@contextlib.contextmanager
def sniff(port: int) -> Iterator[Recording]:
    """Record until the block ends; frames carry the kernel's receive time."""
    recording = Recording()
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    sock.bind(("lo", 0))
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.settimeout(0.05)
    wanted = struct.pack(">H", port)
    stop = threading.Event()

    def run() -> None:
        while True:
            try:
                frame, ancillary, _, address = sock.recvmsg(262144, 64)
            except TimeoutError:
                if stop.is_set():
                    return
                continue
            if address[2] == _OUTGOING or frame[12:14] != b"\x08\x00" or frame[23] != 6:
                continue
            if wanted not in (frame[34:36], frame[36:38]):
                continue
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2][:16])
            recording.frames.append((seconds * 10**9 + nanoseconds, frame))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield recording
        time.sleep(0.15)
    finally:
        stop.set()
        thread.join()
        _, drops = struct.unpack("II", sock.getsockopt(263, 6, 8))  # SOL_PACKET, PACKET_STATISTICS
        recording.dropped = drops
        sock.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
