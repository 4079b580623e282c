"""aiohttp's sessions: what their records say of answers that end in other ways than whole, and that nothing of the application changes.

What is recorded of whole calls is compared with the wire in test_equal.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmsec_trace import Callback, InstrumentationConfig, RequestBlocked, SecurityConfig, flush, instrument, uninstrument
from llmsec_trace.clients import hooks_in
from support.sdk_recording import Recording, recording
from support.tls_front import make_certificate

aiohttp = pytest.importorskip("aiohttp", reason="in the dependency group `peers`")

BODY: Any = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
ANSWER = b'{"model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER
EVENT = b'data: {"model": "m", "choices": [{"index": 0, "delta": {"content": "Passive"}}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(EVENT), EVENT)


@dataclass
class Server:
    url: str
    was_asked: asyncio.Event


Act = Callable[[Any, Server], Awaitable[None]]


@asynccontextmanager
async def serving(answer: bytes, *, closes: bool = False, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server that says `answer` to whatever has come whole, and then waits, or closes."""
    was_asked = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next((line.split()[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), b"0")
                await reader.readexactly(int(length))
                was_asked.set()
                writer.write(answer)
                await writer.drain()
                if closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield Server(f"{'https' if context else 'http'}://127.0.0.1:{port}/v1/chat/completions", was_asked)


def played(sdk: Recording, act: Act, answer: bytes = b"", *, closes: bool = False, **options: Any) -> None:
    """One `act` of an application's with a recorded session, against a server that says `answer`."""

    async def run() -> None:
        async with serving(answer, closes=closes) as server, aiohttp.ClientSession(**options) as session:
            for hook, owner in hooks_in(session):
                hook.put(owner, sdk.recorder, again=True)
            await act(session, server)

    asyncio.run(run())


async def post(session: Any, server: Server) -> None:
    async with session.post(server.url, json=BODY) as answer:
        await answer.read()


def raising(error: Any, act: Act = post) -> Act:
    async def raises(session: Any, server: Server) -> None:
        with pytest.raises(error):
            await act(session, server)

    return raises


async def leave(session: Any, server: Server) -> None:
    async with session.post(server.url, json=BODY) as answer:
        await answer.content.readany()


async def forget(session: Any, server: Server) -> None:
    answer = await session.post(server.url, json=BODY)
    await answer.content.readany()
    del answer


async def cancelled(session: Any, server: Server) -> None:
    task = asyncio.create_task(post(session, server))
    await server.was_asked.wait()
    task.cancel()
    await task


SHORT = aiohttp.ClientTimeout(sock_read=0.2)


@pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning")
@pytest.mark.parametrize(
    ("act", "answer", "closes", "options", "error", "text"),
    [
        (raising(aiohttp.ServerDisconnectedError), b"", True, {}, "aiohttp.ServerDisconnectedError", None),
        (raising(aiohttp.ClientPayloadError), STREAM, True, {}, "aiohttp.ClientPayloadError", "Passive"),
        (raising(aiohttp.SocketTimeoutError), b"", False, {"timeout": SHORT}, "aiohttp.SocketTimeoutError", None),
        (raising(aiohttp.SocketTimeoutError), STREAM, False, {"timeout": SHORT}, "aiohttp.SocketTimeoutError", "Passive"),
        (raising(aiohttp.ClientResponseError), b"Nonsense\r\n\r\n", False, {}, "aiohttp.ClientResponseError", None),
        (raising(asyncio.CancelledError, cancelled), b"", False, {}, "asyncio.CancelledError", None),
        (leave, STREAM, False, {}, None, "Passive"),
        (forget, STREAM, False, {}, None, "Passive"),
    ],
)  # fmt: skip
def test_a_call_that_does_not_end_whole_raises_what_it_did_before_and_its_record_says_so(
    act: Act, answer: bytes, closes: bool, options: Any, error: str | None, text: str | None
) -> None:
    with recording() as sdk:
        played(sdk, act, answer, closes=closes, **options)
        gc.collect()  # aiohttp keeps an answer that nobody wants as long as its connection
        (record,) = sdk.flush()
        assert sdk.recorder.stats().waiting == 0
    assert (record.completeness, record.error_type, record.output_text, record.input_text) == ("aborted", error, text, "hello")


@pytest.mark.parametrize(
    ("answer", "closes"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + ANSWER, True),  # to the connection's end
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + WHOLE, False),
        (WHOLE + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", False),  # more than was asked for
        (WHOLE, False),
    ],
)
def test_an_answer_is_whole_however_it_is_framed_and_whatever_comes_with_it(answer: bytes, closes: bool) -> None:
    with recording() as sdk:
        played(sdk, post, answer, closes=closes)
        (record,) = sdk.flush()
    assert (record.completeness, record.output_text, record.status) == ("complete", "yes", 200)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabcdef",  # that nobody asked for
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nab",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/2 200\r\n\r\n",
        bytes(range(256)),
    ],
)
def test_an_answer_that_is_none_is_one_record_and_no_fault(answer: bytes) -> None:
    async def ask(session: Any, server: Server) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            await post(session, server)

    with recording() as sdk:
        played(sdk, ask, answer, closes=True)
        gc.collect()
        assert [record.input_text for record in sdk.flush()] == ["hello"]
        assert sdk.recorder.stats().waiting == 0


