"""What is deleted from a database is what is deleted from a folder of the same records, and nothing of it is left on the server's disk."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from llmsec_analyzer.stored.exchanges import Filter, records
from llmsec_analyzer.stored.stores import open_session
from llmsec_tap.journal import SILENT
from llmsec_tap.model import to_json
from llmsec_tap.storage import StoreWriter, audit, open_store
from llmsec_tap.storage.clickhouse import erase as database
from llmsec_tap.storage.clickhouse.address import parse
from llmsec_tap.storage.clickhouse.client import connect
from llmsec_tap.storage.clickhouse.migrations import migrate
from llmsec_tap.storage.clickhouse.tables import Keep as TTL
from llmsec_tap.storage.clickhouse.tables import Layout
from llmsec_tap.storage.erase import Subject, erase
from llmsec_tap.storage.retention import Keep, Retention, prune
from support.clickhouse_front import copy_folder
from support.exchanges import a_finding, full_exchange

DAY_NS = 86_400_000_000_000
FIRST_NS = 1_790_000_000_000_000_000 // DAY_NS * DAY_NS
SECRET = "the words that must go"


def the_records():
    for number in range(12):
        yield full_exchange(
            number,
            started_ns=FIRST_NS + number % 4 * DAY_NS + number if number != 11 else None,
            tenant=("acme", "o'neil \\ sons", "other")[number % 3],
            end_user=f"user-{number % 5}",
            output_text=f"{SECRET} {number}",
            findings=[a_finding(preview=SECRET)] if number % 2 else [],
        )


class Both:
    def __init__(self, root: Path, url: str):
        self.root, self.url = root, url
        with StoreWriter.open(root) as writer:
            for exchange in the_records():
                writer.add(exchange)
        self.layout = Layout(parse(url).database)
        client, _ = connect(parse(url), database=False)
        migrate(client, self.layout)
        client.close()
        copy_folder(root, url)
        copy_folder(root, url)  # as delivered twice
        self.client, _ = connect(parse(url))

    def records(self, location):
        with open_session(location) as session:
            return {record.exchange_id: json.loads(to_json(record)) for record in records(session, Filter(limit=100))}

    def check_alike(self):
        here, there = self.records(self.root), self.records(self.url)
        assert here == there
        return here

    def rows(self, sql):
        return self.client.query(sql).result_rows


@pytest.fixture
def both(tmp_path, clickhouse):
    found = Both(tmp_path / "store", clickhouse.new_url())
    yield found
    found.client.close()


@pytest.mark.parametrize("content_only", [False, True], ids=["rows", "texts"])
@pytest.mark.parametrize(
    "subject",
    [
        Subject("tenant", frozenset({"o'neil \\ sons"})),
        Subject("end_user", frozenset({"user-1", "nobody"})),
        Subject("exchange_id", frozenset({next(iter(the_records())).exchange_id})),
        Subject("tenant", frozenset({"nobody"})),
    ],
    ids=["tenant", "end user", "exchange", "nobody"],
)
def test_a_subject_goes_as_from_a_folder(both, subject, content_only):
    counted = database.erase(both.client, both.layout, subject, content_only=content_only, really=False)
    assert len(both.check_alike()) == 12
    erased = database.erase(both.client, both.layout, subject, content_only=content_only)
    assert erased == counted
    here = erase(open_store(both.root), subject, SILENT, content_only=content_only)
    assert erased.stripped == here.stripped
    assert bool(erased.rows) == bool(here.rows)
    both.check_alike()
    texts = both.rows(
        f"SELECT count() FROM exchange_rows WHERE {subject.kind} IN {database._texts(subject.values)} AND output_text IS NOT NULL"
    )
    assert texts == [(0,)]
    assert database.erase(both.client, both.layout, subject, content_only=content_only).stripped == 0


@pytest.mark.parametrize(
    "keep",
    [
        Retention(days=2),
        Retention(keep=Keep(content=2)),
        Retention(keep=Keep(findings=1)),
        Retention(keep=Keep(metadata=2, findings=400)),
        Retention(keep=Keep(metadata=1, content=0.5)),
        Retention(tenants={"acme": Keep(metadata=1), "other": Keep(content=1)}),
        Retention(max_bytes=0),
    ],
    ids=["days", "content", "findings", "rows but those with findings", "rows", "by tenant", "bytes"],
)
def test_retention_takes_the_same_from_both(both, keep):
    now_ns = FIRST_NS + 4 * DAY_NS
    pruned = database.prune(both.client, both.layout, now_ns, keep)
    prune(open_store(both.root), now_ns, keep)
    both.check_alike()
    assert pruned.parts + pruned.rows + pruned.stripped > 0
    assert not database.prune(both.client, both.layout, now_ns, keep).stripped


def test_bytes_take_whole_days_the_oldest_first(both):
    sizes = database._Work(both.client, both.layout).days()
    kept = sorted(sizes)[-2:]
    pruned = database.prune(both.client, both.layout, 0, Retention(max_bytes=sum(sizes[day] for day in kept)))
    assert pruned.parts == len(sizes) - 2
    assert sorted(database._Work(both.client, both.layout).days()) == kept


def test_a_kill_between_the_new_version_and_the_end_of_the_old_one_is_finished_by_the_next_call(both, monkeypatch):
    subject = Subject("tenant", frozenset({"acme"}))
    with monkeypatch.context() as patched:
        patched.setattr(database._Work, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            database.erase(both.client, both.layout, subject, content_only=True)
    erase(open_store(both.root), subject, SILENT, content_only=True)
    both.check_alike()  # the views show the new versions already
    database.erase(both.client, both.layout, subject, content_only=True)
    both.check_alike()
    assert both.rows("SELECT count() FROM exchange_rows WHERE tenant = 'acme' AND output_text IS NOT NULL") == [(0,)]


def test_what_the_server_deletes_by_itself(tmp_path, clickhouse):
    url = clickhouse.new_url()
    layout = Layout(parse(url).database, keep=TTL(metadata=30, content=5, findings=10))
    client, _ = connect(parse(url), database=False)
    migrate(client, layout)
    client.close()
    now_ns = time.time_ns()
    with StoreWriter.open(tmp_path / "store") as writer:
        for number, age_days in enumerate((1, 7, 15, 40)):
            writer.add(full_exchange(number, started_ns=now_ns - age_days * DAY_NS, output_text=SECRET, findings=[a_finding()]))
    copy_folder(tmp_path / "store", url)
    client, _ = connect(parse(url))
    client.command("OPTIMIZE TABLE exchange_rows FINAL")
    found = client.query(
        "SELECT exchange_id, output_text, notEmpty(findings), total FROM (SELECT *, 1 AS total FROM exchanges) ORDER BY exchange_id"
    )
    client.close()
    assert [(row[1], row[2]) for row in found.result_rows] == [(SECRET, 1), (None, 1), (None, 0)]


def test_the_commands_leave_a_receipt_and_refuse_to_delete_without_one(run, both, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    env = {"LLMSEC_FINGERPRINT_KEY_FILE": str(key), "LLMSEC_CONFIG": str(tmp_path / "c.yaml")}
    (tmp_path / "c.yaml").write_text(f"storage: {{path: {tmp_path}/absent}}\n")
    refused = run("db", "delete", "--store", both.url, "--tenant", "acme", env=env)
    assert (refused.returncode, "--audit" in refused.stderr) == (2, True), refused.stderr
    assert len(both.records(both.url)) == 12
    counted = run("db", "delete", "--store", both.url, "--tenant", "acme", "--dry-run", env=env)
    assert counted.stdout.startswith("8 stored rows would be deleted"), counted.stderr  # each was delivered twice
    receipts = tmp_path / "receipts"
    done = run("db", "delete", "--store", both.url, "--tenant", "acme", "--audit", receipts, env=env)
    assert done.stdout.startswith("8 stored rows are deleted"), done.stderr
    assert run("db", "delete", "--store", both.url, "--end-user", "user-1", "--content", "--audit", receipts, env=env).returncode == 0
    pruned = run("db", "prune", "--store", both.url, "--content-days", "1", "--audit", receipts, env=env)
    assert "stripped" in pruned.stdout, pruned.stderr
    assert run("db", "prune", "--store", both.url, "--audit", receipts, env=env).returncode == 2
    entries = [entry.facts for entry in audit.entries(open_store(receipts)) if entry.event == "deletion"]
    assert [(facts["state"], facts["by"]) for facts in entries] == [
        (state, by) for by in ("tenant", "end_user", "retention") for state in ("begun", "done")
    ]
    assert (entries[1]["rows"], entries[1]["subject"]) == (8, "acme")
    assert "user-1" not in str(entries)
    assert all(facts["database"].endswith(both.layout.database) for facts in entries)
    assert not audit.verify(open_store(receipts)).faults
