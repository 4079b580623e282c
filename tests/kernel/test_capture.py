"""What a tap must stand: many at once, large, reused objects, forks, late starts, being killed, stopped, doubled, and out of room."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.agent import Agent, environment
from support.https_calls import Caller, ask_once, ask_together
from support.needs import idle_node, program
from support.tls_front import Certificate, Nginx, children, free_port, nginx, python_server, wait_for_port

SUPPORT = Path(__file__).parents[1] / "support"
ECHO = SUPPORT / "tls_echo.py"


@contextmanager
def echo(mode: str, certificate: Certificate) -> Iterator[tuple[int, int]]:
    """A TLS server of one mode; its process id and port."""
    port = free_port()
    with python_server(ECHO, mode, str(port), str(certificate.cert), str(certificate.key), port=port) as process:
        yield process.pid, port


def said(prompt: str) -> str:
    return f"echo {prompt[:80]} of {len(prompt)}"


def check(rows: list[dict[str, Any]], asked: dict[str, tuple[str, int]], pids: set[int]) -> None:
    """Every prompt once, with its own answer, over its own connection, of the right process, whole."""
    assert sorted(row["input_text"] for row in rows) == sorted(asked)
    for row in rows:
        text, port = asked[row["input_text"]]
        assert row["output_text"] == text
        assert row["client"] == f"127.0.0.1:{port}"
        assert row["completeness"] == "complete", row["anomalies"]
        assert row["process"]["pid"] in pids


def counts(agent: Agent) -> dict[str, int]:
    """The numbers of the closing summary."""
    numbers: dict[str, int] = {}
    for name, pattern in {
        "calls": r"seen ([\d,]+) TLS calls",
        "bytes": r"TLS calls \(([\d,]+) bytes\)",
        "decoded_bytes": r"decoded ([\d,]+) bytes",
        "dropped_bytes": r"calls \(([\d,]+) bytes\) in the kernel",
        "left_out_bytes": r"records \(([\d,]+) bytes\) of",
        "dropped": r"dropped: ([\d,]+) calls",
        "exchanges": r"([\d,]+) exchanges \(",
        "gapped": r"([\d,]+) gapped",
        "stored": r"stored ([\d,]+) in",
    }.items():
        found = re.search(pattern, agent.said)
        if found is not None:
            numbers[name] = int(found[1].replace(",", ""))
    return numbers


@pytest.mark.parametrize("mode", ["threads", "asyncio"])
def test_fifty_streams_at_once(certificate: Certificate, mode: str) -> None:
    with echo(mode if mode == "threads" else "asyncio-slow", certificate) as (pid, port), Agent("--pid", str(pid)) as agent:
        asked = ask_together(port, certificate.cert, [f"stream {number} of {mode}" for number in range(50)])
        assert all(text == said(prompt) for prompt, (text, _) in asked.items())
        check(agent.wait_for_exchanges(50), asked, {pid})


@pytest.mark.parametrize("mode", ["threads", "asyncio"])
def test_a_request_of_four_megabytes_comes_whole(certificate: Certificate, mode: str) -> None:
    prompt = "".join(f"{number:07d} " for number in range(500_000))
    with echo(mode, certificate) as (pid, port), Agent("--pid", str(pid), "--pid", str(os.getpid())) as agent:
        text, client = ask_once(port, certificate.cert, prompt)
        rows = agent.wait_for_exchanges(2)
    assert {row["process"]["pid"] for row in rows} == {pid, os.getpid()}, "both ends"
    for row in rows:
        assert row["input_text"] == prompt
        check([row], {prompt: (text, client)}, {pid, os.getpid()})


@pytest.mark.parametrize("mode", ["threads", "asyncio"])
def test_a_thousand_connections_that_reuse_tls_objects_never_mix(certificate: Certificate, mode: str) -> None:
    with echo(mode, certificate) as (pid, port), Agent("--pid", str(pid)) as agent:
        asked = {}
        for number in range(1000):
            prompt = f"user {number} secret {number * 7919 % 1000}"
            asked[prompt] = ask_once(port, certificate.cert, prompt, stream=number % 3 == 0)
        rows = agent.wait_for_exchanges(1000, timeout_s=30)
    check(rows, asked, {pid})
    assert counts(agent)["dropped"] == 0


def test_a_process_for_each_connection_is_followed(certificate: Certificate) -> None:
    with echo("fork", certificate) as (pid, port), Agent("--pid", str(pid)) as agent:
        # The first child shows that this process forks workers; probing it alone takes longer than it lives.
        ask_once(port, certificate.cert, "the first child")
        agent.wait_for(lambda: "forks workers" in agent.said, "it was not seen to fork")
        asked = {f"fork {number}": ask_once(port, certificate.cert, f"fork {number}") for number in range(13)}
        agent.wait_for(lambda: sum(row["input_text"] in asked for row in agent.exchanges()) == 13, "not every child was seen")
    rows = [row for row in agent.exchanges() if row["input_text"] in asked]
    assert len({row["process"]["pid"] for row in rows}) == 13
    check(rows, asked, {row["process"]["pid"] for row in rows})


def test_no_child_is_missed_that_is_forked_while_the_tap_attaches(certificate: Certificate, tmp_path: Path) -> None:
    script = tmp_path / "forks.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from support.https_calls import ask_once\n"
        "port, cert, go = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])\n"
        "print('forking', flush=True)\n"
        "for n in range(200):\n"
        "    if not os.fork():\n"
        "        while not go.exists(): time.sleep(0.05)\n"
        "        ask_once(port, cert, f'child {n}')\n"
        "        os._exit(0)\n"
        "    time.sleep(0.004)\n"
        "while os.wait()[0]: pass\n"
    )
    env = {**environment(), "PYTHONPATH": str(SUPPORT.parent)}
    go = tmp_path / "go"
    with echo("threads", certificate) as (_, port):
        command = [sys.executable, script, str(port), certificate.cert, go]
        parent = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert parent.stdout is not None
        parent.stdout.readline()
        with Agent("--pid", str(parent.pid)) as agent:
            agent.wait_for(lambda: len(children(parent.pid)) == 200, "it did not fork them all")
            time.sleep(0.3)
            go.touch()
            parent.wait(60)
            parent.stdout.close()
            agent.wait_for(lambda: len(agent.exchanges()) >= 200, "children were missed")
            rows = agent.exchanges()
    assert sorted(row["input_text"] for row in rows) == sorted(f"child {n}" for n in range(200))
    assert len({row["process"]["pid"] for row in rows}) == 200


def test_workers_that_a_master_forked_before_and_after(front: Nginx, certificate: Certificate) -> None:
    with Agent("--pid", str(front.pid)) as agent:
        before = front.workers()
        asked = {f"before {n}": ask_once(front.port, certificate.cert, f"before {n}") for n in range(3)}
        os.kill(front.pid, signal.SIGHUP)  # nginx forks new workers
        agent.wait_for(lambda: bool(front.workers() - before), "nginx made no new worker")
        time.sleep(0.2)
        asked |= {f"after {n}": ask_once(front.port, certificate.cert, f"after {n}", stream=True) for n in range(3)}
        rows = agent.wait_for_exchanges(6)
        after = front.workers()
    check(rows, asked, before | after)
    assert {row["process"]["pid"] for row in rows if row["input_text"].startswith("after")} <= after - before | before


def test_a_process_started_after_the_tap_is_seen_from_its_first_byte(certificate: Certificate) -> None:
    with Agent("--comm", Path(sys.executable).name) as agent, echo("threads", certificate) as (pid, port):
        asked = {f"late {n}": ask_once(port, certificate.cert, f"late {n}") for n in range(13)}
        agent.wait_for(lambda: len(agent.exchanges(pid=pid)) >= 13, "the late server's exchanges did not come")
        check(agent.exchanges(pid=pid), asked, {pid})


def test_a_library_loaded_after_attaching(certificate: Certificate, tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(
        "import sys, time\n"
        "sys.stdin.readline()\n"
        f"sys.path.insert(0, {str(SUPPORT.parent)!r})\n"
        "from pathlib import Path\n"
        "from support.https_calls import ask_once\n"
        "time.sleep(0.3)\n"
        "for n in range(13): print(ask_once(int(sys.argv[1]), Path(sys.argv[2]), f'loaded late {n}'))\n"
    )
    with echo("threads", certificate) as (_, port):
        client = subprocess.Popen([sys.executable, script, str(port), certificate.cert], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert client.stdin is not None
        with Agent("--pid", str(client.pid)) as agent:
            assert "attached to 0 TLS libraries" in agent.said
            client.stdin.write(b"go\n")
            client.stdin.close()
            client.wait(20)
            rows = agent.wait_for_exchanges(13)
    assert {row["input_text"] for row in rows} == {f"loaded late {n}" for n in range(13)}


def test_a_process_with_its_own_root_and_library(certificate: Certificate, tmp_path: Path) -> None:
    """What a container is to the tap: another mount namespace in which the library's path names another file."""
    program("unshare", "util-linux")
    library = Path("/usr/lib/x86_64-linux-gnu/libssl.so.3")
    if not library.exists():
        pytest.skip("libssl.so.3 is not in its usual place")
    shutil.copy(library, tmp_path / "libssl.so.3")
    port = free_port()
    mount = f"mount --bind {tmp_path}/libssl.so.3 {library.resolve()} && exec {sys.executable} {ECHO} threads {port} {certificate.cert} {certificate.key}"
    env = {**environment(), "PYTHONPATH": str(SUPPORT.parent)}
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", mount], env=env)
    try:
        wait_for_port(port, process)
        with Agent("--pid", str(process.pid)) as agent:
            asked = {f"contained {n}": ask_once(port, certificate.cert, f"contained {n}") for n in range(13)}
            check(agent.wait_for_exchanges(13), asked, {process.pid})
    finally:
        process.kill()
        process.wait()


