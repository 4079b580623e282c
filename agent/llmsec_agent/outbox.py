"""Alerts that were decided, for whoever sends them: alerts/outbox-<number>.jsonl in the store's folder, one Alert a line, only ever appended to.

A line is written whole or not at all, under a lock, by decoders and commands; who sends reads on from where it was. A file is closed at
FILE_BYTES, and the oldest beyond MAX_FILES go, sent or not: what is decided stands on the exchanges, too. Where it is kept for some days only
(`storage.retention.alerts`), a file is also closed after an eighth of them.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from llmsec_analyzer.alerts.alert import Alert
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.publish import give, write_all

FOLDER: Final = "alerts"
PATTERN: Final = "outbox-*.jsonl"
SENT_PATTERN: Final = "sent-*.jsonl"
FILE_BYTES: Final = 4_000_000
MAX_FILES: Final = 16
_DAY_S: Final = 86_400.0
_MAX_LINE: Final = 256_000

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Alert).decode


def line_of(alert: Alert) -> bytes:
    return _encode(alert) + b"\n"


class Outbox:
    """`root`: the store's folder. `keep_days`: how long it is kept; None for as long as there is room. `read_new` gives what was appended since the last call, by others as well, beginning with the newest files."""

    def __init__(
        self, root: Path, shown: Path | None = None, *, keep_days: float | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._root = root
        self._folder = root / FOLDER
        self._shown = (shown or root) / FOLDER
        self._name = ""
        self._offset = 0
        self._keep_s = keep_days * _DAY_S if keep_days is not None else None
        self._clock = clock
        self._appending = "", 0.0  # to which file, and since when
        self.left_out = 0  # files that made room

    def append(self, lines: Sequence[bytes]) -> None:
        """All or none. Raises StorageError."""
        try:
            with self._locked():
                path = self._current()
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    before = os.fstat(descriptor).st_size
                    give(descriptor, self._root)
                    try:
                        write_all(descriptor, b"".join(lines))
                    except OSError:
                        os.ftruncate(descriptor, before)
                        raise
                finally:
                    os.close(descriptor)
        except OSError as fault:
            raise storage_error("cannot write", self._shown, fault) from None

    def trim(self) -> int:
        """Delete what is older than it is kept, of what was sent as well; files. Raises StorageError."""
        if self._keep_s is None or not self._folder.is_dir():
            return 0
        gone = 0
        try:
            with self._locked():
                for path in self._folder.glob("*.jsonl"):
                    if path.is_file() and not path.is_symlink() and self._clock() - path.stat().st_mtime > self._keep_s:
                        path.unlink()
                        gone += 1
        except OSError as fault:
            raise storage_error("cannot write", self._shown, fault) from None
        return gone

    def read_new(self) -> Iterator[Alert]:
        """Lines that are no alerts are passed over. Raises OSError."""
        for path in self._files():
            if path.name < self._name:
                continue
            offset = self._offset if path.name == self._name else 0
            with path.open("rb") as file:
                file.seek(offset)
                while (line := file.readline(_MAX_LINE)).endswith(b"\n"):
                    offset += len(line)
                    try:
                        yield _decode(line)
                    except (msgspec.MsgspecError, UnicodeDecodeError):
                        continue
            self._name, self._offset = path.name, offset

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.glob(PATTERN) if path.is_file() and not path.is_symlink())

    def _current(self) -> Path:
        files = self._files()
        now = self._clock()
        if files:
            name, since = self._appending
            if files[-1].name != name:
                self._appending = _, since = files[-1].name, now
            is_old = self._keep_s is not None and now - since > self._keep_s / 8
            if files[-1].stat().st_size < FILE_BYTES and not is_old:
                return files[-1]
        number = int(files[-1].stem.rpartition("-")[2]) + 1 if files and files[-1].stem.rpartition("-")[2].isdecimal() else 1
        for path in files[: max(0, len(files) + 1 - MAX_FILES)]:
            path.unlink()
            self.left_out += 1
        return self._folder / f"outbox-{number:06d}.jsonl"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            give(descriptor, self._root)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
