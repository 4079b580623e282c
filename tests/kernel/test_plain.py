"""Plain HTTP of observed processes, read at their sockets: whole, once, with the process and real addresses, and nobody else's."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.ebpf.core import CoreLoader
from llmsec_tap.capture.ebpf.loader_api import KernelSettings
from support.agent import Agent, environment
from support.containers import GROUPS, ID, group, hierarchies
from support.https_calls import ask_once
from support.io_uring import Ring
from support.needs import program
from support.plain_calls import PlainCaller, ask_plain, ask_plain_together, connect, plain_server
from support.plain_echo import WAYS
from support.tls_front import Certificate, free_port, wait_for_port

READABLE = sorted(WAYS.keys() - {"sendfile", "uring", "uring-sends"})
SUPPORT = Path(__file__).parents[1] / "support"


def check(rows: list[dict[str, Any]], asked: dict[str, tuple[str, int]], pid: int) -> None:
    """Every prompt once, with its own answer, over its own connection, of the process, whole."""
    assert sorted(row["input_text"] for row in rows) == sorted(asked)
    for row in rows:
        text, port = asked[row["input_text"]]
        assert row["output_text"] == text
        assert row["client"] == f"127.0.0.1:{port}"
        assert row["completeness"] == "complete", row["anomalies"]
        assert row["process"]["pid"] == pid


@pytest.mark.parametrize("mode", ["threads", "asyncio"])
def test_a_server_in_a_network_of_its_own_is_captured_whole(mode: str) -> None:
    program("ip", "iproute2")
    with plain_server(mode, own_network=True) as (pid, port), Agent("--pid", str(pid), "--plain") as agent:
        asked = {}
        for number in range(13):
            asked[f"call {number}"] = ask_plain(port, f"call {number}", stream=number % 2 == 1, network_of=pid)
        check(agent.wait_for_exchanges(13), asked, pid)
        large = "x" * (4 << 20)
        asked[large] = ask_plain(port, large, network_of=pid)
        asked |= ask_plain_together(port, [f"stream {number}" for number in range(100)], pid)
        rows = agent.wait_for_exchanges(114, timeout_s=60)
        check(rows, asked, pid)
        assert all(row["server"] == f"127.0.0.1:{port}" for row in rows)
    assert "0 gaps (0 bytes)" in agent.said


@pytest.mark.parametrize("is_late", [False, True], ids=["running", "started-later"])
def test_a_container_without_tls_is_captured_and_nothing_else(tmp_path: Path, is_late: bool) -> None:
    hierarchy = next(iter(hierarchies().values()))
    with plain_server("threads") as (_, outside), group(hierarchy, GROUPS["docker"]) as entered, contextlib.ExitStack() as stack:
        agent = Agent("--container", ID[:12], "--plain")
        if is_late:
            stack.enter_context(agent)
        pid, port = stack.enter_context(plain_server("threads", own_network=True, group=entered))
        if not is_late:
            stack.enter_context(agent)
        asked = {}
        for number in range(13):
            asked[f"inside {number}"] = ask_plain(port, f"inside {number}", network_of=pid)
            ask_plain(outside, f"outside {number}")
        rows = agent.wait_for_exchanges(13)
        check(rows, asked, pid)
        assert {row["process"]["container_id"] for row in rows} == {ID}


@pytest.mark.parametrize("chosen", [("--all",), ("--comm", "plainserver")], ids=["all", "comm"])
def test_a_server_that_starts_later_is_seen_from_its_first_byte(chosen: tuple[str, ...], tmp_path: Path) -> None:
    python = tmp_path / "plainserver"
    python.symlink_to(sys.executable)
    with Agent(*chosen, "--plain") as agent, plain_server("threads", own_network=True, python=str(python)) as (pid, port):
        asked = {f"first {number}": ask_plain(port, f"first {number}", network_of=pid) for number in range(3)}
        agent.wait_for_exchanges(3, pid=pid)
        check(agent.exchanges(pid=pid), asked, pid)


@pytest.mark.parametrize("mode", READABLE)
def test_each_way_of_moving_bytes_is_read(mode: str) -> None:
    with plain_server(mode) as (pid, port), Agent("--pid", str(pid), "--plain") as agent:
        caller = PlainCaller(port)
        asked = {}
        for number in range(3):
            prompt = f"{number} by {mode} " + "y" * (300 if mode == "bytes" else 100_000)
            asked[prompt] = caller.ask(prompt, stream=number == 1), caller.port
        caller.close()
        check(agent.wait_for_exchanges(3), asked, pid)


@pytest.mark.parametrize("is_late", [False, True], ids=["running", "forked-later"])
def test_what_forked_workers_say_is_theirs(is_late: bool) -> None:
    with plain_server("fork") as (pid, port), contextlib.ExitStack() as stack:
        early = None if is_late else PlainCaller(port)
        agent = stack.enter_context(Agent("--pid", str(pid), "--plain"))
        caller = early or PlainCaller(port)
        text = caller.ask("to a worker")
        (row,) = agent.wait_for_exchanges(1)
        assert (row["input_text"], row["output_text"], row["completeness"]) == ("to a worker", text, "complete")
        assert row["process"]["pid"] != pid
        caller.close()


def test_one_process_with_and_without_tls_is_seen_once_each(certificate: Certificate) -> None:
    encrypted = free_port()
    with plain_server("both", str(encrypted), str(certificate.cert), str(certificate.key)) as (pid, port):
        with Agent("--pid", str(pid), "--plain") as agent:
            asked = {}
            for number in range(7):
                asked[f"plain {number}"] = ask_plain(port, f"plain {number}")
                asked[f"tls {number}"] = ask_once(encrypted, certificate.cert, f"tls {number}")
            check(agent.wait_for_exchanges(14), asked, pid)
        assert "7 connections; " in agent.said.partition("TLS calls")[2].partition("plain calls")[0]


def test_a_client_behind_a_proxy_is_seen_once(certificate: Certificate, tmp_path: Path) -> None:
    """CONNECT is plain HTTP, what follows on the same socket is TLS, here over memory: the TLS library's side is the one that counts."""
    encrypted, proxy = free_port(), free_port()
    script = tmp_path / "client.py"
    script.write_text(_TUNNELLING)
    with plain_server("both", str(encrypted), str(certificate.cert), str(certificate.key)), _proxy(proxy):
        command = ["python3", str(script), str(proxy), str(encrypted), str(certificate.cert)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            assert client.stdout.readline() == b"ready\n"
            with Agent("--pid", str(client.pid), "--plain") as agent:
                client.stdin.write(b"go\n")
                client.stdin.close()
                assert b"echo tunnelled" in client.stdout.read()
                rows = agent.wait_for_exchanges(1, input_text="tunnelled")
                assert [row["completeness"] for row in rows] == ["complete"]
            said = agent.said.partition("plain calls (")[2]
            assert int(said.partition(" bytes")[0].replace(",", "")) < 500, "what TLS made of it was copied"


def test_a_connection_that_was_there_before_is_seen_from_its_next_request() -> None:
    with plain_server("threads") as (pid, port):
        caller = PlainCaller(port)
        caller.ask("before")
        with Agent("--pid", str(pid), "--plain") as agent:
            asked = {f"after {number}": (caller.ask(f"after {number}"), caller.port) for number in range(3)}
            check(agent.wait_for_exchanges(3), asked, pid)
        caller.close()


def test_other_protocols_and_other_processes_are_left_out() -> None:
    with plain_server("read") as (pid, port), plain_server("threads") as (_, other), Agent("--pid", str(pid), "--plain") as agent:
        ask_plain(other, "another process")
        with connect(port) as sock:
            sock.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f" * 100)
        ask_plain(port, "this one")
        (row,) = agent.wait_for_exchanges(1)
        assert row["input_text"] == "this one"
    assert " 1 connections; decoded" in agent.said.partition("plain calls")[2]


@pytest.mark.parametrize("mode", ["sendfile", "uring-sends"])
def test_what_does_not_stand_in_memory_is_told_as_missing(mode: str) -> None:
    _needs_io_uring(mode)
    with plain_server(mode) as (pid, port), Agent("--pid", str(pid), "--plain") as agent:
        caller = PlainCaller(port)
        caller.ask("first")
        caller.ask("second")
        caller.close()
        rows = agent.wait_for_exchanges(2)
        assert [row["input_text"] for row in rows] == ["first", "second"], "the requests are whole, and each has its own answer"
        for row in rows:
            assert row["completeness"] == "gapped"
            assert "ebpf_unreadable" in {anomaly["name"] for anomaly in row["anomalies"]}
    assert "2 calls whose bytes could not be read from memory (sendfile" in agent.said


def test_a_connection_by_io_uring_alone_is_said() -> None:
    _needs_io_uring("uring")
    with plain_server("uring") as (pid, port):
        with Agent("--pid", str(pid), "--plain") as agent:
            ask_plain(port, "unseen")
        assert agent.exchanges() == []
        assert "1 sockets that began by io_uring, sendfile or the like: what they carry is not known" in agent.said


def test_node_is_captured(tmp_path: Path) -> None:
    port = free_port()
    server = tmp_path / "server.js"
    server.write_text(_NODE)
    with subprocess.Popen([program("node", "nodejs"), str(server), str(port)]) as node:
        try:
            wait_for_port(port, node)
            with Agent("--pid", str(node.pid), "--plain") as agent:
                asked = {f"node {number}": ask_plain(port, f"node {number}", stream=True) for number in range(13)}
                check(agent.wait_for_exchanges(13), asked, node.pid)
        finally:
            node.kill()


_NODE_HTTP2 = """
const events = ['h', 'i'].map(text => 'data: ' + JSON.stringify({id: 'c', object: 'chat.completion.chunk', model: 'm',
  choices: [{index: 0, delta: {content: text}}]}) + '\\n\\n');
require('http2').createServer((request, answer) => {
  request.on('data', () => {}).on('end', () => {
    answer.writeHead(200, {'content-type': 'text/event-stream'});
    answer.write(events[0]); answer.write(events[1]); answer.end('data: [DONE]\\n\\n');
  });
}).listen(+process.argv[2], '127.0.0.1');
"""


@pytest.mark.parametrize("side", ["server", "client"])
def test_http2_without_tls_is_captured(side: str, tmp_path: Path) -> None:
    """Of the process that answers, and of the one that asks."""
    port = free_port()
    server = tmp_path / "server.js"
    server.write_text(_NODE_HTTP2)
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "ask"}]})
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    ask = ["curl", "-sS", "--http2-prior-knowledge", "-H", "content-type: application/json", "-d", body, url]
    with subprocess.Popen([program("node", "nodejs"), str(server), str(port)]) as node:
        try:
            wait_for_port(port, node)
            chosen = ("--pid", str(node.pid)) if side == "server" else ("--comm", "curl")
            with Agent(*chosen, "--plain") as agent:
                subprocess.run(ask, check=True, capture_output=True, timeout=20)
                rows = agent.wait_for_exchanges(1)
        finally:
            node.kill()
    assert [(row["input_text"], row["output_text"], row["completeness"], row["http_version"]) for row in rows] == [
        ("ask", "hi", "complete", "2")
    ]
    assert {row["server"] for row in rows} == {f"127.0.0.1:{port}"}


