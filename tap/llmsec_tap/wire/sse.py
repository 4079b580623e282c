"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

To the letter, with these choices of an observer
- CR, LF and CRLF end lines; a BOM at the start is dropped; comments are counted as nothing; one space after the colon is dropped.
- An event without data is not dispatched (the specification's rule); its name is forgotten with it.
- The end of the stream dispatches an unfinished event that has data: the specification discards it, but the bytes were sent, and
  several servers end with no empty line.
- Data stays bytes: JSON decoders take bytes, and the specification's UTF-8 decoding is theirs to do.
"""

from __future__ import annotations

from collections.abc import Callable

from llmsec_tap.account import Entry, no_account
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.limits import MAX_EVENT_BYTES

EventSink = Callable[[int, "str | None", bytes], None]
"""(capture time of the byte that completed the event, event name or None, data)"""


class SSEParser:
    """Feed bytes in any cut. Bound: one event holds at most limits.MAX_EVENT_BYTES; a longer one is dropped (`event_limit`)."""

    unfinished = False  # the last event is given as it came

    __slots__ = (
        "_anomaly",
        "_at_start",
        "_between",
        "_buffer",
        "_entry",
        "_has_data",
        "_joined",
        "_name",
        "_on_event",
        "_scanned",
        "_skip_lf",
        "_skipping",
        "fed_bytes",
    )

    def __init__(self, on_event: EventSink, on_anomaly: OnAnomaly, reserve: Callable[[int], bool] = no_account) -> None:
        self._on_event = on_event
        self._anomaly = on_anomaly
        self._buffer = bytearray()
        self._scanned = 0
        self._joined = bytearray()  # the data lines of the event so far, each with a line end
        self._has_data = False
        self._entry = Entry(reserve)
        self._name: str | None = None
        self._skip_lf = False  # the last line ended with CR at the end of a feed: an LF may belong to it
        self._skipping = False  # the current event is over the limit, or damaged
        self._at_start = True
        self._between = False  # no state at all: the next byte begins an event
        self.fed_bytes = 0

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
        if not self._entry.set(len(buffer) + len(self._joined)):
            self._over_limit("memory_limit")
            buffer.clear()
            self._scanned = 0
        self._between = not (buffer or self._has_data or self._name or self._skip_lf or self._skipping)

    def _lines(self, ts_ns: int) -> None:
        buffer = self._buffer
        start, size = 0, len(buffer)
        search = self._scanned
        cr = buffer.find(b"\r", search)  # the next one, as long as there is one
        lf = buffer.find(b"\n", search)
        while cr >= 0 or lf >= 0:
            end = cr if lf < 0 or 0 <= cr < lf else lf
            line = bytes(buffer[start:end])
            start = end + 1
            if end == cr:
                if start == size:
                    self._skip_lf = True
                elif buffer[start] == 10:
                    start += 1
            if 0 <= cr < start:
                cr = buffer.find(b"\r", start)
            if 0 <= lf < start:
                lf = buffer.find(b"\n", start)
            self._line(ts_ns, line)
        if start:
            del buffer[:start]
        self._scanned = len(buffer)
        if len(buffer) > MAX_EVENT_BYTES:
            self._over_limit("event_limit")
            buffer.clear()
            self._scanned = 0

    def _over_limit(self, why: AnomalyName) -> None:
        if not self._skipping:
            self._skipping = True
            self._anomaly(why)
        self._forget_data()

    def _forget_data(self) -> None:
        self._joined = bytearray()
        self._has_data = False

    def _line(self, ts_ns: int, line: bytes) -> None:
        if not line:
            name, self._name = self._name, None
            if self._skipping:
                self._skipping = False
            elif self._has_data:
                self._on_event(ts_ns, name, bytes(self._joined[:-1]))
            if self._has_data:
                self._forget_data()
            return
        if self._skipping:
            return
        field, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            if len(self._joined) + len(value) >= MAX_EVENT_BYTES:
                self._over_limit("event_limit")
            else:
                self._joined += value
                self._joined += b"\n"
                self._has_data = True
        elif field == b"event":
            self._name = value.decode("utf-8", "replace") or None
        # `id` and `retry` steer reconnection only; a field with no name is a comment; others are ignored by the specification.

    def gap(self) -> None:
        """Lost bytes: the event they were in is dropped. What is left of a torn line names no known field and is ignored."""
        self._buffer.clear()
        self._scanned = 0
        self._forget_data()
        self._entry.set(0)
        self._name = None
        self._skip_lf = self._skipping = self._at_start = self._between = False

    def end(self, ts_ns: int) -> None:
        if self._buffer:
            line = bytes(self._buffer)
            self._buffer.clear()
            self._line(ts_ns, line)
        if self._has_data and not self._skipping:
            self._line(ts_ns, b"")
        self._entry.set(0)
