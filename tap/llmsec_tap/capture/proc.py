"""What /proc tells of processes, in passing: nothing is kept, and of a process that is gone everything is empty.

The probes stand before anything heavier is imported, and this is what choosing their processes needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

# A container inside a container: the innermost is the process's own, which is the last in the path.
_CONTAINER_ID: Final = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?:$|/)")


def container_of(cgroup: str) -> str | None:
    """The container id in a /proc/PID/cgroup text: docker, containerd, cri-o and podman, cgroup v1 and v2, systemd and cgroupfs.

    Every runtime ends the path with the 64 hexadecimal digits, after a prefix of its own (docker-, cri-containerd-, crio-,
    libpod-) where systemd manages the group. Helper groups such as libpod's /container below it are passed over.
    """
    for line in cgroup.splitlines():
        path = line.split(":", 2)[-1]
        found = _CONTAINER_ID.findall(path)
        if found:
            return str(found[-1])
    return None


def name_of(pid: int) -> str:
    return text_of(Path(f"/proc/{pid}/comm")).strip()


def container_of_pid(pid: int) -> str | None:
    return container_of(text_of(Path(f"/proc/{pid}/cgroup")))


def all_pids() -> list[int]:
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


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
