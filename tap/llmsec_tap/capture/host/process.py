"""Facts of observed processes: name, program, container, and in Kubernetes the pod. Read once per process and program.

A process may be gone before its first record is read; what the record itself carries (pid, name) is then all there is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from llmsec_tap.capture.host.proc import container_of, made_by_root, text_of

if TYPE_CHECKING:
    from llmsec_tap.model import Process

_MAX_KNOWN = 16_384


class Pod(NamedTuple):
    """What Kubernetes calls the container's home."""

    name: str
    namespace: str
    labels: dict[str, str]


class PodLookup(Protocol):
    """Finds the pod of a container. Never raises and never waits long: it is asked as traffic is decoded."""

    def pod_of(self, container_id: str) -> Pod | None: ...


class Facts(NamedTuple):
    """What /proc tells of a process; None is unknown."""

    comm: str | None
    exe: str | None
    container: str | None
    late_ms: int | None = None  # from its start to probes on its libraries, where it started under the tap and they were new


def facts_of(pid: int, proc: Path = Path("/proc")) -> Facts:
    folder = proc / str(pid)
    try:
        exe: str | None = str((folder / "exe").readlink())
    except OSError:
        exe = None
    return Facts(text_of(folder / "comm").strip() or None, exe, container_of(text_of(folder / "cgroup"), made_by_root))


class ProcessTable:
    """`Process` records by pid, of what `facts` tells (without: what `proc` holds). `forget` when the process ends or runs another program."""

    def __init__(self, pods: PodLookup | None = None, proc: Path = Path("/proc"), facts: Callable[[int], Facts] | None = None) -> None:
        self._pods = pods
        self._facts = facts or (lambda pid: facts_of(pid, proc))
        self._known: OrderedDict[int, Process] = OrderedDict()
        self._late: dict[int, int] = {}

    def get(self, pid: int, comm: str | None = None) -> Process:
        known = self._known.get(pid)
        if known is not None and (comm is None or known.comm == comm):
            return known
        process = self._read(pid, comm)
        self._known[pid] = process
        self._known.move_to_end(pid)
        if len(self._known) > _MAX_KNOWN:
            self._late.pop(self._known.popitem(last=False)[0], None)
        return process

    def take_late_ms(self, pid: int) -> int | None:
        """How late its probes came, told once; None where they did not."""
        return self._late.pop(pid, None)

    def forget(self, pid: int) -> None:
        self._known.pop(pid, None)
        self._late.pop(pid, None)

    def _read(self, pid: int, comm: str | None) -> Process:
        from llmsec_tap.model import Label, Process  # noqa: PLC0415 - the warden, which uses facts_of alone, needs no records

        facts = self._facts(pid)
        container = facts.container
        if facts.late_ms is not None:
            self._late[pid] = facts.late_ms
        pod = self._pods.pod_of(container) if self._pods is not None and container is not None else None
        return Process(
            pid=pid,
            comm=comm or facts.comm,
            exe=facts.exe,
            container_id=container,
            pod=pod.name if pod else None,
            namespace=pod.namespace if pod else None,
            labels=[Label(name=name, value=value) for name, value in sorted(pod.labels.items())] if pod else [],
        )
