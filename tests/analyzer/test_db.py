"""`llmsec-analyze db`, and what the commands that read content leave in the audit log."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmsec_tap.identity.credentials import fingerprinter
from support.exchanges import full_exchange

KEY = bytes(range(32))


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    key = tmp_path / "key"
    key.write_bytes(KEY)
    key.chmod(0o600)
    return {"LLMSEC_FINGERPRINT_KEY_FILE": str(key)}


def audit_of(run: Any, store: Path, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("db", "audit", "--store", store, "--format", "jsonl", *options).stdout.splitlines()]


def test_a_deleted_end_user_is_gone_and_the_receipt_does_not_name_them(run: Any, fill: Any, env: dict[str, str]) -> None:
    name = "jo@example.org"
    print_ = fingerprinter(KEY)(name)
    store = fill(full_exchange(0, end_user=print_), full_exchange(1, end_user=name), full_exchange(2))
    counted = run("db", "delete", "--store", store, "--end-user", name, "--dry-run", env=env)
    assert counted.stdout.startswith("2 stored rows would be deleted")
    assert audit_of(run, store) == []
    assert run("db", "delete", "--store", store, "--end-user", name, env=env).stdout.startswith("2 stored rows are deleted")
    begun, done = audit_of(run, store, "--event", "deletion")
    assert (begun["facts"]["state"], done["facts"]["state"], done["facts"]["rows"]) == ("begun", "done", 2)
    assert done["facts"]["subject"] == print_
    assert name not in str((begun, done))
    assert "\n1\n" in run("query", "--store", store, "--format", "csv", "SELECT count(*) FROM exchanges").stdout.replace("\r", "")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ((), 2, "whose records"),
        (("--tenant", "a", "--exchange", "b"), 2, "whose records"),
        (("--tenant", ""), 2, "nobody"),
        (("--exchange", "ffff"), 2, "no exchange"),
        (("--tenant", "acme", "--content"), 0, ""),
        (("--exchange", "00000001"), 0, ""),
    ],
)
def test_whose_records(run: Any, fill: Any, options: tuple[str, ...], code: int, says: str) -> None:
    done = run("db", "delete", "--store", fill(full_exchange(0), full_exchange(1)), *options)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_prune_by_options_and_by_configuration(run: Any, fill: Any, tmp_path: Path) -> None:
    store = fill(full_exchange(0, started_ns=1_700_000_000_000_000_000))
    assert "nothing says what to delete" in run("db", "prune", "--store", store).stderr
    done = run("db", "prune", "--store", store, "--content-days", "3")
    assert "stripped 1 exchanges" in done.stdout, done.stderr
    assert "Malm" not in run("query", "--store", store, "--format", "json", "SELECT * FROM exchanges").stdout
    (tmp_path / "c.yaml").write_text("storage: {retention: {tenants: {acme: {metadata: {days: 1}}}, audit: {days: 400}}}")
    done = run("db", "prune", "--store", store, "--config", tmp_path / "c.yaml")
    assert "1 exchanges out of parts" in done.stdout, done.stderr
    assert run("db", "prune", "--store", store, "--bytes", "much").returncode == 2
    assert [entry["facts"]["state"] for entry in audit_of(run, store, "--event", "deletion")] == ["begun", "done"] * 2


def test_a_comparison_with_no_database_names_the_option_that_gives_one(run: Any, fill: Any) -> None:
    assert "give --to clickhouse://" in run("db", "verify", "--store", fill(full_exchange(0))).stderr


def test_the_chain_is_verified_and_one_changed_byte_is_found(run: Any, fill: Any) -> None:
    store = fill(full_exchange(0))
    run("query", "--store", store, "SELECT 1")
    run("exchanges", "--store", store)
    whole = run("db", "verify", "--chain", "--store", store)
    assert whole.returncode == 0
    head = whole.stdout.rsplit(maxsplit=1)[-1]
    assert run("db", "verify", "--chain", "--store", store, "--expect", head).returncode == 0
    assert run("db", "verify", "--chain", "--store", store, "--expect", "0" * 63 + "1").returncode == 1
    assert run("db", "verify", "--store", store).returncode == 2
    (path,) = (store / "audit").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"SELECT 1", b"SELECT 2"))
    broken = run("db", "verify", "--chain", "--store", store)
    assert broken.returncode == 1
    assert "audit-000000000001.jsonl:1: the entry was changed" in broken.stdout


def test_who_reads_content_is_in_the_log_and_what_they_looked_for_is_not(run: Any, fill: Any) -> None:
    store = fill(full_exchange(0))
    run("query", "--store", store, "SELECT input_text FROM exchanges WHERE input_text LIKE '%hunter2%' OR input_text = $x$hunter2$x$")
    run("query", "--store", store, "--format", "json", "SELECT 1")
    run("exchanges", "--store", store, "--tenant", "acme")
    run("exchanges", "show", "0000", "--store", store)
    run("findings", "--store", store, "--format", "sarif")
    run("findings", "explain", "0f", "--store", store)
    run("rules", "test", "--without", "email", "--store", store)
    run("calibrate", "--store", store)
    entries = audit_of(run, store)
    assert [(entry["event"], entry["facts"]["command"]) for entry in entries] == [
        ("query", "query"),
        ("export", "query"),
        ("query", "exchanges"),
        ("query", "exchanges show"),
        ("export", "findings"),
        ("query", "findings explain"),
        ("query", "rules test"),
        ("query", "calibrate"),
    ]
    assert "hunter2" not in str(entries)
    assert entries[2]["facts"]["filter"]["tenant"] == "acme"
    assert all(entry["actor"]["uid"] == os.getuid() for entry in entries)


def test_grave_findings_of_a_replay_are_in_the_log(run: Any, tmp_path: Path) -> None:
    from support.wire import Talk, pcap

    secret = f"{'gh'}p_16C7e42F292c6912E7710c838347Ae178B4a"
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": f"my token is {secret}"}]}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    (tmp_path / "c.pcap").write_bytes(pcap(Talk().open().say(0, head + body).close().frames))
    store = tmp_path / "new"
    done = run("replay", tmp_path / "c.pcap", "--store", store)
    entries = audit_of(run, store, "--event", "finding")
    assert entries, done.stderr
    assert secret not in str(entries)
    (tmp_path / "c.yaml").write_text("storage: {audit: {findings: none}}")
    run("replay", tmp_path / "c.pcap", "--store", store, "--config", tmp_path / "c.yaml")
    assert len(audit_of(run, store, "--event", "finding")) == len(entries)
