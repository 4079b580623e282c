"""Rules and policies of the application's own: what they find, what they keep from leaving, and that a fault of theirs costs no request."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llmsec_trace import InstrumentationConfig, PolicyResults, RequestBlocked, SecurityConfig, SecurityPolicy
from llmsec_trace.call import Asked
from llmsec_trace.clients import hooks_in
from llmsec_trace.policy import MAX_TEXT_BYTES, Guard
from support.sdk_recording import Recording, recording
from support.sniff import free_port
from support.vendor_server import TEXT, vendor_server

httpx = pytest.importorskip("httpx", reason="in the dependency group `peers`")
pytestmark = pytest.mark.filterwarnings("default")

SSN = "219-09-9999"
BLOCK = {"pattern": r"\b\d{3}-\d{2}-\d{4}\b", "type": "ssn", "action": "block"}
ALERT = {"pattern": r"\b[A-Za-z0-9._%+-]+@company\.com\b", "type": "internal_email", "action": "alert"}


class CompanySecurityPolicy(SecurityPolicy):
    """The original design's (10.6.1), word for word."""

    def analyze_request(self, request_data: Any) -> PolicyResults:
        results = super().analyze_request(request_data)
        if self._contains_confidential_keywords(request_data):
            results.add_violation(type="confidential_data", severity="high", message="Request contains confidential keywords")
        return results

    def _contains_confidential_keywords(self, request_data: Any) -> bool:
        confidential_keywords = ["SECRET", "CONFIDENTIAL", "INTERNAL_ONLY"]
        content = str(request_data.get("messages", "")).upper()
        return any(keyword in content for keyword in confidential_keywords)


class Raising(SecurityPolicy):
    def analyze_request(self, request_data: Any) -> PolicyResults:
        raise RuntimeError(str(request_data))


class Hanging(SecurityPolicy):
    released = threading.Event()

    def analyze_request(self, request_data: Any) -> PolicyResults:
        self.released.wait(30)
        return super().analyze_request(request_data)


class Wrong(SecurityPolicy):
    def analyze_request(self, request_data: Any) -> PolicyResults:
        return None  # type: ignore[return-value]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with vendor_server(free_port()) as url:
        yield url


def config_of(**security: Any) -> InstrumentationConfig:
    return InstrumentationConfig(security=SecurityConfig(**security))


def hooked(sdk: Recording, client: Any) -> Any:
    for hook, owner in hooks_in(client):
        hook.put(owner, sdk.recorder, again=True)
    return client


def body_of(text: str) -> Any:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def ask(client: Any, server: str, text: str) -> Any:
    return client.post(f"{server}/v1/chat/completions", json=body_of(text))


def _policy_threads() -> int:
    return [thread.name for thread in threading.enumerate()].count("llmsec-policy")


def test_a_thread_that_has_nothing_to_do_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmsec_trace.policy._IDLE_S", 0.05)
    guard = Guard(SecurityConfig(custom_rules=[BLOCK], analysis_timeout_seconds=30))
    for _ in range(2):
        screening = guard.screen(Asked("POST", "/", [], SSN.encode(), "h:80"))
        assert screening is not None
        assert screening.wait() is not None
        until = time.monotonic() + 10
        while guard._threads and time.monotonic() < until:
            time.sleep(0.01)
        assert guard._threads == 0


def settled(sdk: Recording, wanted: int) -> list[Any]:
    """Violations of policies that nobody waits for come a moment later than the record could."""
    time.sleep(0.2)
    records = sdk.flush()
    assert len(records) == wanted
    return records


def test_a_rule_that_alerts_is_a_finding_and_holds_nothing_up(server: str) -> None:
    with recording(config_of(custom_rules=[ALERT])) as sdk, httpx.Client() as client:
        hooked(sdk, client)
        sdk.recorder._grace_s = 30
        assert ask(client, server, "mail bob@company.com").status_code == 200
        (record,) = settled(sdk, 1)
    (finding,) = record.findings
    assert (finding.rule_id, finding.type, finding.severity) == ("sdk.custom.internal_email", "internal_email", "medium")
    assert "bob@" not in str(finding)


def test_a_rule_that_blocks_raises_before_the_request_leaves() -> None:
    sent: list[Any] = []
    with recording(config_of(custom_rules=[BLOCK])) as sdk:
        transport = httpx.MockTransport(lambda request: (sent.append(request), httpx.Response(200, json={}))[1])
        with httpx.Client(transport=transport) as client:
            hooked(sdk, client)
            with pytest.raises(RequestBlocked) as told:
                ask(client, "http://vllm:8000", f"my number is {SSN}")
            assert sent == []
            ask(client, "http://vllm:8000", "hello")
            assert len(sent) == 1
        records = sdk.flush()
        assert sdk.recorder.stats().blocked == 1
    assert told.value.type == "ssn"
    assert SSN not in str(told.value)
    assert str(pickle.loads(pickle.dumps(told.value))) == str(told.value)
    blocked = records[0]
    assert blocked.error_type == "llmsec_trace.RequestBlocked"
    assert [(one.rule_id, one.severity) for one in blocked.findings] == [("sdk.custom.ssn", "high")]


