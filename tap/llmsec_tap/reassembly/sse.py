"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

To the letter, with these choices of an observer
- CR, LF and CRLF end lines; a BOM at the start is dropped; comments are counted as nothing; one space after the colon is dropped.
- An event without data is not dispatched (the specification's rule); its name is forgotten with it.
- The end of the stream dispatches an unfinished event that has data: the specification discards it, but the bytes were sent, and
  several servers end with no empty line. `unfinished` says that it happened.
- Data stays bytes: JSON decoders take bytes, and the specification's UTF-8 decoding is theirs to do.
"""

from __future__ import annotations

from collections.abc import Callable

from llmsec_tap.limits import MAX_EVENT_BYTES

EventSink = Callable[[int, "str | None", bytes], None]
"""(capture time of the byte that completed the event, event name or None, data)"""


class SSEParser:
    """Feed bytes in any cut. Bound: one event holds at most limits.MAX_EVENT_BYTES; a longer one is dropped (`event_limit`)."""

    __slots__ = (
        "_anomaly",
        "_at_start",
        "_between",
        "_buffer",
        "_data",
        "_name",
        "_on_event",
        "_scanned",
        "_size",
        "_skip_lf",
        "_skipping",
        "fed_bytes",
        "unfinished",
    )

    def __init__(self, on_event: EventSink, on_anomaly: Callable[[str], None]) -> None:
        self._on_event = on_event
        self._anomaly = on_anomaly
        self._buffer = bytearray()
        self._scanned = 0
        self._data: list[bytes] = []
        self._size = 0
        self._name: str | None = None
        self._skip_lf = False  # the last line ended with CR at the end of a feed: an LF may belong to it
        self._skipping = False  # the current event is over the limit, or damaged
        self._at_start = True
        self._between = False  # no state at all: the next byte begins an event
        self.fed_bytes = 0
        self.unfinished = False

    def feed(self, ts_ns: int, data: bytes) -> None:
        self.fed_bytes += len(data)
        # The usual input is one whole event of one data line, between events.
        if self._between and data.startswith(b"data: ") and data.find(b"\n") == len(data) - 2 and data[-1] == 10 and b"\r" not in data:
            self._on_event(ts_ns, None, data[6:-2])
            return
        buffer = self._buffer
        if self._skip_lf:
            self._skip_lf = False
            if data[:1] == b"\n":
                data = data[1:]
        if self._at_start:
            if len(buffer) + len(data) < 3 and b"\xef\xbb\xbf".startswith(bytes(buffer) + data):
                buffer += data  # the first bytes of a BOM, perhaps
                return
            self._at_start = False
            if (bytes(buffer[:3]) + data[:3])[:3] == b"\xef\xbb\xbf":
                data = data[3 - len(buffer) :]
                buffer.clear()
        buffer += data
        self._lines(ts_ns)
        self._between = not (buffer or self._data or self._name or self._skip_lf or self._skipping)

    def _lines(self, ts_ns: int) -> None:
        buffer = self._buffer
        start, size = 0, len(buffer)
        has_cr = buffer.find(b"\r", self._scanned) >= 0
        search = self._scanned
        while True:
            end = buffer.find(b"\n", search)
            if has_cr:
                cr = buffer.find(b"\r", search, end if end >= 0 else size)
                if cr >= 0:
                    end = cr
            if end < 0:
                break
            line = bytes(buffer[start:end])
            start = end + 1
            if buffer[end] == 13:
                if start == size:
                    self._skip_lf = True
                elif buffer[start] == 10:
                    start += 1
            search = start
            self._line(ts_ns, line)
        if start:
            del buffer[:start]
        self._scanned = len(buffer)
        if len(buffer) > MAX_EVENT_BYTES:
            self._over_limit()
            del buffer[:]
            self._scanned = 0

    def _over_limit(self) -> None:
        if not self._skipping:
            self._skipping = True
            self._anomaly("event_limit")
        self._data.clear()
        self._size = 0

    def _line(self, ts_ns: int, line: bytes) -> None:
        if not line:
            data, name = self._data, self._name
            self._name = None
            if self._skipping:
                self._skipping = False
            elif data:
                self._on_event(ts_ns, name, data[0] if len(data) == 1 else b"\n".join(data))
            self._data = []
            self._size = 0
            return
        if self._skipping:
            return
        field, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            self._size += len(value) + 1
            if self._size > MAX_EVENT_BYTES:
                self._over_limit()
            else:
                self._data.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace") or None
        # `id` and `retry` steer reconnection only; a field with no name is a comment; others are ignored by the specification.

    def gap(self) -> None:
        """Lost bytes: the event they were in is dropped. What is left of a torn line names no known field and is ignored."""
        self._buffer.clear()
        self._scanned = 0
        self._data = []
        self._size = 0
        self._name = None
        self._skip_lf = self._skipping = self._at_start = self._between = False

    def end(self, ts_ns: int) -> None:
        if self._buffer:
            line = bytes(self._buffer)
            self._buffer.clear()
            self._line(ts_ns, line)
        if self._data and not self._skipping:
            self.unfinished = True
            self._line(ts_ns, b"")
