"""When a directory of tenants is asked: for model traffic only, once its request is in, and after the file's rules."""

from __future__ import annotations

import io

import pytest

from llmsec_tap.capture.files.pcap import CaptureReader
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.identity.tenants import Known, TenantRule
from llmsec_tap.identity.whose import WhoseSettings
from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Pipeline
from support.wire import Talk, pcap

KEY = "sk-live-0123456789"
PRINT = fingerprinter(b"k")(KEY)
ANSWER = b'{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER
BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}'


class Written:
    """A directory that says what it was given, and keeps what it was asked."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.asked: list[tuple[str, str]] = []

    def expect(self, fingerprint: str) -> None:
        self.asked.append(("expect", fingerprint))

    def whose(self, fingerprint: str) -> Known:
        self.asked.append(("whose", fingerprint))
        return self.known


def decoded(directory: Written, request: bytes, settings: WhoseSettings | None = None) -> Exchange:
    found: list[Exchange] = []
    pipeline = Pipeline(found.append, fingerprinter(b"k"), whose=settings, directory=directory, shield=False, on_request=lambda _e: None)
    CaptureReader(pipeline).read_stream(io.BytesIO(pcap(Talk().open().say(0, request).say(1, REPLY).close().frames)), "memory")
    pipeline.close()
    (exchange,) = found
    return exchange


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


CHAT = post("/v1/chat/completions", BODY, f"Authorization: Bearer {KEY}", "X-Tenant: header")
HEADER = WhoseSettings(tenant_header="x-tenant", tenant="default")


@pytest.mark.parametrize(
    ("known", "settings", "tenant", "marks"),
    [
        (Known("acme"), None, "acme", []),
        (Known("acme", "tenant_stale"), None, "acme", ["tenant_stale"]),
        (Known("acme"), HEADER, "acme", []),
        (Known(None), HEADER, "header", []),
        (Known(None, "tenant_unresolved"), HEADER, "header", ["tenant_unresolved"]),
        (Known(None), WhoseSettings(tenant="default"), "default", []),
        (Known(None), None, "key-" + PRINT[:12], []),
        (Known("acme", "tenant_stale"), WhoseSettings(rules=(TenantRule(tenant="file", api_key_prefix="sk-live"),)), "file", []),
        (Known("acme"), WhoseSettings(rules=(TenantRule(tenant="file", api_key_prefix="sk-other"),)), "acme", []),
    ],
)
def test_the_order_is_file_directory_header_default_pseudonym(known, settings, tenant, marks) -> None:
    exchange = decoded(Written(known), CHAT, settings)
    assert (exchange.tenant, [mark.name for mark in exchange.anomalies]) == (tenant, marks)


def test_it_hears_of_a_key_before_it_is_asked() -> None:
    """So that the answer may be there when the exchange ends."""
    directory = Written(Known("acme"))
    decoded(directory, CHAT)
    assert directory.asked[0] == ("expect", PRINT)
    assert ("whose", PRINT) in directory.asked[1:]


@pytest.mark.parametrize(
    "request_",
    [
        post("/login", b"{}", "Cookie: session=secret-of-somebody"),
        post("/anything", b'{"a": 1}', f"Authorization: Bearer {KEY}"),
        post("/v1/chat/completions", BODY),
    ],
)
def test_nobody_is_asked_for_credentials_of_other_traffic_or_for_none(request_) -> None:
    directory = Written(Known("acme"))
    exchange = decoded(directory, request_.replace(b"application/json", b"text/html") if b"/login" in request_ else request_)
    if exchange.provider is None:
        assert exchange.tenant is None
        assert directory.asked == []
    else:
        assert not exchange.api_key_fingerprint
        assert directory.asked == []


def test_an_empty_directory_marks_nothing_that_is_not_of_a_model() -> None:
    exchange = decoded(Written(Known(None, "tenant_unresolved")), post("/anything", b'{"a": 1}', f"Authorization: Bearer {KEY}"))
    assert [mark.name for mark in exchange.anomalies if mark.name.startswith("tenant")] == []
