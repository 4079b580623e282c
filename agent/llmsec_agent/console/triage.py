"""What people decided about findings: acknowledged ones beside a folder's store, suppressed ones in the file of suppressions."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from llmsec_agent.suppressing import append, day_of, entry_of
from llmsec_analyzer.judge.suppressions import Entry, Suppressions, load_suppressions
from llmsec_tap.errors import ConfigError, StorageError
from llmsec_tap.model import Exchange, Finding
from llmsec_tap.storage.publish import give
from llmsec_tap.storage.store import Store

FILE: Final = "triage.jsonl"
MAX_BYTES: Final = 8 << 20
MAX_NOTE: Final = 500
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe or a link in its place is somebody else's doing
BY: Final = ("fingerprint", "rule", "tenant", "place")


class Acknowledged(msgspec.Struct, frozen=True):
    """Somebody has looked into the finding. It counts as before."""

    finding_id: str
    by: str
    at_ns: int
    note: str = ""


@dataclass
class _Read:
    """What the files had when they were in this state: thousands of entries take longer to read than a page may take."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    state: list[tuple[int, ...] | None] = field(default_factory=list)
    entries: Suppressions = field(default_factory=Suppressions)


def _state(name: str) -> tuple[int, ...] | None:
    """None where it cannot be told, which reading says."""
    try:
        facts = Path(name).stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


@dataclass(frozen=True)
class Triage:
    """`suppressions`: the file that is written; None: suppressing is not offered. `files`: all that count, it among them."""

    suppressions: Path | None = None
    files: tuple[str, ...] = ()
    _read: _Read = field(default_factory=_Read, compare=False)

    def entries(self) -> Suppressions:
        """Read anew where a file has changed, as others write them too. Raises ConfigError."""
        names = [name for name in self.files if name != str(self.suppressions) or Path(name).exists()]
        with self._read.lock:
            state = [_state(name) for name in names]
            if state != self._read.state or None in state:
                self._read.entries = Suppressions(load_suppressions(names))
                self._read.state = state
            return self._read.entries

    def suppress(
        self, finding: Finding, exchange: Exchange, *, reason: str, owner: str, until: str, by: list[str], audit: Callable[[Entry], None]
    ) -> None:
        """Add an entry, once `audit` has written that it is. Raises ConfigError, and what `audit` raises."""
        if self.suppressions is None:
            raise ConfigError("this console was begun without a file of suppressions", "serve --suppressions FILE")
        if not reason.strip():
            raise ConfigError("a suppression needs a reason", "say why this finding is no danger")
        entry = entry_of(finding, exchange, reason=_note(reason), owner=owner, until=day_of(until), by=[name for name in BY if name in by])
        audit(entry)
        with self._read.lock:  # no page reads half an entry
            append(self.suppressions, entry)


def triage_of(chosen: str | None, files: Sequence[str]) -> Triage:
    """Of the command line, and of the configuration. Raises ConfigError for what is wrong with a file."""
    written = str(Path(chosen).absolute()) if chosen is not None else files[0] if len(files) == 1 else None
    if written is not None and not Path(written).parent.is_dir():
        raise ConfigError(f"{written}: there is no folder {Path(written).parent}", "make it, or name a file elsewhere")
    made = Triage(Path(written) if written is not None else None, tuple(dict.fromkeys((*files, *([written] if written else [])))))
    made.entries()
    return made


def acknowledged(store: Store) -> dict[str, Acknowledged]:
    """By the finding's id; the last one counts. A line that is none is left out: whoever may write the folder may write anything there."""
    path = store.root / FILE
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _FLAGS)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StorageError(f"{path} is no file", "remove it")
            lines = file.read(MAX_BYTES).splitlines()
    except FileNotFoundError:
        return {}
    except OSError as fault:
        raise StorageError(f"{path}: cannot be read: {fault.strerror}", "it must be a file, and no link to one") from None
    found: dict[str, Acknowledged] = {}
    for line in lines:
        try:
            one = msgspec.json.decode(line, type=Acknowledged)
        except msgspec.DecodeError:
            continue
        found[one.finding_id] = one
    return found


def acknowledge(store: Store, finding: Finding, by: str, note: str, audit: Callable[[], None]) -> None:
    """Onto the disk, once `audit` has written that it is. Raises ConfigError where the note is too long or the file full, StorageError where it cannot be written."""
    path = store.root / FILE
    line = msgspec.json.encode(Acknowledged(finding.finding_id, by, time.time_ns(), _note(note))) + b"\n"
    audit()
    try:
        descriptor = os.open(path, _FLAGS | os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size + len(line) > MAX_BYTES:
                raise ConfigError(
                    f"{path} is full ({MAX_BYTES >> 20} MiB)", "move it away; findings in it are no longer shown as acknowledged"
                )
            if os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, size)
                raise ConfigError(f"{path}: no space is left", "free some")
            os.fsync(descriptor)
            give(descriptor, store.root)
        finally:
            os.close(descriptor)
    except OSError as fault:
        raise StorageError(f"{path}: cannot be written: {fault.strerror}") from None


def _note(text: str) -> str:
    note = " ".join(text.split())
    if len(note) > MAX_NOTE:
        raise ConfigError(f"the text has {len(note)} characters, {MAX_NOTE} at most are kept", "shorten it")
    return note
