"""Which records of applications are taken, and that the agent says whose they are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llmsec_agent.receiving.admission import Peer, RefusedError, admitted, made_ours
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import (
    AnomalyCount,
    Exchange,
    Finding,
    Message,
    Part,
    Process,
    Request,
    ToolCall,
    ToolDefinition,
    Usage,
    to_json,
)
from support.exchanges import full_exchange
from support.received import NOW, record, sent
from support.replay import KEY

PEER = Peer(1000, 4711, "99", "app", None)


def reason(raw: bytes) -> str:
    with pytest.raises(RefusedError) as raised:
        admitted(raw, NOW)
    return raised.value.reason


def ours(exchange: Exchange, peer: Peer = PEER, *, detects: bool = True) -> Exchange:
    return made_ours(
        exchange, peer, Process(pid=peer.pid), fingerprint=fingerprinter(KEY), node="here", detects=detects
    )  # fmt: skip


def finding(rule_id: str, **changes: Any) -> Finding:
    return msgspec.structs.replace(full_exchange(1).findings[0], rule_id=rule_id, **changes)


def test_a_whole_record_is_taken_as_it_is() -> None:
    whole = record()
    assert to_json(admitted(sent(whole), NOW)) == to_json(whole)
    later_version = msgspec.to_builtins(whole) | {"a_field_of_the_next_version": 1}
    assert to_json(admitted(sent(later_version), NOW)) == to_json(whole)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"provider": None}, "not_a_model"),
        ({"started_ns": None}, "time"),
        ({"started_ns": NOW - 2 * 86_400 * 10**9}, "time"),
        ({"started_ns": NOW + 3600 * 10**9}, "time"),
        ({"ended_ns": 1}, "time"),
        ({"ended_ns": NOW + 10**15}, "time"),
        ({"provider": "a b"}, "malformed"),
        ({"operation": "x" * 200}, "malformed"),
        ({"api": "\x1b[31m"}, "malformed"),
        ({"anomalies": [AnomalyCount(name="no name", count=1)]}, "malformed"),
        ({"anomalies": [AnomalyCount(name="tcp_gap", count=-1)]}, "malformed"),
        ({"risk_score": 1000}, "malformed"),
        ({"api_key_fingerprint": "of a key"}, "malformed"),
        ({"request": Request(tools=[ToolDefinition(name="x" * 600)])}, "malformed"),
        ({"request": Request(messages=[Message(role="x" * 600)])}, "malformed"),
        ({"tool_calls": [ToolCall(name="x" * 600)]}, "malformed"),
        ({"output_tokens_per_s": 1e-300}, "malformed"),
        ({"ttft_ms": -1.0}, "malformed"),
        ({"findings": [finding("sdk." + "x" * 600)]}, "malformed"),
        ({"finish_reasons": [None] * 300_000}, "too_large"),
        ({"ttft_ms": float("nan")}, "malformed"),
        ({"itl_ms_p50": float("inf")}, "malformed"),
        ({"status": 2**63}, "malformed"),
        ({"findings": [finding("sdk.custom.x", confidence=7.0)]}, "malformed"),
        ({"findings": [finding("sdk.custom.x")] * 1001}, "malformed"),
    ],
)
def test_what_no_tap_would_say_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert reason(sent(record(**changes))) == expected


def test_nobody_gets_a_record_refused_by_what_a_client_or_server_names() -> None:
    """It would pass unread. Long names are cut, and the record says so."""
    names = ("client", "request_model", "session_id", "end_user", "tenant", "error_type", "deployment", "request_id")
    changes: dict[str, Any] = dict.fromkeys(names, "x" * 600) | {"path": "/" + "x" * 10_000}
    changes["tags"] = {"long": "x" * 10_000} | {f"{number}": "" for number in range(300)}
    changes["request"] = Request(
        parameters={"p" * 600: 1, "seed": 2}, messages=[Message(role="user", parts=[Part(type="text", content="hi")])]
    )
    for name, value in changes.items():
        exchange = admitted(sent(record(**{name: value})), NOW)
        assert [mark.name for mark in exchange.anomalies][-1] == "names_cut"
        assert len(getattr(exchange, name)) in (512, 8_192, 256) if name != "request" else exchange.request.parameters == {"seed": 2}
        assert "names_cut" not in [mark.name for mark in admitted(sent(exchange), NOW).anomalies[:-1]]
    odd = admitted(sent(record(usage=Usage(input_tokens=-1, output_tokens=10**15, reasoning_tokens=7))), NOW)
    assert odd.usage == Usage(reasoning_tokens=7)
    assert "names_cut" not in [mark.name for mark in odd.anomalies]


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x80", sent([]), sent({"exchange_id": 1}), b"\x91" * 100_000, sent({"exchange_id": "x"})])
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    assert reason(raw) == "malformed"


def test_types_are_those_of_the_record() -> None:
    for name, value in {"completeness": "whole", "capture_kind": "dpi", "status": "200", "tags": [], "findings": [{}]}.items():
        assert reason(sent(msgspec.to_builtins(record()) | {name: value})) == "malformed"


def test_the_agent_says_whose_a_record_is() -> None:
    forged = record(capture_kind="tls", node="elsewhere", cost_usd=1e9, process=Process(pid=1, comm="init"))
    mine = ours(forged)
    assert (mine.capture_kind, mine.node, mine.process, mine.cost_usd) == ("sdk", "here", Process(pid=4711), None)
    assert mine.deviations == mine.alerts == []
    assert mine.tls is None


def test_no_process_writes_over_a_record_of_another() -> None:
    ids = {ours(record(), peer).exchange_id for peer in (PEER, Peer(1001, 4711, "99"), Peer(1000, 4712, "99"), Peer(1000, 4711, "98"))}
    assert len(ids) == 4
    assert record().exchange_id not in ids
    assert ours(record()).exchange_id == ours(record()).exchange_id  # sent twice it is one
    assert int(ours(record()).exchange_id[:12], 16) == (record().started_ns or 0) // 1_000_000  # ids sort by time, and name it


def test_what_is_found_again_here_is_not_believed() -> None:
    marks = [AnomalyCount(name=name, count=1) for name in ("tcp_gap", "detection_skipped", "detection_incomplete")]
    sender = {"findings": [finding("secret.aws"), finding("sdk.policy.own")], "anomalies": marks}
    mine = ours(record(**sender))
    assert [one.rule_id for one in mine.findings] == ["sdk.policy.own"]
    assert mine.findings[0].exchange_id == mine.exchange_id
    assert mine.findings[0].suppressed is None
    assert [mark.name for mark in mine.anomalies] == ["tcp_gap", "detection_incomplete"]
    as_sent = ours(record(**sender), detects=False)  # nobody looks here
    assert len(as_sent.findings) == 2
    assert len(as_sent.anomalies) == 3
