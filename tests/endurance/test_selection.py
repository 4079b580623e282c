"""A tap of months: processes and files come and go, and nothing of them stays. Time is a number here; nobody sleeps."""

from __future__ import annotations

from collections.abc import Callable, Sized
from pathlib import Path

import pytest

from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.ebpf.events import Event
from llmsec_tap.capture.ebpf.loader_api import Attachment, KernelTotals, ProbePlan
from llmsec_tap.capture.probes.mapped import MappedFile
from llmsec_tap.capture.probes.selection import Observed, Selection
from llmsec_tap.capture.probes.targets import Findings, Refusal, TargetFinder
from llmsec_tap.errors import KernelError
from llmsec_tap.journal import SILENT
from support.elf import TEXT_AT, elf, symbol

PROCESSES = 100_000
FILES = 3_000
# What may be remembered of things that are gone, in any one table.
MOST = 4_096
# What is in hand at once: processes of the last half second, at one a millisecond.
IN_HAND = 600
# Process ids that no kernel gives: what starts and ends here is never a process of this machine, whose files would be looked at.
NOBODY = 10_000_000


class FakeLoader:
    name, method = "fake", "fake"

    def __init__(self) -> None:
        self.attached = 0
        self.standing = 0
        self.refuses = False
        self.lost_processes = 0

    def attach(self, plan: ProbePlan, pid: int | None) -> Attachment:
        if self.refuses:
            raise KernelError("no", "")
        self.attached += 1
        self.standing += 1
        return Attachment(plan, pid, ())

    def detach(self, attachment: Attachment) -> None:
        self.standing -= 1

    def watch(self, pid: int) -> None:
        pass

    def totals(self) -> KernelTotals:
        return KernelTotals(lost_processes=self.lost_processes)


class FakeFinder(TargetFinder):
    """Processes map what `maps` says; files are real."""

    def __init__(self, maps: Callable[[int], Path | None]) -> None:
        super().__init__()
        self.maps = maps
        self.refusing = False

    def look(self, pid: int) -> Findings:
        path = self.maps(pid)
        if path is None:
            return Findings()
        if self.refusing:
            return Findings(refusals=[Refusal(str(path), "no")])
        return self.look_at_file(MappedFile(str(path), ("00:00", 0), str(path), is_exe=False))


class Host:
    """Starts and ends processes, a millisecond apart."""

    def __init__(self, selection: Selection, maps: Callable[[int], Path | None]) -> None:
        self.now = 1000.0
        self.loader = FakeLoader()
        self.finder = FakeFinder(maps)
        self.observed = Observed(
            self.loader,  # type: ignore[arg-type]
            self.finder,
            selection,
            SILENT,
            clock=lambda: self.now,
            aside=lambda call: call(),
        )
        self.largest: dict[str, int] = {}

    def says(self, kind: int, pid: int, other: int = 0) -> None:
        values = dict.fromkeys(Event._fields, 0) | {"type": kind, "pid": pid, "other": other}
        self.observed.on_event(Event(**values))  # type: ignore[arg-type]

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.observed.look_at_due()

    def sizes(self) -> dict[str, int]:
        """Of every table of the attaching side, those that are added later among them."""
        found = {}
        for thing in (self.observed, self.observed._attachments, self.finder):
            for name, value in vars(thing).items():
                if isinstance(value, Sized) and not isinstance(value, str | tuple):
                    found[f"{type(thing).__name__}.{name}"] = len(value)
        assert len(found) > 7
        return found

    def note(self) -> None:
        for name, size in self.sizes().items():
            self.largest[name] = max(size, self.largest.get(name, 0))


@pytest.fixture
def library(tmp_path: Path) -> Callable[[int], Path]:
    """TLS libraries by number, each a file of its own."""
    names = b"\0SSL_read\0SSL_write\0"
    data = elf(
        names,
        bytes(24) + symbol(names.index(b"SSL_read"), TEXT_AT) + symbol(names.index(b"SSL_write"), TEXT_AT + 64),
        b"\x55" + b"\x90" * 63 + b"\x55" + b"\x90" * 4031,
    )

    def made(number: int) -> Path:
        path = tmp_path / f"libssl-{number}.so"
        path.write_bytes(data)
        return path

    return made


def known_without_living(sizes: dict[str, int]) -> dict[str, int]:
    """Tables that must be empty when no process lives and nothing is probed."""
    remembered = (
        "Observed._late_ms",
        "Observed._failed",
        "Observed._refused",
        "Observed._announced",
        "FakeFinder._files",
        "FakeFinder._known",
    )
    return {name: size for name, size in sizes.items() if not name.startswith(remembered)}


def test_short_processes_leave_nothing(library: Callable[[int], Path]) -> None:
    shared = library(0)
    alive: set[int] = set()
    host = Host(Selection(everything=True), lambda pid: shared if pid in alive else None)
    for pid in range(NOBODY, NOBODY + PROCESSES):
        # One in a hundred maps the library; the end of one in a thousand is not told.
        if pid % 100 == 0:
            alive.add(pid)
        host.says(events.EXEC, pid)
        host.says(events.MAP, pid)
        host.passes(0.001)
        alive.discard(pid)
        if pid % 1000:
            host.says(events.EXIT, pid)
        if pid % 997 == 0:
            host.note()
    assert host.loader.attached >= 1
    assert max(size for name, size in host.largest.items() if name != "Observed._late_ms") <= IN_HAND
    host.passes(61.0)  # the books are compared with what lives (these numbers do not)
    host.passes(1.0)
    assert not any(known_without_living(host.sizes()).values()), host.sizes()
    assert host.loader.standing == 0


