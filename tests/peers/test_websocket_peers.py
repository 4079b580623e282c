"""Real clients and servers of WebSocket, through a relay that writes down what passes: the openai and google-genai clients, and websockets."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from support.recording_relay import Relay
from support.replay import replay

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]
websockets = pytest.importorskip("websockets", reason="in the dependency group `peers`")

WORDS = ["The ", "quick ", "brown ", "fox."] * 5
SOUND = base64.b64encode(bytes(24_000)).decode()
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


async def realtime(socket: Any) -> None:
    """Each `response.create` is answered with words, as text, or as sound and its transcript; a question for the time with a call."""

    async def send(kind: str, **more: Any) -> None:
        await socket.send(json.dumps({"type": kind, "event_id": "event_1", **more}))

    session: dict[str, Any] = {"type": "realtime", "object": "realtime.session", "id": "sess_1", "model": "gpt-realtime"}
    await send("session.created", session=session)
    number = 0
    async for message in socket:
        event = json.loads(message)
        if event["type"] == "session.update":
            session.update(event["session"])
            await send("session.updated", session=session)
        if event["type"] == "conversation.item.create":
            await send("conversation.item.added", item={"id": "item_0", "status": "completed", **event["item"]})
        if event["type"] != "response.create":
            continue
        number += 1
        place = {"response_id": f"resp_{number}", "item_id": f"item_{number}", "output_index": 0}
        response: dict[str, Any] = {"object": "realtime.response", "id": f"resp_{number}", "status": "in_progress", "output": []}
        await send("response.created", response=response)
        if "audio" in session.get("output_modalities", []):
            for word in WORDS:
                await send("response.output_audio.delta", **place, content_index=0, delta=SOUND)
                await send("response.output_audio_transcript.delta", **place, content_index=0, delta=word)
            output = {"type": "message", "role": "assistant", "content": [{"type": "output_audio", "transcript": "".join(WORDS)}]}
        else:
            for word in WORDS:
                await send("response.output_text.delta", **place, content_index=0, delta=word)
            output = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "".join(WORDS)}]}
        usage = {"total_tokens": 30, "input_tokens": 10, "output_tokens": 20, "input_token_details": {"cached_tokens": 2}}
        await send("response.done", response={**response, "status": "completed", "output": [output], "usage": usage})


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


async def responses(socket: Any) -> None:
    number = 0
    async for message in socket:
        asked = json.loads(message)
        assert asked["type"] == "response.create"
        number += 1
        base = {"id": f"resp_{number}", "object": "response", "created_at": 1, "model": "gpt-5", "status": "in_progress", "output": [],
                "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
        sequence = iter(range(1000))

        async def send(kind: str, sequence: Iterator[int] = sequence, **more: Any) -> None:
            await socket.send(json.dumps({"type": kind, "sequence_number": next(sequence), **more}))

        await send("response.created", response=base)
        for word in WORDS:
            await send("response.output_text.delta", item_id="msg_1", output_index=0, content_index=0, delta=word, logprobs=[])
        content = [{"type": "output_text", "text": "".join(WORDS), "annotations": []}]
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
        await send("response.completed", response={**base, "status": "completed", "output": [item]})


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


async def live(socket: Any) -> None:
    """Frames are binary, as Google's are."""

    async def send(value: dict[str, Any]) -> None:
        await socket.send(json.dumps(value).encode())

    async for message in socket:
        said = json.loads(message)
        if "setup" in said:
            await send({"setupComplete": {}})
            continue
        for word in WORDS:
            await send({"serverContent": {"modelTurn": {"role": "model", "parts": [{"text": word}]}}})
        await send({"serverContent": {"generationComplete": True}})
        await send({"serverContent": {"turnComplete": True}, "usageMetadata": {"promptTokenCount": 4, "responseTokenCount": 20}})


def test_the_gemini_client_speaks_live() -> None:
    genai = pytest.importorskip("google.genai", reason="in the dependency group `peers`")
    read: list[str] = []

    async def client(port: int) -> None:
        vendor = genai.Client(api_key="AIzaTest", http_options={"base_url": f"http://127.0.0.1:{port}", "api_version": "v1beta"})
        vendor._api_client._websocket_base_url = lambda *_options: f"ws://127.0.0.1:{port}"  # else it is TLS in any case
        vendor._api_client._websocket_ssl_ctx = {}
        config = {"response_modalities": ["TEXT"], "system_instruction": "Be kind."}
        async with vendor.aio.live.connect(model="gemini-live", config=config) as session:
            for question in ("one?", "two?"):
                await session.send_client_content(turns={"role": "user", "parts": [{"text": question}]}, turn_complete=True)
                read.extend([message.text async for message in session.receive() if message.text])

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
