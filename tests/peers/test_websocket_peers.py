"""Real clients and servers of WebSocket, through a relay that writes down what passes: the openai and google-genai clients, and websockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from support.recording_relay import Relay
from support.replay import replay
from support.websocket_models import SOUND, WORDS, ask_gemini_live, live, realtime, responses

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]
websockets = pytest.importorskip("websockets", reason="in the dependency group `peers`")

Handler = Callable[[Any], Awaitable[None]]


def run(handler: Handler, client: Callable[[int], Awaitable[None]], **options: Any) -> bytes:
    """What a server with this handler and a client said to each other, as a capture."""

    async def talk() -> bytes:
        async with websockets.serve(handler, "127.0.0.1", 0, **options) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            with Relay(port) as relay:
                await asyncio.wait_for(client(relay.port), 30)
                return await asyncio.to_thread(relay.capture)

    return asyncio.run(talk())


# --- OpenAI --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_the_openai_client_speaks_realtime(modality: str) -> None:
    openai = pytest.importorskip("openai", reason="in the dependency group `peers`")
    read: list[str] = []

    async def client(port: int) -> None:
        vendor = openai.AsyncOpenAI(api_key="sk-test", websocket_base_url=f"ws://127.0.0.1:{port}/v1")
        async with vendor, vendor.realtime.connect(model="gpt-realtime") as connection:
            await connection.session.update(session={"type": "realtime", "instructions": "Be brief.", "output_modalities": [modality]})
            for question in ("one?", "two?"):
                if modality == "audio":
                    await connection.input_audio_buffer.append(audio=SOUND)
                content = [{"type": "input_text", "text": question}]
                await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
                await connection.response.create()
                async for event in connection:
                    if event.type in ("response.output_text.delta", "response.output_audio_transcript.delta"):
                        read.append(event.delta)
                    if event.type == "response.done":
                        break

    exchanges, pipeline = replay(run(realtime, client))
    exchanges = [exchange for exchange in exchanges if exchange.api is not None]
    assert "".join(read) == "".join(WORDS) * 2
    assert [(e.api, e.input_text, e.output_text, e.completeness) for e in exchanges] == [
        ("openai.realtime", question, "".join(WORDS), "complete") for question in ("one?", "two?")
    ]
    for exchange in exchanges:
        assert (exchange.usage.input_tokens, exchange.usage.output_tokens, exchange.usage.cached_input_tokens) == (10, 20, 2)
        assert exchange.request.messages[0].parts[0].content == "Be brief."
        assert (exchange.request_model, exchange.api_key_fingerprint is not None) == ("gpt-realtime", True)
        if modality == "audio":
            assert exchange.request.parameters["output_audio_seconds"] == 10.0
            assert exchange.request.parameters["input_audio_seconds"] == 0.5
    assert pipeline.anomalies == {}


def test_the_openai_client_speaks_responses_over_websocket() -> None:
    openai = pytest.importorskip("openai", reason="in the dependency group `peers`")
    read: list[str] = []

    async def client(port: int) -> None:
        vendor = openai.AsyncOpenAI(api_key="sk-test", websocket_base_url=f"ws://127.0.0.1:{port}/v1")
        if not hasattr(vendor.responses, "connect"):
            pytest.skip("this openai client has no Responses over WebSocket")
        async with vendor, vendor.responses.connect() as connection:
            for question in ("one?", "two?"):
                await connection.response.create(model="gpt-5", input=question, instructions="Be brief.")
                async for event in connection:
                    if event.type == "response.output_text.delta":
                        read.append(event.delta)
                    if event.type == "response.completed":
                        break

    exchanges, pipeline = replay(run(responses, client))
    exchanges = [exchange for exchange in exchanges if exchange.api is not None]
    assert "".join(read) == "".join(WORDS) * 2
    assert [(e.api, e.framing, e.input_text, e.output_text, e.completeness) for e in exchanges] == [
        ("openai.responses", "websocket", question, "".join(WORDS), "complete") for question in ("one?", "two?")
    ]
    assert pipeline.anomalies == {}


# --- Gemini --------------------------------------------------------------------------------------------------------------


def test_the_gemini_client_speaks_live() -> None:
    pytest.importorskip("google.genai", reason="in the dependency group `peers`")
    read: list[str] = []

    async def client(port: int) -> None:
        read.extend(await ask_gemini_live(port))

    exchanges, pipeline = replay(run(live, client))
    exchanges = [exchange for exchange in exchanges if exchange.api is not None]
    assert "".join(read) == "".join(WORDS) * 2
    assert [(e.api, e.input_text, e.output_text, e.completeness, e.request_model) for e in exchanges] == [
        ("gemini.live", question, "".join(WORDS), "complete", "gemini-live") for question in ("one?", "two?")
    ]
    assert [(e.usage.input_tokens, e.usage.output_tokens) for e in exchanges] == [(4, 20)] * 2
    assert pipeline.anomalies == {}


# --- extensions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server_keeps", [True, False])
@pytest.mark.parametrize("client_keeps", [True, False])
@pytest.mark.parametrize("bits", [9, 15])
def test_websockets_deflates_as_it_negotiates(server_keeps: bool, client_keeps: bool, bits: int) -> None:
    from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, ServerPerMessageDeflateFactory

    asks = ClientPerMessageDeflateFactory(
        server_no_context_takeover=not server_keeps, client_no_context_takeover=not client_keeps, server_max_window_bits=bits,
        client_max_window_bits=bits,
    )  # fmt: skip
    grants = ServerPerMessageDeflateFactory(server_max_window_bits=bits, client_max_window_bits=bits)

    async def client(port: int) -> None:
        url = f"ws://127.0.0.1:{port}/v1/realtime?model=m"
        async with websockets.connect(url, extensions=[asks], compression=None) as socket:
            for n in range(3):
                question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": f"{n}" + "?" * 300}]}
                await socket.send(
                    [json.dumps({"type": "conversation.item.create", "item": question})[at : at + 50] for at in range(0, 450, 50)]
                )
                await socket.ping()
                await socket.send(json.dumps({"type": "response.create"}))
                while json.loads(await socket.recv())["type"] != "response.done":
                    pass

    exchanges, pipeline = replay(run(realtime, client, extensions=[grants], compression=None))
    assert [(e.input_text, e.output_text, e.completeness) for e in exchanges if e.api] == [
        (f"{n}" + "?" * 300, "".join(WORDS), "complete") for n in range(3)
    ]
    assert pipeline.anomalies == {}
