"""No credential leaves decode: every shape is fed through the whole tool, and its output, store, logs and database are searched."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmsec_tap.providers.base import RequestView
from llmsec_tap.providers.credentials import credential_of, fingerprinter, mask_target
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


def test_no_credential_reaches_output_store_or_log(tmp_path: Path) -> None:
    file = tmp_path / "credentials.pcap.gz"
    file.write_bytes(gzip.compress(capture()))
    store = tmp_path / "store"
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    command = [sys.executable, "-m", "llmsec_analyzer.cli.app"]
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
        ("/keyboard?monkey=1", "/keyboard?monkey=1"),
    ],
)
def test_targets_keep_all_but_secrets(target: str, masked: str) -> None:
    assert mask_target(target, lambda secret: f"F({secret})") == masked
