"""Which processes are observed, and the probes that stand in them: at the start, and as processes start, fork and load libraries.

Probes for `--pid` are placed in that process alone, so that no other pays for them. A process that turns out to fork workers (they
run on in its program), or has more than a few, is the exception: placing probes in a worker takes milliseconds, in which it may have
answered already, so its libraries are probed for every process, as below. Where processes are chosen by name, by
container or all, a library is probed for every process that maps it, so that one started later is seen from its first byte; the
kernel half then leaves out those that were not chosen.

The tap may live for months among processes that live for milliseconds: what is remembered of a process goes with it
(attachments.py), and what is remembered of files is bounded.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.ebpf.events import Event
from llmsec_tap.capture.ebpf.loader_api import KernelSettings, Loader, ProbePlan, ProbeState, Role
from llmsec_tap.capture.host import proc
from llmsec_tap.capture.probes.attachments import Attachments, Owner
from llmsec_tap.capture.probes.mapped import Identity
from llmsec_tap.capture.probes.recent import Recent
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
# Files that could not be probed are tried again after this time: an inode is used again for another file.
_FAILED_S: Final = 600.0
_MAX_REMEMBERED: Final = 4096
_MAX_PROBLEMS: Final = 100
# A program has loaded what it is linked to by then; what comes later it may use from that moment on.
_STARTING_NS: Final = 1_000_000_000
# The end of a process may not be told (the kernel's ring was full); so often the books are compared with what lives.
_SWEEP_S: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the options chose. Nothing chosen means nothing observed by eBPF."""

    pids: tuple[int, ...] = ()
    comms: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()  # of pods; which containers have all of them, `Observed.choose_labelled` is told
    everything: bool = False
    follow_forks: bool = True

    @property
    def is_empty(self) -> bool:
        return not (self.pids or self.comms or self.is_by_container or self.everything)

    @property
    def is_by_pid(self) -> bool:
        return bool(self.pids) and not (self.comms or self.is_by_container or self.everything)

    @property
    def is_by_container(self) -> bool:
        return bool(self.containers or self.labels)

    @property
    def known_comms(self) -> frozenset[str]:
        """As the kernel knows them."""
        return frozenset(name[:15] for name in self.comms)

    def within(self, running: Selection) -> tuple[Selection, list[str]]:
        """What of it can replace `running` while that runs, and what needs a restart: a sentence each.

        Which kinds of choice there are is fixed in the loaded programs, and whether probes are placed for one process or for all.
        """
        fixed: list[str] = []
        possible = self
        if self.everything != running.everything:
            fixed.append("whether all processes are observed")
            possible = replace(possible, everything=running.everything)
        if self.follow_forks != running.follow_forks:
            fixed.append("whether children are followed")
            possible = replace(possible, follow_forks=running.follow_forks)
        if bool(self.comms) != bool(running.comms):
            fixed.append("the first name, or none any more")
            possible = replace(possible, comms=running.comms)
        if bool(self.containers) != bool(running.containers):
            fixed.append("the first container, or none any more")
            possible = replace(possible, containers=running.containers)
        if self.labels != running.labels:
            fixed.append("another choice of labels")
            possible = replace(possible, labels=running.labels)
        return possible, [f"{what} needs a restart" for what in fixed]

    def kernel_settings(self, ring_bytes: int, *, plain: bool = False) -> KernelSettings:
        return KernelSettings(
            only_targets=not self.everything,
            # With all, too, forks are told: who maps a library is counted, and a worker may outlive its parent.
            follow_forks=self.follow_forks or self.everything,
            watch_all=self.everything or self.is_by_container,
            comms=tuple(sorted(self.known_comms)),
            ring_bytes=ring_bytes,
            plain=plain,
        )


