"""The decoder's end of the warden's socket: the ring, totals, facts of processes, and help that needs rights."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Final

from llmsec_tap.capture.ebpf.loader_api import ConnectionLoss, KernelTotals
from llmsec_tap.capture.ebpf.ring import Ring
from llmsec_tap.capture.host.process import Facts
from llmsec_tap.capture.warden import protocol
from llmsec_tap.capture.warden.protocol import Ask

# The warden may be examining a file meanwhile; an exchange does not wait longer for the name of its process.
_FACTS_WAIT_S = 0.25
_WAIT_S: Final = 30.0
_MAX_DESCRIPTORS: Final = 64


class WardenClient:
    """May be asked from several threads. A warden that is gone, or does not answer in time, gives what is documented of each."""

    def __init__(self, sock: socket.socket, stop_pipe: int) -> None:
        self._socket = sock
        self._stop_pipe = stop_pipe
        self._number = 0
        self._lock = threading.Lock()
        self._totals = KernelTotals()
        self._probes = protocol.Probes()
        self.ring: Ring | None = None

    def await_attached(self) -> bool:
        """Until the probes stand; then `ring` is here. False: the warden ended before, and says why where there is something to say."""
        try:
            payload, descriptors = self._ask(Ask.ATTACHED, wait_s=None)
        except OSError:
            return False
        (size,) = protocol.ATTACHED.unpack(payload)
        if size:
            self.ring = Ring(descriptors[0], size)
            os.close(descriptors[0])
        return True

    def open_sockets(self) -> list[socket.socket]:
        """The packet sockets, which receive from now on. None of them where the warden could not open all."""
        try:
            _, descriptors = self._ask(Ask.SOCKETS)
        except OSError:
            return []
        return [socket.socket(fileno=descriptor) for descriptor in descriptors]

    def open_socket(self, number: int) -> socket.socket | None:
        """One of them again, by its place among them. None while its interface is not there, or is the one that it was."""
        try:
            _, descriptors = self._ask(Ask.SOCKET, number)
        except OSError:
            return None
        return socket.socket(fileno=descriptors[0]) if descriptors else None

    def on_word(self, stop: Callable[[], None], news: Callable[[bytes], None] = lambda _: None) -> None:
        """Call `stop` when the warden says so, or is gone; `news` with each message of it. On a thread of its own."""

        def wait() -> None:
            while os.read(self._stop_pipe, 1) == protocol.NEWS:
                news(self._in_pieces(Ask.NEWS))
            stop()

        threading.Thread(target=wait, name="llmsec-stop", daemon=True).start()

    def _ask(
        self, kind: Ask, argument: int = 0, descriptors: tuple[int, ...] = (), *, wait_s: float | None = _WAIT_S
    ) -> tuple[bytes, list[int]]:
        """The answer's payload and descriptors. Raises OSError (TimeoutError among them)."""
        with self._lock:
            self._number = self._number + 1 & 0xFFFFFFFF
            self._socket.settimeout(wait_s)
            socket.send_fds(self._socket, [protocol.HEAD.pack(kind, self._number, argument)], descriptors)
            while True:
                data, received, _, _ = socket.recv_fds(self._socket, protocol.MAX_MESSAGE, _MAX_DESCRIPTORS)
                if not data:
                    raise ConnectionResetError("the warden is gone")
                _, number, _ = protocol.HEAD.unpack_from(data)
                if number == self._number:
                    return data[protocol.HEAD.size :], list(received)
                for descriptor in received:  # the answer to a question that was given up
                    os.close(descriptor)

    # --- the kernel half, as live/capture.py and live/reader.py see a loader -------------------------------------------------------

    def wait(self, timeout_s: float) -> None:
        if self.ring is not None:
            self.ring.wait(timeout_s)

    def consume(self) -> list[bytes]:
        return self.ring.consume() if self.ring is not None else []

    def totals(self) -> KernelTotals:
        """The last known ones where there is no answer."""
        try:
            payload, _ = self._ask(Ask.TOTALS)
        except OSError:
            payload = b""
        if payload:
            self._totals = KernelTotals(*protocol.TOTALS.unpack(payload))
        return self._totals

    def losses(self) -> list[ConnectionLoss]:
        """What is known of them where the answer ends early."""
        found: list[ConnectionLoss] = []
        try:
            while True:
                payload, _ = self._ask(Ask.LOSSES, len(found))
                some = [ConnectionLoss(*values) for values in protocol.LOSS.iter_unpack(payload)]
                found += some
                if len(some) < protocol.LOSSES_A_MESSAGE:
                    return found
        except OSError:
            return found

    def detach_all(self) -> None:
        """The end of the capture, for the other decoders, too. Nothing to do where the warden is gone: its probes went with it."""
        try:
            self._ask(Ask.DETACH)
        except OSError:
            return

    def close(self) -> None:
        if self.ring is not None:
            self.ring.close()

    # --- help ---------------------------------------------------------------------------------------------------------

    def facts(self, pid: int) -> Facts:
        """All unknown where there is no answer."""
        try:
            payload, _ = self._ask(Ask.FACTS, pid, wait_s=_FACTS_WAIT_S)
        except OSError:
            return Facts(None, None, None)
        comm, exe, container, late = (part.decode(errors="surrogateescape") or None for part in payload.split(b"\0"))
        return Facts(comm, exe, container, None if late is None else int(late))

    def start_detector(self, number: int) -> tuple[int, int]:
        """Input and output of a new detection process; an earlier one of this number is ended. Raises OSError where there is none."""
        _, descriptors = self._ask(Ask.DETECTOR, number)
        if len(descriptors) != 2:
            raise OSError(0, "the warden could not start it")
        return descriptors[0], descriptors[1]

    def kill_detector(self, number: int) -> None:
        try:
            self._ask(Ask.KILL_DETECTOR, number)
        except OSError:
            return

    def probes(self) -> protocol.Probes:
        """The last known ones where there is no answer."""
        data = self._in_pieces(Ask.PROBES)
        if data:
            self._probes = protocol.unpacked(data)
        return self._probes

    def _in_pieces(self, kind: Ask) -> bytes:
        """Empty where the warden is gone meanwhile."""
        data = b""
        try:
            while True:
                piece, _ = self._ask(kind, len(data))
                data += piece
                if len(piece) < protocol.PIECE:
                    return data
        except OSError:
            return b""

    def capturing(self) -> None:
        """Say that this decoder reads from now on."""
        try:
            self._ask(Ask.CAPTURING)
        except OSError:
            return

    def alive(self) -> None:
        """Say that decoding makes progress."""
        try:
            self._ask(Ask.ALIVE)
        except OSError:
            return

    def compact(self, folder: int) -> None:
        """Merge the parts of the store whose folder this descriptor is, aside. Nothing happens where the warden is gone."""
        try:
            self._ask(Ask.COMPACT, descriptors=(folder,))
        except OSError:
            return
