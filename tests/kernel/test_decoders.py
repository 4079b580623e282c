"""Several decoders: together they record what one would, each connection in one of them, and no line of output in pieces."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.ebpf.core import CoreLoader
from llmsec_tap.capture.ebpf.loader_api import KernelSettings
from llmsec_tap.capture.ebpf.ring import Ring
from llmsec_tap.capture.live.queue import BatchQueue
from llmsec_tap.capture.packets.afpacket import PacketSource
from llmsec_tap.capture.packets.packet_socket import SOL_PACKET, open_packet_sockets, ring_blocks
from llmsec_tap.capture.probes.targets import TargetFinder
from llmsec_tap.clock import Clock
from support.agent import Agent, environment
from support.https_calls import Caller, ask_once, ask_together
from support.tls_echo import Handler
from support.tls_front import Certificate, children, free_port, python_server

ECHO = Path(__file__).parents[1] / "support/tls_echo.py"
PACKET_FANOUT = 18


@pytest.fixture
def echo(certificate: Certificate) -> Iterator[tuple[int, int]]:
    port = free_port()
    with python_server(ECHO, "threads", str(port), str(certificate.cert), str(certificate.key), port=port) as process:
        yield process.pid, port


def decoders_of(agent: Agent) -> list[int]:
    return sorted(pid for pid in children(agent.process.pid) if b"\0capture\0" in Path(f"/proc/{pid}/cmdline").read_bytes())


def cpu_ns(pid: int) -> int:
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1].replace(",", ""))


def test_two_record_all_of_many_connections_in_their_order(echo: tuple[int, int], certificate: Certificate, tmp_path: Path) -> None:
    """Forty connections, four exchanges on each, some of them streams and some with requests longer than a pipe takes at once."""
    pid, port = echo
    store = tmp_path / "store"
    with Agent("--pid", str(pid), "--detect", "--decoders", "2", "--store", str(store)) as agent:
        decoders = decoders_of(agent)
        assert len(decoders) == 2
        idle = [cpu_ns(decoder) for decoder in decoders]
        ports: dict[int, int] = {}

        def converse(caller_number: int) -> None:
            caller = Caller(port, certificate.cert)
            ports[caller_number] = caller.port
            for turn in range(4):
                prompt = f"caller {caller_number} turn {turn} " + "x" * (9000 if turn == 2 else 0)
                assert caller.ask(prompt, stream=turn % 2 == 1) == f"echo {prompt[:80]} of {len(prompt)}"
            caller.close()

        threads = [threading.Thread(target=converse, args=(caller_number,)) for caller_number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rows = agent.wait_for_exchanges(160, timeout_s=60)
        used = [cpu_ns(decoder) - before for decoder, before in zip(decoders, idle, strict=True)]
        assert min(used) > max(used) / 5, f"one of them did nearly all of the work: {used}"
    assert agent.exit_code == 0, agent.said
    printed = agent.exchanges()  # in the order of the lines
    for caller_number in range(40):
        of_one = [row["input_text"].split(" x")[0].strip() for row in printed if row["client"] == f"127.0.0.1:{ports[caller_number]}"]
        assert of_one == [f"caller {caller_number} turn {turn}" for turn in range(4)]
    assert {row["completeness"] for row in rows} == {"complete"}
    assert len({row["exchange_id"] for row in printed}) == len(printed) == 160
    assert number(r"([\d,]+) exchanges \(160 with a language model\)", agent.said) == 160, "the summary is of both"
    assert number(r"dropped: ([\d,]+) calls", agent.said) == 0
    assert number(r"seen [\d,]+ TLS calls \(([\d,]+) bytes\)", agent.said) == number(r"decoded ([\d,]+) bytes", agent.said)
    assert number(r"stored ([\d,]+) in", agent.said) == 160
    for once in ("capturing; Ctrl-C stops", "exchanges (", "findings: "):
        assert agent.said.count(once) == 1, agent.said
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "query", "SELECT count(*) AS n FROM exchanges", "--store", str(store)]
    assert "160" in subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number_", [signal.SIGKILL, signal.SIGSEGV])
def test_where_one_dies_the_tap_ends_and_the_other_keeps_what_it_has(
    echo: tuple[int, int], certificate: Certificate, victim: int, number_: signal.Signals, tmp_path: Path
) -> None:
    pid, port = echo
    with Agent("--pid", str(pid), "--decoders", "2", "--store", str(tmp_path / "store")) as agent:
        ask_together(port, certificate.cert, [f"hello {n}" for n in range(12)])
        agent.wait_for_exchanges(12)
        decoders = decoders_of(agent)
        os.kill(decoders[victim], number_)
        agent.exit_code = agent.process.wait(10)
        assert not any(Path(f"/proc/{decoder}").exists() for decoder in decoders)
        assert ask_once(port, certificate.cert, "still there")[0].startswith("echo")
    assert agent.exit_code == 128 + number_
    assert "the decoding process was ended by signal" in agent.said
    if victim == 1:  # the first, which says the summary, lives
        assert 0 < number(r"stored ([\d,]+) in", agent.said) < 12
        assert "without the counts of 1 of 2 decoders" in agent.said
    parts = list((tmp_path / "store").glob("exchanges/day=*/part-*.parquet"))
    assert parts, "what the other had is stored"


def test_the_time_is_over_for_all_at_once(echo: tuple[int, int], certificate: Certificate) -> None:
    pid, port = echo
    with Agent("--pid", str(pid), "--decoders", "3", "--duration", "2", "--memory-cap", "768") as agent:
        ask_together(port, certificate.cert, [f"hello {n}" for n in range(9)])
        begun = time.monotonic()
        agent.exit_code = agent.process.wait(10)
        assert time.monotonic() - begun < 5
    assert agent.exit_code == 0
    assert number(r"([\d,]+) exchanges \(", agent.said) == 9, agent.said
    assert "without the counts" not in agent.said


@pytest.mark.parametrize("interface", ["lo", "any"])
def test_two_read_all_of_an_interface(interface: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Agent("--iface", interface, "--port", str(port), "--decoders", "2") as agent:
            idle = [cpu_ns(decoder) for decoder in decoders_of(agent)]
            clients = [HTTPConnection("127.0.0.1", port) for _ in range(40)]
            for turn in range(3):
                for client_number, client in enumerate(clients):
                    prompt = f"caller {client_number} turn {turn}"
                    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}], "stream": turn == 1})
                    client.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
                    client.getresponse().read()
            for client in clients:
                client.close()
            rows = agent.wait_for_exchanges(120, timeout_s=60)
            assert min(cpu_ns(decoder) - before for decoder, before in zip(decoders_of(agent), idle, strict=True)) > 0
        server.shutdown()
    assert len(rows) == len({row["exchange_id"] for row in rows}) == 120
    assert {row["completeness"] for row in rows} == {"complete"}
    assert sorted(row["input_text"] for row in rows) == sorted(f"caller {n} turn {turn}" for n in range(40) for turn in range(3))
    assert agent.exit_code == 0, agent.said
    assert number(r"seen ([\d,]+) plain connections", agent.said) == 40
    assert agent.said.count("reading plain HTTP from") == 1


def test_packets_of_both_directions_go_to_one_decoder_and_to_no_other() -> None:
    port = free_port()
    sockets = open_packet_sockets("lo", frozenset((port,)), 2)
    groups = {sock.getsockopt(SOL_PACKET, PACKET_FANOUT) & 0xFFFF for sock in sockets}
    assert len(groups) == 1
    answering = threading.Thread(target=answer_all, args=(port, 40))
    answering.start()
    time.sleep(0.2)
    clients = set()
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            clients.add(client.getsockname()[1])
            client.sendall(b"?")
            assert client.recv(1) == b"!"
    answering.join()
    seen = [directions(sock, port) for sock in sockets]
    assert set(seen[0]) | set(seen[1]) == clients
    assert not set(seen[0]) & set(seen[1]), "a connection in two"
    assert min(map(len, seen)) >= 5, "they share"
    assert all(found == {"there", "back"} for of_one in seen for found in of_one.values())


def test_one_tap_has_nothing_to_do_with_the_sockets_of_another() -> None:
    first, second = open_packet_sockets("lo", None, 2), open_packet_sockets("lo", None, 2)
    assert first[0].getsockopt(SOL_PACKET, PACKET_FANOUT) != second[0].getsockopt(SOL_PACKET, PACKET_FANOUT)
    for sock in (*first, *second):
        sock.close()


def answer_all(port: int, count: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listening:
        for _ in range(count):
            with listening.accept()[0] as sock:
                sock.recv(1)
                sock.sendall(b"!")


def directions(sock: socket.socket, server: int) -> dict[int, set[str]]:
    """The clients' ports in a packet socket's ring, and which directions came."""
    found: dict[int, set[str]] = {}

    def handle(_ts_ns: int, data: bytes, start: int, _end: int, _on_wire: int) -> None:
        source, target = struct.unpack_from("!HH", data, start + 4 * (data[start] & 15))
        if source == server:
            found.setdefault(target, set()).add("back")
        else:
            found.setdefault(source, set()).add("there")

    queue = BatchQueue()
    source = PacketSource("lo", sock, queue, handle, Clock(), blocks=ring_blocks(2))
    source.start()
    time.sleep(0.3)
    source.stop()
    source.join(5)
    while (item := queue.get(0.0)) is not None:
        assert callable(item)
        item()
    return found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--decoders", "many"), "--decoders many is neither auto nor a number from 1 to 16"),
        (("--decoders", "17"), "--decoders 17 is neither auto nor a number from 1 to 16"),
        (("--decoders", "4", "--memory-cap", "512"), "4 decoders share a memory cap of 512 MiB, and each needs 192"),
        (("--decoders", "2", "--write", "x.pcapng"), "--write needs one decoder"),
    ],
)
def test_what_cannot_be_is_one_line(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmsec_agent.cli.tap.app", "capture", "--pid", "1", "--store", "none", *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


# TLS objects over memory, made anew for each line of input: their addresses are used again and again.
OBJECTS = """
import ssl, sys
server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=sys.argv[1])
server.load_cert_chain(sys.argv[1], sys.argv[2])
client.check_hostname = False
print("ready", flush=True)
for line in sys.stdin:
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)]
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
    for _ in range(int(line)):
        ends[0].write(b"x" * 100)
        ends[1].read(100)
    del ends, end
    print("done", flush=True)
