"""`--write` gives a file that others read and that replays to the same exchanges; `--iface` reads plain HTTP; both in one run."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from support.agent import Agent, environment
from support.https_calls import ask_once, ask_together
from support.needs import program
from support.tls_front import Certificate, free_port, python_server

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def written(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Thirteen conversations, a large one and a plain one among them: what was printed live, and the file."""
    port = free_port()
    file = tmp_path_factory.mktemp("write") / "live.pcapng"
    with python_server(SUPPORT / "tls_echo.py", "asyncio", str(port), str(certificate.cert), str(certificate.key), port=port) as server:
        with Agent("--pid", str(server.pid), "--detect", "--write", str(file)) as agent:
            ask_together(port, certificate.cert, [f"written {n}" for n in range(12)])
            ask_once(port, certificate.cert, "large " * 100_000)
            agent.wait_for_exchanges(13)
    return agent.exchanges(), file


def test_replay_gives_the_same_exchanges(written: Any) -> None:
    live, file = written
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "replay", str(file), "--store", "none", "--format", "jsonl"]
    done = subprocess.run(command, env=environment(), capture_output=True, check=True)
    replayed = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(live) == len(replayed) == 13
    for row in live:
        assert row["process"]["comm"].startswith("python")
    assert {row["capture_kind"] for row in live} == {"tls"}
    without_process = [{**row, "process": None, "node": None, "capture_kind": "file"} for row in live]
    assert sorted(without_process, key=lambda row: row["exchange_id"]) == sorted(replayed, key=lambda row: row["exchange_id"])


def test_tshark_reads_it_without_a_warning(written: Any) -> None:
    _, file = written
    program("tshark")
    done = subprocess.run(["tshark", "-n", "-r", file, "-q", "-z", "expert,warn"], capture_output=True, text=True, check=True)
    assert "Warns" not in done.stdout
    assert "Errors" not in done.stdout
    fields = ["-T", "fields", "-e", "tcp.stream", "-e", "http.request.method", "-e", "http.response.code"]
    rows = subprocess.run(
        ["tshark", "-n", "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-r", file, "-Y", "http", *fields],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert len({row.split("\t")[0] for row in rows}) == 13
    assert sum("POST" in row for row in rows) == 13
    assert sum("\t200" in row for row in rows) == 13
    bad = subprocess.run(
        ["tshark", "-n", "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-r", file, "-Y", "tcp.checksum.status == 0 or ip.checksum.status == 0"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert bad == ""
    comments = subprocess.run(
        ["tshark", "-n", "-r", file, "-Y", "frame.comment", "-T", "fields", "-e", "frame.comment"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert comments.count("pid ") == 13


def test_the_file_is_for_its_owner_alone(written: Any) -> None:
    assert written[1].stat().st_mode & 0o777 == 0o600


def plain(url: str, number: int) -> str:
    body = json.dumps(
        {"model": "tiny", "messages": [{"role": "user", "content": f"plain {number}"}], "max_tokens": 8, "stream": number % 2 == 1}
    )
    request = urllib.request.Request(f"{url}/v1/chat/completions", body.encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("interface", ["lo", "any"])
@pytest.mark.parametrize("limited", [True, False])
def test_plain_http_of_a_model_server(model_url: str, interface: str, limited: bool) -> None:
    port = model_url.rpartition(":")[2]
    with Agent("--iface", interface, *(["--port", port] if limited else [])) as agent:
        answers = [plain(model_url, number) for number in range(13)]
        rows = agent.wait_for_exchanges(13, server=f"127.0.0.1:{port}")
    assert [row["input_text"] for row in rows] == [f"plain {number}" for number in range(13)]
    assert all(row["completeness"] == "complete" and row["process"] is None for row in rows)
    assert not any(anomaly["name"] for row in rows for anomaly in row["anomalies"] if not anomaly["name"].startswith("detection_"))
    whole = [json.loads(answer)["choices"][0]["message"]["content"] for number, answer in enumerate(answers) if number % 2 == 0]
    assert [row["output_text"] for row in rows[::2]] == whole
    assert "packets on" in agent.said
    assert ", 0 dropped" in agent.said


def test_tls_and_quic_on_an_interface_are_told_by_name(model_url: str) -> None:
    """Two connections that stay closed; a plain exchange shows that the tap stands before they begin."""
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    quic = QuicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name="api.anthropic.com"))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
        Agent("--iface", "lo") as agent,
    ):
        plain(model_url, 0)
        agent.wait_for_exchanges(1, server=model_url.removeprefix("http://"))
        sink.bind(("127.0.0.1", 0))
        quic.connect(sink.getsockname(), now=0.0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for data, _ in quic.datagrams_to_send(now=0.0):
                sender.sendto(data, sink.getsockname())
        with socket.create_connection(listener.getsockname()) as asking:
            hello, answered = ssl.MemoryBIO(), ssl.MemoryBIO()
            with contextlib.suppress(ssl.SSLWantReadError):
                client.wrap_bio(answered, hello, server_hostname="api.openai.com").do_handshake()
            asking.sendall(hello.read())
            accepted, _ = listener.accept()
            accepted.close()
        ports = {str(end.getsockname()[1]) for end in (listener, sink)}
        agent.stop()
        rows = [row for row in agent.records() if row["tls"] and row["server"].rpartition(":")[2] in ports]
    assert sorted((row["provider"], row["tls"]["transport"], row["tls"]["server_name"], row["risk_score"]) for row in rows) == [
        ("anthropic", "quic", "api.anthropic.com", None),
        ("openai", "tcp", "api.openai.com", None),
    ]


def test_an_unknown_interface_is_refused() -> None:
    command = [sys.executable, "-m", "llmsec_agent.cli.tap.app", "capture", "--iface", "nosuch0", "--store", "none"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "there is no interface nosuch0" in done.stderr
