"""Standard output: a line for each exchange, as a table or as JSON. The reader may be slow, stopped or gone, the disk behind it full.

Several processes may write to it (`Turn`): each keeps its turn from the first byte of a line to the last.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from llmsec_agent.lane import ReaderGoneError, SinkError
from llmsec_tap.counters import Sample
from llmsec_tap.visible import json_visible

# A pipe or terminal that is ready takes this much without blocking (POSIX: PIPE_BUF is at least 512, Linux has 4,096).
_ATOMIC: Final = select.PIPE_BUF
_READY_MS: Final = 200


class Turn(Protocol):
    """See siblings.OutputTurn."""

    def take(self, within_s: float) -> bool: ...

    def give(self) -> None: ...


class StandardOutput:
    """`row` makes the text of an exchange, or of an event where it `takes_events`; `header` stands before the first. `on_reader_gone` is called once, on the lane's thread.

    `turn`: where other processes write there, too.
    """

    name = "stdout"

    def __init__(
        self,
        row: Callable[[Any], bytes],
        *,
        takes_events: bool = False,
        header: bytes | None,
        on_reader_gone: Callable[[], None],
        descriptor: int = 1,
        turn: Turn | None = None,
    ) -> None:
        self.takes_events = takes_events
        self._turn = turn
        self._row = row
        self._on_reader_gone = on_reader_gone
        self._descriptor = descriptor
        self._may_block = not stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._begun = 0  # bytes of the first item that are written already
        self._header = header + b"\n" if header is not None else b""

    def encode(self, item: Any) -> tuple[bytes, int]:
        line = self._row(item) + b"\n"
        return line, len(line)

    def write(self, items: Sequence[bytes]) -> int:
        if self._turn is None:
            return self._write(items)
        if not self._turn.take(_READY_MS / 1000):
            return 0
        try:
            return self._write(items)
        except ReaderGoneError:
            self._begun, self._header = 0, b""
            raise
        finally:
            if not self._begun and not self._header:
                self._turn.give()

    def _write(self, items: Sequence[bytes]) -> int:
        header, self._header = self._header, b""
        data = header + b"".join(items)
        written = self._put(data, self._begun)
        if written < len(header):
            self._header = header[written:]
            return 0
        left = written - len(header)
        for count, item in enumerate(items):
            if left < len(item):
                self._begun = left
                return count
            left -= len(item)
        self._begun = 0
        return len(items)

    def _put(self, data: bytes, at: int) -> int:
        """Up to where the data is written; less than all where the reader is slow. Raises SinkError where nothing could be."""
        begun = at
        view = memoryview(data)
        try:
            while at < len(data):
                size = len(data) - at
                if self._may_block:
                    poll = select.poll()
                    poll.register(self._descriptor, select.POLLOUT)
                    if not poll.poll(_READY_MS):
                        return at
                    size = min(size, _ATOMIC)
                at += os.write(self._descriptor, view[at : at + size])
        except BrokenPipeError:
            self._on_reader_gone()
            raise ReaderGoneError("standard output: its reader is gone") from None
        except OSError as fault:
            if at > begun:
                return at
            hint = "Free some space." if fault.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise SinkError(f"cannot write to standard output: {fault.strerror}", hint) from None
        return at

    def tick(self) -> None:
        """The header is shown before there is a row."""
        if self._header:
            self.write([])

    def close(self) -> None:
        self.tick()

    def samples(self) -> Iterable[Sample]:
        return ()


def json_row(to_line: Callable[[Any], bytes], *, on_terminal: bool) -> Callable[[Any], bytes]:
    """On a terminal, what could steer it is written as JSON escapes."""
    if not on_terminal:
        return to_line
    return lambda item: json_visible(to_line(item).decode()).encode()
