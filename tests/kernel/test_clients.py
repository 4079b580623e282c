"""Every client library, for real: 13 calls each through nginx to a model server; each call found, with its text, address and process."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.agent import Agent
from support.needs import idle_node, program
from support.tls_front import Certificate, Nginx, free_port

CALLERS = Path(__file__).parents[1] / "support/callers"
CALLS = 13


def text_of(body: str) -> str:
    """The answer's text by a parser of the test's own."""
    if not body.startswith("data:"):
        return str(json.loads(body)["choices"][0]["message"]["content"] or "")
    text = ""
    for line in body.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                text += choice["delta"].get("content") or ""
    return text


def seen_on_the_wire(row: dict[str, Any]) -> list[str]:
    """Its anomalies, but for what a busy machine left no time to look for, and for a library that no process had before."""
    names = [anomaly["name"] for anomaly in row["anomalies"]]
    return [name for name in names if not name.startswith("detection_") and name != "tap_attached_late"]


def check(agent: Agent, front: Nginx, name: str, received: dict[int, str], pids: set[int], comm: str) -> None:
    """Both ends are on this host, so a tap on everything sees each call twice: as the client's and as nginx's."""
    expected = {f"call {number} by {name}": text for number, text in received.items()}
    assert len(expected) == CALLS
    ports = front.ports_by_call()

    def found() -> list[dict[str, Any]]:
        return [row for row in agent.exchanges() if row["input_text"] in expected]

    agent.wait_for(lambda: len(found()) >= 2 * CALLS, f"only {len(found())} of {2 * CALLS} exchanges of {name}")
    by_process: dict[bool, dict[str, dict[str, Any]]] = {True: {}, False: {}}
    for row in found():
        side = by_process[row["process"]["pid"] in pids]
        assert row["input_text"] not in side, "an exchange came twice"
        side[row["input_text"]] = row
    for is_client, rows in by_process.items():
        assert set(rows) == set(expected), "client" if is_client else "nginx"
        for asked, row in rows.items():
            number = asked.split()[1]
            assert row["output_text"] == expected[asked]
            assert row["client"] == f"127.0.0.1:{ports[f'{name}-{number}']}"
            assert row["server"] == f"127.0.0.1:{front.port}"
            assert row["completeness"] == "complete", row["anomalies"]
            assert seen_on_the_wire(row) == []
            assert row["status"] == 200
            process = row["process"]
            if is_client:
                assert process["comm"] == comm
            else:
                assert process["pid"] in front.workers()
                assert process["comm"] == "nginx"


def run(*command: str | Path, env: dict[str, str] | None = None) -> tuple[int, dict[int, str]]:
    """Its process id, and what it says it received, by call."""
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, env={**os.environ, **(env or {})})
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    rows = [json.loads(line) for line in out.splitlines()]
    return process.pid, {row["call"]: row["text"] if "text" in row else text_of(row["body"]) for row in rows}


@pytest.mark.parametrize(
    ("name", "script", "mode"),
    [
        ("plain", "plain.py", None),
        ("openai-sync", "openai_sdk.py", "sync"),
        ("openai-async", "openai_sdk.py", "async"),
        ("anthropic", "anthropic_sdk.py", None),
        ("curl_cffi", "curl_cffi_calls.py", None),
    ],
)
def test_python(everything: Agent, front: Nginx, certificate: Certificate, name: str, script: str, mode: str | None) -> None:
    for needed in {"openai_sdk.py": ["openai"], "anthropic_sdk.py": ["anthropic"], "curl_cffi_calls.py": ["curl_cffi"]}.get(script, []):
        pytest.importorskip(needed, reason=f"{needed} is in the dependency group `peers`")
    pid, received = run(sys.executable, CALLERS / script, front.url, certificate.cert, *([mode] if mode else []))
    check(everything, front, name, received, {pid}, Path(sys.executable).name[:15])


def test_openssl_1_1(everything: Agent, front: Nginx, certificate: Certificate) -> None:
    """The last release of 1.1 that a wheel carries; its file's name has a digest in it, as in all such wheels."""
    found = importlib.util.find_spec("psycopg2")
    if found is None or found.origin is None:
        pytest.skip("psycopg2-binary 2.9.5 is in the dependency group `peers` (Python 3.11)")
    (library,) = Path(found.origin).parents[1].glob("psycopg2_binary.libs/libssl-*.so.1.1")
    pid, received = run(sys.executable, CALLERS / "openssl11_calls.py", front.url, certificate.cert, library)
    check(everything, front, "openssl11", received, {pid}, Path(sys.executable).name[:15])
    assert f"probing OpenSSL 1.1 in {library}" in everything.said