def test_what_cannot_be_connected_to_is_recorded() -> None:
    async def nowhere(session: Any, server: Server) -> None:
        await post(session, Server("http://127.0.0.1:1/v1/chat/completions", server.was_asked))

    with recording() as sdk:
        played(sdk, raising(aiohttp.ClientConnectorError, nowhere))
        (record,) = sdk.flush()
    assert (record.error_type, record.server, record.input_text) == ("aiohttp.ClientConnectorError", "127.0.0.1:1", "hello")


def test_a_connection_that_is_used_again_has_a_record_for_each_call() -> None:
    async def several(session: Any, server: Server) -> None:
        for number in range(5):
            async with session.post(server.url, json=BODY | {"model": f"m{number}"}) as answer:
                await answer.read()

    with recording() as sdk:
        played(sdk, several, WHOLE)
        records = sdk.flush()
    assert [record.request_model for record in records] == [f"m{number}" for number in range(5)]
    assert len({record.client for record in records}) == 1
    assert {record.output_text for record in records} == {"yes"}


def test_tls_is_recorded_in_the_clear(tmp_path: Path) -> None:
    files = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)

    async def run(sdk: Recording) -> None:
        async with serving(WHOLE, context=context) as server, aiohttp.ClientSession() as session:
            for hook, owner in hooks_in(session):
                hook.put(owner, sdk.recorder, again=True)
            async with session.post(server.url, json=BODY, ssl=False) as answer:
                assert await answer.read() == ANSWER

    with recording() as sdk:
        asyncio.run(run(sdk))
        (record,) = sdk.flush()
    assert (record.output_text, record.completeness) == ("yes", "complete")


def test_a_block_reaches_the_caller_and_nothing_is_sent() -> None:
    ssn = {"model": "m", "messages": [{"role": "user", "content": "my number is 219-09-9999"}]}
    rule = {"pattern": r"\d{3}-\d{2}-\d{4}", "type": "ssn", "action": "block"}

    async def ask(session: Any, server: Server) -> None:
        for how in ({"json": ssn}, {"json": ssn, "compress": "gzip"}, {"data": json.dumps(ssn)}):
            with pytest.raises(RequestBlocked):
                await session.post("http://127.0.0.1:1/v1/chat/completions", **how)
        await post(session, server)

    with recording(InstrumentationConfig(security=SecurityConfig(custom_rules=[rule], analysis_timeout_seconds=30))) as sdk:
        played(sdk, ask, WHOLE)
        records = sdk.flush()
        assert sdk.recorder.stats().blocked == 3
    assert [record.error_type for record in records] == ["llmsec_trace.RequestBlocked"] * 3 + [None]


def test_a_websocket_is_left_alone() -> None:
    from aiohttp import web

    async def echo(request: Any) -> Any:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async def run(sdk: Recording) -> None:
        application = web.Application()
        application.router.add_get("/v1/realtime", echo)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        async with aiohttp.ClientSession() as session:
            for hook, owner in hooks_in(session):
                hook.put(owner, sdk.recorder, again=True)
            async with session.ws_connect(f"ws://{host}:{port}/v1/realtime") as socket:
                await socket.send_str("x" * 100_000)
                assert await socket.receive_str() == "x" * 100_000
        await runner.cleanup()

    with recording() as sdk:
        asyncio.run(run(sdk))
        assert sdk.flush() == []
        assert sdk.recorder.stats().calls == 0


def stubborn(kind: type, name: str) -> type:
    """A class whose objects refuse what is put at `name`: as an aiohttp whose inner parts are others."""

    def __setattr__(self: Any, key: str, value: Any) -> None:
        if key == name:
            raise AttributeError(key)
        object.__setattr__(self, key, value)

    return type(kind.__name__, (kind,), {"__setattr__": __setattr__})


@pytest.mark.parametrize(
    "options",
    [
        {"request_class": stubborn(aiohttp.ClientRequest, "send")},
        {"response_class": stubborn(aiohttp.ClientResponse, "start")},
        {"request_class": type("Other", (aiohttp.ClientRequest,), {"body": property()})},
    ],
)
def test_other_inner_parts_cost_the_record_and_nothing_else(options: Any) -> None:
    async def several(session: Any, server: Server) -> None:
        for _ in range(2):
            async with session.post(server.url, json=BODY) as answer:
                assert await answer.read() == ANSWER

    with recording() as sdk:
        played(sdk, several, WHOLE, **options)
        assert sdk.recorder.flush(20)
        assert sdk.recorder.stats().faults == 2
        assert sdk.recorder.stats().waiting == 0


def test_sessions_that_are_made_later_are_recorded_until_it_is_undone() -> None:
    got: list[Any] = []
    original = aiohttp.ClientSession.__init__

    async def run() -> None:
        async with serving(WHOLE) as server:
            with instrument(config=InstrumentationConfig(destinations=[Callback(got.append)])):
                async with aiohttp.ClientSession() as session:
                    await post(session, server)
                    uninstrument(session)
                    assert "connect" not in vars(session.connector)
                    await post(session, server)
            assert aiohttp.ClientSession.__init__ is original
            async with aiohttp.ClientSession() as session:
                await post(session, server)

    asyncio.run(run())
    assert flush(60)
    assert [record.output_text for record in got] == ["yes"]