def test_clients_go_on_when_the_tap_is_killed_and_no_probe_stays(front: Nginx, certificate: Certificate) -> None:
    caller = Caller(front.port, certificate.cert)
    with Agent("--pid", str(front.pid)) as agent:
        caller.ask("before the kill")
        agent.wait_for_exchanges(1)
        agent.stop(signal.SIGKILL)
        for number in range(5):
            caller.ask(f"after the kill {number}", stream=True)
    caller.close()
    with Agent("--pid", str(front.pid)) as second:
        ask_once(front.port, certificate.cert, "the next tap")
        assert [row["input_text"] for row in second.wait_for_exchanges(1)] == ["the next tap"]


def test_a_stopped_tap_harms_nobody_and_says_what_it_missed(certificate: Certificate) -> None:
    prompt = "x" * 300_000
    with echo("threads", certificate) as (pid, port), Agent("--pid", str(pid), "--ring-size", "1024") as agent:
        ask_once(port, certificate.cert, "first")
        agent.wait_for_exchanges(1)
        for tap in (agent.process.pid, agent.decoder):
            os.kill(tap, signal.SIGSTOP)
        begun = time.monotonic()
        for number in range(20):
            assert ask_once(port, certificate.cert, f"{number} {prompt}")[0].startswith("echo")
        assert time.monotonic() - begun < 10, "the observed process was held up"
        for tap in (agent.process.pid, agent.decoder):
            os.kill(tap, signal.SIGCONT)
        ask_once(port, certificate.cert, "last")
        agent.wait_for(lambda: any(row["input_text"] == "last" for row in agent.exchanges()), "the tap did not recover")
    rows = agent.exchanges()
    assert counts(agent)["dropped"] > 0
    for row in rows:
        if row["completeness"] == "complete" and row["input_text"] not in ("first", "last"):
            assert row["input_text"].endswith(prompt), "a loss that nobody told"


