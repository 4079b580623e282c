"""The detection process as its client holds it: two descriptors, and how to end it. Started here, or by the capture's warden."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
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

    def __init__(self) -> None:
        self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own module
        assert self._process.stdin is not None
        assert self._process.stdout is not None
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

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class RemoteDetector:
    """Started and ended by another process: `start` gives its input and output, `end` kills it."""

    def __init__(self, start: Callable[[], tuple[int, int]], end: Callable[[], None]) -> None:
        self.to, self.back = start()
        self._end = end
        self._open = {self.to, self.back}
        for descriptor in self._open:
            os.set_blocking(descriptor, False)

    def close_input(self) -> None:
        self._close(self.to)

    def close(self, patience_s: float) -> None:
        self._close(self.back)  # whoever started it waits for its end

    def kill(self) -> None:
        self._end()
        self._close(self.to)
        self._close(self.back)

    def _close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            os.close(descriptor)
