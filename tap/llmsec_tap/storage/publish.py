"""Files that appear in one step, complete and safely on the disk, or not at all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmsec_tap.errors import StorageError

TMP_SUFFIX = ".tmp"


@contextmanager
def publishing(target: Path) -> Iterator[int]:
    """A descriptor to write to; when the block ends well, the file appears at `target` in one step, safely on the disk, as its folder's owner's.

    The unfinished file beside the target is held by a lock for as long as its writer lives, which is how `remove_stale`
    tells a dead writer's remains from a file in the making.
    """
    path, descriptor = _locked_temporary(target)
    try:
        yield descriptor
        with suppress(PermissionError):  # root without CAP_CHOWN
            give(descriptor, target.parent)
        os.fsync(descriptor)
        path.rename(target)
        _sync_folder(target.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _locked_temporary(target: Path) -> tuple[Path, int]:
    for attempt in range(1000):
        path = target.with_name(f".{target.name}.{os.getpid()}.{attempt}{TMP_SUFFIX}")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # a cleaner came between creation and lock
    raise StorageError(f"cannot write {target}: no free temporary name", "remove old .tmp files from the folder")


def give(descriptor: int, root: Path) -> None:
    """What root writes belongs to the owner of the folder, who writes next."""
    if os.geteuid() == 0:
        owner = root.stat()
        if os.fstat(descriptor).st_uid != owner.st_uid:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(root: Path) -> int:
    """Remove unfinished files whose writers are dead; returns how many."""
    removed = 0
    for path in (*root.glob(f".*{TMP_SUFFIX}"), *root.glob(f"exchanges/*/.*{TMP_SUFFIX}")):
        if path.is_dir():
            continue
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            removed += 1
        except BlockingIOError:
            continue  # its writer lives
        finally:
            os.close(descriptor)
    return removed
