"""What `--format events` says, and when: each finding once, losses by their growth, and nothing of a text where none is to be kept."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from llmsec_agent.events import Event, Feed, to_line
from llmsec_tap.counters import Sample, Snapshot
from llmsec_tap.model import Finding
from support.exchanges import a_finding, full_exchange


def finding(number: int, exchange_id: str) -> Finding:
    return a_finding(finding_id=f"f{number}", exchange_id=exchange_id, preview="words of a prompt")


def lines(events: list[Event]) -> list[dict[str, Any]]:
    return [json.loads(to_line(event)) for event in events]


def test_a_finding_is_told_once_and_before_its_exchange() -> None:
    said: list[Event] = []
    feed = Feed(said.append, content=True)
    exchange = full_exchange(1)
    early, late = finding(1, exchange.exchange_id), finding(2, exchange.exchange_id)
    feed.started(exchange)
    feed.found(early)
    feed.found(early)
    feed.ended(msgspec.structs.replace(exchange, findings=[early, late]))
    rows = lines(said)
    assert [row["event"] for row in rows] == ["exchange_started", "finding", "finding", "deviation", "exchange"]
    assert [row["finding_id"] for row in rows[1:3]] == ["f1", "f2"]
    assert {row["exchange_id"] for row in rows} == {exchange.exchange_id}
    assert rows[4]["exchange"]["findings"][1]["finding_id"] == "f2"
    assert rows[1]["location"]["part"]


def test_without_content_nothing_of_a_text_is_said() -> None:
    said: list[Event] = []
    feed = Feed(said.append, content=False)
    exchange = msgspec.structs.replace(full_exchange(1), request_model="a sentence in the place of a model")
    feed.started(exchange)
    feed.found(finding(1, exchange.exchange_id))
    feed.ended(exchange.without_content())
    assert b"sentence" not in b"".join(map(to_line, said))
    assert b"words of" not in b"".join(map(to_line, said))


def test_losses_are_told_by_their_growth() -> None:
    said: list[Event] = []
    feed = Feed(said.append, content=True)
    for total in (0, 3, 3, 10):
        feed.look(Snapshot([lambda total=total: [Sample("llmsec_kernel_lost_records_total", total)]]))
    assert [(row["what"], row["count"]) for row in lines(said)] == [
        ("llmsec_kernel_lost_records_total", 3),
        ("llmsec_kernel_lost_records_total", 7),
    ]


def test_what_never_ends_is_forgotten() -> None:
    said: list[Event] = []
    feed = Feed(said.append, content=True)
    for number in range(70_000):
        feed.found(finding(1, f"e{number}"))
    assert len(feed._said) == 65_536
