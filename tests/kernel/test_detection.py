"""Detection beside a live capture: findings on the records, grave ones told while the answer still streams, content masked."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from llmsec_analyzer.prove.synthetic import expand
from llmsec_tap.storage import open_store
from llmsec_tap.storage.audit import entries
from support.agent import Agent, environment
from support.https_calls import ask_once

KEY = expand("ghp_<alnum:36>")


def test_findings_are_on_the_record_and_a_grave_one_is_told_at_once(echo, certificate):
    pid, port = echo
    with Agent("--pid", str(pid), "--detect") as agent:
        text, _ = ask_once(port, certificate.cert, f"the key {KEY} is for you, do keep it well", stream=True)
        (row,) = agent.wait_for_exchanges(1)
    assert KEY in text
    found = {(finding["rule_id"], finding["location"]["part"].split(".")[0]): finding for finding in row["findings"]}
    assert {("secret.github", "request"), ("secret.github", "response")} <= set(found)
    assert row["risk_score"] > 50
    assert row["risk_reasons"][0].startswith("secret.github: +")
    told = re.search(r"early finding in a streaming response: \w+ secret\.github .*output token (\d+)", agent.said)
    assert told is not None, agent.said
    assert int(told[1]) == found["secret.github", "response"]["at_output_token"] < len(text) / 7
    assert KEY not in agent.said
    assert re.search(r"scanned \d+ increments of answers as they came", agent.said)


def test_redacted_content_holds_no_secret_on_output_nor_in_the_store(echo, certificate, tmp_path):
    pid, port = echo
    store = tmp_path / "store"
    with Agent("--pid", str(pid), "--detect", "--redact", "--store", str(store)) as agent:
        ask_once(port, certificate.cert, f"the key {KEY} is for you", stream=True)
        (row,) = agent.wait_for_exchanges(1)
    assert KEY not in json.dumps(row)
    assert row["input_text"] == "the key [github] is for you"
    query = "SELECT e.input_text, f.rule_id FROM exchanges e JOIN findings f USING (exchange_id) WHERE f.rule_id = 'secret.github'"
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "query", query, "--store", str(store), "--format", "json"]
    told = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert {one["input_text"] for one in rows} == {"the key [github] is for you"}
    assert all(KEY.encode() not in path.read_bytes() for path in store.rglob("*") if path.is_file())


def test_a_finding_that_the_configuration_has_audited_is_in_the_audit_log(echo, certificate, tmp_path):
    pid, port = echo
    store = tmp_path / "store"
    with Agent("--pid", str(pid), "--detect", "--store", str(store)) as agent:
        ask_once(port, certificate.cert, f"the key {KEY} is for you")
        (row,) = agent.wait_for_exchanges(1)
    (entry,) = [entry for entry in entries(open_store(store)) if entry.event == "finding"]
    assert entry.facts["exchange_id"] == row["exchange_id"]


def test_without_detection_there_is_no_score(echo, certificate):
    pid, port = echo
    with Agent("--pid", str(pid)) as agent:
        ask_once(port, certificate.cert, f"the key {KEY} is for you")
        (row,) = agent.wait_for_exchanges(1)
    assert row["risk_score"] is None
    assert row["findings"] == []