"""


def test_who_was_not_told_of_an_end_gets_the_next_connection_of_that_object(certificate: Certificate) -> None:
    """Its ring was full. Else it would keep what was under way there until the process ends, as another one got the next."""
    loader = CoreLoader(KernelSettings(only_targets=True, ring_bytes=4096, rings=3))
    rings = [Ring(loader.ring_descriptor(each), loader.ring_bytes) for each in range(3)]
    command = [sys.executable, "-c", OBJECTS, str(certificate.cert), str(certificate.key)]

    def seen(writes: int) -> dict[int, int]:
        """TLS objects, and the ring where they were seen last."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{writes}\n")
        process.stdin.flush()
        process.stdout.readline()
        found: dict[int, int] = {}
        for each, ring in enumerate(rings):
            while records := ring.consume():
                found |= {event.connection: each for event in map(events.decode, records) if event.type == events.DATA}
        return found

    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            loader.watch(process.pid)
            for plan in TargetFinder().look(process.pid).plans:
                loader.attach(plan, process.pid)
            again = moved = 0
            for _ in range(20):
                before, after = seen(100), seen(1)  # a hundred fill the ring of each
                again += len(before.keys() & after.keys())
                moved += sum(before[pointer] != after[pointer] for pointer in before.keys() & after.keys())
            process.kill()
        assert again > 10, "no object had the address of an earlier one"
        assert moved == 0
    finally:
        for ring in rings:
            ring.close()
        loader.close()
