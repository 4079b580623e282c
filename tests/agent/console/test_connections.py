"""The console's server against clients that send nothing, read nothing, or watch too much."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from llmsec_agent.console import connections, handling
from llmsec_agent.console.connections import LiveResponse, Server, Watching
from llmsec_agent.console.handling import form_of
from llmsec_agent.console.serving import ServeSettings, tls_of
from llmsec_tap.storage import create_store
from support.agent import environment
from support.tls_talk import certificate

PIECE = b"x" * (1 << 20)


def application() -> Starlette:
    watching = Watching()

    async def form(request: Request) -> Response:
        return PlainTextResponse("none" if await form_of(request) is None else "some")

    async def much(_request: Request) -> Response:
        async def pieces() -> object:
            try:
                while True:
                    yield PIECE
                    await asyncio.sleep(0)
            finally:
                app.state.given_up.set()

        return StreamingResponse(pieces())

    async def live(request: Request) -> Response:
        async def lines() -> object:
            while not app.state.is_ending:
                yield b": nothing new\n\n"
                await asyncio.sleep(0.05)

        return LiveResponse(watching, request.query_params["user"], lines(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/form", form, methods=["POST"]), Route("/much", much), Route("/live", live)])
    app.state.is_ending, app.state.given_up = False, threading.Event()
    return app


@contextlib.contextmanager
def served(app: Starlette, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, server = listener.getsockname()[1], Server(app, context)
        thread = threading.Thread(target=server.serve_on, args=(listener,))
        thread.start()
        try:
            yield port
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join()


def status_of(port: int, path: str = "/nowhere") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def opened(port: int, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(sent)
    return client


def is_ended(client: socket.socket) -> bool:
    """By the other side; waits for it."""
    try:
        while client.recv(1 << 20):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost: x\r\nx-long: "])
def test_who_waits_without_asking_makes_room(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connections, "MOST", 20)
    with served(application()) as port, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(opened(port, sent)) for _ in range(25)]
        assert status_of(port) == 404
        assert all(is_ended(client) for client in silent[:5])


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost: x\r\nx-long: "])
def test_a_head_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    with served(application()) as port, opened(port, sent) as client:
        assert is_ended(client)


def test_a_form_that_does_not_come_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handling, "FORM_S", 0.3)
    with served(application()) as port, opened(port, b"POST /form HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\na=1") as client:
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.read() == b"none"


def test_an_answer_that_is_not_read_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_S", 0.3)
    app = application()
    with served(app) as port, opened(port, b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n") as client:
        client.recv(1)
        assert app.state.given_up.wait(60)


def test_one_user_has_so_many_live_pages_and_others_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_LIVE_OF_ONE", 2)
    monkeypatch.setattr(connections, "MOST_LIVE", 3)
    with served(application()) as port, contextlib.ExitStack() as stack:

        def watch(user: str) -> tuple[socket.socket, bytes]:
            client = stack.enter_context(opened(port, f"GET /live?user={user} HTTP/1.1\r\nhost: x\r\n\r\n".encode()))
            return client, client.recv(12)

        said = [watch("ann") for _ in range(3)]
        assert [line[9:] for _, line in said] == [b"200", b"200", b"503"]
        assert [watch(user)[1][9:] for user in ("bob", "eve")] == [b"200", b"503"]
        assert status_of(port) == 404
        said[0][0].close()
        wait_for(lambda: watch("ann")[1][9:] == b"200")


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def begun(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`serve` over a store, and the address that it prints."""
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "serve", "--store", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            found = re.search(r"https?://\S+", said)
            assert found is not None, said + process.stderr.read()
            process.stderr.readline()
            yield process, found[0]
        finally:
            process.kill()


def test_ctrl_c_ends_it_while_live_pages_are_open(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with begun(tmp_path / "store") as (process, address), httpx.Client(timeout=60) as client:
        client.get(address)
        with client.stream("GET", address.split("/login")[0] + "/live/events") as stream:
            assert stream.status_code == 200
            next(stream.iter_raw())
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""


def test_the_key_of_tls_is_read_before_rights_are_dropped(tmp_path: Path) -> None:
    """Where it is gone afterwards, as for a user who may not read it, TLS works all the same."""
    chain, key = certificate(tmp_path)
    context = tls_of(ServeSettings("store", certificate=str(chain), key=str(key)))
    key.unlink()
    with served(application(), context) as port:
        assert httpx.get(f"https://127.0.0.1:{port}/nowhere", verify=False, timeout=60).status_code == 404
