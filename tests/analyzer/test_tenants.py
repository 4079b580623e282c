"""Tenants from the configuration to the record and back: rules, keys that no rule knows, texts that a tenant's are not kept, the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.wire import Talk, pcap

KEY_A, KEY_B = "sk-team-a-0123456789", "sk-other-9876543210"
ANSWER = b'{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "key").chmod(0o600)
    return {"LLMSEC_FINGERPRINT_KEY_FILE": str(tmp_path / "key")}


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """One request with each key, from two connections of one host."""
    frames: list[Any] = []
    for number, key in enumerate((KEY_A, KEY_B)):
        body = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hello there"}]}'
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
            % key.encode()
        )
        head += b"Content-Length: %d\r\n\r\n" % len(body)
        talk = Talk(client=("10.0.0.7", 40_000 + number)) if number else Talk()
        frames += talk.open().say(0, head + body).say(1, REPLY).close().frames
    file = tmp_path / "c.pcap"
    file.write_bytes(pcap(frames))
    return file


def rows(run: Any, capture: Path, tmp_path: Path, env: dict[str, str], config: str) -> list[dict[str, Any]]:
    (tmp_path / "c.yaml").write_text(config)
    options = ("--no-detect", "--format", "jsonl", "--store", tmp_path / "store", "--config", tmp_path / "c.yaml")
    done = run("replay", capture, *options, env=env)
    assert done.returncode == 0, done.stderr
    assert KEY_A not in done.stdout
    assert KEY_B not in done.stdout
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_key_by_prefix_a_key_by_fingerprint_and_a_key_that_nobody_knows(
    run: Any, capture: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    printed = run("tenants", "fingerprint", input=KEY_B + "\n", env=env)
    print_ = printed.stdout.strip()
    assert len(print_) == 32, printed.stderr
    rule = "{match: {api_key_prefix: sk-team-a-}, tenant: a}"
    first, second = rows(run, capture, tmp_path, env, f"tenants: {{rules: [{rule}]}}")
    assert (first["tenant"], second["tenant"]) == ("a", f"key-{print_[:12]}")
    assert second["api_key_fingerprint"] == print_
    _, second = rows(run, capture, tmp_path, env, f"tenants: {{rules: [{rule}, {{match: {{api_key_fingerprint: {print_}}}, tenant: b}}]}}")
    assert second["tenant"] == "b"
    _, second = rows(run, capture, tmp_path, env, f"tenants: {{default: rest, rules: [{rule}]}}")
    assert second["tenant"] == "rest"


def test_a_tenant_without_texts_and_what_the_commands_show(run: Any, capture: Path, tmp_path: Path, env: dict[str, str]) -> None:
    config = "tenants: {rules: [{match: {api_key_prefix: sk-team-a-}, tenant: a, content: none, plan: gold}, {match: {model: x}, tenant: idle}]}\n"
    config += "storage: {retention: {tenants: {a: {content: {days: 3}}}}}"
    first, second = rows(run, capture, tmp_path, env, config)
    assert first["input_text"] is None
    assert second["input_text"] == "hello there"
    common = ("--store", tmp_path / "store", "--config", tmp_path / "c.yaml")
    listed = run("tenants", "list", *common).stdout
    assert [line.split()[0] for line in listed.splitlines()] == ["tenant", "a", second["tenant"], "idle"]
    estimate = first["usage_estimated"]
    assert first["usage"] == dict.fromkeys(first["usage"])
    assert listed.splitlines()[1].split()[3:5] == [str(estimate["input_tokens"]), str(estimate["output_tokens"])]
    shown = run("tenants", "show", "a", *common).stdout
    assert "api_key_prefix=sk-team-a-" in shown
    assert "content 3 days" in shown
    assert "model gpt-4o: 1 exchanges" in shown
    assert run("tenants", "show", "nobody", *common).returncode == 2


@pytest.mark.parametrize("given", ["", "\n", "a\nb\n", "x" * 70_000])
def test_no_key(run: Any, given: str, env: dict[str, str]) -> None:
    done = run("tenants", "fingerprint", input=given, env=env)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_key_in_other_hands_is_on_the_record_and_a_finding(run: Any, tmp_path: Path, env: dict[str, str]) -> None:
    frames: list[Any] = []
    body = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}'
    for client in ("10.0.0.1", "10.0.0.2"):
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
            % KEY_A.encode()
        )
        head += b"Content-Length: %d\r\n\r\n" % len(body)
        frames += Talk(client=(client, 40_000)).open().say(0, head + body).say(1, REPLY).close().frames
    (tmp_path / "c.pcap").write_bytes(pcap(frames))
    (tmp_path / "c.yaml").write_text("tenants: {default: all}")
    done = run("replay", tmp_path / "c.pcap", "--format", "jsonl", "--store", "none", "--config", tmp_path / "c.yaml", env=env)
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert not [a for a in first["anomalies"] if a["name"].startswith("key_")]
    assert {a["name"] for a in second["anomalies"]} >= {"key_new_workload", "key_shared"}
    assert {f["rule_id"] for f in second["findings"]} >= {"key.new_workload", "key.shared"}
    assert second["risk_score"] > 0