class Observed:
    """The probes of a run. The journal is told what was attached and what was refused. Not for several threads."""

    def __init__(
        self,
        loader: Loader,
        finder: TargetFinder,
        selection: Selection,
        journal: Journal,
        *,
        clock: Callable[[], float] = time.monotonic,
        aside: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """`aside` runs what takes long (taking probes out); a thread of its own where it is not given."""
        self._loader = loader
        self._finder = finder
        self._selection = selection
        self._journal = journal
        self._clock = clock
        self._attachments = Attachments(loader, finder.look, clock=clock, aside=aside)
        self._failed: Recent[tuple[Identity, Owner]] = Recent(_MAX_REMEMBERED, _FAILED_S, clock)
        self._refused: Recent[str] = Recent(_MAX_REMEMBERED)
        self._announced: Recent[tuple[Identity, str]] = Recent(_MAX_REMEMBERED)
        self._problems: OrderedDict[str, ProbeState] = OrderedDict()  # by file
        self._due: dict[int, list[float]] = {}  # process -> when it is looked at again
        self._young: dict[int, tuple[float, int]] = {}  # forked child -> when, parent
        self._started_ns: dict[int, int] = {}  # processes that started under the tap -> when, CLOCK_BOOTTIME
        self._late_ms: OrderedDict[int, int] = OrderedDict()
        self._labelled: frozenset[str] = frozenset()
        self._one_by_one = selection.is_by_pid
        self._sweep_at = clock() + _SWEEP_S
        self._lost_processes = 0

    @property
    def libraries(self) -> int:
        return len({plan.identity for plan in self._attachments.plans if not plan.is_linker})

    def states(self) -> list[ProbeState]:
        """What is probed now, and the last files that could not be."""
        return [*self._attachments.states(), *self._problems.values()]

    def start(self) -> None:
        """Attach to what is there now. Raises SourceError for a process that does not exist, KernelError where nothing can work."""
        chosen = self._selection
        for pid in chosen.pids:
            if not proc.is_alive(pid):
                raise SourceError(f"there is no process {pid}", "`llmsec-tap targets` lists those that can be observed.")
        if not chosen.is_by_pid:
            with self._finder.look_at(installed_libraries()) as found:
                for plan in (*found.plans, *found.linkers):
                    self._attach(found, plan, None, must=not plan.is_linker, is_kept=True)
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

    def update(self, selection: Selection) -> list[str]:
        """Observe what `selection` chooses from now on; nothing else of the run changes. What needs a restart, a sentence each."""
        before, (now, fixed) = self._selection, selection.within(self._selection)
        old = self._all_chosen()
        self._selection = now
        for comm in now.known_comms - before.known_comms:
            self._loader.select_comm(comm)
        for comm in before.known_comms - now.known_comms:
            self._loader.deselect_comm(comm)
        for pid in now.pids:
            if pid not in before.pids and not proc.is_alive(pid):
                self._journal.warning("no_process", f"there is no process {pid}: nothing of it is captured", pid=pid)
        self._go_over_from(old)
        return fixed

    def choose_labelled(self, containers: frozenset[str]) -> None:
        """Observe the processes of these containers from now on, and no longer those of the ones named before."""
        old = self._all_chosen()
        self._labelled = containers
        self._go_over_from(old)

    def _all_chosen(self) -> set[int]:
        return {pid for pid in proc.all_pids() if self._is_chosen(pid)}

    def _go_over_from(self, old: set[int]) -> None:
        """Observe what is chosen now instead of the processes `old`."""
        new = self._all_chosen()
        family = self._family(sorted(new))
        left = old - new
        if self._selection.follow_forks:
            left |= set(proc.descendants_of(left))
        for pid in left.difference(family):
            self._loader.unwatch(pid)
            self._due.pop(pid, None)
            self._attachments.forget(pid)
        if self._one_by_one and len(family) > _ONE_BY_ONE:
            self._one_by_one = False
        for pid in family:
            self._look(pid)
        self._journal.info("selection_changed", f"processes chosen now: {len(family)}", processes=len(family))

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
        pid = event.pid
        if event.type == events.FORK:
            if self._selection.is_by_pid:
                self._young[event.other] = (self._clock(), pid)
            self._look(event.other)
            self._look_later(event.other)
        elif event.type == events.EXEC:
            self._young.pop(pid, None)
            self._late_ms.pop(pid, None)
            self._attachments.forget(pid, has_ended=False)
            by_container = self._selection.is_by_container
            if by_container and self._is_chosen(pid):
                self._loader.watch(pid)
            # Told of all processes with containers and of targets else: a followed child is one, whatever it runs.
            if not by_container or self._is_chosen(pid):
                self._started_ns[pid] = event.ts_ns
                self._look(pid)
                self._look_ahead(pid)
                self._look_later(pid)
        elif event.type == events.MAP:
            if event.ts_ns - self._started_ns.get(pid, event.ts_ns) > _STARTING_NS:
                self._started_ns[pid] = event.ts_ns
            self._due.setdefault(pid, []).insert(0, self._clock())  # once for all that this batch of records says
            del self._due[pid][len(_LOOK_AGAIN_S) + 1 :]
        elif event.type == events.EXIT:
            if pid in self._young:
                self._is_worker(pid)
            self._due.pop(pid, None)
            self._started_ns.pop(pid, None)
            self._attachments.forget(pid)

    def late_ms(self, pid: int) -> int | None:
        """From a process's start to the moment when probes stood that were placed for it; None where there were no such."""
        return self._late_ms.get(pid)

    def look_at_due(self) -> None:
        """What time brings: processes that are looked at again, probes that nobody needs any more."""
        now = self._clock()
        for pid in [pid for pid, (forked, _) in self._young.items() if now - forked >= _WORKER_AFTER_S]:
            self._is_worker(pid)
        for pid in [pid for pid, times in self._due.items() if min(times) <= now]:
            later = [due for due in self._due.pop(pid) if due > now]
            if later:
                self._due[pid] = later
            self._look(pid)
        self._attachments.release()
        if now >= self._sweep_at:
            self._sweep()

    def next_due_s(self) -> float | None:
        """How long nothing has to be done, unless an event comes."""
        due = [min(times) for times in self._due.values()]
        due += [forked + _WORKER_AFTER_S for forked, _ in self._young.values()]
        unused = self._attachments.next_due()
        if unused is not None:
            due.append(unused)
        return min(due) - self._clock() if due else None

    def _sweep(self) -> None:
        """What was missed: processes whose end was not told, and those whose beginning was not."""
        self._sweep_at = self._clock() + _SWEEP_S
        for pid in {*self._attachments.pids, *self._started_ns}:
            if not proc.is_alive(pid):
                self._attachments.forget(pid)
                self._started_ns.pop(pid, None)
        lost = self._loader.totals().lost_processes
        if lost != self._lost_processes:
            self._lost_processes = lost
            for pid in proc.all_pids():
                if self._is_chosen(pid):
                    self._due.setdefault(pid, []).append(self._clock())

    def _is_worker(self, pid: int) -> None:
        """The parent's libraries are probed for every process from now on. Its own probes stay: if two probes see the same call, it is reported once."""
        _, parent = self._young.pop(pid)
        probed = self._attachments.probed_for(parent)
        shared = self._attachments.probed_for(None)
        with self._finder.look(parent) as found:
            for plan in [plan for plan in (*found.plans, *found.linkers) if plan.identity in probed - shared]:
                if (plan.identity, None) in self._failed:
                    continue
                self._attach(found, plan, None)
                if not plan.is_linker:
                    self._journal.info(
                        "probing_system_wide",
                        f"process {parent} forks workers: probing {plan.library} system-wide; events from other processes are filtered out",
                        library=plan.library,
                    )
            self._attachments.maps(parent, [plan.identity for plan in (*found.plans, *found.linkers)])

    def _is_chosen(self, pid: int) -> bool:
        chosen = self._selection
        if chosen.everything or pid in chosen.pids:
            return True
        if chosen.comms and proc.name_of(pid) in chosen.known_comms:
            return True
        if chosen.is_by_container:
            container = proc.container_of_pid(pid)
            if container is not None:
                return container in self._labelled or any(container.startswith(wanted) for wanted in chosen.containers)
        return False

    def _look_later(self, pid: int) -> None:
        now = self._clock()
        self._due[pid] = [now + delay for delay in _LOOK_AGAIN_S]

    def _look(self, pid: int, *, must: bool = False) -> None:
        owner = pid if self._one_by_one else None
        with self._finder.look(pid) as found:
            for plan in found.plans:
                self._attach(found, plan, owner, must=must, late_pid=pid)
            for plan in found.linkers:
                self._attach(found, plan, owner)
            is_new = self._attachments.maps(pid, [plan.identity for plan in (*found.plans, *found.linkers)])
        if is_new and self._selection.everything:
            self._loader.watch(pid)  # it is watched as all are; now its forks are told
        for refusal in found.refusals:
            self._refuse(pid, refusal)

    def _look_ahead(self, pid: int) -> None:
        """Probe what a program that has just started will map. Where it does not after all, the probes go as unused ones do."""
        with self._finder.look_ahead(pid) as found:
            for plan in found.plans:
                self._attach(found, plan, pid if self._one_by_one else None, late_pid=pid)

    def _refuse(self, pid: int, refusal: Refusal) -> None:
        if self._refused.add(refusal.path):
            self._is_not_probed(
                f"cannot probe {refusal.path} (process {pid}, {proc.name_of(pid)}): {refusal.reason}", refusal.path, refusal.reason, pid=pid
            )

    def _is_not_probed(self, message: str, file: str, reason: str, *, library: str = "", **facts: int) -> None:
        self._problems[file] = ProbeState(library, file, "", 0, reason)
        self._problems.move_to_end(file)
        if len(self._problems) > _MAX_PROBLEMS:
            self._problems.popitem(last=False)
        self._journal.warning("not_probed", message, file=file, reason=reason, **facts)

    def _attach(
        self, found: Findings, plan: ProbePlan, owner: Owner, *, must: bool = False, is_kept: bool = False, late_pid: int = 0
    ) -> None:
        """`late_pid`: the process that it is done for, which may have begun to speak before."""
        file = found.files[plan.path]
        if self._attachments.covers(plan.identity, file, owner) or (plan.identity, owner) in self._failed:
            return
        try:
            attachment = self._loader.attach(plan, owner)
        except KernelError as fault:
            if owner is not None and not proc.is_alive(owner):
                return
            if must:
                raise
            self._failed.add((plan.identity, owner))
            self._is_not_probed(f"cannot probe {plan.shown}: {fault}", plan.shown, str(fault), library=plan.library)
            return
        if not found.is_unchanged(plan):
            # Written to since it was examined: the probes may stand in other code by now.
            self._loader.detach(attachment)
            reason = "the file was changed while it was examined"
            self._is_not_probed(f"not probing {plan.shown}: {reason}", plan.shown, reason, library=plan.library)
            return
        self._attachments.add(attachment, file, is_kept=is_kept)
        self._problems.pop(plan.shown, None)
        started_ns = self._started_ns.get(late_pid)
        if started_ns is not None and not plan.is_linker:
            self._note_late(late_pid, plan, (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - started_ns) // 1_000_000)
        if not plan.is_linker and self._announced.add((plan.identity, plan.shown)):
            notes = f" ({'; '.join(plan.notes)})" if plan.notes else ""
            self._journal.info(
                "probing", f"probing {plan.library} in {plan.shown}: {plan.symbols}{notes}", library=plan.library, file=plan.shown
            )

    def _note_late(self, pid: int, plan: ProbePlan, late_ms: int) -> None:
        """Only where the creation of a TLS object is probed can be told which connections began before."""
        if any(probe.role is Role.NEW for probe in plan.probes):
            self._late_ms[pid] = late_ms
            self._late_ms.move_to_end(pid)
            if len(self._late_ms) > _MAX_REMEMBERED:
                self._late_ms.popitem(last=False)
        self._journal.debug(
            "attached_late",
            f"probes stood in {plan.shown} {late_ms} ms after process {pid} had started",
            pid=pid,
            file=plan.shown,
            late_ms=late_ms,
        )
