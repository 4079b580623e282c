"""A TCP relay that writes down what passes: real peers talk through it, and the talk is replayed. It needs no privilege."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from support.wire import Talk, pcap


class Relay:
    """`port` is where clients connect; `capture()` is what was `said` on all connections, as (side, bytes), side 0 being the client."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self.said: list[list[tuple[int, bytes]]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._listener.close()
        for end in self._sockets:
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                self._sockets += [client, server]
                said: list[tuple[int, bytes]] = []
                self.said.append(said)
                for side, (source, target) in enumerate(((client, server), (server, client))):
                    thread = threading.Thread(target=self._carry, args=(side, source, target, said), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    @staticmethod
    def _carry(side: int, source: socket.socket, target: socket.socket, said: list[tuple[int, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                said.append((side, data))
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def capture(self) -> bytes:
        """What was said on all connections. A connection that is open still ends with the capture."""
        for thread in self._threads:
            thread.join(timeout=2)
        frames: list[tuple[int, bytes]] = []
        for number, said in enumerate(self.said):
            talk = Talk(client=("10.1.0.7", 40000 + number), server=("10.2.0.9", 8000)).open()
            for side, data in said:
                talk.say(side, data)
            frames += talk.close().frames
        return pcap(sorted(frames))
