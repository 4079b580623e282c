"""The books of what is probed: each file once, for one process or for all, and which living processes map it.

A file that lies in the lower layer of several overlays (containers of one image) is another file in each of them to those who ask,
and one to the kernel, which places a probe in the file below. So it is probed once, through one of the mounts; each mount that it is
seen through is a *view*. When the last process of a view ends, the view goes, and where the probes were placed through it they are
placed through another one first: probes hold the mount they came by. When the last view goes, so do the probes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from llmsec_tap.capture.ebpf.loader_api import Attachment, Loader, ProbePlan, ProbeState
from llmsec_tap.capture.probes.mapped import Identity, OpenFile
from llmsec_tap.capture.probes.targets import Findings
from llmsec_tap.errors import KernelError

# Probes outlive their last process by this, for the next one that is started with the same file. Container runtimes go on trying
# to unmount for 2 to 3 s.
_KEPT_S: Final = 0.5
# Where they cannot be placed through another mount: its processes are ending, or it cannot be opened.
_TRIED_AGAIN_S: Final = 5.0

Owner = int | None
"""The one process whose calls are probed; None: every process that maps the file."""


class Aside:
    """Runs calls one after the other on a thread of its own: taking a probe out waits for all CPUs, and nobody waits for that."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __call__(self, call: Callable[[], None]) -> None:
        self._calls.put(call)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="llmsec-detach", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            self._calls.get()()


@dataclass
class _Probed:
    attachment: Attachment
    file: OpenFile  # what it was placed through
    views: dict[Identity, set[int]]  # the processes that map it, by the identity that it has for them
    is_kept: bool


class Attachments:
    """Not for several threads. `look` finds what a process maps now; `aside` runs what takes long."""

    def __init__(
        self,
        loader: Loader,
        look: Callable[[int], Findings],
        *,
        clock: Callable[[], float] = time.monotonic,
        aside: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._loader = loader
        self._look = look
        self._clock = clock
        self._aside = aside or Aside()
        self._probed: dict[tuple[Identity, Owner], _Probed] = {}
        self._mapped: dict[int, frozenset[Identity]] = {}
        self._unused: dict[tuple[Identity, Owner], float] = {}  # -> when it goes

    def __len__(self) -> int:
        """The attachments that stand."""
        return len({id(probed) for probed in self._probed.values()})

    @property
    def plans(self) -> list[ProbePlan]:
        return list({id(probed): probed.attachment.plan for probed in self._probed.values()}.values())

    def states(self) -> list[ProbeState]:
        """Of each library that is probed, whether for one process or for all; those that most processes map come first."""
        users: dict[tuple[str, str, str], set[int]] = {}
        for probed in self._probed.values():
            plan = probed.attachment.plan
            if not plan.is_linker:
                users.setdefault((plan.library, plan.shown, plan.symbols), set()).update(*probed.views.values())
        return sorted((ProbeState(*what, len(pids)) for what, pids in users.items()), key=lambda state: -state.processes)

    @property
    def pids(self) -> list[int]:
        """The processes that map something probed."""
        return list(self._mapped)

    def probed_for(self, owner: Owner) -> set[Identity]:
        return {identity for identity, other in self._probed if other == owner}

    def covers(self, identity: Identity, file: OpenFile, owner: Owner) -> bool:
        """Whether calls of this process are probed in this file already, by whichever of its mounts. From now on it is a view, too."""
        if (identity, None) in self._probed or (identity, owner) in self._probed:
            return True
        for other in (None, owner):
            for (_, whose), probed in self._probed.items():
                if whose == other and probed.file.is_same_as(file):
                    probed.views[identity] = set()
                    self._probed[identity, other] = probed
                    self._unused[identity, other] = self._clock() + _KEPT_S
                    return True
        return False

    def add(self, attachment: Attachment, file: OpenFile, *, is_kept: bool = False) -> None:
        """`file`, which stays the caller's, is what the attachment's plan names. `is_kept`: also while no process maps it."""
        identity = attachment.plan.identity
        self._probed[identity, attachment.pid] = _Probed(attachment, file.again(), {identity: set()}, is_kept)
        self._unused[identity, attachment.pid] = self._clock() + _KEPT_S  # unless somebody maps it

    # --- who maps what ------------------------------------------------------------------------------------------------

    def maps(self, pid: int, identities: Iterable[Identity]) -> bool:
        """What a living process maps now of all that is probed, whatever it did before. Whether it is new here."""
        now = frozenset(identity for identity in identities if (identity, None) in self._probed or (identity, pid) in self._probed)
        before = self._mapped.get(pid, frozenset())
        for identity in now:
            for owner in (None, pid):
                probed = self._probed.get((identity, owner))
                if probed is not None:
                    probed.views[identity].add(pid)
        self._leave(pid, before - now, _KEPT_S)
        if now:
            self._mapped[pid] = now
        else:
            self._mapped.pop(pid, None)
        return bool(now) and not before

    def forget(self, pid: int, *, has_ended: bool = True) -> None:
        """It has ended, or runs another program, which will map its own."""
        self._leave(pid, self._mapped.pop(pid, frozenset()), 0.0 if has_ended else _KEPT_S)

    def _leave(self, pid: int, identities: Iterable[Identity], kept_s: float) -> None:
        for identity in identities:
            for owner in (None, pid):
                probed = self._probed.get((identity, owner))
                if probed is not None:
                    probed.views[identity].discard(pid)
                    if not probed.views[identity]:
                        self._unused[identity, owner] = self._clock() + (_KEPT_S if owner is None else kept_s)

    # --- the end of an attachment -------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """When `release` has something to do, by the clock."""
        return min(self._unused.values(), default=None)

    def release(self) -> None:
        """Take out what no process has mapped for a while."""
        now = self._clock()
        for key in [key for key, due in self._unused.items() if due <= now]:
            del self._unused[key]
            probed = self._probed.get(key)
            identity, owner = key
            if probed is None or probed.views[identity]:
                continue
            through = probed.attachment.plan.identity
            if probed.is_kept and identity == through and not probed.file.is_deleted:
                continue
            if identity == through and len(probed.views) > 1 and not self._move(probed, identity, owner):
                self._unused[key] = now + _TRIED_AGAIN_S
                continue
            del self._probed[key], probed.views[identity]
            if not probed.views:
                self._take_out(probed.attachment, probed.file)

    def _move(self, probed: _Probed, identity: Identity, owner: Owner) -> bool:
        """Place the probes through another view. Those of before go after: if two of them see the same call, it is reported once."""
        others = {other: users for other, users in probed.views.items() if other != identity}
        for pid in {pid for users in others.values() for pid in users}:
            with self._look(pid) as found:
                for plan in (*found.plans, *found.linkers):
                    if plan.identity not in others:
                        continue
                    try:
                        attachment = self._loader.attach(plan, owner)
                    except KernelError:
                        continue
                    if not found.is_unchanged(plan):
                        self._loader.detach(attachment)
                        continue
                    self._take_out(probed.attachment, probed.file)
                    probed.attachment, probed.file = attachment, found.files[plan.path].again()
                    probed.is_kept = False
                    return True
        return False

    def _take_out(self, attachment: Attachment, file: OpenFile) -> None:
        def take_out() -> None:
            self._loader.detach(attachment)
            file.close()

        self._aside(take_out)
