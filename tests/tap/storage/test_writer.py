from __future__ import annotations

import json
import math
import stat
from pathlib import Path

import msgspec
import pytest

from llmsec_agent import summary
from llmsec_tap.counters import Snapshot
from llmsec_tap.model import Exchange, Message, Part, Request, Response, Usage, to_json
from llmsec_tap.storage import StoreWriter
from llmsec_tap.storage.store import create_store


def test_a_fully_populated_exchange_comes_back_the_same(root, reader, make_exchange):
    exchange = make_exchange()
    assert all(getattr(exchange, name) not in (None, [], {}) for name in Exchange.__struct_fields__)
    with StoreWriter.open(root) as writer:
        writer.add(exchange)
    (stored,) = reader.records()
    assert json.loads(to_json(stored)) == json.loads(to_json(exchange))
    assert stored == exchange


def test_a_bare_exchange_comes_back_the_same(root, reader):
    exchange = Exchange(exchange_id="a", client="1.2.3.4:5", server="6.7.8.9:10")
    with StoreWriter.open(root) as writer:
        writer.add(exchange)
    assert reader.records() == [exchange]
    assert reader.parts()[0].parent.name == "day=none"


def test_views_show_the_parts_of_an_exchange(root, reader, make_exchange):
    with StoreWriter.open(root) as writer:
        writer.add(make_exchange())
    assert reader.rows("SELECT side, message_index, role, text, len(parts) FROM messages ORDER BY side, message_index") == [
        ("request", 0, "system", "Be brief.", 1),
        ("request", 1, "user", "What is this?", 4),
        ("request", 2, "tool", "", 1),
        ("response", 0, "assistant", "I'll look 🌦️", 3),
        ("response", 1, "assistant", "Other choice", 1),
    ]
    assert reader.rows("SELECT call_index, call_id, name, arguments FROM tool_calls") == [
        (0, "call_1", "get_weather", '{"city": "Malmö"}'),
        (1, None, "x", ""),
    ]
    assert reader.rows("SELECT name, count FROM anomalies ORDER BY 1") == [("sse_bad_json", 1), ("tcp_gap", 2)]
    assert reader.rows("SELECT rule_id, severity, confidence FROM findings") == [("pii.email", "low", 0.9)]
    assert reader.rows("SELECT model, input_tokens, reasoning_tokens, duration_ms, CAST(day AS VARCHAR) FROM exchanges") == [
        ("gpt-4o-2024-08-06", 11, 15, 900.000002, "2026-11-18")
    ]
    assert reader.rows("SELECT \"request\".parameters->>'$.temperature', process.comm FROM exchanges") == [("0.5", "python")]


def test_exchanges_with_the_id_of_another_are_counted_apart(root, make_exchange):
    with StoreWriter.open(root) as writer:
        for number in (1, 2, 1):
            writer.add(make_exchange(number))
    assert (writer.stats.stored, writer.stats.replaced) == (2, 1)
    assert summary.sinks(Snapshot([writer.samples]), "s") == ["stored 2 in s (1 have the id of another)"]


def test_the_same_exchanges_again_double_nothing_and_the_newest_counts(root, reader, make_exchange):
    for status in (200, 500):
        with StoreWriter.open(root) as writer:
            for number in range(50):
                writer.add(make_exchange(number, status=status))
    assert reader.count() == 50
    assert reader.rows("SELECT DISTINCT status FROM exchanges") == [(500,)]
    assert reader.count("messages") == 250
    assert len(reader.parts()) == 2


def test_the_same_id_twice_in_one_run_is_one_row(root, reader, make_exchange):
    with StoreWriter.open(root) as writer:
        writer.add(make_exchange(1, status=200))
        writer.add(make_exchange(1, status=404))
        writer.flush()
        writer.add(make_exchange(1, status=500))
    assert reader.rows("SELECT status FROM exchanges") == [(500,)]


def test_flush_by_rows_bytes_and_age(root, reader, make_exchange):
    from llmsec_tap.storage import create_store

    store = create_store(root)
    with StoreWriter(store, flush_rows=10) as writer:
        for number in range(25):
            writer.add(make_exchange(number))
        assert writer.stats.stored == 20
    assert writer.stats.stored == 25
    with StoreWriter(store, flush_bytes=20_000) as writer:
        for number in range(100, 110):
            writer.add(make_exchange(number, output_text="x" * 9_000))
        assert writer.stats.stored >= 8
    writer = StoreWriter(store, flush_age_ns=5_000_000_000)
    writer.tick(0)
    writer.add(make_exchange(200))
    writer.tick(1_000_000_000)
    writer.tick(5_999_999_999)
    assert writer.stats.stored == 0
    writer.tick(6_000_000_000)
    assert writer.stats.stored == 1
    writer.close()


