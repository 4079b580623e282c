"""The selection is changed while the tap runs: by difference, and what was not touched goes on."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.probes.selection import Selection
from llmsec_tap.journal import Event, Journal
from support.https_calls import Caller
from support.observing import Observing, observing
from support.tls_front import Certificate, free_port, python_server

ECHO = Path(__file__).parents[1] / "support/tls_echo.py"


def heard(tap: Observing, pids: list[int]) -> set[int]:
    """Of which processes bytes come now."""
    tap.turn()
    found = set()
    while records := tap.loader.consume():
        found |= {event.pid for event in map(events.decode, records) if event.type == events.DATA and event.pid in pids}
    return found


@pytest.fixture
def servers(certificate: Certificate) -> object:
    with ExitStack() as stack:
        made = []
        for _ in range(2):
            port = free_port()
            server = stack.enter_context(python_server(ECHO, "threads", str(port), str(certificate.cert), str(certificate.key), port=port))
            made.append((server.pid, port))
        yield made


@pytest.mark.parametrize("shared", [False, True], ids=["one by one", "system-wide"])
def test_processes_are_added_and_removed(servers: list[tuple[int, int]], certificate: Certificate, shared: bool) -> None:
    said: list[Event] = []
    (first, first_port), (second, second_port) = servers
    with observing(Selection(pids=(first,)), Journal(said.append)) as tap:
        if shared:
            tap.observed._one_by_one = False
            tap.observed._look(first)
        callers = Caller(first_port, certificate.cert), Caller(second_port, certificate.cert)  # open over all changes

        def both() -> set[int]:
            heard(tap, [])
            for caller in callers:
                caller.ask("hello")
            return heard(tap, [first, second])

        assert both() == {first}
        assert tap.observed.update(Selection(pids=(first, second))) == []
        assert both() == {first, second}
        standing = len(tap.observed._attachments)
        assert tap.observed.update(Selection(pids=(second, 1 << 22))) == []
        assert [event.text for event in said if event.name == "no_process"] == [f"there is no process {1 << 22}: nothing of it is captured"]
        assert both() == {second}
        tap.until(lambda: len(tap.observed._attachments) < standing or shared, "the probes of the first one stay")
        assert tap.observed.update(Selection(pids=())) == []
        assert both() == set()
        for caller in callers:
            caller.close()


def test_names_are_exchanged(servers: list[tuple[int, int]], certificate: Certificate) -> None:
    (first, first_port), _ = servers
    comm = Path(f"/proc/{first}/comm").read_text().strip()
    with observing(Selection(comms=("nobody",)), Journal(lambda _: None)) as tap:
        caller = Caller(first_port, certificate.cert)
        caller.ask("one")
        assert heard(tap, [first]) == set()
        assert tap.observed.update(Selection(comms=("nobody", comm))) == []
        caller.ask("two")
        assert heard(tap, [first]) == {first}
        assert tap.observed.update(Selection(comms=("nobody",))) == []
        caller.ask("three")
        assert heard(tap, [first]) == set()
        caller.close()


@pytest.mark.parametrize(
    ("running", "wanted", "fixed"),
    [
        (Selection(pids=(1,)), Selection(everything=True), ["whether all processes are observed needs a restart"]),
        (Selection(pids=(1,)), Selection(pids=(1,), follow_forks=False), ["whether children are followed needs a restart"]),
        (Selection(pids=(1,)), Selection(comms=("a",)), ["the first name, or none any more needs a restart"]),
        (Selection(containers=("a",)), Selection(pids=(1,)), ["the first container, or none any more needs a restart"]),
        (Selection(comms=("a",)), Selection(comms=("b", "c"), pids=(os.getpid(),)), []),
    ],
)
def test_what_needs_a_restart_is_said(running: Selection, wanted: Selection, fixed: list[str]) -> None:
    possible, said = wanted.within(running)
    assert said == fixed
    assert possible.everything == running.everything
    assert possible.follow_forks == running.follow_forks
