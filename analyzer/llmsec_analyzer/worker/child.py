"""The detection process as its client holds it: two descriptors, and how to end it. Started here, or by the capture's warden."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

# -P: nothing is imported from wherever the command was started.
COMMAND = (sys.executable, "-P", "-m", "llmsec_analyzer.worker")


class Detector(Protocol):
    """`to` is its input, `back` its answers; both are non-blocking and closed by `kill` or `close`."""

    to: int
    back: int

    def close_input(self) -> None:
        """It ends when it has answered what it was asked."""

    def close(self, patience_s: float) -> None:
        """Wait for its end, but not for ever."""

    def kill(self) -> None: ...


StartDetector = Callable[[], Detector]
"""Raises OSError where it cannot be started."""


class ChildDetector:
    """A child of this process."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own module
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self.to, self.back = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self.to, self.back):
            os.set_blocking(descriptor, False)

    def close_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self, patience_s: float) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def abandon(self) -> None:
        """In a forked child: the process is the parent's. Its descriptors are closed here, so that it ends when the parent's do."""
        self._process.returncode = 0  # it is not ours to wait for
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class RemoteDetectors:
    """Call it for a detector that another process starts and ends, addressed by number; one that is gone leaves its number to the next.

    `start` takes the number and gives the detector's input and output; `end` kills it and waits for its end.
    """

    def __init__(self, start: Callable[[int], tuple[int, int]], end: Callable[[int], None], numbers: int) -> None:
        self._start = start
        self._end = end
        self._free = set(range(numbers))

    def __call__(self) -> Detector:
        if not self._free:
            raise OSError(errno.EAGAIN, "as many run as may")
        number = min(self._free)
        to, back = self._start(number)
        self._free.remove(number)

        def end() -> None:
            self._end(number)
            self._free.add(number)

        return RemoteDetector(to, back, end)


class RemoteDetector:
    def __init__(self, to: int, back: int, end: Callable[[], None]) -> None:
        self.to, self.back = to, back
        self._end: Callable[[], None] | None = end
        self._open = {to, back}
        for descriptor in self._open:
            os.set_blocking(descriptor, False)

    def close_input(self) -> None:
        self._close(self.to)

    def close(self, patience_s: float) -> None:
        self.kill()  # its output has ended, or nobody waits for it any longer

    def kill(self) -> None:
        end, self._end = self._end, None
        if end is not None:  # once: its number may be another's then
            end()
        self._close(self.to)
        self._close(self.back)

    def _close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            os.close(descriptor)
