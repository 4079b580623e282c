"""`llmsec-analyze alerts`, as its user meets it."""

from __future__ import annotations

import json
import os
import threading
import time

import msgspec
import pytest

from llmsec_agent.outbox import Outbox, line_of
from llmsec_agent.told import Sent
from llmsec_analyzer.alerts.alert import Alert
from llmsec_analyzer.alerts.silences import Silence, parse_silences
from llmsec_tap.model import AlertMark
from llmsec_tap.storage import create_store
from llmsec_tap.storage.writer import StoreWriter
from support.exchanges import full_exchange

NS = 1_795_000_000_000_000_000


def alert(alert_id: str = "aa11", **changes) -> Alert:
    values = {
        "rule": "pii_detected", "priority": "high", "dedup_key": "pii_detected/tenant=acme", "at_ns": NS, "condition": "pii_types.length > 0",
        "summary": "pii_detected: EMAIL (tenant acme)", "exchange_id": "e0", "channels": ["slack"], "tenant": "acme",
    }  # fmt: skip
    return Alert(alert_id=alert_id, **(values | changes))


def mark(alert_id: str, state: str, count: int) -> AlertMark:
    return AlertMark(
        alert_id=alert_id, rule="pii_detected", priority="high", state=state, dedup_key="pii_detected/tenant=acme", count=count
    )


@pytest.fixture
def store(tmp_path):
    """Two alerts on four exchanges; the outbox says that one of them is over; slack had the other."""
    writer = StoreWriter.open(tmp_path / "store")
    for number, marks in enumerate(
        [[mark("aa11", "firing", 1)], [mark("aa11", "grouped", 2)], [], [mark("bb22", "firing", 1), mark("cc33", "silenced", 1)]]
    ):
        writer.add(full_exchange(number, alerts=marks))
    writer.close()
    box = Outbox(tmp_path / "store")
    box.append([line_of(alert("aa11")), line_of(alert("bb22")), line_of(alert("aa11", state="resolved", count=9))])
    sent = [
        Sent(alert_id="bb22", channel="slack", at_ns=NS, outcome="retry", error="503"),
        Sent(alert_id="bb22", channel="slack", at_ns=NS + 1, attempt=2, outcome="sent"),
    ]
    (tmp_path / "store" / "alerts" / "sent-0.jsonl").write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in sent) + b"half")
    return tmp_path / "store"


def test_list_has_a_line_for_each_alert_with_what_became_of_it(run, store):
    done = run("alerts", "list", "--store", store, "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    rows = {row["alert_id"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert {name: (row["state"], row["count"]) for name, row in rows.items()} == {
        "aa11": ("resolved", 9), "bb22": ("firing", 1), "cc33": ("silenced", 1),
    }  # fmt: skip
    assert rows["bb22"]["sent"] == {"slack": "sent"}
    table = run("alerts", "list", "--store", store, "--rule", "pii_*", "--priority", "high").stdout
    assert "slack sent" in table
    assert len(table.splitlines()) == 3
    assert run("alerts", "list", "--store", store, "--rule", "cost*").stdout == "(no rows)\n"
    assert run("alerts", "list", "--store", store, "--rule", "cost*", "--format", "jsonl").stdout == ""


def test_show_has_exchanges_and_attempts(run, store):
    shown = run("alerts", "show", "bb", "--store", store).stdout
    assert "attempt 1  retry: 503" in shown
    assert "attempt 2  sent" in shown
    assert full_exchange(3).exchange_id in shown
    whole = json.loads(run("alerts", "show", "aa11", "--store", store, "--format", "json").stdout)
    assert (whole["state"], whole["count"], len(whole["exchanges"])) == ("resolved", 9, 2)
    wrong = run("alerts", "show", "zz", "--store", store)
    assert wrong.returncode == 2
    assert "no alert with an id that begins with 'zz'" in wrong.stderr


def test_a_silence_is_added_listed_audited_and_keeps_what_stands_in_the_file(run, store):
    (store / "alerts" / "silences.yaml").write_text("# ours\nsilences:\n  - match: a\n    until: 2020-01-01\n    reason: r\n")
    done = run(
        "alerts", "silence", "pii_detected/tenant=acme", "--until", "8h", "--reason", 'a "test": #1', "--by", "anna", "--store", store
    )
    assert done.returncode == 0, done.stderr
    text = (store / "alerts" / "silences.yaml").read_text()
    assert text.startswith("# ours\n")
    first, second = parse_silences(text, "x")
    assert (first.until, second.reason, second.by) == ("2020-01-01", 'a "test": #1', "anna")
    listed = run("alerts", "silences", "--store", store).stdout.splitlines()
    assert ["over since" in line for line in listed] == [True, False]
    assert "silence added" in run("db", "audit", "--store", store, "--event", "configuration").stdout


