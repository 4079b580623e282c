"""Records to a running agent over its Unix socket: a real agent, without probes, and what its store then has."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from llmsec_agent.receiving.protocol import HEAD, MAX_FRAME_BYTES, Answer, frame
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange, Message, Part, Request, ToolDefinition
from llmsec_tap.storage.rows import exchange_of
from llmsec_trace.clients import hooks_in
from llmsec_trace.config import InstrumentationConfig, SecurityConfig
from llmsec_trace.destinations.agent import Agent
from llmsec_trace.destinations.base import DestinationError
from llmsec_trace.destinations.callback import Callback
from llmsec_trace.instrumenting import destinations_of
from llmsec_trace.lane import Lane
from llmsec_trace.recorder import Recorder, Stats
from support.received import record
from support.replay import KEY
from support.running_agent import agent
from support.tls_front import free_port
from support.vendor_server import vendor_server

# What the agent says itself, whoever made the record.
THE_AGENT_S = {"exchange_id", "process", "node", "findings", "cost_usd", "deviations", "alerts"}
URL = "http://127.0.0.1:{}/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "My card is 4111 1111 1111 1111, and my project is ORION."}]}
RULES = [{"pattern": "ORION", "type": "project", "action": "alert"}]


def stored(store: Path) -> list[Exchange]:
    rows = [row for part in store.glob("exchanges/day=*/part-*.parquet") for row in pq.read_table(part).to_pylist()]
    return [exchange_of(row) for row in rows]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@contextlib.contextmanager
def recorder(path: Path, records: list[Exchange]) -> Iterator[Recorder]:
    """With detection of its own, and rules of the application's."""
    config = InstrumentationConfig(agent=str(path), tenant_id="team-7", security=SecurityConfig(custom_rules=RULES))
    places = [Callback(records.append), *destinations_of(config)]
    made = Recorder(config, places, fingerprinter(KEY), detects=True, grace_s=0.0)
    try:
        yield made
    finally:
        made.close()


def call(recorder: Recorder, times: int = 1) -> None:
    httpx = pytest.importorskip("httpx", reason="in the dependency group `peers`")
    port = free_port()
    with vendor_server(port), httpx.Client(headers={"Authorization": "Bearer sk-test-0123456789abcdef"}) as client:
        for hook, owner in hooks_in(client):
            hook.put(owner, recorder, again=True)
        for _ in range(times):
            assert client.post(URL.format(port), json=BODY).status_code == 200


@pytest.mark.peers
def test_a_call_is_in_the_agent_s_store_as_the_application_has_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "sdk.sock"
    records: list[Exchange] = []
    with agent(tmp_path, sdk={"socket": str(path)}) as running, recorder(path, records) as made:
        running.ready()
        call(made, 2)
        assert made.flush(30)
        until(lambda: running.value("llmsec_sdk_records_total") == 2, "the agent has no records")
        assert made.stats().sent == 4
        assert running.value("llmsec_sdk_receiver_up") == 1
        running.stop()
        assert "2 records taken from applications" in running.said
        assert "TLS calls" not in running.said  # nothing is captured
        kept = stored(running.store)
    assert len(kept) == len(records) == 2
    for mine, theirs in zip(sorted(kept, key=_time), sorted(records, key=_time), strict=True):
        left, right = msgspec.to_builtins(mine), msgspec.to_builtins(theirs)
        assert {name: (left[name], right[name]) for name in left if name not in THE_AGENT_S and left[name] != right[name]} == {}
        assert (mine.capture_kind, mine.tenant) == ("sdk", "team-7")
        # Detection's are made again by the agent, the application's own are kept: each once.
        assert sorted(one.rule_id for one in mine.findings) == sorted(one.rule_id for one in theirs.findings)
        assert "sdk.custom.project" in [one.rule_id for one in mine.findings]
        assert len(mine.findings) >= 2


def _time(exchange: Exchange) -> int:
    return exchange.started_ns or 0


def test_an_agent_that_is_away_costs_nothing_and_gets_its_records_when_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "run" / "sdk.sock"
    lane = Lane(Agent(path), Stats, batch_size=10, interval_s=0.05, max_items=100)
    try:
        for number in range(3):
            lane.offer(record(exchange_id=f"{number}", request_model=f"early-{number}"))
        until(lambda: lane.failures > 0, "it did not try")
        assert lane.sent == lane.dropped == 0
        for name, expected in (("one", {"early-0", "early-1", "early-2"}), ("two", {"late"})):
            (tmp_path / name).mkdir()  # the second finds the socket that the first has left
            with agent(tmp_path / name, sdk={"socket": str(path)}) as running:
                running.ready()
                if name == "two":
                    lane.offer(record(exchange_id="late", request_model="late"))
                until(lambda: lane.waiting == 0, "they were not sent")
                running.stop()
                assert {one.request_model for one in stored(running.store)} == expected
    finally:
        lane.close(5)
    assert lane.dropped == 0


