"""What /proc tells of processes, in passing: nothing is kept, and of a process that is gone everything is empty.

The probes stand before anything heavier is imported, and this is what choosing their processes needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_CONTAINER_ID: Final = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?:$|/)")


def sees_host_pids() -> bool:
    """Whether process ids mean here what they mean to the kernel half. Raises OSError where /proc is not mounted."""
    return Path("/proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE


def container_of(cgroup: str, is_trusted: Callable[[str, str], bool] | None = None) -> str | None:
    """The container id in a /proc/PID/cgroup text: docker, containerd, cri-o and podman, cgroup v1 and v2, systemd and cgroupfs.

    Every runtime ends the path with the 64 hexadecimal digits, after a prefix of its own (docker-, cri-containerd-, crio-,
    libpod-) where systemd manages the group. Helper groups such as libpod's /container below it are passed over.

    Of a container inside a container, the innermost is the process's own: the last in the path. But who was given a group to manage
    may name groups in it like another's container, so only those that `is_trusted` (controllers, path) says count; where none
    does (a rootless runtime), the outermost.
    """
    for line in cgroup.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found = list(_CONTAINER_ID.finditer(path))
        if found:
            own = [one for one in found if is_trusted is None or is_trusted(controllers, _up_to(path, one.end(1)))]
            return str((own[-1] if own else found[0])[1])
    return None


def _up_to(path: str, at: int) -> str:
    """The path up to the component that holds this place."""
    end = path.find("/", at)
    return path if end < 0 else path[:end]


def made_by_root(controllers: str, path: str) -> bool:
    """Whether root made this group (of cgroup v1 with its controllers, or v2) and the runtime's name for it can be believed."""
    folder = Path("/sys/fs/cgroup", *([controllers.removeprefix("name=")] if controllers else []), path.lstrip("/"))
    try:
        return folder.stat().st_uid == 0
    except OSError:
        return False


def name_of(pid: int) -> str:
    return text_of(Path(f"/proc/{pid}/comm")).strip()


def uid_of(pid: int) -> int | None:
    """The effective user. (The owner of /proc/PID is root where the process may not be dumped.)"""
    for line in text_of(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[2])
    return None


def container_of_pid(pid: int) -> str | None:
    return container_of(text_of(Path(f"/proc/{pid}/cgroup")), made_by_root)


def all_pids() -> list[int]:
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def threads_of(pid: int) -> list[int]:
    try:
        return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []


def descendants_of(pids: Iterable[int]) -> list[int]:
    """The living descendants of some processes. (/proc/PID/task/TID/children would be cheaper, but many kernels are built without.)"""
    parents: dict[int, list[int]] = {}
    for known in all_pids():
        stat = text_of(Path(f"/proc/{known}/stat"))
        fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
        if len(fields) > 1:
            parents.setdefault(int(fields[1]), []).append(known)
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def text_of(path: Path) -> str:
    """The text of a file under /proc; empty where it is gone or may not be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
