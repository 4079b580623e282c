"""Calls over plain HTTP from the test's own process, also into the network namespace of another."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.agent import environment
from support.https_calls import Asking
from support.tls_front import free_port

SERVER = Path(__file__).with_name("plain_echo.py")
_NEW_NETWORK = 'ip link set lo up && [ -z "$GROUP" ] || echo $$ > "$GROUP/cgroup.procs"; exec "$@"'


def connect(port: int, network_of: int | None = None) -> socket.socket:
    """A thread of its own enters the namespace; the socket stays there."""

    def enter_and_connect() -> socket.socket:
        if network_of is not None:
            descriptor = os.open(f"/proc/{network_of}/ns/net", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(descriptor)
        return socket.create_connection(("127.0.0.1", port), timeout=60)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter_and_connect).result()


class PlainCaller(Asking):
    """One connection; `port` is its own end."""

    def __init__(self, port: int, network_of: int | None = None) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        sock = connect(port, network_of)
        self.connection.sock = sock
        self.port = sock.getsockname()[1]


def ask_plain(port: int, prompt: str, *, stream: bool = False, network_of: int | None = None) -> tuple[str, int]:
    """The answer's text and the client's port."""
    caller = PlainCaller(port, network_of)
    try:
        return caller.ask(prompt, stream=stream), caller.port
    finally:
        caller.close()


def ask_plain_together(port: int, prompts: list[str], network_of: int | None = None) -> dict[str, tuple[str, int]]:
    """All at once, streamed, a connection and thread each."""
    received: dict[str, tuple[str, int]] = {}

    def one(prompt: str) -> None:
        received[prompt] = ask_plain(port, prompt, stream=True, network_of=network_of)

    threads = [threading.Thread(target=one, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return received


@contextlib.contextmanager
def plain_server(
    mode: str, *arguments: str, own_network: bool = False, group: Path | None = None, python: str = sys.executable
) -> Iterator[tuple[int, int]]:
    """A server of plain_echo.py; its process id and port. `own_network`: in a network namespace that only it is in."""
    port = free_port()
    command = [python, str(SERVER), mode, str(port), *arguments]
    if own_network:
        command = ["unshare", "--net", "sh", "-euc", _NEW_NETWORK, "sh", *command]
    process = subprocess.Popen(command, env={**environment(), "GROUP": str(group or "")})
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                connect(port, process.pid if own_network else None).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nothing listens on {port} (exit {process.poll()})")
            time.sleep(0.05)
        yield process.pid, port
    finally:
        process.kill()
        process.wait()