def test_an_interface_wins_over_sockets_unless_both_are_asked_for() -> None:
    with plain_server("threads") as (pid, port):
        for options, times in ((("--no-plain",), 1), (("--plain",), 2)):
            with Agent("--pid", str(pid), "--iface", "lo", "--port", str(port), *options) as agent:
                ask_plain(port, "seen")
                rows = agent.wait_for_exchanges(times)
            assert [row["input_text"] for row in rows] == ["seen"] * times


def test_user_nobody_with_three_capabilities_reads_it() -> None:
    held = "+bpf,+perfmon,+sys_ptrace"
    prefix = (
        program("setpriv", "util-linux"),
        f"--bounding-set=-all,{held}",
        f"--inh-caps=-all,{held}",
        f"--ambient-caps=-all,{held}",
        "--reuid=65534",
        "--clear-groups",
    )
    importing = [*prefix, sys.executable, "-c", "import llmsec_tap.capture.live.capture"]
    if subprocess.run(importing, env=environment(), check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("the interpreter or the checkout is not readable by other users")
    with plain_server("threads") as (pid, port), Agent("--pid", str(pid), "--plain", prefix=prefix, env={"HOME": "/"}) as agent:
        asked = {f"call {number}": ask_plain(port, f"call {number}") for number in range(3)}
        check(agent.wait_for_exchanges(3), asked, pid)


@pytest.mark.parametrize("ending", ["until-close", "half-close", "reset"])
def test_an_answer_is_read_to_its_end_however_the_connection_ends(ending: str, tmp_path: Path) -> None:
    """The client reads only after the server's end has come, and goes on to live."""
    script = tmp_path / "client.py"
    script.write_text(_PATIENT)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        subprocess.Popen(["python3", str(script), ending], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client,
    ):
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        with Agent("--pid", str(client.pid), "--plain") as agent:
            client.stdin.write(b"%d\n" % listener.getsockname()[1])
            client.stdin.flush()
            sock, _ = listener.accept()
            request = b""
            while not request.endswith(b"}"):
                request += sock.recv(65_536)
            if ending == "half-close":
                assert sock.recv(1) == b""
            if ending == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            sock.sendall(b"" if ending == "until-close" else b"content-length: %d\r\n" % len(_ANSWER))
            sock.sendall(b"\r\n" + _ANSWER)
            sock.close()
            assert client.stdout.readline().endswith(b"}\n")
            (row,) = agent.wait_for_exchanges(1)
            assert (row["input_text"], row["output_text"], row["completeness"]) == ("patient", "at last", "complete"), row["anomalies"]
        client.stdin.close()
    assert " 1 connections; decoded" in agent.said.partition("plain calls")[2], "the answer was taken for another connection"


@pytest.mark.parametrize("is_own", [False, True])
def test_the_taps_own_listener_is_not_watched(is_own: bool) -> None:
    with plain_server("threads") as (pid, port):
        loader = CoreLoader(KernelSettings(only_targets=True, plain=True, listener_pid=pid if is_own else 0))
        try:
            loader.watch(pid)
            ask_plain(port, "a scrape")
            seen = [event for event in map(events.decode, loader.consume()) if event.pid == pid]
        finally:
            loader.close()
    assert bool(seen) is not is_own


def test_nothing_seen_is_explained(tmp_path: Path) -> None:
    with plain_server("threads") as (pid, port):
        for option, said in (("--no-plain", "plain HTTP was not looked at"), ("--plain", "nor spoke plain HTTP")):
            with Agent("--pid", str(pid), option) as agent:
                if option == "--no-plain":
                    ask_plain(port, "unseen")
            assert "no exchange: the chosen processes " in agent.said
            assert said in agent.said


def _needs_io_uring(mode: str) -> None:
    if mode.startswith("uring"):
        try:
            Ring()
        except OSError as refused:
            pytest.skip(f"io_uring cannot be used here: {refused}")


@contextlib.contextmanager
def _proxy(port: int) -> Iterator[None]:
    with subprocess.Popen(["python3", "-c", _PROXY, str(port)]) as process:
        try:
            wait_for_port(port, process)
            yield
        finally:
            process.kill()


_ANSWER = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "at last"}, "finish_reason": "stop"}],
    }
).encode()