def test_unsampled_requests_are_blocked_as_well() -> None:
    config = InstrumentationConfig(sampling_rate=0.0, security=SecurityConfig(custom_rules=[BLOCK]))
    with recording(config) as sdk, httpx.Client() as client:
        hooked(sdk, client)
        with pytest.raises(RequestBlocked):
            ask(client, "http://127.0.0.1:1", SSN)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_a_block_reaches_the_caller_of_a_vendor_s_client_unwrapped_and_is_not_tried_again(vendor: str, is_async: bool, server: str) -> None:
    module = pytest.importorskip(vendor, reason="in the dependency group `peers`")
    kind = getattr(module, ("Async" if is_async else "") + {"openai": "OpenAI", "anthropic": "Anthropic"}[vendor])
    with recording(config_of(custom_rules=[BLOCK])) as sdk:
        client = hooked(sdk, kind(api_key="k", base_url=server + ("/v1" if vendor == "openai" else "")))

        def call(text: str) -> Any:
            messages = [{"role": "user", "content": text}]
            if vendor == "openai":
                return client.chat.completions.create(model="m", messages=messages)
            return client.messages.create(model="claude-x", max_tokens=9, messages=messages)

        async def both() -> Any:
            with pytest.raises(RequestBlocked, match="ssn"):
                await call(SSN)
            answered = await call("hello")
            await client.close()
            return answered

        if is_async:
            answer = asyncio.run(both())
        else:
            with pytest.raises(RequestBlocked, match="ssn"):
                call(SSN)
            answer = call("hello")
            client.close()
        assert TEXT in str(answer.model_dump())
        assert sdk.recorder.stats().blocked == 1
        assert len(sdk.flush()) == 2


def test_a_block_reaches_the_caller_of_requests() -> None:
    requests = pytest.importorskip("requests")
    with recording(config_of(custom_rules=[BLOCK])) as sdk, requests.Session() as session:
        hooked(sdk, session)
        with pytest.raises(RequestBlocked):
            ask(session, "http://127.0.0.1:1", SSN)


def test_a_block_reaches_the_caller_of_botocore() -> None:
    session = pytest.importorskip("botocore.session", reason="in the dependency group `peers`").get_session()
    session.set_credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    with recording(config_of(custom_rules=[BLOCK])) as sdk:
        client = hooked(sdk, session.create_client("bedrock-runtime", region_name="us-east-1", endpoint_url="http://127.0.0.1:1"))
        with pytest.raises(RequestBlocked):
            client.converse(modelId="m", messages=[{"role": "user", "content": [{"text": SSN}]}])
        assert sdk.recorder.stats().blocked == 1
        client.close()


def test_the_design_s_policy_finds_and_blocks_only_where_the_configuration_says_so(server: str) -> None:
    with recording(config_of(policy_class=CompanySecurityPolicy)) as sdk, httpx.Client() as client:
        hooked(sdk, client)
        sdk.recorder._grace_s = 30
        assert ask(client, server, "a CONFIDENTIAL plan").status_code == 200
        (record,) = settled(sdk, 1)
    assert [(one.rule_id, one.severity) for one in record.findings] == [("sdk.policy.confidential_data", "high")]
    for block_on, blocks in (("high", True), ("medium", True), ("critical", False)):
        with recording(config_of(policy_class=CompanySecurityPolicy, block_on=block_on)) as sdk, httpx.Client() as client:
            hooked(sdk, client)
            if blocks:
                with pytest.raises(RequestBlocked, match="confidential keywords"):
                    ask(client, server, "a CONFIDENTIAL plan")
            else:
                assert ask(client, server, "a CONFIDENTIAL plan").status_code == 200


@pytest.mark.parametrize("policy", [Raising, Wrong])
def test_a_policy_that_fails_is_counted_and_tells_no_content(policy: type, server: str, caplog: pytest.LogCaptureFixture) -> None:
    with recording(config_of(policy_class=policy, block_on="info")) as sdk, httpx.Client() as client:
        hooked(sdk, client)
        for _ in range(3):
            assert ask(client, server, "tell nobody").status_code == 200
        assert sdk.recorder.stats().policy_faults == 3
    assert caplog.text.count("the security policy failed") == 1
    assert "tell nobody" not in caplog.text