def test_a_ring_too_small_loses_and_says_so(certificate: Certificate) -> None:
    with echo("threads", certificate) as (pid, port), Agent("--pid", str(pid), "--ring-size", "64") as agent:
        small = {f"small {n}": ask_once(port, certificate.cert, f"small {n}") for n in range(5)}
        agent.wait_for_exchanges(5)
        large = [f"{n} " + "y" * 400_000 for n in range(13)]
        for prompt in large:
            ask_once(port, certificate.cert, prompt)
        time.sleep(0.3)
        small |= {f"again {n}": ask_once(port, certificate.cert, f"again {n}") for n in range(5)}
        agent.wait_for(lambda: sum(row["input_text"] in small for row in agent.exchanges()) == 10, "small ones were lost")
    check([row for row in agent.exchanges() if row["input_text"] in small], small, {pid})
    numbers = counts(agent)
    assert numbers["dropped"] > 0
    assert numbers["decoded_bytes"] + numbers["dropped_bytes"] + numbers["left_out_bytes"] == numbers["bytes"], "a byte nobody told of"
    hurt = [row for row in agent.exchanges() if row["completeness"] == "gapped"]
    assert hurt
    assert numbers["gapped"] == len(hurt)
    assert any(anomaly["name"] == "ebpf_dropped" for row in hurt for anomaly in row["anomalies"])
    whole = [row for row in agent.exchanges() if row["completeness"] == "complete"]
    assert all(row["input_text"] in small or row["input_text"] in large for row in whole)


