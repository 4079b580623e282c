"""No credential leaves decode: every shape is fed through the whole tool, and its output, store, logs and database are searched."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmsec_tap.capture.files.pcap import CaptureReader
from llmsec_tap.dialects.base import RequestView
from llmsec_tap.identity.credentials import credential_of, fingerprinter
from llmsec_tap.identity.masking import mask_target
from llmsec_tap.identity.secret_shapes import is_secret_name, is_token, mask_tokens
from llmsec_tap.model import Exchange, to_json
from llmsec_tap.pipeline import Pipeline
from support.replay import replay
from support.wire import Talk, pcap

# Each marker is the credential as it stands on the wire; all are synthetic.
HEADERS = {
    "Authorization": "Bearer sk-proj-MARKER0synthetic0000000000000000",
    "authorization": "Basic TUFSS0VSMTpzeW50aGV0aWM=",
    "x-api-key": "sk-ant-api03-MARKER2synthetic-0000000000",
    "api-key": "MARKER3synthetic00000000000000000",
    "x-goog-api-key": "AIzaMARKER4synthetic000000000000000000",
    "Ocp-Apim-Subscription-Key": "MARKER5synthetic000000000000000",
    "Cookie": "session=MARKER6synthetic; __Secure-token=MARKER6b",
    "Proxy-Authorization": "Bearer MARKER7synthetic",
    "X-Amz-Security-Token": "MARKER8synthetic//////////wEaCXVzLWVhc3QtMSJHMEUCIQ",
    "AUTHORIZATION": (
        "AWS4-HMAC-SHA256 Credential=AKIAMARKER9SYNTHETIC/20261124/us-east-1/bedrock/aws4_request, SignedHeaders=host, "
        "Signature=MARKER9b00000000000000000000000000000000000000000000000000000000"
    ),
}
TARGETS = [
    "/v1beta/models/gemini-x:generateContent?key=AIzaMARKERa000000000000000000000000000",
    "/v1/chat/completions?api_key=MARKERb&x=1",
    "/v1/chat/completions?access_token=MARKERc%2Fescaped&api-version=2024-06-01",
    "/openai/deployments/d/chat/completions?sig=MARKERd&X-Amz-Signature=MARKERe&X-Amz-Credential=AKIAMARKERf%2F2026%2Fus&client_secret=MARKERg",
    "http://user:MARKERh@api.openai.com/v1/chat/completions",
]
# Places that say nothing of who calls.
MORE_TARGETS = [
    f"/v1/chat/completions?a=1&{name}=MARKERq&b=2"
    for name in [
        "pwd",
        "pass",
        "passwd",
        "passphrase",
        "bearer",
        "sk",
        "ak",
        "hmac",
        "k",
        "client_id",
        "private_key",
        "otp",
        "pin",
        "sid",
        "session_id",
        "sessionid",
        "PHPSESSID",
        "jsessionid",
        "ticket",
        "nonce",
        "assertion",
        "refresh",
        "subscription-key",
        "AccountKey",
        "some_name_nobody_knows",
        "k%65y",
    ]
] + [
    "/v1/chat/completions?a=1;api_key=MARKERr",
    "/v1/chat/completions?a=1?api_key=MARKERr",
    "/v1/chat/completions?MARKERs",
    "/v1/chat/completions?sk-live-MARKERsa1B2c3D4e5F6=1",
    "/v1/chat/completions?model=sk-live-MARKERsa1B2c3D4e5F6",
    "/v1/chat/completions#access_token=MARKERt",
    "/v1/chat/completions#MARKERt",
    "/proxy/sk-live-MARKERua1B2c3D4e5F6g7H8/v1/chat/completions",
    "/proxy/%73k-live-MARKERua1B2c3D4e5F6g7H8/v1/chat/completions",
    "/proxy/MARKERua1B2c3D4e5F6g7H8i9J0/v1/chat/completions",
    "/v1/chat/completions;api_key=MARKERv",
    "websocketsx://user:MARKERw@h:8000/v1/chat/completions",
    "http://user:MARKERw/x@h:8000/v1/chat/completions",
    "//user:MARKERw@h:8000/v1/chat/completions",
    "/proxy/http://user:MARKERw@h/v1/chat/completions",
    "/botMARKER123:AAEhBOweik9ai2Ms8sdMdIi2rQ0MARKER/sendMessage",
]
SECRET_FIELDS = {
    "api_key": "MARKERx", "apiKey": "MARKERx", "key": "MARKERx", "access_token": "MARKERx", "authorization": "Bearer MARKERx", "password": "MARKERx",
    "client_secret": "MARKERx", "metadata": {"api_key": "MARKERx", "note": {"token": "MARKERx"}}, "extra_body": {"authorization": "MARKERx"},
    "safety_identifier": "sk-live-MARKERxa1B2c3D4e5F6", "extra_headers": {"Authorization": "Bearer MARKERx"}, "callback": "https://u:MARKERx@h/?sig=MARKERx",
    "sk-live-MARKERxa1B2c3D4e5F6": 1, "anything": "sk-live-MARKERxa1B2c3D4e5F6", "stop": ["sk-live-MARKERxa1B2c3D4e5F6"],
    "tools": [{"type": "mcp", "server_label": "x", "server_url": "https://u:MARKERx@mcp/", "authorization": "MARKERx", "headers": {"Authorization": "MARKERx"}}],
    "mcp_servers": [{"type": "url", "url": "https://x/?key=MARKERx", "name": "x", "authorization_token": "MARKERx"}],
}  # fmt: skip
BODIES = [
    ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/completions", {"model": "m", "prompt": "hi"}),
    ("/v1/responses", {"model": "m", "input": "hi"}),
    ("/v1/messages", {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/embeddings", {"model": "m", "input": "hi"}),
    ("/v1beta/models/gemini-x:generateContent", {"contents": [{"parts": [{"text": "hi"}]}]}),
    ("/model/anthropic.x/converse", {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}),
    ("/api/chat", {"model": "m", "messages": [{"role": "user", "content": "hi"}], "options": {"password": "MARKERx"}}),
    ("/api/generate", {"model": "m", "prompt": "hi"}),
    ("/generate", {"inputs": "hi", "parameters": {"api_key": "MARKERx"}}),
    ("/v2/chat", {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
]
BODY = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
ANSWER = b'{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'


def capture() -> bytes:
    frames = []
    requests = [("/v1/chat/completions", name, value) for name, value in HEADERS.items()] + [
        (target, "X-Nothing", "1") for target in TARGETS
    ]
    for number, (target, name, value) in enumerate(requests):
        talk = Talk(client=("10.1.0.7", 41000 + number)).open()
        talk.say(
            0,
            f"POST {target} HTTP/1.1\r\nHost: node\r\n{name}: {value}\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
            + BODY,
        )
        set_cookie = "Set-Cookie: token=MARKERi; HttpOnly\r\n"
        talk.say(
            1, f"HTTP/1.1 200 OK\r\n{set_cookie}Content-Type: application/json\r\nContent-Length: {len(ANSWER)}\r\n\r\n".encode() + ANSWER
        ).close()
        frames += talk.frames
    return pcap(frames)


def capture_of_more() -> bytes:
    frames = []
    whole = json.dumps(BODIES[0][1]).encode()
    requests = [(target, whole, ANSWER, 200) for target in MORE_TARGETS]
    requests += [(path, json.dumps({**body, **SECRET_FIELDS}).encode(), ANSWER, 200) for path, body in BODIES]
    requests.append(("/v1/chat/completions", json.dumps({**BODIES[0][1], "model": "sk-live-MARKERya1B2c3D4e5F6"}).encode(), ANSWER, 200))
    failure = b'{"error":{"message":"Incorrect API key provided: sk-live-MARKERza1B2c3D4e5F6.","type":"invalid_request_error"}}'
    requests.append(("/v1/chat/completions", whole, failure, 401))
    for number, (target, body, answer, status) in enumerate(requests):
        talk = Talk(client=("10.1.0.8", 42000 + number)).open()
        talk.say(
            0,
            f"POST {target} HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body,
        )
        talk.say(
            1, f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer
        ).close()
        frames += talk.frames
    return pcap(frames)


def test_nor_does_one_in_another_place() -> None:
    exchanges, _ = replay(capture_of_more())
    assert len(exchanges) == len(MORE_TARGETS) + len(BODIES) + 2
    assert all(exchange.provider is not None for exchange in exchanges)
    for exchange in exchanges:
        for record in (exchange, exchange.without_content()):
            assert b"MARKER" not in to_json(record), to_json(record)


def test_without_content_keeps_numbers_and_listed_names_alone() -> None:
    body = {
        "model": "m", "messages": [{"role": "user", "content": "SAID"}], "temperature": 0.5, "stream": False, "reasoning_effort": "low",
        "context": "SAID by a patient", "negative_prompt": "SAID", "chat_template": "You are SAID", "SAID as a name": 1, "service_tier": "SAID here",
    }  # fmt: skip
    talk = Talk().open()
    raw = json.dumps(body).encode()
    talk.say(0, b"POST /v1/chat/completions?q=SAID%%20so HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
    failure = b'{"error":{"message":"SAID","type":"SAID is not allowed"}}'
    talk.say(1, b"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(failure) + failure).close()
    (exchange,), _ = replay(pcap(talk.frames))
    assert b"SAID" in to_json(exchange)
    record = exchange.without_content()
    assert b"SAID" not in to_json(record)
    assert record.request.parameters == {"temperature": 0.5, "stream": False, "reasoning_effort": "low"}
    assert record.request_model == "m"


KEYS = [
    "sk-proj-abcdefghijklmnop", "sk-ant-api03-abcdefghijklmno", "ghp_abcdefghijklmnopqrst", "github_pat_abcdefghijklmnop", "glpat-abcdefghijkl", "xoxb-abcdefghij",
    "AKIAIOSFODNN7EXAMPLE", "AIzaabcdefghijklmnopqrstu", "hf_abcdefghijklmnop", "gsk_abcdefghijklmn", "eyJhbGciOiJI.eyJzdWIi.sig", "sk-live-CRED001a1B2c3D4e5F6",
    "a1B2c3D4e5F6g7H8i9J0", "123456789:AAEhBOweik9ai2Ms8sdMdIi2rQ0a1b2c3d4",
]  # fmt: skip
NAMES = [
    "gpt-4o-mini-2024-07-18", "us.anthropic.claude-3-5-sonnet-20241022-v2:0", "meta-llama/Llama-3.1-405B-Instruct-Turbo", "ft:gpt-3.5-turbo-0125:acme::9ab8c7d6",
    "text-embedding-3-large", "accounts/fireworks/models/llama-v3p1-8b-instruct", "owner/name:" + "0123456789abcdef" * 4, "invalid_request_error",
    "nvidia/nemotron-mini-4b-instruct", "mistralai/Mixtral-8x22B-Instruct-v0.1", "arn:aws:bedrock:us-east-1:123456789012:inference-profile/x",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_forms_of_keys_are_known_in_any_text(key: str) -> None:
    for text in (key, f"Incorrect key: {key}.", f"bad ({key})", f"'{key}' and {key}"):
        assert key not in mask_tokens(text, lambda _: "F"), text
    assert is_token(key)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_models_and_errors_stay(name: str) -> None:
    assert mask_tokens(name, lambda _: "F") == name


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("api_key", "apiKey", "X-Api-Key", "access_token", "client-secret", "Authorization", "pwd", "PHPSESSID", "hf_token", "k")),
        *((name, False) for name in ("max_tokens", "max_completion_tokens", "skip_special_tokens", "token_ids", "monkey", "keyboard", "eos_token_id", "prompt")),
    ],
)  # fmt: skip
def test_names_of_fields(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


def test_an_id_is_no_oracle_and_is_told_by_the_request_alone() -> None:
    def ids(key: bytes, answer: bytes) -> str:
        exchanges: list[Exchange] = []
        pipeline = Pipeline(exchanges.append, fingerprinter(key), shield=False)
        talk = Talk().open()
        talk.say(0, b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        talk.say(1, answer).close()
        CaptureReader(pipeline).read_stream(io.BytesIO(pcap(talk.frames)), "memory")
        pipeline.close()
        (exchange,) = exchanges
        return exchange.exchange_id

    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    bad = b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}"
    assert ids(b"1" * 32, ok) == ids(b"1" * 32, ok) == ids(b"1" * 32, bad)
    assert ids(b"1" * 32, ok)[:12] == ids(b"2" * 32, ok)[:12]
    assert ids(b"1" * 32, ok)[12:] != ids(b"2" * 32, ok)[12:]


def test_no_credential_reaches_output_store_or_log(tmp_path: Path) -> None:
    file = tmp_path / "credentials.pcap.gz"
    file.write_bytes(gzip.compress(capture()))
    store = tmp_path / "store"
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app"]
    outputs = []
    for arguments in (
        ["replay", str(file), "--store", str(store), "--format", "jsonl"],
        ["replay", str(file), "--store", str(store), "--format", "table"],
        ["exchanges", "--store", str(store), "--format", "json"],
        ["query", "SELECT * FROM exchanges", "--store", str(store), "--format", "json"],
    ):
        result = subprocess.run([*command, *arguments], env=environment, capture_output=True, check=True)
        outputs += [result.stdout, result.stderr]
    assert outputs[0].count(b"\n") == len(HEADERS) + len(TARGETS)
    stored = [path.read_bytes() for path in [*store.rglob("*"), *(tmp_path / "state").rglob("*")] if path.is_file()]
    assert len(stored) >= 4
    for data in outputs + stored:
        assert b"MARKER" not in data
        assert b"TUFSS0VSMTpzeW50aGV0aWM" not in data


def test_every_caller_with_a_credential_has_a_fingerprint() -> None:
    exchanges, _ = replay(capture())
    missing = [e.path for e in exchanges if e.api_key_fingerprint is None]
    # A temporary token alone names nobody; user information in a target belongs to a proxy and is only masked.
    assert len(missing) == 2
    assert len({e.api_key_fingerprint for e in exchanges}) == len(exchanges) - 1


def test_equal_credentials_are_equal_however_they_are_sent() -> None:
    key = "sk-test-synthetic"
    views = [
        RequestView("POST", "/v1/x", {"authorization": f"Bearer {key}"}),
        RequestView("POST", "/v1/x", {"authorization": f"bearer   {key}"}),
        RequestView("POST", "/v1/x", {"x-api-key": key}),
        RequestView("POST", "/v1/x", {"api-key": key}),
        RequestView("POST", f"/v1/x?key={key}", {}),
    ]
    assert {credential_of(view) for view in views} == {key}
    assert credential_of(RequestView("POST", "/", {})) is None


def test_sigv4_names_the_access_key_not_the_signature() -> None:
    header = "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20261124/us-east-1/bedrock/aws4_request, SignedHeaders=host, Signature=00ff"
    assert credential_of(RequestView("POST", "/", {"authorization": header})) == "AKIAIOSFODNN7EXAMPLE"


def test_fingerprints_need_the_key() -> None:
    one, other = fingerprinter(b"1" * 32), fingerprinter(b"2" * 32)
    assert one("a") == one("a") != other("a")
    assert len(one("a")) == 32


@pytest.mark.parametrize("key", [b"k" * 32, b"k", b"k" * 64, b"k" * 200])
def test_fingerprints_are_hmac_sha256(key: bytes) -> None:
    assert fingerprinter(key)("a secret") == hmac.new(key, b"a secret", hashlib.sha256).hexdigest()[:32]


@pytest.mark.parametrize(
    ("target", "masked"),
    [
        ("/a?b=c", "/a?b=c"),
        ("/a", "/a"),
        ("/a?key=x&alt=sse", "/a?key=F(x)&alt=sse"),
        ("/a?KEY=x", "/a?KEY=F(x)"),
        ("/a?api%5Fkey=x", "/a?api%5Fkey=F(x)"),
        ("/a?key=", "/a?key="),
        ("/a?key", "/a?key"),
        ("http://u:p@h/a?q", "http://F(u:p)@h/a?q"),
        ("http://h/a@b", "http://h/a@b"),
        (
            "/v1/models/gemini-2.5-pro-preview-05-06:generateContent?alt=sse",
            "/v1/models/gemini-2.5-pro-preview-05-06:generateContent?alt=sse",
        ),
        (
            "/model/us.anthropic.claude-3-5-sonnet-20241022-v2%3A0/converse",
            "/model/us.anthropic.claude-3-5-sonnet-20241022-v2%3A0/converse",
        ),
        (
            "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
            "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        ),
        ("/v1/responses/resp_68a0c1d2e3f405162738495a6b7c8d9e", "/v1/responses/resp_68a0c1d2e3f405162738495a6b7c8d9e"),
        ("/v1/jobs/9b2f7c1e-3d4a-4b5c-8d6e-7f8091a2b3c4", "/v1/jobs/9b2f7c1e-3d4a-4b5c-8d6e-7f8091a2b3c4"),
        ("/getServerInfoFromModelRegistryService", "/getServerInfoFromModelRegistryService"),
        ("example.org:443", "example.org:443"),
        ("*", "*"),
        ("/keyboard?monkey=1", "/keyboard?monkey=F(1)"),
    ],
)
def test_targets_keep_all_but_secrets(target: str, masked: str) -> None:
    assert mask_target(target, lambda secret: f"F({secret})") == masked