_PATIENT = """
import json, socket, sys, time
print("ready", flush=True)
port = int(sys.stdin.readline())
sock = socket.create_connection(("127.0.0.1", port))
body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "patient"}]}).encode()
sock.sendall(b"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(body) + body)
if sys.argv[1] == "half-close":
    sock.shutdown(socket.SHUT_WR)
time.sleep(1)
answer = b""
while not answer.endswith(b"}"):
    answer += sock.recv(65536)
print(answer.decode().splitlines()[-1], flush=True)
sock.close()
sys.stdin.read()
"""

_PROXY = """
import socket, sys, threading
def pipe(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
def serve(sock):
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        data = sock.recv(65536)
        if not data:
            return
        head += data
    host, port = head.split()[1].decode().rsplit(":", 1)
    other = socket.create_connection((host, int(port)))
    sock.sendall(b"HTTP/1.1 200 Connection established\\r\\n\\r\\n")
    threading.Thread(target=pipe, args=(other, sock), daemon=True).start()
    pipe(sock, other)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""

_TUNNELLING = """
import json, socket, ssl, sys
proxy, port, cafile = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
context = ssl.create_default_context(cafile=cafile)
print("ready", flush=True)
sys.stdin.readline()
sock = socket.create_connection(("127.0.0.1", proxy))
sock.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\\r\\nhost: 127.0.0.1:%d\\r\\n\\r\\n" % (port, port))
assert b"200" in sock.recv(65536)
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
def do(call):
    while True:
        try:
            result = call()
        except ssl.SSLWantReadError:
            result = None
        data = outgoing.read()
        if data:
            sock.sendall(data)
        if result is not None:
            return result
        incoming.write(sock.recv(65536))
do(lambda: tls.do_handshake() or True)
body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "tunnelled"}]}).encode()
head = b"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(body)
do(lambda: tls.write(head + body))
answer = b""
while not answer.endswith(b"0\\r\\n\\r\\n"):
    answer += do(lambda: tls.read(65536))
print(answer.decode())
"""

_NODE = """
require("http").createServer((request, response) => {
  const parts = [];
  request.on("data", part => parts.push(part));
  request.on("end", () => {
    const content = JSON.parse(Buffer.concat(parts)).messages.at(-1).content;
    response.writeHead(200, {"content-type": "text/event-stream"});
    response.cork();
    for (const word of ["echo ", content, " by node"])
      response.write("data: " + JSON.stringify({id: "x", object: "chat.completion.chunk", model: "echo", choices: [{index: 0, delta: {content: word}, finish_reason: null}]}) + "\\n\\n");
    response.uncork();
    response.write("data: " + JSON.stringify({id: "x", object: "chat.completion.chunk", model: "echo", choices: [{index: 0, delta: {}, finish_reason: "stop"}]}) + "\\n\\n");
    response.end("data: [DONE]\\n\\n");
  });
}).listen(Number(process.argv[2]), "127.0.0.1");
"""
