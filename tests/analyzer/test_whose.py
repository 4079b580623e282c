"""How tenants and end users are named follows from the configuration: a header that any client may set counts only where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmsec_agent.config import load_all, whose_of
from support.wire import Talk, pcap


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    body = b'{"model":"gpt-4o","user":"jo@example.org","messages":[{"role":"user","content":"hello"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nX-Tenant-ID: acme\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    answer = b'{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer
    file = tmp_path / "c.pcap"
    file.write_bytes(pcap(Talk().open().say(0, head % len(body) + body).say(1, reply).close().frames))
    return file


@pytest.mark.parametrize(
    ("config", "tenant"),
    [
        (None, None),
        ("tenants: {header: X-Tenant-ID}", "acme"),
        ("tenants: {header: x-team, default: all}", "all"),
        ("storage: {path: x}", None),
    ],
)
def test_the_tenant(run: Any, capture: Path, tmp_path: Path, config: str | None, tenant: str | None) -> None:
    options = []
    if config is not None:
        (tmp_path / "c.yaml").write_text(config)
        options = ["--config", str(tmp_path / "c.yaml")]
    done = run("replay", str(capture), "--store", "none", "--no-detect", "--format", "jsonl", *options)
    row = json.loads(done.stdout)
    assert row["tenant"] == tenant
    assert row["end_user"]
    assert "jo@" not in done.stdout


def test_end_users_in_clear(run: Any, capture: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("tenants: {end_users_in_clear: true}")
    assert whose_of(load_all(str(tmp_path / "c.yaml"))).end_users_in_clear
    done = run("replay", str(capture), "--store", "none", "--no-detect", "--format", "jsonl", "--config", str(tmp_path / "c.yaml"))
    assert json.loads(done.stdout)["end_user"] == "jo@example.org"
