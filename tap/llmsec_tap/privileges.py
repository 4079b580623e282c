"""Giving rights up: what reads bytes that strangers chose runs as a user of its own, without capabilities and behind a filter.

A process that is not root keeps its user and gives up its capabilities. Where root may not change its user (a container without
CAP_SETUID), it goes on as user 0 without capabilities, and `llmsec-tap check` says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import encodings
import importlib
import os
import pkgutil
import pwd
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from llmsec_tap import seccomp
from llmsec_tap.errors import ConfigError

USER_VARIABLE: Final = "LLMSEC_USER"
_DEFAULT_NAME: Final = "llmsec"
# Used where no account `llmsec` was made: in a range that neither Debian nor systemd gives out, so nobody else's files or processes
# are within reach (https://systemd.io/UIDS-GIDS). `nobody` is no such user: unrelated services share it.
_OWN_UID: Final = 60_787

# linux/prctl.h, linux/capability.h
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 4, 24, 38, 47, 4
_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522
CAPABILITIES: Final = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_CHOWN": 0,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_RAW": 13,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_SYSLOG": 34,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
    "CAP_CHECKPOINT_RESTORE": 40,
}


class User(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str


def unprivileged_user() -> User | None:
    """Whom root becomes: $LLMSEC_USER, the caller of sudo, the account `llmsec`, or a number of our own.

    None: this is not root, or a root that may not change its user.

    Raises ConfigError for a named user that does not exist or is root.
    """
    needed = 1 << CAPABILITIES["CAP_SETUID"] | 1 << CAPABILITIES["CAP_SETGID"]
    if os.geteuid() != 0 or effective_capabilities() & needed != needed:
        return None
    named = os.environ.get(USER_VARIABLE)
    if named:
        user = by_name(named)
        if user is None or user.uid == 0:
            raise ConfigError(
                f"{USER_VARIABLE}={named}: {'no such user' if user is None else 'decoding never runs as root'}",
                "Name an account that owns nothing else, such as one made by `useradd --system llmsec`.",
            )
        return user
    caller = os.environ.get("SUDO_UID", "")
    if caller.isdecimal() and int(caller):
        return by_uid(int(caller))
    return by_name(_DEFAULT_NAME) or User(_OWN_UID, _OWN_UID, (), str(_OWN_UID))


def by_name(name: str) -> User | None:
    try:
        return by_uid(int(name)) if name.isdecimal() else _user(pwd.getpwnam(name))
    except KeyError:
        return None


def by_uid(uid: int) -> User:
    try:
        return _user(pwd.getpwuid(uid))
    except KeyError:
        return User(uid, uid, (), str(uid))


def _user(entry: pwd.struct_passwd) -> User:
    groups = () if entry.pw_uid == 0 else tuple(group for group in os.getgrouplist(entry.pw_name, entry.pw_gid) if group)
    return User(entry.pw_uid, entry.pw_gid, groups, entry.pw_name)


def become(user: User | None) -> None:
    """The user's rights and no capabilities from here on, for all threads.

    Without a user (see `unprivileged_user`) only the capabilities go; call it then before there are other threads.
    """
    if user is not None and os.geteuid() == 0:
        os.setgroups(())  # a person's groups may open devices (disk) or other services (docker)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    limit_capabilities(())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # other processes of this user may not look into this one


def confine(*, network: bool = False, serving: bool = False) -> None:
    """The filter on system calls (seccomp.py), for all threads and for good. Call it after `become`."""
    if not seccomp.confine(network=network, serving=serving):
        raise OSError("the filter on system calls was refused")


def limit_capabilities(names: tuple[str, ...]) -> None:
    """Keep these of the capabilities that this thread has. Where it has none, nothing changes."""
    mask = sum(1 << CAPABILITIES[name] for name in names)
    held = effective_capabilities() & mask
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    low, high = held & 0xFFFFFFFF, held >> 32
    # effective, permitted, inheritable; twice 32 bits
    libc.capset(header, struct.pack("=IIIIII", low, low, 0, high, high, 0))


def effective_capabilities() -> int:
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


class Confinement(NamedTuple):
    """What is in force for a process that decodes, as the kernel says it."""

    uid: int
    capabilities: int
    no_new_privileges: bool
    is_filtered: bool


def trial() -> Confinement:
    """What a decoder started by this process would run as: a child tries it and tells."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            become(unprivileged_user())
            confine()
            os.write(write, Path("/proc/self/status").read_bytes())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        fields = dict(line.split(":\t", 1) for line in file.read().decode().splitlines() if ":\t" in line)
    os.waitpid(child, 0)
    if not fields:
        raise OSError("the trial failed")
    return Confinement(
        int(fields["Uid"].split()[1]), int(fields["CapEff"], 16), fields["NoNewPrivs"].strip() == "1", fields["Seccomp"].strip() == "2"
    )


@contextlib.contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Files are opened with this user's rights meanwhile; only for root, and while there are no other threads."""
    groups = os.getgroups()
    os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def may_read_programs(user: User) -> bool:
    """Whether what is imported later, as this user, can be: an interpreter in root's own folder cannot be read by others."""
    with acting_as(user):
        return all(
            os.access(path, os.R_OK | os.X_OK, effective_ids=True)
            for path in {*sys.path[1:], str(Path(__file__).parent)}
            if path.startswith("/") and not path.endswith(".zip")
        )


def load_encodings() -> None:
    """Every text encoding, which Python loads when it is first asked for: later this process may not be able to read where they lie."""
    for module in pkgutil.iter_modules(encodings.__path__):
        if module.name not in ("mbcs", "oem"):  # of Windows
            importlib.import_module(f"encodings.{module.name}")


def become_owner_of(folder: Path) -> None:
    """For a helper that root started: do what follows as the owner of the folder it works in, so that its files stay the owner's."""
    assert threading.active_count() == 1
    owner = folder.stat().st_uid
    if os.geteuid() == 0 and owner:
        become(by_uid(owner))
