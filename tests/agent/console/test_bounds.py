"""What a store, and what is in it, can do to the console: long questions, hostile records, many findings, damage, clocks."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from agent.console.test_console import client
from llmsec_agent.console import asking as asking_module
from llmsec_agent.console import exchange_pages, figures
from llmsec_agent.console.asking import Asking
from llmsec_agent.console.reading import MAX_PASSAGES, MAX_TEXTS, passages
from llmsec_agent.suppressing import marked
from llmsec_analyzer.judge.suppressions import Suppressions, load_suppressions
from llmsec_analyzer.stored import exchanges as listing
from llmsec_analyzer.stored.stores import Session, open_session
from llmsec_tap.dialects.base import MAX_COUNT, count_of
from llmsec_tap.errors import StorageError
from llmsec_tap.journal import SILENT
from llmsec_tap.model import Exchange, Message, Part, Request, Suppressed, Usage
from llmsec_tap.storage import StoreWriter, audit, create_store
from support.agent import environment
from support.hostile import exchange, finding


def stored(folder: Path, *records: Exchange) -> Path:
    writer = StoreWriter(create_store(folder))
    for record in records:
        writer.add(record)
    writer.close()
    return folder


def invoke(*words: str, **variables: str) -> tuple[int, str]:
    """Exit code and standard error of `llmsec-analyze`."""
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment() | variables)
    return done.returncode, done.stderr


def said(number: int, texts: int, **changes: Any) -> Exchange:
    """An exchange of many messages."""
    messages = [Message(role="user", parts=[Part(type="text", content=f"text {place}")]) for place in range(texts)]
    return msgspec.structs.replace(exchange(number), request=Request(messages=messages), **changes)


SLOW = "SELECT count(*) FROM range(1000000000000) a WHERE hash(range) = 1"


def test_a_question_that_takes_too_long_is_given_up_and_the_next_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(str(stored(tmp_path / "store", exchange(1))), SILENT)
    monkeypatch.setattr(asking_module, "QUESTION_S", 0.2)

    def slow(session: Session) -> None:
        with pytest.raises(StorageError, match=r"longer than 0.2 s"):
            session.select(SLOW)
        session.select("SELECT 1")  # a question is all of its statements

    with pytest.raises(StorageError, match=r"longer than 0.2 s"):
        asking.ask(slow)
    monkeypatch.setattr(asking_module, "QUESTION_S", 20.0)
    assert asking.ask(lambda session: list(session.select("SELECT count(*) FROM exchanges").rows())) == [(1,)]
    asking.close()


def test_pages_say_that_a_question_was_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stored(tmp_path / "store", exchange(1))
    monkeypatch.setattr(asking_module, "QUESTION_S", 0.2)
    monkeypatch.setattr(listing, "page", lambda session, _wanted: session.select(SLOW))
    monkeypatch.setattr(listing, "records_page", lambda session, _wanted: session.select(SLOW))
    with client(folder) as made:
        for address in ("/exchanges", "/exchanges.csv", "/exchanges.jsonl"):
            answer = made.get(address)
            assert answer.status_code == 503, address
            assert "longer than 0.2 s" in answer.text, address
        assert made.get("/taps").status_code == 200


def test_viewers_see_no_previews_and_looks_at_findings_are_audited(tmp_path: Path) -> None:
    found = msgspec.structs.replace(finding("request.messages[0].parts[0]", 0, 2), preview="Patient John Doe owes 4,000 dollars")
    folder = stored(tmp_path / "store", msgspec.structs.replace(exchange(1), findings=[found]))
    with client(folder, "viewer") as made:
        assert "John Doe" not in made.get("/findings?since=all").text
    with client(folder, "analyst") as made:
        assert "John Doe" in made.get("/findings?since=all&category=injection").text or "John Doe" in made.get("/findings?since=all").text
    looks = [entry.facts for entry in audit.entries(create_store(folder)) if entry.facts.get("page") == "findings"]
    assert {look["user"] for look in looks} == {"analyst"}


def test_absurd_counts_of_tokens_are_bounded_and_sums_hold_them(tmp_path: Path) -> None:
    assert [count_of(value) for value in (2**63 - 1, 2.0**1000, "9" * 18, -1, -0.5, True, float("nan"), 7, 7.5, "12")] == [
        MAX_COUNT, MAX_COUNT, MAX_COUNT, None, None, None, None, 7, 8, 12,
    ]  # fmt: skip
    most = 2**63 - 1  # of a store that was written before
    records = [msgspec.structs.replace(exchange(number), usage=Usage(input_tokens=most, output_tokens=most)) for number in (1, 2)]
    folder = stored(tmp_path / "store", *records)
    with client(folder) as made:
        for address in ("/?since=all", "/tenants?since=all", "/workloads?since=all", "/charts/tokens.svg?since=all"):
            assert made.get(address).status_code in (200, 404), address
    code, err = invoke("report", "--store", str(folder), "--output", str(tmp_path / "r.html"))
    assert code == 0, err


def test_findings_are_marked_with_one_look_at_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmsec_agent import suppressing

    looks = 0
    original = suppressing.text_parts

    def counted(record: Exchange) -> Any:
        nonlocal looks
        looks += 1
        return original(record)

    monkeypatch.setattr(suppressing, "text_parts", counted)
    record = said(1, 50, findings=[finding(f"request.messages[{place}].parts[0]", 0, 2) for place in range(50)])
    assert marked(record, Suppressions()) == record.findings
    assert looks == 0
    file = tmp_path / "s.yaml"
    suppressing.append(file, suppressing.Entry(reason="r", owner="o", until="2999-01-01", rule=record.findings[0].rule_id))
    entries = Suppressions(load_suppressions((str(file),)))
    assert all(one.suppressed is not None for one in marked(record, entries))
    assert looks == 1


def test_a_long_conversation_is_a_page_with_all_that_was_found() -> None:
    last = f"request.messages[{3 * MAX_PASSAGES - 1}].parts[0]"
    shown, left_out = passages(said(1, 3 * MAX_PASSAGES, findings=[finding(last, 0, 2)]))
    assert len(shown) == MAX_PASSAGES
    assert left_out >= 2 * MAX_PASSAGES
    assert any(passage.place == last and passage.runs[0].findings for passage in shown)
    assert [passage.place for passage in shown[:2]] == ["request.messages[0].parts[0]", "request.messages[1].parts[0]"]


def test_all_texts_together_are_bounded() -> None:
    record = said(1, 40)
    for message in record.request.messages:
        message.parts[0].content = "y" * 150_000
    shown, _ = passages(record)
    assert sum(len(run.text) for passage in shown for run in passage.runs) <= MAX_TEXTS + 1_000
    assert sum(passage.cut for passage in shown) >= 40 * 150_000 - MAX_TEXTS


def test_many_findings_are_a_page(tmp_path: Path) -> None:
    many = [msgspec.structs.replace(finding("request.messages[0].parts[0]", 0, 2), finding_id=f"{number:032x}") for number in range(900)]
    folder = stored(tmp_path / "store", msgspec.structs.replace(exchange(1), findings=many))
    with client(folder) as made:
        text = made.get(f"/exchanges/{1:032x}").text
    assert text.count('<li id="finding-') == 200
    assert "200 of 900" in text
    assert len(text) < 600_000


def test_names_of_tags_with_odd_digits_hide_no_page(tmp_path: Path) -> None:
    folder = stored(
        tmp_path / "store", msgspec.structs.replace(exchange(1), tags={"a\u00b2": "x" * 3000, "b" + "9" * 5000: "y", "\u0663": "z"})
    )
    with client(folder) as made:
        assert made.get(f"/exchanges/{1:032x}").status_code == 200


def test_suppressions_that_have_ended_count_everywhere(tmp_path: Path) -> None:
    def one(number: int, until: str) -> Exchange:
        mark = Suppressed(reason="r", owner="o", until=until)
        found = msgspec.structs.replace(finding("request.messages[0].parts[0]", 0, 2), finding_id=f"f{number}", suppressed=mark)
        return msgspec.structs.replace(exchange(number), findings=[found])

    ended = stored(tmp_path / "ended", one(1, "2020-01-01"))
    with open_session(ended) as session:
        assert sum(count for *_, count, _ in figures.rules(session, figures.Span())) == 1
        assert sum(count for *_, count, _ in figures.findings_by(session, figures.Span(), "tenant", 9)) == 1
    with client(ended) as made:
        assert made.get("/findings?since=all").text.count("<td><a href=") > 1
    holding = stored(tmp_path / "holding", one(1, "2999-01-01"))
    with client(holding) as made:
        assert "what counts no longer" in made.get("/findings?since=all").text
        assert "suppressed until 2999-01-01" in made.get("/findings?since=all&suppressed=1").text


def test_exports_come_page_by_page_and_only_so_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stored(tmp_path / "store", *(exchange(number) for number in range(1, 31)))
    walked = exchange_pages._walk

    def small(pages: Any, request: Any, wanted: Any, look: Any, _at_once: int, place_of: Any) -> Any:
        return walked(pages, request, wanted, look, 7, place_of)

    monkeypatch.setattr(exchange_pages, "_walk", small)
    with client(folder) as made:
        rows = list(csv.DictReader(io.StringIO(made.get("/exchanges.csv").text)))
        assert len({row["exchange_id"] for row in rows}) == 30
        frame = pl.read_parquet(io.BytesIO(made.get("/exchanges.parquet").content))
        assert frame["exchange_id"].n_unique() == 30
        assert frame.schema["status"] == pl.Int64
        assert len({json.loads(line)["exchange_id"] for line in made.get("/exchanges.jsonl").text.splitlines()}) == 30
        nothing = pl.read_parquet(io.BytesIO(made.get("/exchanges.parquet?model=nobody").content))
        assert nothing.height == 0
        assert nothing.columns == frame.columns
        held = [exchange_pages._exporting.acquire(blocking=False) for _ in range(4)]
        assert all(held), "exports before have ended"
        try:
            assert made.get("/exchanges.csv").status_code == 503
        finally:
            for _ in held:
                exchange_pages._exporting.release()
        assert made.get("/exchanges.csv").status_code == 200


def test_cells_of_a_spreadsheet_are_no_formulas(tmp_path: Path) -> None:
    names = ("=1+1", "\r=1+1", "\n=1", "\uff1d1+1", "\x1b[31m", "\u202ereversed")
    records = [msgspec.structs.replace(exchange(number), request_model=None, response_model=name) for number, name in enumerate(names, 1)]
    with client(stored(tmp_path / "store", *records)) as made:
        rows = list(csv.DictReader(io.StringIO(made.get("/exchanges.csv").text, newline="")))
    models = [row["model"] for row in rows]
    assert len(models) == len(names)
    assert not [model for model in models if model[:1] in "=\r\n\uff1d" or "\x1b" in model or "\u202e" in model]


def test_damaged_parts_are_on_the_overview_and_in_the_report(tmp_path: Path) -> None:
    folder = stored(tmp_path / "store", exchange(1))
    stored(folder, exchange(2))
    first = min(folder.glob("exchanges/*-*/part-*.parquet"))
    first.write_bytes(first.read_bytes()[:-50])
    with client(folder) as made:
        assert re.search(r"Damaged parts of the store[^<]*</dt><dd>1<", made.get("/?since=all").text)
    target = tmp_path / "r.html"
    assert invoke("report", "--store", str(folder), "--output", str(target))[0] == 0
    assert "Damaged parts of the store" in target.read_text()


def test_what_is_dated_after_now_is_counted_and_in_no_chart(tmp_path: Path) -> None:
    ahead = msgspec.structs.replace(exchange(2), started_ns=9_000_000_000_000_000_000, ended_ns=9_000_000_000_000_000_001)
    now = msgspec.structs.replace(exchange(1), started_ns=time.time_ns() - 60_000_000_000)
    folder = stored(tmp_path / "store", now, ahead)
    with open_session(folder) as session:
        span = figures.Span(since_ns=time.time_ns() - 86_400_000_000_000)
        known = figures.totals(session, span)
        width, columns = figures.columns(session, span, known)
    assert known.future == 1
    assert width <= 3600
    assert len(columns) == 1


@pytest.mark.parametrize("name", ["r.html", "r.PDF"])
def test_a_report_is_whole_or_not_there(tmp_path: Path, name: str) -> None:
    folder = stored(tmp_path / "store", exchange(1))
    target = tmp_path / name
    code, err = invoke("report", "--store", str(folder), "--output", str(target), PATH=str(tmp_path))  # no browser
    if name.endswith(".PDF"):
        assert code == 2
        assert "no Chromium" in err
        assert not target.exists()
    else:
        assert code == 0, err
        assert target.stat().st_mode & 0o777 == 0o600
        target.chmod(0o644)
        assert invoke("report", "--store", str(folder), "--output", str(target))[0] == 0
        assert target.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".r.*"))


@pytest.mark.parametrize(
    ("since", "code"),
    [("999999999w", 0), ("0001-01-01T00:00+14:00", 0), ("yesterday", 2), ("9999-12-31", 0), ("0001-01-01", 0), ("1969-01-01", 0)],
)
def test_any_time_is_taken_or_refused_in_a_line(tmp_path: Path, since: str, code: int) -> None:
    folder = stored(tmp_path / "store", msgspec.structs.replace(exchange(1), findings=[finding("request.messages[0].parts[0]", 0, 2)]))
    for command in (["report", "--output", str(tmp_path / "r.html")], ["findings"], ["exchanges"]):
        done, err = invoke(*command, "--store", str(folder), "--since", since)
        assert done == code, (command, err)
        assert "Traceback" not in err
