"""Findings of an application's own rules in a store that the SDK wrote: every command and the console show them, and `analyze` keeps them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmsec_agent.console.access import Access
from llmsec_agent.console.app import console
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_trace import Folder, InstrumentationConfig, PolicyResults, SecurityConfig, SecurityPolicy
from llmsec_trace.clients import hooks_in
from llmsec_trace.recorder import Recorder
from support.journal import Said
from support.replay import KEY
from support.sniff import free_port
from support.vendor_server import vendor_server

httpx = pytest.importorskip("httpx", reason="in the dependency group `peers`")
pytestmark = pytest.mark.filterwarnings("default")
TOKEN = "a-token-of-sixteen-and-more"
RULES = ["sdk.custom.ticket", "sdk.policy.<b>secret</b>"]


class Policy(SecurityPolicy):
    def analyze_request(self, request_data: dict[str, Any]) -> PolicyResults:
        results = super().analyze_request(request_data)
        results.add_violation("<b>secret</b>", "high", "not for \x1b[2J outside")
        return results


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own") / "store"
    security = SecurityConfig(
        policy_class=Policy,
        custom_rules=[{"pattern": "TICKET-[0-9]+", "type": "ticket", "action": "alert"}],
        block_on="critical",  # the call waits for both
        analysis_timeout_seconds=30,
    )
    recorder = Recorder(InstrumentationConfig(security=security), [Folder(root)], fingerprinter(KEY), grace_s=0)
    body = {"model": "m", "messages": [{"role": "user", "content": "TICKET-12, card 4111 1111 1111 1111"}]}
    with vendor_server(free_port()) as url, httpx.Client() as client:
        for hook, owner in hooks_in(client):
            hook.put(owner, recorder, again=True)
        client.post(f"{url}/v1/chat/completions", json=body)
    assert recorder.close(30)
    return root


def run(store: Path, *words: str) -> str:
    command = [str(Path(sys.executable).with_name("llmsec-analyze")), *words, "--store", str(store)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 0, told.stderr
    assert "\x1b" not in told.stdout
    return told.stdout


def found(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(store, "findings", "--format", "jsonl").splitlines()]


def test_commands_show_them(store: Path) -> None:
    policy, custom = sorted(found(store), key=lambda row: row["rule_id"], reverse=True)
    assert [custom["rule_id"], policy["rule_id"]] == RULES
    first, second = run(store, "findings").splitlines()[:2]
    assert first.split()[2:] == [
        "HIGH",
        "anomaly",
        "<b>secret</b>",
        policy["exchange_id"][:12],
        "request",
        "not",
        "for",
        "\\x1b[2J",
        "outside",
    ]
    assert "0-0" not in first + second
    told = run(store, "findings", "explain", custom["finding_id"]).splitlines()
    assert "place: the request as a whole" in told
    assert "rule: sdk.custom.ticket version 1, of the recorded application" in told
    assert "text: the request as a whole" in told
    assert "what to do: The recorded application's own rule or policy says so (docs/sdk.md): ask whoever wrote it." in told
    sarif = json.loads(run(store, "findings", "--format", "sarif"))
    assert sorted(rule["id"] for rule in sarif["runs"][0]["tool"]["driver"]["rules"]) == RULES
    assert len(run(store, "findings", "--format", "ocsf").splitlines()) == 2
    assert "a rule of the application's own matches" in run(store, "exchanges", "show", custom["exchange_id"])


def test_the_console_shows_them(store: Path) -> None:
    from starlette.testclient import TestClient

    app = console(str(store), "store", Access(TOKEN, {}, hosts=frozenset(("127.0.0.1",))), Said(), is_secure=False)
    with TestClient(app, base_url="http://127.0.0.1:8765") as client:
        assert client.get(f"/login?token={TOKEN}").status_code == 200
        for page in ("/findings?since=all", f"/exchanges/{found(store)[0]['exchange_id']}"):
            shown = client.get(page)
            assert shown.status_code == 200
            assert "sdk.custom.ticket" in shown.text
            assert "sdk.policy.&lt;b&gt;secret&lt;/b&gt;" in shown.text
            assert "characters 0 to 0" not in shown.text
        assert "own rule or policy says so" in shown.text


def test_a_later_analysis_keeps_them(store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(store, tmp_path / "store"))
    for _ in range(2):
        run(store, "analyze", "--all")
        assert sorted(row["rule_id"] for row in found(store)) == ["credit_card", *RULES]
    record = json.loads(run(store, "query", "SELECT risk_score, risk_reasons FROM exchanges", "--format", "json"))
    assert record["risk_score"] > 65
    assert any(reason.startswith("sdk.custom.ticket: +") for reason in record["risk_reasons"])