def test_each_day_has_its_folder_and_files_are_private(root, reader, make_exchange):
    day = 86_400_000_000_000
    with StoreWriter.open(root) as writer:
        for number, started in enumerate((0, day - 1, day, -1, 20_000 * day)):
            writer.add(make_exchange(number, started_ns=started))
    assert [path.parent.name for path in reader.parts()] == ["day=1969-12-31", "day=1970-01-01", "day=1970-01-02", "day=2024-10-04"]
    for path in root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"input_text": "lone \ud800 half"}, ("input_text", "lone \ufffd half")),
        ({"input_text": "pair \ud83d\ude00"}, ("input_text", "pair 😀")),
        ({"usage": Usage(input_tokens=10**30, output_tokens=5)}, ("usage.output_tokens", 5)),
        ({"usage": Usage(input_tokens=2**63, output_tokens=5)}, ("usage.input_tokens", None)),
        ({"usage": Usage(input_tokens=-(2**63))}, ("usage.input_tokens", -(2**63))),
        ({"ttft_ms": math.nan}, ("ttft_ms", None)),
        ({"ttft_ms": math.inf}, ("ttft_ms", None)),
        ({"request": Request(parameters={"seed": 10**40})}, ('"request".parameters', '{"seed":' + str(10**40) + "}")),
        ({"request": Request(parameters={"\ud800": "\udfff"})}, ("\"request\".parameters LIKE '%d800%'", True)),
        ({"request": Request(messages=[Message(role="user", parts=[Part(type="blob", size_bytes=2**64)])])}, ('len("request".messages)', 1)),
        ({"response": Response(messages=[Message(role="", parts=[])])}, ('len("response".messages)', 1)),
        ({"exchange_id": ""}, ("exchange_id", "")),
        ({"exchange_id": "\ud800"}, ("exchange_id", "\ufffd")),
        ({"status": "200"}, ("status", 200)),
        ({"findings": [{"confidence": "0.5", "severity": "high"}]}, ("findings[1].confidence", 0.5)),
        ({"output_text": "x" * 20_000_000}, ("length(output_text)", 20_000_000)),
    ],
)  # fmt: skip
def test_hostile_values_never_cost_a_record_or_its_neighbours(root, reader, make_exchange, changes, expected):
    with StoreWriter.open(root) as writer:
        writer.add(make_exchange(1, response_id="before"))
        writer.add(make_exchange(2, response_id="hostile", **changes))
        writer.add(make_exchange(3, response_id="after"))
    assert writer.stats.stored == 3
    assert writer.stats.not_stored == 0
    assert reader.count() == 3
    column, value = expected
    assert reader.rows(f"SELECT {column} FROM exchanges WHERE response_id = 'hostile'") == [(value,)]


def test_no_content_is_stored_without_content(root, make_exchange):
    secret = "zq9-unlikely-words"
    exchange = make_exchange(
        input_text=secret,
        output_text=secret,
        request=Request(messages=[Message(role="user", parts=[Part(type="text", content=secret)])]),
        response=Response(messages=[Message(role="assistant", parts=[Part(type="text", content=secret)])], error_message=secret),
    )
    with StoreWriter.open(root) as writer:
        writer.add(msgspec.structs.replace(exchange.without_content()))
    assert all(secret.encode() not in path.read_bytes() for path in root.rglob("*") if path.is_file())


def test_counts(root, make_exchange):
    with StoreWriter.open(root) as writer:
        for number in range(3):
            writer.add(make_exchange(number))
    stats = writer.stats
    assert (stats.added, stats.stored, stats.not_stored, stats.repaired, stats.parts) == (3, 3, 0, 0, 1)
    assert stats.bytes_written == sum(path.stat().st_size for path in root.glob("exchanges/day=*/part-*"))


def test_nothing_added_writes_nothing(root, reader):
    StoreWriter.open(root).close()
    assert reader.parts() == []
    assert reader.count() == 0
    assert [reader.count(view) for view in ("messages", "tool_calls", "anomalies", "findings")] == [0, 0, 0, 0]


def test_writers_that_write_at_the_same_moment_never_take_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of a name would replace the first one's rows."""
    monkeypatch.setattr("llmsec_tap.storage.writer.time.time_ns", lambda: 1_700_000_000_000_000_000)
    monkeypatch.setattr("llmsec_tap.storage.writer.secrets.randbits", lambda _bits: 0)
    store = create_store(tmp_path)
    assert len({StoreWriter(store, number=number)._next_seq() for number in range(16)}) == 16
