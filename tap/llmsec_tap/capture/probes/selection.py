"""Which processes are observed, and the probes that stand in them: at the start, and as processes start, fork and load libraries.

Probes for `--pid` are placed in that process alone, so that no other pays for them. A process that turns out to fork workers (they
run on in its program), or has more than a few, is the exception: placing probes in a worker takes milliseconds, in which it may have
answered already, so its libraries are probed for every process, as below. Where processes are chosen by name, by
container or all, a library is probed for every process that maps it, so that one started later is seen from its first byte; the
kernel half then leaves out those that were not chosen.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.ebpf.events import Event
from llmsec_tap.capture.ebpf.loader_api import Attachment, KernelSettings, Loader, ProbePlan
from llmsec_tap.capture.host import proc
from llmsec_tap.capture.probes.targets import Findings, Refusal, TargetFinder, installed_libraries
from llmsec_tap.errors import KernelError, SourceError
from llmsec_tap.journal import Journal

# A process that started is looked at again after these seconds: the event comes before its libraries are mapped, and the dynamic
# loader's own word (MAP) only once a probe stands in it.
_LOOK_AGAIN_S = (0.002, 0.02, 0.1, 0.5)
# A child that has not started another program after this time is a worker.
_WORKER_AFTER_S = 0.02
# Each process with probes of its own costs five links, and each link some 30 ms to take out again: more than these share theirs.
_ONE_BY_ONE = 8


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the options chose. Nothing chosen means nothing observed by eBPF."""

    pids: tuple[int, ...] = ()
    comms: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    everything: bool = False
    follow_forks: bool = True

    @property
    def is_empty(self) -> bool:
        return not (self.pids or self.comms or self.containers or self.everything)

    @property
    def is_by_pid(self) -> bool:
        return bool(self.pids) and not (self.comms or self.containers or self.everything)

    def kernel_settings(self, ring_bytes: int) -> KernelSettings:
        return KernelSettings(
            only_targets=not self.everything,
            follow_forks=self.follow_forks,
            watch_all=self.everything or bool(self.containers),
            comms=tuple(name[:15] for name in self.comms),
            ring_bytes=ring_bytes,
        )


