"""What scripts/try-kernel runs as the guest's only program: its lines begin with GUEST."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time

from llmsec_tap import seccomp
from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.ebpf.core import CoreLoader, supports_uprobe_multi
from llmsec_tap.capture.ebpf.loader_api import KernelSettings
from llmsec_tap.capture.prerequisites import check_host
from llmsec_tap.capture.probes.targets import TargetFinder
from llmsec_tap.errors import LLMSecError

CALLS = 3


def call(kind: str, port: int) -> None:
    connection: socket.socket = socket.create_connection(("127.0.0.1", port))
    if kind == "tls":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = context.wrap_socket(connection)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: guest\r\n\r\n")
    connection.recv(4096)
    connection.close()


def tapped(kind: str, port: int) -> str:
    """How many records of how many calls were seen; two calls a connection."""
    server = subprocess.Popen(
        [sys.executable, "/guest/server.py", "plain" if kind == "plain" else "tls", str(port)], stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    server.stdout.readline()
    client = subprocess.Popen(["/guest/client", str(port)]) if kind == "go" else None
    time.sleep(1)
    try:
        loader = CoreLoader(KernelSettings(only_targets=True, ring_bytes=1 << 20, plain=True), multi=supports_uprobe_multi())
        pid = client.pid if client is not None else server.pid
        loader.watch(pid)
        found = TargetFinder().look(pid)
        for plan in found.plans:
            loader.attach(plan, pid)
        for _ in range(CALLS if client is None else 0):
            call(kind, port)
        if client is not None:
            client.wait(120)
        time.sleep(1)
        seen = [event for event in map(events.decode, loader.consume()) if event.type == events.DATA]
        loader.close()
        addressed = sum(events.addresses(event) is not None for event in seen)
        probes = ", ".join(f"{len(plan.probes)} in {plan.library}" for plan in found.plans)
        return f"{len(seen)} of {2 * CALLS} calls seen, {addressed} with addresses ({loader.method}; probes: {probes or 'none'})"
    except LLMSecError as fault:
        return str(fault)
    finally:
        server.kill()
        if client is not None:
            client.kill()


def confined() -> str:
    is_confined = seccomp.confine()
    try:
        socket.socket()
    except OSError as refused:
        return f"confined: {is_confined}; a socket is refused ({refused.strerror})"
    return "NOT CONFINED"


print("GUEST", *os.uname()[2:5:2], flush=True)
for finding in check_host():
    print("GUEST check", finding.verdict, finding.name, finding.detail, flush=True)
for number, kind in enumerate(("tls", "plain", "go")):
    print("GUEST", kind, tapped(kind, 4430 + number), flush=True)
print("GUEST", confined(), flush=True)
print("GUEST DONE", flush=True)