def test_a_loss_is_told_once_where_an_agent_takes_a_part(tmp_path: Path) -> None:
    """And what follows a frame that is refused is sent all the same."""
    path = tmp_path / "run" / "sdk.sock"
    lane = Lane(Agent(path), lambda: Stats(dropped=5), batch_size=2, interval_s=60, max_items=100)
    try:
        with agent(tmp_path, sdk={"socket": str(path)}) as running:
            running.ready()
            for number in range(2):
                lane.offer(record(exchange_id=f"a{number}"))
                lane.offer(record(exchange_id=f"b{number}", provider=None))
            assert lane.flush(20)
            running.stop()
            told = [mark.count for one in stored(running.store) for mark in one.anomalies if mark.name == "sdk_lost"]
    finally:
        lane.close(5)
    assert (lane.sent, lane.dropped, told) == (2, 2, [5])


def test_what_the_agent_refuses_is_counted_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run" / "sdk.sock"
    lane = Lane(Agent(path), Stats, batch_size=3, interval_s=60, max_items=100)
    try:
        with agent(tmp_path, sdk={"socket": str(path)}) as running:
            running.ready()
            for changes in ({}, {"started_ns": 1}, {"provider": None}):
                lane.offer(record(**changes))
            assert lane.flush(20)
            assert (lane.sent, lane.dropped) == (1, 2)
            assert lane.last_error.endswith("refused records: not_a_model 1, time 1")
    finally:
        lane.close(5)


def test_a_record_beyond_a_frame_goes_without_its_texts_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run" / "sdk.sock"
    with agent(tmp_path, sdk={"socket": str(path)}) as running:
        running.ready()
        sender = Agent(path)
        sender.send([record(input_text="x" * (MAX_FRAME_BYTES + 1)), record(exchange_id="after", request_model="after")])
        sender.close()
        running.stop()
        large, after = sorted(stored(running.store), key=lambda one: one.request_model or "", reverse=True)
    assert after.request_model == "after"
    assert large.input_text is None
    assert "text_limit" in [mark.name for mark in large.anomalies]


def test_what_an_agent_would_refuse_for_its_content_is_there_without_it(tmp_path: Path) -> None:
    """Or mended: nothing that reaches a model passes without a record."""
    path = tmp_path / "run" / "sdk.sock"
    many = Request(messages=[Message(role="user", parts=[Part(type="text", content="x")] * 30_000)])
    named = Request(tools=[ToolDefinition(name="n" * 600)])
    odd = Request(parameters={"seed": 2**70}, messages=[Message(role="user", parts=[Part(type="text", content="a \ud800 b")])])
    with agent(tmp_path, sdk={"socket": str(path)}) as running:
        running.ready()
        sender = Agent(path)
        sender.send(
            [record(exchange_id=name, request_model=name, request=one) for name, one in (("many", many), ("named", named), ("odd", odd))]
        )
        sender.close()
        running.stop()
        kept = {one.request_model: one for one in stored(running.store)}
    assert kept.keys() == {"many", "named", "odd"}
    for name in ("many", "named"):
        assert "text_limit" in [mark.name for mark in kept[name].anomalies]
        assert kept[name].risk_score is None  # something passed unread
    assert kept["odd"].request.parameters == {"seed": None}
    assert kept["odd"].request.messages[0].parts[0].content == "a \ufffd b"


@pytest.mark.parametrize(("mode", "owner"), [(0o1777, 0), (0o770, 0), (0o755, 60_001)])
def test_nobody_else_is_given_records(tmp_path: Path, mode: int, owner: int) -> None:
    folder = tmp_path / "others"
    folder.mkdir()
    folder.chmod(mode)
    if owner and os.geteuid():
        pytest.skip("only root gives folders away")
    if owner:
        os.chown(folder, owner, owner)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as impostor:
        impostor.bind(str(folder / "sdk.sock"))
        impostor.listen()
        with pytest.raises(DestinationError, match="others may listen") as raised:
            Agent(folder / "sdk.sock").send([record()])
        assert raised.value.is_lasting


@pytest.mark.parametrize(
    ("data", "is_lasting"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
        (HEAD.pack(b"LLS1", 1 << 30), False),
        (frame(b"\xc1"), False),
        (b"", False),
        (frame(msgspec.msgpack.encode(Answer(error="another version"))), True),
    ],
    ids=["http", "too long", "no MessagePack", "nothing", "refusal"],
)
def test_answers_that_are_none_are_faults(tmp_path: Path, data: bytes, is_lasting: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()

        def answer() -> None:
            for _ in range(1):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1 << 20)
                    connection.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        sender = Agent(tmp_path / "s", timeout_s=5)
        with pytest.raises(DestinationError) as raised:
            sender.send([record()])
        thread.join()
        assert raised.value.is_lasting == is_lasting
        assert raised.value.lost == (1 if is_lasting else None)


def test_a_forked_child_leaves_the_connection_to_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "run" / "sdk.sock"
    with agent(tmp_path, sdk={"socket": str(path)}) as running:
        running.ready()
        sender = Agent(path)
        sender.send([record(request_model="before")])
        sender.forked()
        sender.send([record(exchange_id="child", request_model="in the child")])
        sender.close()
        assert running.value("llmsec_sdk_records_total") is not None
        running.stop()
        assert {one.request_model for one in stored(running.store)} == {"before", "in the child"}