class Observed:
    """The probes of a run. `report` takes one line for the user (attached, refused); called from the reading thread too."""

    def __init__(self, loader: Loader, finder: TargetFinder, selection: Selection, journal: Journal) -> None:
        self._loader = loader
        self._finder = finder
        self._selection = selection
        self._journal = journal
        self._attached: dict[tuple[tuple[str, int], int | None], Attachment] = {}
        self._failed: set[tuple[tuple[str, int], int | None]] = set()
        self._refused: set[str] = set()
        self._announced: set[tuple[str, int]] = set()
        self._due: list[tuple[float, int]] = []
        self._young: dict[int, tuple[float, int]] = {}  # forked child -> when, parent
        self._one_by_one = selection.is_by_pid
        self.attached_ns = 0

    @property
    def libraries(self) -> int:
        return len({plan.identity for plan in self._plans() if not plan.is_linker})

    def _plans(self) -> list[ProbePlan]:
        return [attachment.plan for attachment in self._attached.values()]

    def start(self) -> None:
        """Attach to what is there now. Raises SourceError for a process that does not exist, KernelError where nothing can work."""
        chosen = self._selection
        for pid in chosen.pids:
            if not proc.is_alive(pid):
                raise SourceError(f"there is no process {pid}", "`llmsec-tap targets` lists those that can be observed.")
        if not chosen.is_by_pid:
            with self._finder.look_at(installed_libraries()) as found:
                for plan in found.plans:
                    self._attach(found, plan, None, must=True)
        pids = list(chosen.pids)
        if not chosen.is_by_pid:
            pids += [pid for pid in proc.all_pids() if self._is_chosen(pid)]
        family = self._family(pids)
        if self._one_by_one and len(family) > _ONE_BY_ONE:
            self._one_by_one = False
            self._journal.info(
                "probing_system_wide",
                f"{len(family)} processes: probing these libraries system-wide; events from other processes are filtered out",
                processes=len(family),
            )
        for pid in family:
            self._look(pid, must=pid in chosen.pids)
        self.attached_ns = time.monotonic_ns()

    def _family(self, pids: list[int]) -> list[int]:
        """Watch these processes and, where children are followed, those that they have forked.

        A child that is forked meanwhile is either seen by a scan or reported by the kernel half, which knows its parent by then.
        """
        watched: dict[int, None] = {}
        while new := [pid for pid in pids if pid not in watched]:
            for pid in new:
                self._loader.watch(pid)
            watched |= dict.fromkeys(new)
            pids = proc.descendants_of(watched) if self._selection.follow_forks else []
        return list(watched)

    def on_event(self, event: Event) -> None:
        """A process started, forked, ended or mapped code."""
        if event.type == events.FORK:
            if self._selection.is_by_pid:
                self._young[event.other] = (time.monotonic(), event.pid)
            self._look(event.other)
            self._look_later(event.other)
        elif event.type == events.EXEC:
            self._young.pop(event.pid, None)
            if self._selection.containers and self._is_chosen(event.pid):
                self._loader.watch(event.pid)
            if self._selection.is_by_pid or self._is_chosen(event.pid):
                self._look(event.pid)
                self._look_later(event.pid)
        elif event.type == events.MAP:
            self._due.append((time.monotonic(), event.pid))  # once for all that this batch of records says
        elif event.type == events.EXIT:
            if event.pid in self._young:
                self._is_worker(event.pid)
            for key in [key for key in self._attached if key[1] == event.pid]:
                # Aside: the kernel waits for its other CPUs, and the ring would fill meanwhile.
                threading.Thread(target=self._loader.detach, args=(self._attached.pop(key),), name="llmsec-detach", daemon=True).start()

    def look_at_due(self) -> None:
        """Look again at the processes whose time has come."""
        now = time.monotonic()
        for pid in [pid for pid, (forked, _) in self._young.items() if now - forked >= _WORKER_AFTER_S]:
            self._is_worker(pid)
        if not self._due:
            return
        ready = {pid for due, pid in self._due if due <= now}
        if ready:
            self._due = [(due, pid) for due, pid in self._due if due > now]
            for pid in ready:
                self._look(pid)

    def _is_worker(self, pid: int) -> None:
        """The parent's libraries are probed for every process from now on. Its own probes stay: a call seen by two is told once."""
        _, parent = self._young.pop(pid)
        probed = {identity for identity, owner in self._attached if owner == parent}
        with self._finder.look(parent) as found:
            for plan in [plan for plan in (*found.plans, *found.linkers) if plan.identity in probed]:
                if (plan.identity, None) in self._attached or (plan.identity, None) in self._failed:
                    continue
                self._attach(found, plan, None)
                if not plan.is_linker:
                    self._journal.info(
                        "probing_system_wide",
                        f"process {parent} forks workers: probing {plan.library} system-wide; events from other processes are filtered out",
                        library=plan.library,
                    )

    def next_due_s(self) -> float | None:
        return min(due for due, _ in self._due) - time.monotonic() if self._due else None

    def _is_chosen(self, pid: int) -> bool:
        chosen = self._selection
        if chosen.everything or pid in chosen.pids:
            return True
        if chosen.comms and proc.name_of(pid) in {name[:15] for name in chosen.comms}:
            return True
        if chosen.containers:
            container = proc.container_of_pid(pid)
            return container is not None and any(container.startswith(wanted) for wanted in chosen.containers)
        return False

    def _look_later(self, pid: int) -> None:
        now = time.monotonic()
        waiting = {due for due, other in self._due if other == pid}
        if len(waiting) < len(_LOOK_AGAIN_S):
            self._due += [(now + delay, pid) for delay in _LOOK_AGAIN_S]

    def _look(self, pid: int, *, must: bool = False) -> None:
        owner = pid if self._one_by_one else None
        with self._finder.look(pid) as found:
            for plan in found.plans:
                self._attach(found, plan, owner, must=must)
            for plan in found.linkers:
                self._attach(found, plan, owner)
        for refusal in found.refusals:
            self._refuse(pid, refusal)

    def _refuse(self, pid: int, refusal: Refusal) -> None:
        if refusal.path not in self._refused:
            self._refused.add(refusal.path)
            self._journal.warning(
                "not_probed",
                f"cannot probe {refusal.path} (process {pid}, {proc.name_of(pid)}): {refusal.reason}",
                file=refusal.path,
                pid=pid,
                reason=refusal.reason,
            )

    def _attach(self, found: Findings, plan: ProbePlan, pid: int | None, *, must: bool = False) -> None:
        key = (plan.identity, pid)
        if key in self._attached or key in self._failed or (plan.identity, None) in self._attached:
            return
        try:
            attachment = self._loader.attach(plan, pid)
        except KernelError as fault:
            if pid is not None and not proc.is_alive(pid):
                return
            if must:
                raise
            self._failed.add(key)
            self._journal.warning("not_probed", f"cannot probe {plan.shown}: {fault}", file=plan.shown, reason=str(fault))
            return
        if not found.is_unchanged(plan):
            # Written to since it was examined: the probes may stand in other code by now.
            self._loader.detach(attachment)
            reason = "the file was changed while it was examined"
            self._journal.warning("not_probed", f"not probing {plan.shown}: {reason}", file=plan.shown, reason=reason)
            return
        self._attached[key] = attachment
        if plan.identity not in self._announced and not plan.is_linker:
            self._announced.add(plan.identity)
            symbols = ", ".join(dict.fromkeys(probe.symbol for probe in plan.probes if "+0x" not in probe.symbol)) or "given offsets"
            notes = f" ({'; '.join(plan.notes)})" if plan.notes else ""
            self._journal.info(
                "probing", f"probing {plan.library} in {plan.shown}: {symbols}{notes}", library=plan.library, file=plan.shown
            )
