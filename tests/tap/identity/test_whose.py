"""Whose an exchange is: what client and server say of it in headers and body, whoever the vendor is."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any

import pytest

from llmsec_tap.capture.files.pcap import CaptureReader
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.identity.whose import WhoseSettings
from llmsec_tap.model import Counts, Exchange, RateLimit, Resets, to_json
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.wire.proxy_protocol import proxied_client
from support.replay import KEY
from support.wire import Talk, pcap

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = b'{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
T0_S = 1_760_000_000
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def exchange_of(
    asked: dict[str, str] | None = None,
    answered: dict[str, str] | None = None,
    *,
    body: dict[str, Any] | None = None,
    path: str = "/v1/chat/completions",
    before: bytes = b"",
    settings: WhoseSettings | None = None,
) -> Exchange:
    raw = json.dumps({**CHAT, **(body or {})}).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in (asked or {}).items())
    back = "".join(f"{name}: {value}\r\n" for name, value in (answered or {}).items())
    talk = Talk().open()
    head = f"POST {path} HTTP/1.1\r\nHost: node\r\n{lines}Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    talk.say(0, before + head.encode() + raw)
    talk.say(
        1, f"HTTP/1.1 200 OK\r\n{back}Content-Type: application/json\r\nContent-Length: {len(ANSWER)}\r\n\r\n".encode() + ANSWER
    ).close()
    exchanges: list[Exchange] = []
    pipeline = Pipeline(exchanges.append, fingerprinter(KEY), shield=False, whose=settings)
    CaptureReader(pipeline).read_stream(BytesIO(pcap(talk.frames)), "memory")
    pipeline.close()
    (exchange,) = exchanges
    return exchange


@pytest.mark.parametrize(
    ("asked", "answered", "identity"),
    [
        ({}, {"x-request-id": "req_1"}, "req_1"),
        ({}, {"request-id": "req_011CS"}, "req_011CS"),
        ({}, {"x-amzn-requestid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        ({}, {"apim-request-id": "a-1"}, "a-1"),
        ({"x-request-id": "mine"}, {}, "mine"),
        ({"x-client-request-id": "mine"}, {"x-request-id": "theirs"}, "theirs"),
        ({}, {}, None),
    ],
)
def test_request_id(asked: dict[str, str], answered: dict[str, str], identity: str | None) -> None:
    assert exchange_of(asked, answered).request_id == identity


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"traceparent": f"00-{TRACE}-{SPAN}-01"}, (TRACE, SPAN)),
        ({"traceparent": f"00-{'0' * 32}-{SPAN}-01"}, (None, None)),
        ({"traceparent": "nonsense"}, (None, None)),
        ({"b3": f"{TRACE}-{SPAN}-1"}, (TRACE, SPAN)),
        ({"b3": "0"}, (None, None)),
        ({"X-B3-TraceId": TRACE, "X-B3-SpanId": SPAN}, (TRACE, SPAN)),
        ({"X-Cloud-Trace-Context": f"{TRACE}/10;o=1"}, (TRACE, "000000000000000a")),
        ({"X-Amzn-Trace-Id": f"Root=1-{TRACE[:8]}-{TRACE[8:]};Sampled=1"}, (TRACE, None)),
        ({}, (None, None)),
    ],
)
def test_trace(asked: dict[str, str], found: tuple[str | None, str | None]) -> None:
    exchange = exchange_of(asked)
    assert (exchange.trace_id, exchange.span_id) == found


@pytest.mark.parametrize(
    "body",
    [
        {"user": "bob@a.example"},
        {"metadata": {"user_id": "bob@a.example"}},
        {"safety_identifier": "bob@a.example"},
        {"metadata": {"user_id": "bob@a.example_session_01234567-89ab-cdef-0123-456789abcdef"}},
    ],
)
def test_an_end_user_is_a_fingerprint_unless_asked_for_in_clear(body: dict[str, Any]) -> None:
    exchange = exchange_of(body=body)
    assert exchange.end_user == fingerprinter(KEY)("bob@a.example")
    assert b"bob@a" not in to_json(exchange)
    assert exchange_of(body=body, settings=WhoseSettings(end_users_in_clear=True)).end_user == "bob@a.example"


@pytest.mark.parametrize(
    ("asked", "body", "session"),
    [
        ({"session_id": "s-1"}, {}, "s-1"),
        ({"x-session-id": "s-1"}, {}, "s-1"),
        ({}, {"session_id": "s-1"}, "s-1"),
        ({}, {"metadata": {"session_id": "s-1"}}, "s-1"),
        ({}, {"conversation": {"id": "conv_1"}}, "conv_1"),
        ({}, {"conversation": "conv_1"}, "conv_1"),
        ({}, {"metadata": {"user_id": "user_abc_account__session_01234567-89ab"}}, "01234567-89ab"),
        ({}, {"metadata": {"user_id": json.dumps({"device_id": "d", "session_id": "s-1"})}}, "s-1"),
        ({}, {"conversation": 5, "session_id": ["x"]}, None),
    ],
)
def test_session(asked: dict[str, str], body: dict[str, Any], session: str | None) -> None:
    assert exchange_of(asked, body=body).session_id == session


def test_tags_are_texts_bounded_and_without_keys() -> None:
    key = "sk-live-A1b2C3d4E5f6G7h8I9j0K1"
    many = {f"n{number}": "v" for number in range(40)}
    exchange = exchange_of(
        body={"metadata": {"team": "weather", "cost": 3, "api_key": "hunter2", "note": f"with {key}", "long": "x" * 9999, **many}}
    )
    assert exchange.tags["team"] == "weather"
    assert "cost" not in exchange.tags
    assert len(exchange.tags) == 16
    assert max(map(len, exchange.tags.values())) <= 512
    assert key not in str(exchange.tags)
    assert b"hunter2" not in to_json(exchange)
    assert exchange_of(body={"metadata": ["x"]}).tags == {}


def test_tenant_by_header_else_as_configured() -> None:
    settings = WhoseSettings(tenant_header="X-Tenant-ID", tenant="acme")
    assert exchange_of({"x-tenant-id": "globex"}, settings=settings).tenant == "globex"
    assert exchange_of(settings=settings).tenant == "acme"
    assert exchange_of({"x-tenant-id": "globex"}).tenant is None


def test_azure_deployment_and_version() -> None:
    exchange = exchange_of(path="/openai/deployments/chat-eu/chat/completions?api-version=2025-04-01-preview")
    assert (exchange.deployment, exchange.api_version) == ("chat-eu", "2025-04-01-preview")


@pytest.mark.parametrize(
    ("agent", "family"),
    [
        ("OpenAI/Python 2.1.0", "openai-python/2.1.0"),
        ("AsyncOpenAI/Python 2.1.0", "openai-python/2.1.0"),
        ("Anthropic/JS 0.70.1", "anthropic-js/0.70.1"),
        ("claude-cli/2.0.1 (external, cli)", "claude-cli/2.0.1"),
        ("python-httpx/0.28.1", "python-httpx/0.28.1"),
        ("Boto3/1.40.1 md/Botocore#1.40.1 ua/2.1", "Boto3/1.40.1"),
        ("google-genai-sdk/1.40.0 gl-python/3.11", "google-genai-sdk/1.40.0"),
        ("curl/8.5.0", "curl/8.5.0"),
        ("Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0"),
        ("()", None),
        ("", None),
    ],
)
def test_client_agent(agent: str, family: str | None) -> None:
    assert exchange_of({"user-agent": agent}).client_agent == family


@pytest.mark.parametrize(
    ("answered", "limit"),
    [
        (
            {
                "x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-limit-tokens": "150000", "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s",
            },
            RateLimit(limits=Counts(requests=60, tokens=150000), remaining=Counts(requests=59, tokens=149984), reset_s=Resets(requests=1.0, tokens=360.0)),
        ),
        (
            {"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "49", "anthropic-ratelimit-tokens-remaining": "9000", "retry-after": "12"},
            RateLimit(limits=Counts(requests=50), remaining=Counts(requests=49, tokens=9000), retry_after_s=12.0),
        ),
        ({"x-ratelimit-remaining-requests": "9", "x-ratelimit-remaining-tokens": "99"}, RateLimit(remaining=Counts(requests=9, tokens=99))),
        ({"ratelimit-limit": "100", "ratelimit-remaining": "7", "ratelimit-reset": "30"}, RateLimit(limits=Counts(requests=100), remaining=Counts(requests=7), reset_s=Resets(requests=30.0))),
        ({"ratelimit": "limit=100, remaining=7, reset=30"}, RateLimit(limits=Counts(requests=100), remaining=Counts(requests=7), reset_s=Resets(requests=30.0))),
        ({"retry-after-ms": "250"}, RateLimit(retry_after_s=0.25)),
        ({"x-ratelimit-reset-requests": "12ms"}, RateLimit(reset_s=Resets(requests=0.012))),
        ({"x-ratelimit-limit-requests": "many", "retry-after": "NaN"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_rate_limit(answered: dict[str, str], limit: RateLimit | None) -> None:
    assert exchange_of({}, answered).rate_limit == limit


def test_a_reset_at_a_time_is_seconds_from_the_answer() -> None:
    plain = exchange_of()
    assert plain.first_byte_ns is not None
    at = plain.first_byte_ns // 1_000_000_000 + 30
    import datetime as dt

    moment = dt.datetime.fromtimestamp(at, dt.UTC)
    for text in (moment.strftime("%Y-%m-%dT%H:%M:%SZ"), moment.strftime("%a, %d %b %Y %H:%M:%S GMT"), str(at), str(at * 1000)):
        limit = exchange_of({}, {"anthropic-ratelimit-requests-reset": text}).rate_limit
        assert limit is not None
        assert limit.reset_s.requests is not None
        assert 28 < limit.reset_s.requests <= 30


@pytest.mark.parametrize(
    ("asked", "before", "client"),
    [
        ({"x-forwarded-for": "203.0.113.9, 10.0.0.1"}, b"", "203.0.113.9"),
        ({"x-forwarded-for": "203.0.113.9:4711"}, b"", "203.0.113.9:4711"),
        ({"x-forwarded-for": "2001:db8::1"}, b"", "2001:db8::1"),
        ({"forwarded": 'for="[2001:db8::1]:4711";proto=https, for=10.0.0.1'}, b"", "[2001:db8::1]:4711"),
        ({"x-real-ip": "203.0.113.9"}, b"", "203.0.113.9"),
        ({"x-forwarded-for": "unknown", "cf-connecting-ip": "203.0.113.9"}, b"", "203.0.113.9"),
        ({"x-forwarded-for": "<script>"}, b"", None),
        ({}, b"PROXY TCP4 203.0.113.9 10.2.0.9 56324 443\r\n", "203.0.113.9:56324"),
        ({}, b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", "[2001:db8::1]:56324"),
        ({}, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([203, 0, 113, 9, 10, 2, 0, 9]) + b"\xdc\x04\x01\xbb", "203.0.113.9:56324"),
        ({}, b"", None),
    ],
)
def test_forwarded_client(asked: dict[str, str], before: bytes, client: str | None) -> None:
    exchange = exchange_of(asked, before=before)
    assert exchange.forwarded_client == client
    assert exchange.client.startswith("10.1.0.")


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY ",
        b"PROXY UNKNOWN\r\n",
        b"PROXY TCP4 999.1.1.1 1.1.1.1 1 1\r\n",
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01",
        b"GET / ",
    ],
)
def test_what_is_no_proxy_header_names_nobody(data: bytes) -> None:
    assert proxied_client(data) is None


def test_without_content_ids_stay_and_tags_go() -> None:
    exchange = exchange_of(
        {"x-request-id": "r-1", "session_id": "a sentence of words"}, body={"metadata": {"a": "b"}, "user": "u"}
    ).without_content()
    assert (exchange.request_id, exchange.session_id, exchange.tags) == ("r-1", None, {})
    assert exchange.end_user == fingerprinter(KEY)("u")


@pytest.mark.parametrize("value", [5, [], {"a": {}}, None, "x" * 5000, "\ud800", True])
def test_any_value_is_taken(value: Any) -> None:
    body = dict.fromkeys(("user", "metadata", "conversation", "session_id", "safety_identifier", "labels"), value)
    exchange = exchange_of(
        {"traceparent": "\xff" * 300, "x-forwarded-for": "[" * 50, "user-agent": "/" * 400}, {"retry-after": "9" * 400}, body=body
    )
    assert exchange.provider is not None
    assert base64.b64encode(to_json(exchange))
