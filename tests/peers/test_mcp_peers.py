"""The official `mcp` client and server, over each of their transports, through a relay that writes down what passes."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from llmsec_tap.model import Exchange
from support.recording_relay import Relay
from support.replay import replay

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]
Context = pytest.importorskip("mcp.server.mcpserver", reason="in the dependency group `peers`").Context  # told by name in annotations
uvicorn = pytest.importorskip("uvicorn", reason="in the dependency group `peers`")


def server(name: str) -> Any:
    """`json` answers whole, `stream` as events, `older` by the transport with two routes."""
    from mcp import types
    from mcp.server.mcpserver import MCPServer

    found = MCPServer("fox house", instructions="Call find before anything else.")

    @found.tool(description="Find a thing by its name.")
    def find(q: str) -> str:
        return f"The {q} is quick."

    @found.tool(description="Ask the model of the client.")
    async def wonder(ctx: Context) -> str:  # type: ignore[valid-type]
        message = types.SamplingMessage(role="user", content=types.TextContent(type="text", text="Name a fox."))
        said = await ctx.session.create_message(messages=[message], max_tokens=10, related_request_id=ctx.request_id)
        return f"It said {said.content.text}."  # type: ignore[union-attr]

    @found.tool(description="It always fails.")
    def fail() -> str:
        raise ValueError("no such fox")

    @found.prompt()
    def review(code: str) -> str:
        return f"Review this: {code}"

    return found.sse_app() if name == "older" else found.streamable_http_app(json_response=name == "json")


@pytest.fixture
def serve() -> Iterator[Callable[[str], int]]:
    running: list[tuple[Any, threading.Thread]] = []

    def start(name: str) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        instance = uvicorn.Server(uvicorn.Config(server(name), log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=instance.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((instance, thread))
        for _ in range(200):
            if instance.started:
                break
            threading.Event().wait(0.05)
        return port

    yield start
    for instance, thread in running:
        instance.should_exit = True
        thread.join(timeout=10)


async def sampled(_context: Any, _params: Any) -> Any:
    from mcp import types

    return types.CreateMessageResult(role="assistant", content=types.TextContent(type="text", text="Reynard"), model="claude-x")


def record(port: int, use: Callable[[Any], Awaitable[None]], mode: str, transport: str = "mcp") -> list[Exchange]:
    from mcp import Client
    from mcp.client.sse import sse_client

    async def talk(relayed: int) -> None:
        url = f"http://127.0.0.1:{relayed}/{transport}"
        async with Client(sse_client(url) if transport == "sse" else url, mode=mode, sampling_callback=sampled) as client:
            await use(client)

    with Relay(port) as relay:
        asyncio.run(asyncio.wait_for(talk(relay.port), 30))
        capture = relay.capture()
    exchanges, pipeline = replay(capture)
    assert pipeline.protocols == {}
    return exchanges


async def ordinary(client: Any) -> None:
    assert {tool.name for tool in (await client.list_tools()).tools} == {"find", "wonder", "fail"}
    assert (await client.call_tool("find", {"q": "fox"})).content[0].text == "The fox is quick."
    assert (await client.call_tool("fail", {})).is_error
    await client.get_prompt("review", {"code": "def f(): pass"})


@pytest.mark.parametrize("name", ["json", "stream"])
@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_streamable_http(serve: Callable[[str], int], name: str, mode: str) -> None:
    exchanges = record(serve(name), ordinary, mode)
    assert {exchange.provider for exchange in exchanges if exchange.method == "POST"} == {"mcp"}
    found = {exchange.api: exchange for exchange in exchanges if exchange.error_type is None}
    call, tools, prompt = found["mcp.tools/call"], found["mcp.tools/list"], found["mcp.prompts/get"]
    assert call.request.messages[0].parts[0].arguments == '{"q":"fox"}'
    assert next(part.content for message in call.response.messages for part in message.parts) == "The fox is quick."
    assert ("find", "Find a thing by its name.") in [(tool.name, tool.description) for tool in tools.request.tools]
    assert "Review this: def f(): pass" in str(prompt.response.messages)
    assert [exchange.error_type for exchange in exchanges if exchange.error_type] == ["tool_error"]
    assert {exchange.completeness for exchange in exchanges if exchange.method == "POST"} == {"complete"}
    told = [part.content for e in exchanges for message in e.response.messages for part in message.parts if part.name == "instructions"]
    assert told == ["Call find before anything else."]
    if mode == "legacy":
        assert call.session_id is not None
        assert call.session_id == tools.session_id


def test_sampling_is_in_the_call_that_asked_and_in_the_answer_of_the_client(serve: Callable[[str], int]) -> None:
    async def use(client: Any) -> None:
        assert (await client.call_tool("wonder", {})).content[0].text == "It said Reynard."

    exchanges = record(serve("stream"), use, "legacy")
    (call,) = [exchange for exchange in exchanges if exchange.api == "mcp.tools/call"]
    (answer,) = [exchange for exchange in exchanges if exchange.api == "mcp.sampling/createMessage"]
    asked = call.response.messages[0].parts[0]
    assert (asked.name, asked.content) == ("sampling/createMessage", "Name a fox.")
    assert answer.request.messages[0].parts[0].content == "Reynard"
    assert (answer.response_id, answer.session_id) == (asked.id, call.session_id)


def test_the_older_transport(serve: Callable[[str], int]) -> None:
    exchanges = record(serve("older"), ordinary, "legacy", "sse")
    (stream,) = [exchange for exchange in exchanges if exchange.method == "GET"]
    calls = [exchange for exchange in exchanges if exchange.api == "mcp.tools/call"]
    assert [exchange.request.messages[0].parts[0].name for exchange in calls] == ["find", "fail"]
    assert (stream.provider, stream.api) == ("mcp", "mcp.other")
    assert "The fox is quick." in str(stream.response.messages)
    assert {tool.name for tool in stream.request.tools} == {"find", "wonder", "fail"}
