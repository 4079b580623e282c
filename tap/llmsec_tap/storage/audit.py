"""The audit log of a store: what was found, deleted, exported, who read content, and when the configuration changed.

audit/audit-<first number>.jsonl, one entry a line, only ever appended to. Each entry has the hash of the one before it in its own hash, so a
byte that is changed, and an entry that is taken out or moved, breaks the chain from there on. Whoever may write the folder can compute all
hashes anew; the last hash, noted elsewhere (`Chain.head`), shows that too, and a log that was cut at its end.

An entry is written with one call and synced, under a lock. A writer that is killed inside that call leaves half a line, which was never
acknowledged; the next writer cuts it off and says so in an entry of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from llmsec_tap.errors import StorageError
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.publish import give, write_all
from llmsec_tap.storage.store import Store

FOLDER: Final = "audit"
_PATTERN: Final = "audit-*.jsonl"
# A file is closed at this size; retention deletes whole files.
FILE_BYTES: Final = 4_000_000
_MAX_LINE: Final = 64_000
_MAX_FACTS: Final = 60_000  # where they had to be shortened; the rest is for what else a line has
_FIRST: Final = "0" * 64
_TAIL: Final = b'","hash":"'
_NS_PER_DAY: Final = 86_400_000_000_000


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """`seq` counts from 1. `event`: finding, alert, configuration, deletion, export, query, analysis, login, or one of the log itself. `prev`: hash of the entry before."""

    seq: int
    ts_ns: int
    event: str
    actor: dict[str, Any]
    facts: dict[str, Any]
    prev: str
    hash: str


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of a log. `faults`: a sentence for each place where the chain is broken. `head`: the last hash."""

    entries: int = 0
    first_seq: int = 0
    last_seq: int = 0
    head: str = _FIRST
    faults: tuple[str, ...] = ()


_plain = msgspec.json.Encoder().encode


def _encode(value: dict[str, Any]) -> bytes:
    try:
        return _plain(value)
    except UnicodeEncodeError:  # half a surrogate pair, as arguments of a command may hold
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def append(store: Store, records: Sequence[tuple[str, dict[str, Any]]], actor: dict[str, Any] | None = None) -> str:
    """Add an entry for each (event, facts), all or none; the last one's hash. On return they are on the disk. Raises StorageError."""
    try:
        with _locked(store) as folder:
            return _append(folder, records, actor if actor is not None else whoami())
    except OSError as fault:
        raise storage_error("cannot write", store.shown / FOLDER, fault) from None


def whoami() -> dict[str, Any]:
    """The user of this process, as far as it can be told."""
    import pwd  # noqa: PLC0415

    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except (KeyError, OSError):
        name = str(uid)
    actor = {"user": name, "uid": uid, "pid": os.getpid(), "host": socket.gethostname()}
    if uid == 0 and os.environ.get("SUDO_USER"):
        actor["sudo_user"] = os.environ["SUDO_USER"][:64]
    return actor


def entries(store: Store) -> Iterator[Entry]:
    """All that can be read, oldest first; `verify` says whether it is whole. Raises StorageError where the log cannot be read."""
    for path in _files(store.root / FOLDER):
        for line in _lines(path):
            try:
                yield msgspec.json.decode(line, type=Entry)
            except msgspec.DecodeError:
                continue


def verify(store: Store, expect: str | None = None) -> Chain:
    """Walk the whole chain. `expect`: a hash that was noted earlier, which must be in it. Raises StorageError where the log cannot be read."""
    faults: list[str] = []
    trimmed: set[tuple[int, str]] = set()
    count = first_seq = last_seq = 0
    first_prev = head = _FIRST
    is_found = expect is None or expect == _FIRST
    is_open = True  # the next entry's predecessor is not known
    for path in _files(store.root / FOLDER):
        for number, line in enumerate(_lines(path), 1):
            at = f"{FOLDER}/{path.name}:{number}"
            entry, why = _read(line)
            if entry is None:
                faults.append(f"{at}: {why}")
                is_open = True
                continue
            if count == 0 and not faults:
                first_seq, first_prev = entry.seq, entry.prev
            elif not is_open and (entry.prev != head or entry.seq != last_seq + 1):
                faults.append(f"{at}: entry {entry.seq} does not follow entry {last_seq}: entries were taken out, moved or put in")
            is_open = False
            count, last_seq, head = count + 1, entry.seq, entry.hash
            is_found = is_found or entry.hash == expect
            if entry.event == "audit_trimmed":
                trimmed.add((int(entry.facts.get("through", 0)), str(entry.facts.get("hash"))))
    if first_seq > 1 and (first_seq - 1, first_prev) not in trimmed:
        faults.append(f"{FOLDER}: the log begins with entry {first_seq}, and no entry says that what came before it was deleted")
    elif first_seq == 1 and first_prev != _FIRST:
        faults.append(f"{FOLDER}: entry 1 names an entry before it")
    if not is_found:
        faults.append(f"{FOLDER}: the hash {expect} is not in the log: it was cut, or written anew")
    return Chain(entries=count, first_seq=first_seq, last_seq=last_seq, head=head, faults=tuple(faults))


