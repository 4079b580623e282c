"""What a decoder remembers of keys: bounded, asked for once, and never waited for by a capture."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llmsec_agent.tenants import directory
from llmsec_agent.tenants.directory import KNOWN_S, UNKNOWN_S, RemoteDirectory
from llmsec_agent.tenants.messages import Answer, pair, receive_questions, send_answers, send_hello
from llmsec_agent.tenants.policy import TenantContext
from llmsec_tap import limits
from llmsec_tap.journal import Event, Journal

PENDING = (None, "tenant_unresolved")


class Resolver:
    """The other end, by hand."""

    def __init__(self, ours: socket.socket, sock: socket.socket) -> None:
        self.now = 1000.0
        self.sock = sock
        self.sock.setblocking(False)
        self.directory = RemoteDirectory([ours], clock=lambda: self.now)

    def asked(self) -> list[str]:
        found: list[str] = []
        try:
            while True:
                found += receive_questions(self.sock)
        except BlockingIOError:
            return found

    def say(self, name: str, tenant: str | None = None, **more: Any) -> None:
        send_answers(self.sock, [Answer(name, TenantContext(tenant=tenant) if tenant else None, **more)])

    def counts(self) -> dict[tuple[str, Any], float]:
        return {(sample.name, sample.labels): sample.value for sample in self.directory.samples()}


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    made = [pair() for _ in range(3)]
    yield made
    for sock in (sock for pair_ in made for sock in pair_):
        sock.close()


@pytest.fixture
def resolver(pairs: Any) -> Resolver:
    return Resolver(*pairs[0])


def test_a_key_is_asked_for_when_its_request_is_in_and_known_when_its_answer_has_ended(resolver: Resolver) -> None:
    resolver.directory.expect("a")
    assert resolver.asked() == ["a"]
    resolver.say("a", "acme")
    assert resolver.directory.whose("a") == ("acme", None)
    assert resolver.directory.context("acme") == TenantContext(tenant="acme")
    assert resolver.asked() == []


def test_what_is_not_answered_yet_is_said_and_asked_for_once(resolver: Resolver) -> None:
    assert [resolver.directory.whose("a") for _ in range(100)] == [PENDING] * 100
    assert resolver.asked() == ["a"]
    resolver.now += 11  # the question was lost
    assert resolver.directory.whose("a") == PENDING
    assert resolver.asked() == ["a"]


def test_a_key_that_no_tenant_has_is_nobodys_and_not_asked_for_again_before_half_a_minute(resolver: Resolver) -> None:
    resolver.directory.expect("a")
    resolver.say("a")
    assert resolver.asked() == ["a"]
    assert {resolver.directory.whose("a") for _ in range(100)} == {(None, None)}
    assert resolver.asked() == []
    resolver.now += UNKNOWN_S
    assert resolver.directory.whose("a") == (None, None)
    assert resolver.asked() == ["a"]
    resolver.say("a", "acme")
    assert resolver.directory.whose("a") == ("acme", None)


def test_what_is_known_goes_on_counting_while_nobody_answers_and_says_so(resolver: Resolver) -> None:
    resolver.directory.expect("a")
    resolver.say("a", "acme")
    assert resolver.directory.whose("a") == ("acme", None)
    resolver.asked()
    resolver.now += KNOWN_S
    assert resolver.directory.whose("a") == ("acme", None)  # asked for again meanwhile
    assert resolver.asked() == ["a"]
    resolver.say("a", failed=True)
    resolver.now += 3600
    assert resolver.directory.whose("a") == ("acme", "tenant_stale")
    resolver.say("a", "other")
    assert resolver.directory.whose("a") == ("other", None)


def test_a_key_that_was_taken_away_is_nobodys(resolver: Resolver) -> None:
    resolver.directory.expect("a")
    resolver.say("a", "acme")
    resolver.directory.whose("a")
    resolver.now += KNOWN_S
    resolver.directory.whose("a")
    resolver.say("a")
    assert resolver.directory.whose("a") == (None, None)


def test_made_up_keys_take_bounded_memory_and_drive_out_nobody(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_UNKNOWN_KEYS", 50)
    monkeypatch.setattr(limits, "MAX_ASKED_KEYS", 20)
    resolver.directory.expect("mine")
    resolver.say("mine", "acme")
    assert resolver.directory.whose("mine") == ("acme", None)
    resolver.asked()
    for number in range(500):
        resolver.directory.whose(f"random {number}")
    asked = resolver.asked()
    assert len(asked) == 20
    for name in asked:
        resolver.say(name)
    for number in range(500, 1000):
        resolver.directory.whose(f"random {number}")
        for name in resolver.asked():
            resolver.say(name)
    counts = resolver.counts()
    assert counts["llmsec_tenant_keys", (("kind", "unknown"),)] == 50
    assert counts["llmsec_tenant_questions_left_out_total", ()] == 480
    assert resolver.directory.whose("mine") == ("acme", None)


def test_known_keys_are_bounded_too(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TENANT_KEYS", 5)
    for number in range(9):
        resolver.directory.expect(str(number))
        resolver.say(str(number), f"tenant {number}")
        resolver.directory.whose(str(number))
    assert resolver.directory.context("tenant 8") is not None
    assert resolver.directory.context("tenant 0") is None
    assert resolver.counts()["llmsec_tenant_keys", (("kind", "known"),)] == 5


def test_a_resolver_that_is_gone_costs_nothing_but_the_name_and_is_said_once(pairs: Any) -> None:
    said: list[Event] = []
    left = RemoteDirectory([pairs[0][0]], journal=Journal(said.append), wait_s=60)
    pairs[0][1].close()
    assert left.whose("a") == PENDING
    left.expect("b")
    assert left.whose("a") == PENDING
    assert [event.name for event in said] == ["tenants_not_asked"]


def test_a_resolver_that_ends_while_it_is_waited_for_is_not_waited_for(pairs: Any) -> None:
    left = RemoteDirectory([pairs[0][0]], wait_s=60)
    left.expect("a")
    pairs[0][1].close()
    assert left.whose("a") == PENDING


def test_a_resolver_that_does_not_read_is_not_waited_for(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ASKED_KEYS", 100_000)
    for number in range(20_000):
        assert resolver.directory.whose(str(number)) == PENDING
    assert resolver.counts()["llmsec_tenant_questions_left_out_total", ()] > 0


def test_a_replay_waits_once_for_a_resolver_that_does_not_answer(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pairs[0]
    send_hello(theirs)
    waits: list[float] = []
    real = directory.select.select
    monkeypatch.setattr(directory.select, "select", lambda *a: waits.append(a[3]) or real(*a[:3], 0.01))
    patient = RemoteDirectory([ours], wait_s=0.05)
    assert patient.whose("a") == PENDING
    assert waits
    waits.clear()
    assert patient.whose("b") == PENDING
    assert not waits


def test_a_replay_waits_longer_for_a_resolver_that_has_not_started(pairs: Any) -> None:
    ours, theirs = pairs[0]

    def start() -> None:
        time.sleep(0.3)
        send_hello(theirs)
        time.sleep(0.1)
        send_answers(theirs, [Answer("a", TenantContext(tenant="acme"))])

    starting = threading.Thread(target=start)
    starting.start()
    assert RemoteDirectory([ours], wait_s=0.25).whose("a") == ("acme", None)
    starting.join()


def test_a_replay_takes_the_answer_that_it_waits_for(pairs: Any) -> None:
    ours, theirs = pairs[0]
    patient = RemoteDirectory([ours], wait_s=5)
    send_answers(theirs, [Answer("a", TenantContext(tenant="acme")), Answer("b"), Answer("c", failed=True)])
    assert [patient.whose(name) for name in "abc"] == [("acme", None), (None, None), PENDING]


def test_each_process_takes_its_own_seat(pairs: Any) -> None:
    seated = RemoteDirectory([ours for ours, _ in pairs])
    seated.sit(1)
    seated.expect("a")
    assert receive_questions(pairs[1][1]) == ["a"]
    for number in (0, 2):
        pairs[number][1].setblocking(False)
        with pytest.raises(EOFError):
            receive_questions(pairs[number][1])
