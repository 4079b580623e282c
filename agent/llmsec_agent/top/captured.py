"""The live view over a capture of its own: three processes, so that what draws has no rights and what has rights draws nothing.

The command keeps root's rights, does nothing but wait, and can therefore stop the capture; the capture is the ordinary command, its events a
pipe; the third draws, as the user who may do least. However the drawing ends, the capture is interrupted as by Ctrl-C: probes go, and what it
stores is stored.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Final

from llmsec_agent.text import leave, report
from llmsec_tap.visible import visible

# Longer than a capture takes to end (stop.GRACE_S), whatever it is at.
_ENDING_S: Final = 15.0
_MAX_SAID: Final = 20
_MAX_LINE: Final = 2000
_READ: Final = 1 << 16


def watch_capture(options: Sequence[str], draw: Callable[[int], None]) -> int:
    """Until the user leaves, or the capture ends. `draw` runs in a process of its own, with the descriptor of the events. The exit code is the
    capture's, whose warnings and errors are reported when the screen is gone.
    """
    events, output = os.pipe()
    command = [sys.executable, "-m", "llmsec_agent.cli.tap.app", "capture", *options, "--format", "events"]
    capture = subprocess.Popen(  # noqa: S603 - this program, with its own options
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, process_group=0
    )
    os.close(output)
    assert capture.stderr is not None
    said = _Said(capture.stderr.fileno())
    drawing = os.fork()
    if drawing == 0:
        capture.stderr.close()
        leave(lambda: _drawn(draw, events))
    os.close(events)
    with _ending(drawing):
        code = _until_it_ends(drawing, said)
    with contextlib.suppress(ProcessLookupError):
        capture.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _ENDING_S
    while capture.poll() is None and time.monotonic() < deadline:
        said.read(0.1)
    if capture.poll() is None:
        capture.kill()
        report("warning: the capture did not end in time and was killed")
    capture.wait()
    said.read(0.1)
    return _judged(capture.returncode, code, said.lines())


def _drawn(draw: Callable[[int], None], events: int) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    draw(events)
    return 0


def _until_it_ends(drawing: int, said: _Said) -> int:
    """The exit code of what draws."""
    ended = os.pidfd_open(drawing)
    try:
        while not select.select([ended], [], [], 0)[0]:
            said.read(0.5, ended)
    finally:
        os.close(ended)
    return os.waitstatus_to_exitcode(os.waitpid(drawing, 0)[1])


@contextlib.contextmanager
def _ending(drawing: int) -> Iterator[None]:
    """Whoever ends this command ends what draws, which cleans the terminal; the rest follows from that."""

    def end(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(drawing, signal.SIGTERM)

    earlier = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number in earlier:
            signal.signal(number, signal.SIG_IGN)  # what follows takes a moment, and must be done


class _Said:
    """The capture's standard error: the last of its warnings and errors."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[str] = deque(maxlen=_MAX_SAID)
        self._rest = b""
        self._has_ended = False

    def read(self, within_s: float, *others: int) -> None:
        """What is there, or comes within this time; others that can be read end the wait."""
        watched = [*others] if self._has_ended else [self._descriptor, *others]
        if self._descriptor not in select.select(watched, [], [], within_s)[0]:
            return
        piece = os.read(self._descriptor, _READ)
        self._has_ended = not piece
        *lines, rest = (self._rest + piece).split(b"\n")
        self._rest = rest[:_MAX_LINE]
        for line in lines:
            self._take(line)

    def lines(self) -> list[str]:
        if self._rest:
            self._take(self._rest)
            self._rest = b""
        return list(self._lines)

    def _take(self, line: bytes) -> None:
        text = visible(line[:_MAX_LINE].decode("utf-8", "replace"))
        if text.startswith(("error:", "warning:", "Error:")):
            self._lines.append(text)


def _judged(capture: int, drawing: int, lines: Sequence[str]) -> int:
    """Reports what was wrong; the exit code."""
    for line in lines:
        report(line)
    # Ended by our own SIGINT, before it could handle that.
    code = 0 if capture in (0, 130, -signal.SIGINT) else capture if capture > 0 else 128 - capture
    if code:
        report(f"the capture ended with exit code {code}")
        return code
    return drawing if drawing >= 0 else 128 - drawing
