"""Facts of observed processes: name, program, container, and in Kubernetes the pod. Read once per process and program.

A process may be gone before its first record is read; what the record itself carries (pid, name) is then all there is.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from llmsec_tap.model import Label, Process

_MAX_KNOWN = 16_384
_CONTAINER_ID: Final = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?:$|/)")
# A container inside a container: the innermost is the process's own, which is the last in the path.


class Pod(NamedTuple):
    """What Kubernetes calls the container's home."""

    name: str
    namespace: str
    labels: dict[str, str]


class PodLookup(Protocol):
    """Finds the pod of a container. Never raises and never waits long: it is asked as traffic is decoded."""

    def pod_of(self, container_id: str) -> Pod | None: ...


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


class ProcessTable:
    """`Process` records by pid. `forget` when the process ends or runs another program."""

    def __init__(self, pods: PodLookup | None = None, proc: Path = Path("/proc")) -> None:
        self._pods = pods
        self._proc = proc
        self._known: OrderedDict[int, Process] = OrderedDict()

    def get(self, pid: int, comm: str | None = None) -> Process:
        known = self._known.get(pid)
        if known is not None and (comm is None or known.comm == comm):
            return known
        process = self._read(pid, comm)
        self._known[pid] = process
        self._known.move_to_end(pid)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return process

    def forget(self, pid: int) -> None:
        self._known.pop(pid, None)

    def _read(self, pid: int, comm: str | None) -> Process:
        folder = self._proc / str(pid)
        try:
            exe: str | None = str((folder / "exe").readlink())
        except OSError:
            exe = None
        container = container_of(_text(folder / "cgroup"))
        pod = self._pods.pod_of(container) if self._pods is not None and container is not None else None
        return Process(
            pid=pid,
            comm=comm or _text(folder / "comm").strip() or None,
            exe=exe,
            container_id=container,
            pod=pod.name if pod else None,
            namespace=pod.namespace if pod else None,
            labels=[Label(name=name, value=value) for name, value in sorted(pod.labels.items())] if pod else [],
        )


def name_of(pid: int) -> str:
    return _text(Path(f"/proc/{pid}/comm")).strip()


def container_of_pid(pid: int) -> str | None:
    return container_of(_text(Path(f"/proc/{pid}/cgroup")))


def all_pids() -> list[int]:
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def children_of(pid: int) -> list[int]:
    """The living descendants of a process. (/proc/PID/task/TID/children would be cheaper, but many kernels are built without.)"""
    parents: dict[int, list[int]] = {}
    for known in all_pids():
        stat = _text(Path(f"/proc/{known}/stat"))
        fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
        if len(fields) > 1:
            parents.setdefault(int(fields[1]), []).append(known)
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
