"""Deviations as their user meets them: told by a replay, stored, listed, asked for in SQL."""

from __future__ import annotations

import json

import pytest

from support.wire import START_NS, Talk, pcap

ASK = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}'


def bad_gateway(number: int) -> list[tuple[int, bytes]]:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    talk = Talk(client=("10.1.0.7", 40_000 + number), now_ns=START_NS + number * 10**9).open()
    talk.say(0, head % len(ASK) + ASK)
    talk.say(1, b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
    return talk.close().frames


@pytest.fixture
def failing(tmp_path):
    """Three requests that an upstream does not serve."""
    file = tmp_path / "failing.pcap"
    file.write_bytes(pcap([frame for number in range(3) for frame in bad_gateway(number)]))
    return file


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_replay_tells_stores_and_lists_them(run, tmp_path, failing, jobs):
    store = tmp_path / "store"
    done = run("replay", failing, "--store", store, "--format", "jsonl", "--no-detect", *(["--jobs", jobs] if jobs > 1 else []))
    assert done.returncode == 0, done.stderr
    told = [deviation for line in done.stdout.splitlines() for deviation in json.loads(line)["deviations"]]
    assert [(each["kind"], each["severity"], each["scope"]) for each in told] == [("upstream_unhealthy", "high", "upstream")]
    listed = run("deviations", "--store", store, "--severity", "high", "--format", "jsonl")
    (row,) = [json.loads(line) for line in listed.stdout.splitlines()]
    assert row["kind"] == "upstream_unhealthy"
    assert "502" in row["explanation"] or "unavailable" in row["explanation"]
    assert "upstream_unhealthy" in run("deviations", "--store", store, "--kind", "upstream_*").stdout
    assert run("deviations", "--store", store, "--kind", "cost").stdout == "(no rows)\n"
    assert run("deviations", "--store", store, "--kind", "cost", "--format", "jsonl").stdout == ""
    counted = run("query", "SELECT count(*) FROM deviations WHERE kind = 'upstream_unhealthy'", "--store", store, "--format", "csv")
    assert counted.stdout.splitlines()[1] == "1"


def test_events_have_them_before_their_exchange(run, failing):
    done = run("replay", failing, "--store", "none", "--format", "events", "--no-detect")
    kinds = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert kinds[-2:] == ["deviation", "exchange"]


def test_a_wrong_price_list_is_one_line_and_exit_2(run, tmp_path, failing):
    (tmp_path / "prices.yaml").write_text("as_of: 2026-01-01\nmodels: {m: {input: cheap}}\n")
    (tmp_path / "c.yaml").write_text("security: {anomaly_detection: {prices: prices.yaml}}\n")
    done = run("replay", failing, "--store", "none", "--config", tmp_path / "c.yaml")
    assert done.returncode == 2
    assert "prices.yaml:" in done.stderr
    assert "Traceback" not in done.stderr