def test_workers_that_come_and_go_leave_nothing(library: Callable[[int], Path]) -> None:
    """`--pid` with children: each fork may be a worker."""
    shared = library(0)
    host = Host(Selection(pids=(NOBODY,)), lambda pid: shared if pid == NOBODY else None)
    host.observed._look(NOBODY)
    for pid in range(NOBODY + 1, NOBODY + PROCESSES // 10):
        host.says(events.FORK, NOBODY, pid)
        host.passes(0.001)
        if pid > NOBODY + 10:
            host.says(events.EXIT, pid - 10)
        if pid % 97 == 0:
            host.note()
    assert max(host.largest.values()) <= IN_HAND
    assert host.loader.standing == 2, "for the process, and for all of its workers"


def test_files_that_vanish_leave_nothing(library: Callable[[int], Path]) -> None:
    current: dict[int, Path] = {}
    host = Host(Selection(everything=True), current.get)
    for pid in range(NOBODY, NOBODY + FILES):
        current[pid] = library(pid)
        host.says(events.EXEC, pid)
        current.pop(pid).unlink()
        host.says(events.EXIT, pid)
        host.passes(0.01)
        if pid % 97 == 0:
            host.note()
    host.passes(1.0)
    assert host.loader.attached == FILES
    assert host.loader.standing == 0
    assert host.observed.states() == []
    assert max(host.largest.values()) <= MOST
    assert host.largest["FakeFinder._files"] <= 1024
    assert not any(known_without_living(host.sizes()).values()), host.sizes()


@pytest.mark.parametrize("how", ["refused by the kernel", "not to be probed"])
def test_what_cannot_be_probed_is_remembered_up_to_a_bound(library: Callable[[int], Path], how: str) -> None:
    current: dict[int, Path] = {}
    host = Host(Selection(everything=True), current.get)
    host.loader.refuses = how == "refused by the kernel"
    host.finder.refusing = not host.loader.refuses
    for pid in range(NOBODY, NOBODY + 2 * MOST):
        current[pid] = library(pid)
        host.says(events.EXEC, pid)
        host.says(events.EXIT, pid)
        host.passes(0.001)
        host.note()
    assert max(host.largest.values()) == MOST
    assert 0 < len(host.observed.states()) <= 100
    assert all(state.problem == "no" and state.processes == 0 for state in host.observed.states())
    assert host.loader.standing == 0


def test_what_is_probed_is_told_with_how_many_map_it(library: Callable[[int], Path]) -> None:
    first, second = library(1), library(2)
    maps = {NOBODY: first, NOBODY + 1: first, NOBODY + 2: second}
    host = Host(Selection(everything=True), maps.get)
    host.loader.refuses = True
    host.says(events.EXEC, NOBODY + 2)
    (refused,) = host.observed.states()
    assert (refused.file, refused.problem) == (str(second), "no")
    host.loader.refuses = False
    host.passes(601.0)  # files that could not be probed are tried again
    for pid in maps:
        host.says(events.EXEC, pid)
    found = [(state.file, state.symbols, state.processes, state.problem) for state in host.observed.states()]
    assert found == [(str(first), "SSL_read, SSL_write", 2, ""), (str(second), "SSL_read, SSL_write", 1, "")]
    host.says(events.EXIT, NOBODY)
    assert [state.processes for state in host.observed.states()] == [1, 1]


def test_a_file_that_was_refused_is_tried_again_when_its_inode_may_be_another_file(library: Callable[[int], Path]) -> None:
    path = library(0)
    host = Host(Selection(everything=True), lambda _pid: path)
    host.loader.refuses = True
    host.says(events.EXEC, 1)
    host.loader.refuses = False
    host.says(events.EXEC, 2)
    assert host.loader.attached == 0
    host.passes(601.0)
    host.says(events.EXEC, 3)
    assert host.loader.attached == 1


def test_what_a_followed_child_runs_is_looked_at_whatever_its_name(library: Callable[[int], Path]) -> None:
    """The kernel half watches it: it tells of targets alone."""
    path = library(0)
    host = Host(Selection(comms=("server",)), lambda _pid: path)
    host.says(events.FORK, NOBODY, NOBODY + 1)
    host.says(events.EXEC, NOBODY + 1)
    host.says(events.EXIT, NOBODY)
    host.passes(1.0)
    assert host.loader.standing == 1
    host.says(events.EXIT, NOBODY + 1)
    host.passes(1.0)
    assert host.loader.standing == 0


def test_probes_wait_a_moment_for_the_next_process(library: Callable[[int], Path]) -> None:
    path = library(0)
    alive = {1, 2, 3}
    host = Host(Selection(everything=True), lambda pid: path if pid in alive else None)
    host.says(events.EXEC, 1)
    for ended, started in ((1, 2), (2, 3)):
        alive.discard(ended)
        host.says(events.EXIT, ended)
        host.passes(0.3)
        host.says(events.EXEC, started)
    assert (host.loader.attached, host.loader.standing) == (1, 1)
    host.says(events.EXIT, 3)
    host.passes(0.6)
    assert host.loader.standing == 0


def test_after_lost_words_of_processes_all_are_looked_at(library: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = library(0)
    host = Host(Selection(everything=True), lambda pid: path if pid == 7 else None)
    monkeypatch.setattr("llmsec_tap.capture.host.proc.all_pids", lambda: [7])
    monkeypatch.setattr("llmsec_tap.capture.host.proc.is_alive", lambda _pid: True)
    host.passes(61.0)
    host.passes(0.1)
    assert host.loader.attached == 0, "nothing was lost"
    host.loader.lost_processes = 1
    host.passes(61.0)
    host.passes(0.1)
    assert host.loader.attached == 1