@pytest.mark.parametrize(
    ("until", "said"), [("2020-01-01", "is no time to come"), ("soon", "is no time to come"), ("8x", "for example 8h")]
)
def test_a_silence_ends_in_time_to_come(run, store, until, said):
    done = run("alerts", "silence", "x", "--until", until, "--reason", "r", "--store", store)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_wrong_file_of_silences_is_told_with_its_lines(run, store):
    (store / "alerts" / "silences.yaml").write_text(
        "silences:\n  - match: a\n    untill: 2027-01-01\n    reason: r\n  - {match: b, until: never, reason: r}\n"
    )
    done = run("alerts", "silences", "--store", store)
    assert done.returncode == 2
    assert "silences.yaml:3: silences[0]: unknown key `untill`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def config(tmp_path):
    (tmp_path / "c.yaml").write_text("alerting: {channels: {webhook: {url: 'http://127.0.0.1:9/x'}}}\n")
    return tmp_path / "c.yaml"


def test_resend_appends_the_alert_for_who_sends(run, store, config):
    box = Outbox(store)
    before = len(list(box.read_new()))
    done = run("alerts", "resend", "bb", "--channel", "webhook", "--store", store, "--config", config)
    assert done.returncode == 0, done.stderr
    (again,) = box.read_new()
    assert before == 3
    assert (again.alert_id, again.channels, again.is_test) == ("bb22", ["webhook"], False)
    assert run("alerts", "resend", "cc33", "--store", store).returncode == 2
    assert run("alerts", "resend", "bb", "--channel", "slak", "--store", store, "--config", config).returncode == 2


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [("sent", 0, "webhook: sent"), ("dead", 4, "not sent (given up): \\x1b[2J refused"), (None, 4, "nobody has tried")],
)
def test_a_test_alert_says_what_becomes_of_it(run, store, config, outcome, code, said):
    box = Outbox(store)
    list(box.read_new())
    stop = threading.Event()

    def send() -> None:
        while outcome is not None and not stop.wait(0.05):
            for found in box.read_new():
                sent = Sent(alert_id=found.alert_id, channel="webhook", at_ns=time.time_ns(), outcome=outcome, error="\x1b[2J refused")
                with (store / "alerts" / "sent-0.jsonl").open("ab") as file:
                    file.write(b"\n" + msgspec.json.encode(sent) + b"\n")

    sender = threading.Thread(target=send)
    sender.start()
    try:
        wait = "20" if outcome else "0.5"
        done = run("alerts", "test", "webhook", "--wait", wait, "--store", store, "--config", config)
    finally:
        stop.set()
        sender.join()
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_a_database_sends_nothing(run):
    done = run("alerts", "test", "webhook", "--store", "clickhouse://u@h/d")
    assert done.returncode == 4
    assert "alerts are sent from a folder" in done.stderr


def test_what_is_written_as_a_silence_is_read_as_it_was():
    entry = Silence(match='a/b="c"', until="2027-01-01", reason="x: # y\nz", by="é")
    from llmsec_analyzer.alerts.silences import written

    assert parse_silences(written([entry, entry]), "x") == [entry, entry]


def test_the_outbox_is_bounded_whole_lines_only_and_its_owners(tmp_path, monkeypatch):
    monkeypatch.setattr("llmsec_agent.outbox.FILE_BYTES", 2_000)
    monkeypatch.setattr("llmsec_agent.outbox.MAX_FILES", 3)
    create_store(tmp_path / "s")
    box = Outbox(tmp_path / "s")
    for number in range(60):
        box.append([line_of(alert(f"{number:04d}"))])
    files = sorted((tmp_path / "s" / "alerts").iterdir())
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert box.left_out == int(files[-1].stem[-6:]) - 3
    kept = [found.alert_id for found in Outbox(tmp_path / "s").read_new()]
    assert kept == [f"{number:04d}" for number in range(60 - len(kept), 60)]
    assert list(box.read_new())[-1].alert_id == "0059"
    assert list(box.read_new()) == []


def test_what_is_older_than_it_is_kept_goes_also_of_what_was_sent(tmp_path):
    root, now = create_store(tmp_path / "s").root, [time.time()]
    folder = root / "alerts"
    box = Outbox(root, keep_days=8, clock=lambda: now[0])
    for _ in range(4):
        box.append([line_of(alert())])
        now[0] += 1.5 * 86_400
    assert len(list(folder.glob("outbox-*.jsonl"))) > 1  # closed after an eighth of the time
    (folder / "sent-0.jsonl").write_text("{}")
    now[0] = time.time()
    for name in ("outbox-000001.jsonl", "sent-0.jsonl"):
        os.utime(folder / name, (now[0] - 9 * 86_400,) * 2)
    left = len(list(folder.iterdir())) - 2
    assert Outbox(root).trim() == 0
    assert box.trim() == 2
    assert len(list(folder.iterdir())) == left
    assert not (folder / "sent-0.jsonl").exists()


def test_alerts_alone_lists_them_and_an_option_in_the_wrong_place_is_refused(run, store):
    alone = run("alerts", "--store", store)
    assert (alone.returncode, alone.stdout) == (0, run("alerts", "list", "--store", store).stdout)
    misplaced = run("alerts", "--store", store, "silences")
    assert misplaced.returncode == 2
    assert "stands before" in misplaced.stderr
