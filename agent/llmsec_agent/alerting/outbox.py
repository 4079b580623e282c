"""The outbox of alerts as one channel reads it: from where it stopped, line by line, whatever is in the lines.

Its files are the queue: nothing is held in memory but the line in hand. Each channel has a cursor of its own, so that one which is
stuck holds up no other.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from llmsec_analyzer.alerts.alert import Alert

FOLDER: Final = "alerts"
MAX_LINE_BYTES: Final = 64 << 10
_CHUNK: Final = 256 << 10
_MAX_FILES: Final = 10_000
_NUMBER: Final = re.compile(r"outbox-(\d{1,12})\.jsonl")


class Entry(NamedTuple):
    """`alert` is None where the line is none; `fault` says why."""

    file: str
    start: int
    end: int
    alert: Alert | None
    fault: str = ""


class Unreadable:
    """Lines that are no alerts: each counted once, although every channel comes across it. Any thread may ask."""

    def __init__(self) -> None:
        self.count = 0
        self._seen: dict[tuple[str, int], None] = {}
        self._lock = threading.Lock()

    def is_news(self, entry: Entry) -> bool:
        with self._lock:
            key = entry.file, entry.start
            if key in self._seen:
                return False
            self._seen[key] = None
            if len(self._seen) > 1000:
                del self._seen[next(iter(self._seen))]
            self.count += 1
            return True


class Outbox:
    """`entries`, and `done` with each when it need not come again. One thread."""

    def __init__(self, folder: Path, channel: str) -> None:
        self._folder = folder
        self._cursor = folder / f"cursor-{channel}.json"
        self._offsets: dict[str, int] = self._load()
        self._saved = dict(self._offsets)
        self._last = max(map(_number, self._offsets), default=None)
        self.missed = 0  # files that were deleted before they were read

    def entries(self) -> Iterator[Entry]:
        """What came since. The file in hand stays open, so that it is read to its end even if it is deleted meanwhile."""
        names = self._names()
        for gone in self._offsets.keys() - set(names):
            del self._offsets[gone]
        for name in names:
            number = _number(name)
            if self._last is not None and number > self._last + 1:
                self.missed += number - self._last - 1
            self._last = max(number, self._last if self._last is not None else number)
            self._offsets.setdefault(name, 0)
            yield from self._file(name)
        self.save()

    def done(self, entry: Entry, *, save: bool) -> None:
        """`save`: a start from now on begins behind it."""
        if entry.file in self._offsets:
            self._offsets[entry.file] = entry.end
        if save:
            self.save()

    def save(self) -> None:
        """Raises OSError never: a folder that takes no file costs a line sent twice after the next start."""
        if self._saved == self._offsets:
            return
        unfinished = self._cursor.with_name(f".{self._cursor.name}.tmp")
        with contextlib.suppress(OSError):
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(descriptor, msgspec.json.encode(self._offsets))
            finally:
                os.close(descriptor)
            unfinished.rename(self._cursor)
            self._saved = dict(self._offsets)

    def _load(self) -> dict[str, int]:
        try:
            found = msgspec.json.decode(self._cursor.read_bytes(), type=dict[str, int])
        except (OSError, msgspec.DecodeError):
            return {}
        return {name: max(0, offset) for name, offset in found.items() if name.startswith("outbox-")}

    def _names(self) -> list[str]:
        try:
            with os.scandir(self._folder) as found:
                names = [entry.name for entry in found if entry.name.startswith("outbox-") and entry.name.endswith(".jsonl")]
        except OSError:
            return []
        return sorted(names, key=lambda name: (_number(name), name))[:_MAX_FILES]

    def _file(self, name: str) -> Iterator[Entry]:
        try:
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            return
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            start = self._offsets[name]
            if found.st_size < start:  # another file of this name
                start = self._offsets[name] = 0
            if found.st_size == start:
                return
            file.seek(start)
            yield from _lines(file, name, start)


def _lines(file: object, name: str, start: int) -> Iterator[Entry]:
    readline = file.readline  # type: ignore[attr-defined]
    while True:
        line: bytes = readline(MAX_LINE_BYTES + 1)
        if line.endswith(b"\n"):
            end = start + len(line)
            yield _entry(name, start, end, line)
        elif len(line) > MAX_LINE_BYTES:
            end = start + len(line)
            while line and not line.endswith(b"\n"):
                line = readline(_CHUNK)
                end += len(line)
            yield Entry(name, start, end, None, f"longer than {MAX_LINE_BYTES >> 10} KiB")
        else:  # the end, or a line that is being written
            return
        start = end


def _entry(name: str, start: int, end: int, line: bytes) -> Entry:
    try:
        alert = msgspec.json.decode(line, type=Alert)
        msgspec.json.encode(alert)  # numbers of thousands of digits can be read, and not be written
        return Entry(name, start, end, alert)
    except (msgspec.DecodeError, RecursionError) as fault:
        return Entry(name, start, end, None, "no alert" if isinstance(fault, msgspec.ValidationError) else "no JSON")
    except UnicodeDecodeError:
        return Entry(name, start, end, None, "not UTF-8")
    except (OverflowError, ValueError):
        return Entry(name, start, end, None, "a number out of range")


def _number(name: str) -> int:
    found = _NUMBER.fullmatch(name)
    return int(found[1]) if found is not None else -1