def trim(store: Store, now_ns: int, *, days: float | None = None, max_bytes: int | None = None) -> int:
    """Delete whole files that are too old, or the oldest beyond `max_bytes`, never the last one; how many. An entry proves what is left."""
    try:
        with _locked(store) as folder:
            files = _files(folder)
            total = sum(path.stat().st_size for path in files)
            gone: list[Path] = []
            for path in files[:-1]:
                is_old = days is not None and path.stat().st_mtime_ns <= now_ns - days * _NS_PER_DAY
                if not is_old and (max_bytes is None or total <= max_bytes):
                    break
                total -= path.stat().st_size
                gone.append(path)
            if gone:
                last = _last(gone[-1])
                # Said first: a kill between the two leaves files too many, not a gap that nobody explains.
                _append(folder, [("audit_trimmed", {"through": last.seq, "hash": last.hash, "files": len(gone)})], whoami())
                for path in gone:
                    path.unlink()
            return len(gone)
    except OSError as fault:
        raise storage_error("cannot write", store.shown / FOLDER, fault) from None


@contextmanager
def _locked(store: Store) -> Iterator[Path]:
    folder = store.root / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        give(descriptor, store.root)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)


def _append(folder: Path, records: Sequence[tuple[str, dict[str, Any]]], actor: dict[str, Any]) -> str:
    files = _files(folder)
    path = files[-1] if files else None
    seq, prev, torn = 0, _FIRST, 0
    if path is not None:
        torn = _cut(path)
        if path.stat().st_size:
            last = _last(path)
        elif len(files) > 1:
            last = _last(files[-2])
        else:
            last = None
        if last is not None:
            seq, prev = last.seq, last.hash
        if path.stat().st_size >= FILE_BYTES:
            path = None
    all_records = [("audit_repaired", {"bytes": torn}), *records] if torn else list(records)
    lines: list[bytes] = []
    for event, facts in all_records:
        seq += 1
        line, prev = _line(seq, event, actor, facts, prev)
        lines.append(line)
    if not lines:
        return prev
    is_new = path is None
    path = path or folder / f"audit-{seq - len(lines) + 1:012d}.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        before = os.fstat(descriptor).st_size
        give(descriptor, folder.parent)
        try:
            write_all(descriptor, b"".join(lines))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)  # all or none
            raise
    finally:
        os.close(descriptor)
    if is_new:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(at)
        finally:
            os.close(at)
    return prev


def _line(seq: int, event: str, actor: dict[str, Any], facts: dict[str, Any], prev: str) -> tuple[bytes, str]:
    now_ns = time.time_ns()

    def body_of(facts: dict[str, Any]) -> bytes:
        return _encode({"seq": seq, "ts_ns": now_ns, "event": event, "actor": actor, "facts": facts, "prev": prev})

    body = body_of(facts)
    if len(body) > _MAX_LINE:
        body = body_of(_shortened(facts, len(body)))
    body = body[:-2]  # without `"}`: the hash is over all bytes before its own
    digest = hashlib.sha256(body).hexdigest()
    return body + _TAIL + digest.encode() + b'"}\n', digest


def _shortened(facts: dict[str, Any], size: int) -> dict[str, Any]:
    """The longest of them give way to how long they are, so that who and what stay. Facts of which even that is too long are counted alone."""
    kept = dict(facts)
    sizes = {name: len(_encode({name: value})) for name, value in facts.items()}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        kept[name] = {"too_long": sizes[name]}
        if len(_encode(kept)) <= _MAX_FACTS:
            return kept
    return {"too_long": size}


def _read(line: bytes) -> tuple[Entry | None, str]:
    body, tail, rest = line.rpartition(_TAIL)
    if not line.endswith(b"\n"):
        return None, "half an entry: its writer was killed, or the file was cut"
    if not tail or len(rest) != 67 or rest[64:] != b'"}\n':
        return None, "no entry stands here"
    if hashlib.sha256(body).hexdigest().encode() != rest[:64]:
        return None, "the entry was changed: its hash is another"
    try:
        return msgspec.json.decode(line, type=Entry), ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, "no entry stands here"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(_PATTERN) if path.is_file() and not path.is_symlink())


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(_MAX_LINE * 2):
                yield line
    except FileNotFoundError:
        return
    except OSError as fault:
        raise storage_error("cannot read", path, fault) from None


def _cut(path: Path) -> int:
    """Cut off half a line at the end; its bytes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or not facts.st_size:
            return 0
        begin = max(0, facts.st_size - _MAX_LINE * 2)
        tail = os.pread(descriptor, facts.st_size - begin, begin)
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            os.ftruncate(descriptor, facts.st_size - torn)
        return torn
    finally:
        os.close(descriptor)


def _last(path: Path) -> Entry:
    """The last entry of a file that ends with a whole line."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MAX_LINE * 2))
        lines = file.read().splitlines(keepends=True)
    try:
        return msgspec.json.decode(lines[-1], type=Entry)
    except (IndexError, msgspec.DecodeError):
        raise StorageError(
            f"{path}: the last entry of the audit log was changed, so nothing can be added to it",
            "Keep that file elsewhere for whoever looks into it, and remove it from the folder: a new chain begins.",
        ) from None