def test_requests_go_on_when_a_policy_takes_too_long(server: str) -> None:
    Hanging.released.clear()
    with recording(config_of(policy_class=Hanging, block_on="info", analysis_timeout_seconds=0.05)) as sdk, httpx.Client() as client:
        hooked(sdk, client)
        before = _policy_threads()
        begun = time.monotonic()
        for _ in range(8):
            assert ask(client, server, "hello").status_code == 200
        assert time.monotonic() - begun < 5
        records = sdk.flush()
        assert sdk.recorder.stats().unchecked == 8
        assert [[mark.name for mark in record.anomalies] for record in records] == [["detection_incomplete"]] * 8
        assert _policy_threads() - before == 4
        Hanging.released.set()


def test_a_request_whose_policy_is_too_slow_for_its_record_counts_and_says_so(server: str) -> None:
    Hanging.released.clear()
    with recording(config_of(policy_class=Hanging)) as sdk, httpx.Client() as client:
        hooked(sdk, client)
        assert ask(client, server, "hello").status_code == 200
        (record,) = sdk.flush()
        assert ([mark.name for mark in record.anomalies], record.findings) == (["detection_incomplete"], [])
        assert sdk.recorder.stats().unchecked == 1
        Hanging.released.set()


@pytest.mark.parametrize("block_on", [None, "info"])
def test_a_request_in_pieces_is_unchecked_once_and_its_record_says_so(block_on: str | None, server: str) -> None:
    with recording(config_of(policy_class=CompanySecurityPolicy, block_on=block_on)) as sdk, httpx.Client() as client:
        hooked(sdk, client)
        body = json.dumps(body_of("a CONFIDENTIAL plan")).encode()
        length = {"content-length": str(len(body))}
        assert client.post(f"{server}/v1/chat/completions", content=iter([body]), headers=length).status_code == 200
        (record,) = sdk.flush()
        assert ([mark.name for mark in record.anomalies], record.findings) == (["detection_incomplete"], [])
        assert sdk.recorder.stats().unchecked == 1


def test_an_event_loop_runs_on_while_a_policy_is_waited_for(server: str) -> None:
    Hanging.released.clear()

    async def run(sdk: Recording) -> int:
        async with httpx.AsyncClient() as client:
            hooked(sdk, client)
            task = asyncio.create_task(client.post(f"{server}/v1/chat/completions", json=body_of("hello")))
            turns = 0
            while not task.done():
                await asyncio.sleep(0.02)
                turns += 1
            assert (await task).status_code == 200
            return turns

    with recording(config_of(policy_class=Hanging, block_on="info", analysis_timeout_seconds=0.5)) as sdk:
        assert asyncio.run(run(sdk)) > 5
        Hanging.released.set()


def test_a_call_that_is_cancelled_while_it_waits_for_the_verdict_has_ended(server: str) -> None:
    Hanging.released.clear()

    async def run(sdk: Recording) -> None:
        async with httpx.AsyncClient() as client:
            hooked(sdk, client)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ask(client, server, "hello"), 0.2)

    with recording(config_of(policy_class=Hanging, block_on="info", analysis_timeout_seconds=30)) as sdk:
        asyncio.run(run(sdk))
        (record,) = sdk.flush()
        assert (record.completeness, record.error_type) == ("aborted", "asyncio.CancelledError")
        assert sdk.recorder.stats().waiting == 0
        Hanging.released.set()


@pytest.mark.parametrize(
    ("body", "blocks"),
    [
        (json.dumps(body_of(SSN)).encode(), True),
        (json.dumps(body_of("\\u00e9")).encode(), False),
        (b'{"messages": "\\u0032\\u0031\\u0039-09-9999"}', True),  # escapes are read
        (SSN.encode(), True),
        (b"\xff\xfe not JSON", False),
        (b"[" * 100_000, False),
        (json.dumps({"a": "\ud800 x"}).encode(), False),
        (json.dumps(body_of("x" * MAX_TEXT_BYTES + SSN)).encode(), False),  # beyond what is looked at
    ],
)
def test_what_of_a_body_is_looked_at(body: bytes, blocks: bool) -> None:
    guard = Guard(SecurityConfig(custom_rules=[BLOCK], analysis_timeout_seconds=30))
    screening = guard.screen(Asked("POST", "/v1/chat/completions", [], body, "h:80"))
    assert screening is not None
    assert (screening.wait() is not None) is blocks
    assert guard.stats.policy_faults == 0
    looked = screening.known()
    assert looked is not None
    assert looked.is_cut is (len(body) > MAX_TEXT_BYTES)


def test_a_severity_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="severity must be one of"):
        PolicyResults().add_violation("x", "grave", "m")  # type: ignore[arg-type]