def test_two_taps_at_once_see_the_same(front: Nginx, certificate: Certificate) -> None:
    with Agent("--pid", str(front.pid), "--no-fast-probes") as one, Agent("--pid", str(front.pid)) as two:
        asked = {f"both {n}": ask_once(front.port, certificate.cert, f"both {n}", stream=n % 2 == 1) for n in range(13)}
        check(one.wait_for_exchanges(13), asked, front.workers())
        check(two.wait_for_exchanges(13), asked, front.workers())


def test_fast_probes_see_the_same(front: Nginx, certificate: Certificate) -> None:
    with Agent("--pid", str(front.pid), "--no-fast-probes") as agent:
        assert "internal function" not in agent.said
        assert "SSL_read_ex" in agent.said
        asked = {f"classic {n}": ask_once(front.port, certificate.cert, f"classic {n}", stream=n % 2 == 1) for n in range(13)}
        check(agent.wait_for_exchanges(13), asked, front.workers())
    with Agent("--pid", str(front.pid)) as agent:
        assert "internal function" in agent.said or "classic probes: " in agent.said
        asked = {f"fast {n}": ask_once(front.port, certificate.cert, f"fast {n}", stream=n % 2 == 1) for n in range(13)}
        check(agent.wait_for_exchanges(13), asked, front.workers())


def test_offsets_for_a_program_without_symbols(certificate: Certificate) -> None:
    node = program("node", "nodejs")
    from llmsec_tap.capture.probes.elf import ELFFile

    with ELFFile(Path(node).resolve()) as file:
        functions = file.functions(("SSL_read", "SSL_write"))
    if len(functions) < 2:
        pytest.skip("this node has no OpenSSL inside")
    options = ("--ssl-read-offset", hex(functions["SSL_read"].offset), "--ssl-write-offset", str(functions["SSL_write"].offset))
    with echo("threads", certificate) as (_, port):
        script = SUPPORT / "callers/node_calls.mjs"
        with Agent("--comm", "node", *options) as agent:
            with idle_node(node):
                agent.wait_for_probes(Path(node).resolve())
            client = subprocess.Popen([node, script, f"https://127.0.0.1:{port}", certificate.cert, "https"], stdout=subprocess.DEVNULL)
            client.wait(30)
            rows = agent.wait_for_exchanges(13, pid=client.pid)
    assert {row["input_text"] for row in rows} == {f"call {n} by node-https" for n in range(13)}


def test_go_server(certificate: Certificate, go_program: Path) -> None:
    port = free_port()
    server = subprocess.Popen([go_program, "serve", f"127.0.0.1:{port}", certificate.cert, certificate.key], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, server)
        with Agent("--pid", str(server.pid)) as agent:
            asked = ask_together(port, certificate.cert, [f"go {n}" for n in range(50)], stream=False)
            check(agent.wait_for_exchanges(50), asked, {server.pid})
    finally:
        server.kill()
        server.wait()


