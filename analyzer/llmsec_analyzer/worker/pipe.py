"""Messages to one detection process and back, over two non-blocking descriptors."""

from __future__ import annotations

import contextlib
import os
import select
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import msgspec

from llmsec_analyzer.worker.child import Detector
from llmsec_analyzer.worker.protocol import Frames, FromWorker, ToWorker, frame

_READ_BYTES = 1 << 20
_WRITE_BYTES = 64 << 10  # what a pipe takes at once


class PipeEndedError(Exception):
    """Nothing more will come of it; the text says why."""


class Pipe:
    """`send` only collects; `step` moves bytes when `ready` says that some can be moved."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._out = bytearray()  # whole messages, the first of which may be under way
        self._urgent: deque[bytes] = deque()
        self._waiting: deque[bytes] = deque()
        self.waiting_bytes = 0  # what the process has not taken yet
        self._frames = Frames(FromWorker)
        self._is_open = True  # its input

    def send(self, message: ToWorker, *, urgent: bool = False) -> int:
        """The bytes it takes. What is urgent passes what waits."""
        data = frame(message)
        (self._urgent if urgent else self._waiting).append(data)
        self.waiting_bytes += len(data)
        return len(data)

    def _fill(self) -> None:
        for messages in (self._urgent, self._waiting):
            while messages and len(self._out) < _WRITE_BYTES:
                self._out += messages.popleft()

    def step(self) -> list[FromWorker] | None:
        """Read and write once; None where nothing could be moved. Raises PipeEndedError."""
        moved = False
        messages: list[FromWorker] = []
        with contextlib.suppress(BlockingIOError):
            messages = self._read()
            moved = True
        try:
            if not self._out:
                self._fill()
            if self._out:
                with memoryview(self._out) as view:
                    sent = os.write(self._detector.to, view[:_READ_BYTES])
                del self._out[:sent]
                self.waiting_bytes -= sent
                moved = True
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            if not messages:  # else the end is met at the next step
                raise PipeEndedError("ended by itself") from None
        return messages if moved else None

    def _read(self) -> list[FromWorker]:
        try:
            data = os.read(self._detector.back, _READ_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            raise PipeEndedError("ended by itself")
        try:
            return list(self._frames.feed(data))
        except msgspec.MsgspecError as fault:
            raise PipeEndedError(f"sent an invalid message ({type(fault).__name__})") from fault

    def close_input(self) -> None:
        """The process answers what it was sent, and ends. Only once nothing waits to be sent."""
        if self._is_open:
            self._is_open = False
            self._detector.close_input()

    def rest(self, left_s: Callable[[], float]) -> Iterator[FromWorker]:
        """What it still says while there is time, its input closed."""
        poll = select.poll()
        poll.register(self._detector.back, select.POLLIN)
        with contextlib.suppress(PipeEndedError, OSError):
            while poll.poll(max(0.0, left_s()) * 1000):
                yield from self._read()

    def close(self, patience_s: float) -> None:
        self.close_input()
        self._detector.close(patience_s)

    def kill(self) -> None:
        self._is_open = False
        self._detector.kill()

    @staticmethod
    def ready(pipes: Iterable[Pipe], wait_s: float) -> list[Pipe]:
        """Those of which something can be moved, after so many seconds at most."""
        poll = select.poll()
        owner: dict[int, Pipe] = {}
        for pipe in pipes:
            poll.register(pipe._detector.back, select.POLLIN)  # noqa: SLF001 - its own class
            owner[pipe._detector.back] = pipe  # noqa: SLF001
            if pipe.waiting_bytes:
                poll.register(pipe._detector.to, select.POLLOUT)  # noqa: SLF001
                owner[pipe._detector.to] = pipe  # noqa: SLF001
        return list({id(owner[number]): owner[number] for number, _ in poll.poll(wait_s * 1000)}.values())
