"""`llmsec-tap check` and `llmsec-tap targets` on this host, as users run them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from support.agent import environment
from support.io_uring import Ring
from support.needs import program
from support.tls_front import Certificate, free_port, python_server

SUPPORT = Path(__file__).parents[1] / "support"


def run(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "llmsec_agent.cli.tap.app", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def test_check_says_ok_where_capture_works() -> None:
    result = run("check")
    assert result.returncode == 0, result.stdout + result.stderr
    verdicts = {line.split()[1]: line.split()[0] for line in result.stdout.splitlines()}
    assert verdicts["BTF"] == verdicts["libbpf"] == verdicts["attach"] == "ok"
    assert "plain HTTP of processes can be read" in result.stdout


def test_check_without_capabilities_fails_and_says_what_to_do() -> None:
    result = run("check", prefix=(program("setpriv", "util-linux"), "--bounding-set=-all", "--inh-caps=-all"))
    assert result.returncode == 3
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert any("capabilities" in line and "->" in line for line in failed), result.stdout
    assert "Traceback" not in result.stderr


def test_targets_names_the_probe_points_of_a_running_server(certificate: Certificate) -> None:
    port = free_port()
    with python_server(SUPPORT / "tls_echo.py", "asyncio", str(port), str(certificate.cert), str(certificate.key), port=port) as server:
        result = run("targets")
    assert result.returncode == 0, result.stderr
    (row,) = [line for line in result.stdout.splitlines() if line.split()[:1] == [str(server.pid)] and "libssl.so" in line]
    assert "probe" in row
    assert "SSL_read" in row
    assert "fast probes" in row or "classic probes: " in row


def test_targets_says_how_a_plain_model_server_is_read(tmp_path: Path) -> None:
    """By its process, whose port is in a network of its own; and that io_uring is not read."""
    try:
        Ring()
    except OSError as refused:
        pytest.skip(f"io_uring cannot be used here: {refused}")
    script = tmp_path / "vllm"
    script.write_text(
        f"import socket, sys; sys.path.insert(0, {str(SUPPORT.parent)!r}); sys.path.insert(0, {str(SUPPORT.parents[1] / 'tap')!r})\n"
        "from support.io_uring import Ring\n"
        "ring, sock = Ring(), socket.create_server(('127.0.0.1', 8000)); print('ready', flush=True); sock.accept()\n"
    )
    with subprocess.Popen(
        [program("unshare", "util-linux"), "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", sys.executable, str(script)],
        stdout=subprocess.PIPE,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            said = run("targets", "--pid", str(server.pid)).stdout
        finally:
            server.kill()
    assert f"listens on 8000; plain HTTP is read with --pid {server.pid}" in said
    assert "plain HTTP that it sends or receives by io_uring is missing" in said


def test_targets_refuses_quic_by_name(certificate: Certificate, tmp_path: Path) -> None:
    """A real QUIC server on UDP 443, proved to be one, is told by its port and by its library."""
    if importlib.util.find_spec("aioquic") is None:
        pytest.skip("aioquic is in the dependency group `peers`")
    script = SUPPORT / "quic_echo.py"
    server = subprocess.Popen([sys.executable, script, "serve", "443", certificate.cert, certificate.key], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        asked = subprocess.run(
            [sys.executable, script, "ask", "443", certificate.cert, "hello"], capture_output=True, text=True, check=True
        )
        assert asked.stdout == "echo hello\n"
        result = run("targets", "--pid", str(server.pid))
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()
    refused = [line for line in result.stdout.splitlines() if "QUIC (HTTP/3)" in line]
    assert any("UDP 443" in line for line in refused), result.stdout
    assert any("_buffer.abi3.so" in line for line in refused)
    assert all("refused" in line for line in refused)


def test_in_a_process_namespace_of_its_own_a_capture_says_that_it_may_see_nothing(echo: tuple[int, int]) -> None:
    prefix = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    command = [*prefix, sys.executable, "-m", "llmsec_agent.cli.tap.app", "capture", "--comm", "nobody-s", "--no-detect"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "Ctrl-C stops" not in said and (line := process.stderr.readline()):
            said += line
        process.kill()
    assert "hostPID: true" in said