def test_uvicorn(certificate: Certificate, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is in the dependency group `peers`")
    port = free_port()
    script = SUPPORT / "uvicorn_echo.py"
    with python_server(script, str(port), str(certificate.cert), str(certificate.key), "2", port=port) as process:
        with Agent("--pid", str(process.pid)) as agent:
            asked = ask_together(port, certificate.cert, [f"uvicorn {n}" for n in range(13)])
            rows = agent.wait_for_exchanges(13)
            check(rows, asked, set(children(process.pid)))


def test_with_capabilities_instead_of_root(certificate: Certificate) -> None:
    """User nobody with four capabilities, as a hardened service or DaemonSet runs it."""
    setpriv = program("setpriv", "util-linux")
    held = "+bpf,+perfmon,+sys_ptrace,+net_raw"
    prefix = (
        setpriv,
        f"--bounding-set=-all,{held}",
        f"--inh-caps=-all,{held}",
        f"--ambient-caps=-all,{held}",
        "--reuid=65534",
        "--clear-groups",
    )
    readable = (
        subprocess.run([*prefix, sys.executable, "-c", "import llmsec_tap.capture.live.capture"], env=environment(), check=False).returncode
        == 0
    )
    if not readable:
        pytest.skip("the interpreter or the checkout is not readable by other users")
    with echo("threads", certificate) as (pid, port):
        folder = Path("/tmp/llmsec-nobody")
        folder.mkdir(exist_ok=True)
        os.chown(folder, 65534, 65534)
        with Agent("--pid", str(pid), "--iface", "lo", "--port", "1", prefix=prefix, env={"HOME": str(folder)}) as agent:
            status = Path(f"/proc/{agent.process.pid}/status").read_text()
            assert re.search(r"^Uid:\s+65534", status, re.MULTILINE)
            asked = {f"humble {n}": ask_once(port, certificate.cert, f"humble {n}") for n in range(13)}
            check(agent.wait_for_exchanges(13), asked, {pid})
        shutil.rmtree(folder)


def test_stored_as_printed_and_attached_soon(front: Nginx, certificate: Certificate, tmp_path: Path) -> None:
    with Agent("--pid", str(front.pid), "--store", str(tmp_path / "store")) as agent:
        asked = {f"stored {n}": ask_once(front.port, certificate.cert, f"stored {n}") for n in range(13)}
        check(agent.wait_for_exchanges(13), asked, front.workers())
    assert agent.exit_code == 0
    assert counts(agent)["stored"] == 13


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_capture_in_order(front: Nginx, certificate: Certificate, number: int) -> None:
    """What is under way is printed, the summary is said, and a stream that was open is told as cut off by the end of the capture."""
    with Agent("--pid", str(front.pid)) as agent:
        caller = Caller(front.port, certificate.cert)
        caller.ask("before the signal")
        caller.connection.putrequest("POST", "/v1/chat/completions")
        caller.connection.putheader("content-length", "1000")
        caller.connection.endheaders(b'{"model":"tiny","messages":[{"role":"user","content":"never')
        time.sleep(0.3)
        agent.stop(number)
        caller.close()
    assert agent.exit_code == 0
    rows = agent.exchanges()
    assert [row["completeness"] for row in rows] == ["complete", "truncated"]
    assert counts(agent)["exchanges"] == 2


def test_memory_stays_under_its_cap(certificate: Certificate) -> None:
    """Bodies far larger than the cap, at once and never ended: the tap gives up connections, says so, and lives."""
    with echo("threads", certificate) as (pid, port), Agent("--pid", str(pid), "--detect", "--memory-cap", "192") as agent:
        callers = [Caller(port, certificate.cert) for _ in range(24)]
        for caller in callers:
            caller.connection.putrequest("POST", "/v1/chat/completions")
            caller.connection.putheader("content-type", "application/json")
            caller.connection.putheader("content-length", "1000000000")
            caller.connection.endheaders()
        peak = 0
        for _ in range(12):
            for caller in callers:
                caller.connection.send(b"z" * 1_000_000)
            peak = max(peak, int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{agent.decoder}/status").read_text())[0]) // 1024)
        for caller in callers:
            caller.close()

        def recovered() -> bool:
            """It has given up, freed and noticed; how soon depends on how soon detection has looked at what was cut."""
            text, _ = ask_once(port, certificate.cert, "afterwards")
            assert text == said("afterwards")
            time.sleep(0.5)
            return any(row["input_text"] == "afterwards" for row in agent.exchanges())

        agent.wait_for(recovered, "the tap did not recover", 40)
    assert peak <= 192 * 1.05, f"{peak} MiB"
    assert "tap_overload" in agent.said or "gave up" in agent.said


def test_an_unknown_process_is_refused(certificate: Certificate) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmsec_agent.cli.tap.app", "capture", "--pid", "4194303", "--store", "none"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.strip().endswith("error: there is no process 4194303 (`llmsec-tap targets` lists those that can be observed.)")


def test_two_nginx_workers(certificate: Certificate, model_url: str, tmp_path: Path) -> None:
    with nginx(tmp_path / "two", certificate, model_url, workers=2) as running, Agent("--pid", str(running.pid)) as agent:
        asked = ask_together(running.port, certificate.cert, [f"worker {n}" for n in range(26)])
        check(agent.wait_for_exchanges(26, timeout_s=40), asked, running.workers())
