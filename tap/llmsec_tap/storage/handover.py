"""A store that one user names and another writes: `sudo llmsec-tap capture --store FOLDER` decodes and stores as somebody else.

The folder is opened while the rights of the caller last, made ready by a process that already has the writer's rights, and from
then on reached as the current folder: its path may lead through places where the writer may not look.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

from llmsec_tap import privileges
from llmsec_tap.errors import LLMSecError, StorageError
from llmsec_tap.privileges import User
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.store import INFO_NAME, create_store, folder_of

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def owner_of(location: str) -> User | None:
    """Who keeps the store that is there, unless that is root or nobody yet."""
    try:
        owner = folder_of(location).stat().st_uid
    except OSError:
        return None
    return privileges.by_uid(owner) if owner else None


def enter(location: str, user: User | None) -> None:
    """Make the store ready for this user and go into its folder; `create_store(".")` finds it. Raises StorageError.

    Call it as root before `privileges.become(user)`, or without a user as oneself; there must be no other threads.
    """
    root = folder_of(location).absolute()
    try:
        is_new = not os.path.lexists(root)
        folder = _open_folder(root, user)
        if user is not None:
            _make_out_of_reach(folder, root, user)
            _give(folder, root, user, is_new=is_new)
        _enter(folder, user)
        os.close(folder)
    except OSError as fault:
        raise storage_error("cannot write", root, fault) from None
    _prepare(root, user)


def is_callers(location: str) -> bool:
    """Whether the store, made by sudo or about to be, is the caller's: its folder is, or there is none yet."""
    caller = os.environ.get("SUDO_UID", "")
    if os.geteuid() != 0 or not caller.isdecimal() or not int(caller):
        return False
    try:
        return folder_of(location).stat().st_uid == int(caller)
    except OSError:
        return True


def give_to_caller(location: str) -> None:
    """What root wrote into a store that `is_callers` belongs to the caller of sudo from now on."""
    with contextlib.suppress(OSError):
        folder = os.open(folder_of(location), _OPEN)
        try:
            _give_all(folder, privileges.by_uid(int(os.environ["SUDO_UID"])))
        finally:
            os.close(folder)


def _open_folder(root: Path, user: User | None) -> int:
    """Made by the user where the user may, so that a caller of sudo gets no folder that was beyond reach before."""
    if user is not None:
        with contextlib.suppress(OSError), privileges.acting_as(user):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(root, _OPEN)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(root, _OPEN)


def _enter(folder: int, user: User | None) -> None:
    """A root without CAP_DAC_OVERRIDE, as services and pods have it, may not enter what is the user's alone; the user may."""
    try:
        os.fchdir(folder)
    except PermissionError:
        if user is None:
            raise
        with privileges.acting_as(user):
            os.fchdir(folder)


def _make_out_of_reach(folder: int, root: Path, user: User) -> None:
    """A new store under a path where the user may not look is made by root: DuckDB's views name that path. Nobody else reaches it."""
    with privileges.acting_as(user):
        if os.access(root, os.R_OK | os.X_OK, effective_ids=True):
            return
    if not os.listdir(folder):
        create_store(root)


def _give(folder: int, root: Path, user: User, *, is_new: bool) -> None:
    """Root's own store of an earlier capture becomes the writer's. Of a folder that is no store nothing is changed."""
    if os.fstat(folder).st_uid != 0:
        return
    names = os.listdir(folder)
    if names and INFO_NAME not in names:
        raise StorageError(f"{root} belongs to root and is neither empty nor a store", "give a new or an empty folder with --store")
    if not names and not is_new and os.environ.get("SUDO_UID"):
        raise StorageError(f"{root} belongs to root, and the capture stores as user {user.name}", f"chown {user.name} {root}")
    _give_all(folder, user)


def _give_all(folder: int, user: User) -> None:
    for _, folders, files, at in os.fwalk(".", dir_fd=folder, follow_symlinks=False):
        os.fchown(at, user.uid, user.gid)
        for name in (*folders, *files):
            status = os.stat(name, dir_fd=at, follow_symlinks=False)
            if status.st_uid == 0 and (stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)):
                os.chown(name, user.uid, user.gid, dir_fd=at, follow_symlinks=False)


def _prepare(root: Path, user: User | None) -> None:
    """Make or repair it with the writer's rights, in a child: DuckDB, which makes the views, adds 45 MB to whoever loads it."""
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = "the process that makes it ready failed\ttry again"
        try:
            if user is not None and not privileges.may_read_programs(user):
                _load_all()
            privileges.become(user)
            create_store(".", views=os.access(root, os.X_OK))
            said = ""
        except LLMSecError as fault:
            said = f"{fault}\t{fault.hint}"
        except ImportError as fault:
            said = f"a part of the program cannot be loaded ({fault})\tinstall it again"
        finally:
            os.write(write, said.encode(errors="replace"))
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    if said:
        message, _, hint = said.partition("\t")
        raise StorageError(message.replace("cannot write .", f"cannot write {root}"), hint)


def _load_all() -> None:
    """What `create_store` loads late, which the writer's user may not be able to read."""
    import duckdb  # noqa: F401, PLC0415

    from llmsec_tap.storage import parquet  # noqa: F401, PLC0415