@pytest.mark.parametrize("kind", ["https", "openai", "anthropic"])
def test_node(everything: Agent, front: Nginx, certificate: Certificate, kind: str, tmp_path: Path) -> None:
    node = program("node", "nodejs")
    folder = Path(os.environ.get("LLMSEC_NODE_PACKAGES", tmp_path))
    if kind != "https" and not (folder / "node_modules").is_dir():
        npm = program("npm")
        done = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "openai", "@anthropic-ai/sdk"], cwd=folder, capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("the vendors' node packages cannot be installed (npm install openai @anthropic-ai/sdk)")
    env = {"NODE_EXTRA_CA_CERTS": str(certificate.cert)}
    with idle_node(node):  # a program that no process ran before takes the tap some milliseconds to read
        everything.wait_for_probes(Path(node).resolve())
    pid, received = run(node, CALLERS / "node_calls.mjs", front.url, certificate.cert, kind, folder, env=env)
    check(everything, front, f"node-{kind}", received, {pid}, "node")


@pytest.mark.parametrize("version", ["1.4.5", "1.4.4"])
def test_bun(everything: Agent, front: Nginx, certificate: Certificate, version: str, tmp_path: Path) -> None:
    """BoringSSL inside a stripped program, found by its build id."""
    npm = program("npm")
    folder = Path(os.environ.get("LLMSEC_NODE_PACKAGES", tmp_path)) / f"bun-{version}"
    bun = folder / "package/bin/bun"
    if not bun.exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([npm, "pack", "--silent", f"@oven/bun-linux-x64@{version}"], cwd=folder, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"npm has no @oven/bun-linux-x64@{version}")
        subprocess.run(["tar", "xzf", folder / done.stdout.decode().strip()], cwd=folder, check=True)
    for name in ("unseen", f"bun-{version}"):  # a program that no process ran before takes the tap some milliseconds to read
        pid, received = run(bun, CALLERS / "bun_calls.mjs", front.url, certificate.cert, name)
    check(everything, front, f"bun-{version}", received, {pid}, "bun")
    assert f"probing BoringSSL in Bun {version} in {bun}" in everything.said


@pytest.mark.parametrize("name", ["curl", "wget"])
def test_one_process_for_each_call(everything: Agent, front: Nginx, certificate: Certificate, name: str) -> None:
    program(name)
    out = subprocess.run(
        ["sh", CALLERS / "shell_calls.sh", name, front.url, certificate.cert], check=True, capture_output=True, timeout=60
    ).stdout
    rows = [line.split(b" ") for line in out.splitlines()]
    received = {int(number): text_of(base64.b64decode(body).decode()) for _, number, body in rows}
    check(everything, front, name, received, {int(pid) for pid, _, _ in rows}, name)


def test_go(everything: Agent, front: Nginx, certificate: Certificate, go_program: Path) -> None:
    # A program that no process ran before takes the tap some milliseconds to read.
    with subprocess.Popen([go_program, "serve", f"127.0.0.1:{free_port()}", certificate.cert, certificate.key]) as idle:
        everything.wait_for_probes(go_program)
        idle.kill()
    pid, received = run(go_program, front.url, certificate.cert)
    check(everything, front, "go", received, {pid}, "go_calls")
