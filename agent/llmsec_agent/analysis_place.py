"""How far an analysis of a store has come, kept on the disk, so that another one goes on from there after a kill."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llmsec_analyzer.stored.exchanges import BEGINNING, Position
from llmsec_tap.errors import StorageError
from llmsec_tap.install_key import key_path
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.publish import publishing, write_all

_NAME = "analysis.json"


class _State(msgspec.Struct):
    run: str
    started_ns: int
    exchange_id: str


class Place:
    """`run` names what is asked of the store: with other rules it begins anew."""

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._run = run

    def read(self) -> Position:
        """Where to go on. What cannot be read is a beginning: what is done twice is stored once."""
        try:
            state = msgspec.json.decode(self._path.read_bytes(), type=_State)
        except (OSError, msgspec.DecodeError):
            return BEGINNING
        return Position(state.started_ns, state.exchange_id) if state.run == self._run else BEGINNING

    def write(self, position: Position) -> None:
        """All up to here is stored. Raises StorageError."""
        try:
            with publishing(self._path) as file:
                if os.geteuid() == 0:  # it belongs to whom the folder does
                    owner = self._path.parent.stat()
                    os.fchown(file, owner.st_uid, owner.st_gid)
                write_all(file, msgspec.json.encode(_State(self._run, *position)))
        except OSError as fault:
            raise storage_error("cannot write", self._path, fault) from None

    def forget(self) -> None:
        """It has come to the end."""
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """One analysis of a store at a time. Raises StorageError where another one runs."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as fault:
        raise storage_error("cannot write", path.parent, fault) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StorageError("another analysis of this store is running", "wait for it, or end it: what it has done stays done") from None
    finally:
        os.close(descriptor)


def in_folder(root: Path) -> Path:
    return root / _NAME


def of_database(name: str) -> Path:
    """A database has no place for it, so it is kept where this installation's key is. `name`: its address, without a password."""
    return key_path().parent / f"analysis-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
