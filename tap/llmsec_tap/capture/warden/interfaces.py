"""The packet sockets of one interface, as the warden holds them: one for each decoder, opened together."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from llmsec_tap.capture.packets.packet_socket import interface_of
from llmsec_tap.errors import LLMSecError

Opener = Callable[[], list[socket.socket]]
"""Opens a socket for each decoder. Raises SourceError, KernelError."""


class Interface:
    """Decoders are given the socket of their number. For several threads: each decoder has one that asks."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._sockets: list[socket.socket] = []
        self._name = ""
        self._due: set[int] = set()  # decoders that do not have theirs yet, of those that were opened anew
        self._lock = threading.Lock()

    def socket_of(self, decoder: int) -> socket.socket:
        """Raises as the opener."""
        with self._lock:
            if not self._sockets:
                self._open()
            return self._sockets[decoder]

    def socket_anew(self, decoder: int) -> socket.socket | None:
        """Only where the interface is gone for good and is there again: a socket's ring is large, and a decoder may not have any number."""
        with self._lock:
            if decoder not in self._due:
                if not self._name or interface_of(self._sockets[decoder]):
                    return None
                try:
                    self._open()
                except LLMSecError:
                    return None  # it is not there yet
                self._due = set(range(len(self._sockets)))
            self._due.remove(decoder)
            return self._sockets[decoder]

    def _open(self) -> None:
        opened = self._opener()
        self.close()
        self._sockets = opened
        self._name = interface_of(opened[0])

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets = []
