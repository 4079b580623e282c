"""HTTP/2 under TLS of observed processes: Go's own on both sides, nghttp2 over OpenSSL (curl), nginx."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from support.agent import Agent
from support.needs import program
from support.plain_calls import plain_server
from support.tls_front import Certificate, free_port, nginx, wait_for_port


def by_curl(url: str, certificate: Certificate, text: str) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]})
    command = ["curl", "-sS", "--fail", "--http2", "--cacert", certificate.cert, "-H", "content-type: application/json", "-d", body]
    said = subprocess.run(
        [*command, "-o", "/dev/null", "-w", "%{http_version}", f"{url}/v1/chat/completions"],
        check=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert said.stdout == "2"


def test_both_ends_in_go(certificate: Certificate, go_program: Path) -> None:
    port, with_http2 = free_port(), {**os.environ, "HTTP2": "1"}
    url = f"https://127.0.0.1:{port}"
    with subprocess.Popen([go_program, "serve", f"127.0.0.1:{port}", certificate.cert, certificate.key], env=with_http2) as server:
        try:
            wait_for_port(port, server)
            with Agent("--comm", go_program.name) as agent:
                agent.wait_for_probes(go_program)
                subprocess.run([go_program, url, certificate.cert], check=True, env=with_http2, timeout=30, capture_output=True)
                rows = agent.wait_for_exchanges(26)
        finally:
            server.kill()
    seen = sorted((row["input_text"], row["output_text"], row["http_version"], row["completeness"]) for row in rows)
    assert seen == sorted((f"call {n} by go", f"echo call {n} by go", "2", "complete") for n in range(13) for _ in range(2))


def test_curl_before_nginx(certificate: Certificate, tmp_path: Path) -> None:
    program("nginx", "nginx-light")
    with (
        plain_server("threads") as (_, upstream),
        nginx(tmp_path / "front", certificate, f"http://127.0.0.1:{upstream}", http2=True) as front,
        Agent("--comm", "curl", "--comm", "nginx") as agent,
    ):
        by_curl(front.url, certificate, "hello")
        rows = agent.wait_for_exchanges(2)
    assert {row["process"]["comm"] for row in rows} == {"curl", "nginx"}
    assert [(row["input_text"], row["http_version"], row["completeness"]) for row in rows] == [("hello", "2", "complete")] * 2
    assert rows[0]["output_text"] == rows[1]["output_text"]
