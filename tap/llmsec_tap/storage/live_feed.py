"""What a tap says while somebody looks: a line for each exchange that ends and each finding as it is made, without content, before a part has them.

live/watched           made by taps; who looks (the console) holds a shared lock of it, and may so without a right to write. Without that nothing is said
live/feed-<pid>.jsonl  one tap's lines, begun anew when it is large. It is no record: what matters is in the parts, some seconds later
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from llmsec_tap.model import Exchange, Finding
from llmsec_tap.storage.store import Store

FOLDER: Final = "live"
WATCHED: Final = "watched"
MAX_FILE: Final = 1 << 20
MAX_FILES: Final = 64
_MAX_READ: Final = 1 << 20
_MAX_TEXT: Final = 160


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One exchange that ended; with `rule`, one finding of it. Times are epoch nanoseconds."""

    exchange_id: str
    ts_ns: int
    provider: str | None = None
    what: str | None = None
    status: int | None = None
    output_tokens: int | None = None
    duration_ms: float | None = None
    risk: int | None = None
    tenant: str | None = None
    findings: int = 0
    rule: str | None = None
    severity: str | None = None
    place: str | None = None
    at_output_token: int | None = None


def line_of(exchange: Exchange) -> Line:
    began, ended = exchange.started_ns, exchange.ended_ns
    tls_name = exchange.tls.server_name if exchange.tls is not None else None
    what = exchange.response_model or exchange.request_model or tls_name or exchange.path or exchange.server
    return Line(
        exchange_id=exchange.exchange_id,
        ts_ns=ended or began or 0,
        provider=exchange.provider,
        what=_short(what),
        status=exchange.status,
        output_tokens=exchange.usage.output_tokens,
        duration_ms=(ended - began) / 1e6 if began is not None and ended is not None else None,
        risk=exchange.risk_score,
        tenant=_short(exchange.tenant),
        findings=len(exchange.findings),
    )


def line_of_finding(finding: Finding, ts_ns: int) -> Line:
    return Line(
        exchange_id=finding.exchange_id, ts_ns=ts_ns, rule=_short(finding.rule_id), severity=finding.severity, place=_short(finding.location.part),
        at_output_token=finding.at_output_token,
    )  # fmt: skip


def _short(text: str | None) -> str | None:
    return text if text is None else text[:_MAX_TEXT]


class FeedWriter:
    """One tap's side. A file that cannot be written is no fault of the store's: who looks waits for the parts."""

    def __init__(self, store: Store) -> None:
        self._folder = store.root / FOLDER
        self._path = self._folder / f"feed-{os.getpid()}.jsonl"
        self._descriptor = self._watched = -1
        self.is_watched = False
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._watched = os.open(self._folder / WATCHED, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        self._clear()

    def _clear(self) -> None:
        """Delete what taps left that were killed: who lives holds a lock of its file."""
        for path in self._folder.glob("feed-*.jsonl"):
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)

    def look(self) -> None:
        """Whether somebody looks. Another tap that asks at this instant counts as one, until the next look."""
        if self._watched < 0:
            return
        try:
            fcntl.flock(self._watched, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.is_watched = True
            return
        fcntl.flock(self._watched, fcntl.LOCK_UN)
        self.is_watched = False
        self._end()

    def write(self, lines: Sequence[bytes]) -> None:
        with contextlib.suppress(OSError):
            status = os.fstat(self._descriptor) if self._descriptor >= 0 else None
            if status is None or status.st_size > MAX_FILE or not status.st_nlink:
                self._begin()
            os.write(self._descriptor, b"".join(lines))

    def _begin(self) -> None:
        self._end()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._descriptor = os.open(self._path, flags, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        self._end()
        if self._watched >= 0:
            os.close(self._watched)
            self._watched = -1

    def _end(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            with contextlib.suppress(OSError):
                self._path.unlink()


class FeedReader:
    """The side of who looks. Whatever stands in the folder is bounded and never a fault."""

    def __init__(self, store: Store) -> None:
        self._folder = store.root / FOLDER
        self._read: dict[str, tuple[int, int]] = {}  # file: inode, bytes read
        self._watched = -1
        self._look_only()

    def close(self) -> None:
        if self._watched >= 0:
            os.close(self._watched)
            self._watched = -1

    def _watch(self) -> None:
        if self._watched < 0:
            with contextlib.suppress(OSError):  # no tap has written here yet, or one asks at this instant
                descriptor = os.open(self._folder / WATCHED, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    os.close(descriptor)
                    raise
                self._watched = descriptor

    def lines(self) -> list[Line]:
        """What taps have said since the last look; says that somebody looks."""
        self._watch()
        return [line for path in self._files() for line in self._new(path)]

    def _look_only(self) -> None:
        """What was said before somebody looked is in the parts."""
        for path in self._files():
            with contextlib.suppress(OSError):
                status = path.lstat()
                self._read[path.name] = status.st_ino, status.st_size

    def _files(self) -> list[Path]:
        try:
            found = sorted(self._folder.glob("feed-*.jsonl"))[:MAX_FILES]
        except OSError:
            return []
        self._read = {path.name: self._read[path.name] for path in found if path.name in self._read}
        return found

    def _new(self, path: Path) -> list[Line]:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return []
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return []
            inode, done = self._read.get(path.name, (status.st_ino, 0))
            if inode != status.st_ino or status.st_size < done:
                done = 0  # begun anew
            data = os.pread(descriptor, _MAX_READ, done)
        except OSError:
            return []
        finally:
            os.close(descriptor)
        whole = data[: data.rfind(b"\n") + 1] if len(data) < _MAX_READ or b"\n" in data else data
        self._read[path.name] = status.st_ino, done + len(whole)
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                found.append(_decoder.decode(line))
        return found


_decoder = msgspec.json.Decoder(Line)
