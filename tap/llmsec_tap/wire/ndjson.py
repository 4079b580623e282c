"""Streams of JSON values: one per line (NDJSON, Ollama), and the elements of one array (Gemini without `alt=sse`).

Both give each value's bytes as an event, when its last byte has come. Neither parses JSON: the array scanner only follows
strings and brackets (RFC 8259), so damage inside a value is found by the decoder, and its own bound is limits.MAX_EVENT_BYTES.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llmsec_tap.account import Entry, no_account
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.limits import MAX_EVENT_BYTES
from llmsec_tap.wire.sse import EventSink

_WHITE = b" \t\r\n"


class NDJSONParser:
    """Lines that are not blank, ended by LF or CRLF (NUL too: old SGLang versions used it); `end` gives an unfinished last one."""

    unfinished = False  # the last line is given as it came

    __slots__ = ("_anomaly", "_buffer", "_entry", "_on_event", "_scanned", "_skipping", "fed_bytes")

    def __init__(self, on_event: EventSink, on_anomaly: OnAnomaly, reserve: Callable[[int], bool] = no_account) -> None:
        self._on_event = on_event
        self._anomaly = on_anomaly
        self._buffer = bytearray()
        self._entry = Entry(reserve)
        self._scanned = 0
        self._skipping = False
        self.fed_bytes = 0

    def feed(self, ts_ns: int, data: bytes) -> None:
        self.fed_bytes += len(data)
        if b"\0" in data:
            data = data.replace(b"\0", b"\n")
        buffer = self._buffer
        if not buffer and not self._skipping and data.find(b"\n") == len(data) - 1:
            line = data.strip(_WHITE)
            if line:
                self._on_event(ts_ns, None, line)
            return
        buffer += data
        start = 0
        while (end := buffer.find(b"\n", max(start, self._scanned))) >= 0:
            line = bytes(buffer[start:end]).strip(_WHITE)
            start = end + 1
            if self._skipping:
                self._skipping = False
            elif line:
                self._on_event(ts_ns, None, line)
        if start:
            del buffer[:start]
        self._scanned = len(buffer)
        over: AnomalyName | None = None
        if len(buffer) > MAX_EVENT_BYTES:
            over = "event_limit"
        elif not self._entry.set(len(buffer)):
            over = "memory_limit"
        if over is not None:
            if not self._skipping:
                self._anomaly(over)
            self._skipping = True
            buffer.clear()
            self._scanned = 0
            self._entry.set(0)

    def gap(self) -> None:
        self._buffer.clear()
        self._entry.set(0)
        self._scanned = 0
        self._skipping = True  # up to the next line end

    def end(self, ts_ns: int) -> None:
        line = bytes(self._buffer).strip(_WHITE)
        self._buffer.clear()
        self._entry.set(0)
        if line and not self._skipping:
            self._on_event(ts_ns, None, line)


_OUTSIDE = re.compile(rb'["\[\]{},]')
_IN_STRING = re.compile(rb'[\\"]')
# A raw line end is never inside a JSON string, and an element that begins its line does so without indentation.
_ELEMENT_START = re.compile(rb"\n,?(?:\r?\n)?(?=\{)")


class JSONArrayParser:
    """Elements of a top-level array as they end. A top-level value that is no array is one element."""

    __slots__ = (
        "_anomaly",
        "_at",
        "_base",
        "_buffer",
        "_depth",
        "_entry",
        "_in_string",
        "_lost",
        "_on_event",
        "_start",
        "_started",
        "fed_bytes",
        "unfinished",
    )

    def __init__(self, on_event: EventSink, on_anomaly: OnAnomaly, reserve: Callable[[int], bool] = no_account) -> None:
        self._on_event = on_event
        self._anomaly = on_anomaly
        self._buffer = bytearray()
        self._entry = Entry(reserve)
        self._at = 0  # scanned up to here
        self._start = 0  # where the current element begins
        self._depth = 0
        self._base = 0  # the depth of elements: 1 in an array
        self._in_string = False
        self._lost = False  # after a gap: looking for the next element
        self._started = False
        self.fed_bytes = 0
        self.unfinished = False

    def feed(self, ts_ns: int, data: bytes) -> None:
        self.fed_bytes += len(data)
        buffer = self._buffer
        buffer += data
        if not self._started and not self._begin():
            return
        if self._lost and not self._find_element():
            return
        self._scan(ts_ns)
        del buffer[: self._start]
        self._at -= self._start
        self._start = 0
        if len(buffer) > MAX_EVENT_BYTES:
            self._anomaly("event_limit")
            self.gap()
        elif not self._entry.set(len(buffer)):
            self._anomaly("memory_limit")
            self.gap()

    def _begin(self) -> bool:
        lead = len(self._buffer) - len(self._buffer.lstrip(_WHITE))
        if lead == len(self._buffer):
            return False
        self._started = True
        is_array = self._buffer[lead] == 0x5B
        self._depth = self._base = int(is_array)
        self._at = self._start = lead + is_array
        return True

    def _find_element(self) -> bool:
        found = _ELEMENT_START.search(self._buffer)
        if found is None:
            del self._buffer[:-4]
            return False
        self._lost = False
        self._at = self._start = found.end()
        return True

    def _scan(self, ts_ns: int) -> None:
        buffer = self._buffer
        size = len(buffer)
        while self._at < size:
            if self._in_string:
                found = _IN_STRING.search(buffer, self._at)
                if found is None:
                    self._at = size
                elif found[0] == b'"':
                    self._in_string = False
                    self._at = found.end()
                elif found.end() == size:
                    self._at = found.start()  # the escaped byte is still to come
                    return
                else:
                    self._at = found.end() + 1
                continue
            found = _OUTSIDE.search(buffer, self._at)
            if found is None:
                self._at = size
                return
            self._at = found.end()
            mark = buffer[found.start()]
            if mark == 0x22:
                self._in_string = True
            elif mark in b"[{":
                self._depth += 1
            elif mark == 0x2C:
                if self._depth == self._base:
                    self._element(ts_ns, found.start(), found.end())
            else:
                self._depth -= 1
                if self._depth == self._base:  # an object or array is whole: do not wait for the comma behind it
                    self._element(ts_ns, found.end(), found.end())
                elif self._depth < self._base:  # the array ends, or there is one bracket too many
                    self._element(ts_ns, found.start(), found.end())
                    self._depth = self._base

    def _element(self, ts_ns: int, end: int, next_start: int) -> None:
        value = bytes(self._buffer[self._start : end]).strip(_WHITE)
        self._start = next_start
        if value:
            self._on_event(ts_ns, None, value)

    def gap(self) -> None:
        """Nesting and strings are unknown after lost bytes: go on at the next element that begins a line."""
        self._buffer.clear()
        self._entry.set(0)
        self._at = self._start = 0
        self._in_string = False
        self._started = self._lost = True
        self._depth = self._base = 1

    def end(self, ts_ns: int) -> None:
        value = bytes(self._buffer[self._start :]).strip(_WHITE)
        self._buffer.clear()
        self._entry.set(0)
        if value and not self._lost:
            self.unfinished = self._depth > self._base
            self._on_event(ts_ns, None, value)
